"""Parity of the decoders for machines without torch; elsewhere `pytest -m full` runs this."""

import importlib.util

import jax
import numpy as np
import pytest

from tests.families import decoder_configs
from tests.golden import make_decoders

CASES = list(decoder_configs.CONFIGS)
alone = importlib.util.find_spec("torch") is None


@pytest.mark.parametrize(
  "case", [pytest.param(c, marks=() if alone else pytest.mark.full) for c in CASES]
)
def test_logits_are_those_of_torch(case):
  network, params, rows = make_decoders.problem(case)
  rows = {name: value[list(make_decoders.ROWS)] for name, value in rows.items()}
  with np.load(make_decoders.FILE) as stored, jax.default_matmul_precision("highest"):
    logits = np.asarray(jax.jit(network.logits)(params, rows))[..., : make_decoders.WORDS]
    real = rows["segments"] != 0
    np.testing.assert_allclose(logits[real], stored[case][real], atol=1e-4)


@pytest.mark.full
@pytest.mark.parametrize("case", CASES)
def test_the_stored_logits_are_current(oracle, case):
  with np.load(make_decoders.FILE) as stored:
    np.testing.assert_allclose(make_decoders.reference(case), stored[case], atol=1e-4)


def test_every_case_is_stored():
  with np.load(make_decoders.FILE) as stored:
    assert set(stored) == set(CASES)
