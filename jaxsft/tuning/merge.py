"""Adapters added to their base's weights, and what that changes of the logits."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxsft.errors import JaxsftError
from jaxsft.tuning import lora

LENGTH = 16
BOUND = 1e-3


def merged(network, params, dtype):
  """(parameters without adapters, the largest difference of logits, of the largest logit).

  params: float32, on the original weights. The sums are made in float32 and rounded once, to
  `dtype`, in which they are stored; logits are those of a few tokens. Raises JaxsftError
  where a difference above 1e-3 cannot come from rounding, as with float32.
  """
  whole = lora.merged(params)
  rounded = jax.tree.map(lambda leaf: leaf.astype(dtype).astype(jnp.float32), whole)
  ids = np.arange(LENGTH, dtype=np.int32)[None] * 7919 % network.arch.vocab
  batch = {"inputs": ids}
  if network.has_source and network.head.kind == "lm":
    batch["source"] = ids % (getattr(network.arch, "source_vocab", None) or network.arch.vocab)
  with jax.default_matmul_precision("highest"):
    logits = jax.jit(lambda p: network.logits(p, batch))
    apart, together = (np.asarray(logits(p), np.float32) for p in (params, rounded))
  error = float(np.abs(apart - together).max() / max(1.0, np.abs(apart).max()))
  if dtype == "float32" and not error <= BOUND:
    raise JaxsftError(
      f"found logits of the merged model that differ by {error:.3g} of the largest from those "
      f"of the adapter on its base, expected at most {BOUND}: this is a mistake in jaxsft, "
      "please report it; export with --format=peft"
    )
  return whole, error
