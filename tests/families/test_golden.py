"""Parity for machines without torch: stored logits of torch transformers."""

import jax
import numpy as np
import pytest

from tests.golden import make_golden


@pytest.mark.parametrize("name", make_golden.CASES)
def test_logits_are_those_of_torch(optimised, name):
  network, params, batch = make_golden.problem(name)
  with np.load(make_golden.DIRECTORY / "logits.npz") as stored:
    expected = stored[name]
  with jax.default_matmul_precision("highest"):
    logits = np.asarray(jax.jit(network.logits)(params, batch))
  real = logits[:, 0] if "sequence" in name else logits[batch["segments"] == 1]
  np.testing.assert_allclose(real, expected, atol=1e-4)


def test_the_stored_logits_are_current(oracle):
  with np.load(make_golden.DIRECTORY / "logits.npz") as stored:
    for name in make_golden.CASES:
      np.testing.assert_allclose(make_golden.reference(name), stored[name], atol=1e-5)
