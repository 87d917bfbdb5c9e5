"""Token ids of the best continuations, for tests that look at nothing else."""

from jaxsft.generation import batches


def best_ids(network, params, prompts, **settings):
  """New ids of each prompt; settings: of `batches.continuations`."""
  return [best[0].ids for best in batches.continuations(network, params, prompts, **settings)]
