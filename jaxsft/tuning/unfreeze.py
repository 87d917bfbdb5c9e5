"""From which update on a leaf, or a layer of it, trains (ULMFiT, arXiv:1801.06146)."""

import numpy as np

from jaxsft.tuning import rates, select


def starts(tree, chosen, stacks, *, patterns=None, every=0, has_head=True):
  """{path: number of the first update that changes it} of what does not train at once.

  A number is an int, or int32 [rows] for the rows of a stacked leaf that train. patterns:
  {pattern: number}, the first that matches counts. every: one layer more after as many
  updates, from the top: heads and the last norm at 0, then the last layer, embeddings last;
  where the task has no head of its own the last layer begins, too. Raises UsageError for a
  pattern that matches nothing that trains.
  """
  if every:
    away = rates.distances(tree, stacks)
    later = {path: every * np.maximum(far - (not has_head), 0) for path, far in away.items()}
    cut = lambda path: later[path][chosen.first.get(path, 0) :]
    found = {p: cut(p) if np.ndim(later[p]) else later[p] for p in later if p in chosen}
  else:
    found = select.values(tree, chosen, stacks, patterns or {}, 0, "config.tune.unfreeze")
  return {
    path: rates.one_or_rows(start, np.int32) for path, start in found.items() if np.any(start)
  }
