"""Parity of encoder-decoders for machines without torch: stored logits of torch."""

import jax
import numpy as np
import pytest

from tests.families import encoder_decoder_configs as configs
from tests.golden import make_encoder_decoders


@pytest.mark.parametrize("case", configs.CONFIGS)
def test_logits_are_those_of_torch(case):
  network, params, rows = make_encoder_decoders.problem(case)
  with np.load(make_encoder_decoders.FILE) as stored:
    expected = stored[case]
  with jax.default_matmul_precision("highest"):
    logits = np.asarray(jax.jit(network.logits)(params, rows))
  np.testing.assert_allclose(make_encoder_decoders.stored(logits, rows), expected, atol=1e-4)


def test_the_stored_logits_are_current(oracle):
  with np.load(make_encoder_decoders.FILE) as stored:
    assert set(stored) == set(configs.CONFIGS)
    for case in configs.CONFIGS:
      np.testing.assert_allclose(make_encoder_decoders.reference(case), stored[case], atol=1e-5)
