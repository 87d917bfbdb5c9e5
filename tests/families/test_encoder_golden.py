"""Parity of encoders for machines without torch: stored logits of torch transformers."""

import jax
import numpy as np
import pytest

from tests.families.test_encoders import QUICK, highest, of_texts  # noqa: F401
from tests.golden import make_encoders


@pytest.mark.parametrize("name", make_encoders.CASES)
def test_logits_are_those_of_torch(name):
  network, params, batch, _ = make_encoders.problem(name)
  with np.load(make_encoders.FILE) as stored:
    expected = stored[name]
  logits = jax.jit(network.logits).lower(params, batch).compile(QUICK)(params, batch)
  ours = make_encoders.stored(of_texts(network, np.asarray(logits)))
  np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_the_stored_logits_are_current(oracle):
  with np.load(make_encoders.FILE) as stored:
    assert set(stored) == set(make_encoders.CASES)
    for name in make_encoders.CASES:
      np.testing.assert_allclose(make_encoders.reference(name), stored[name], atol=1e-5)
