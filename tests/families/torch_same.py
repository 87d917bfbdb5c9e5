"""Whether what torch read from an export is the model that was exported."""

import numpy as np


def same_weights(torch, old, new):
  """Asserts that two torch models have the same tensors, bit for bit."""
  before, after = old.state_dict(), new.state_dict()
  assert before.keys() == after.keys(), before.keys() ^ after.keys()
  for name, tensor in before.items():
    assert torch.equal(tensor, after[name]), name


def same_outputs(old, new):
  """Asserts that outputs of the same weights are alike but for rounding.

  torch's products round by where in memory the weights lie: on some machines two loads of one
  file differ in the last bits.
  """
  np.testing.assert_allclose(np.asarray(new), np.asarray(old), rtol=1e-5, atol=1e-5)
