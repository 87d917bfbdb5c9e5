"""Gradients of two trees, leaf by leaf: what the parity tests of all families ask."""

import jax
import numpy as np


def same_gradients(ours, theirs, unseen):
  """The largest difference; every leaf within 1e-3, absolute or of each number.

  unseen: parts of the names of leaves whose gradients may vanish; the others' may not, or
  equality would say nothing.
  """
  flat, worst = jax.tree_util.tree_leaves_with_path, 0.0
  for (path, a), (_, b) in zip(flat(ours), flat(theirs), strict=True):
    name = jax.tree_util.keystr(path)
    np.testing.assert_allclose(a, b, atol=1e-3, rtol=1e-3, err_msg=name)
    assert np.abs(b).max() > 1e-4 or any(part in name for part in unseen), name
    worst = max(worst, float(np.abs(a - b).max()))
  return worst
