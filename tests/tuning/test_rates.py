"""Rates by depth and by pattern, beside a loop over leaves and layers."""

import numpy as np
import pytest

from jaxsft import families, models
from jaxsft.errors import UsageError
from jaxsft.tuning import rates, select
from tests import tiny
from tests.tuning.test_select import LATER, STACKS, TREE


def multipliers(method="all", tree=TREE, stacks=STACKS, **more):
  return rates.multipliers(tree, select.choose(tree, method, stacks=stacks), stacks, **more)


def test_layer_decay_is_that_of_a_loop_over_layers():
  found = multipliers(layer_decay=0.8)
  by_hand = {"embed": 0.8**4, 0: 0.8**3, 1: 0.8**2, 2: 0.8}  # BEiT's, of three layers
  assert found.keys() == {p for p, _ in select.paths(TREE)} - {"norm/scale"} - {
    "head/kernel", "head/bias"
  }  # fmt: skip
  np.testing.assert_allclose(found["embed/tokens/embedding"], by_hand["embed"])
  np.testing.assert_allclose(found[LATER], [by_hand[1], by_hand[2]], rtol=1e-6)
  np.testing.assert_allclose(found["layers/attn/q/kernel"], [by_hand[i] for i in range(3)])
  cut = multipliers("last:2", layer_decay=0.8)
  np.testing.assert_allclose(cut["layers/attn/q/kernel"], [by_hand[1], by_hand[2]], rtol=1e-6)
  assert "embed/tokens/embedding" not in cut
  assert multipliers() == {}


def test_each_of_two_stacks_counts_from_its_top():
  module = families.FAMILIES["t5"]
  arch = module.architecture(tiny.T5 | {"vocab_size": 50})
  network = models.Network(arch, families.head_of(module, arch, "lm", 0))
  found = rates.distances(network.shapes(), network.stacks)
  expected = {
    "embed/tokens/embedding": 3, "encoder/layers/attn/q/kernel": [2, 1],
    "encoder/norm/scale": 1, "decoder/layers/attn/q/kernel": [1], "decoder/norm/scale": 0,
    "lm_head/kernel": 0, "decoder/relative/embedding": 3,
  }  # fmt: skip
  for path, distance in expected.items():
    np.testing.assert_array_equal(found[path], distance, err_msg=path)


def test_the_first_pattern_that_matches_counts_beside_depth_and_adapter():
  patterns = {r"layers\.1/": 3.0, "layers/attn": 2.0, "^head": 10.0}
  more = {"head/bias": 16.0}
  found = multipliers(patterns=patterns, layer_decay=0.5, more=more)
  np.testing.assert_allclose(found["layers/attn/q/bias"], [2 / 8, 3 / 4, 2 / 2])
  np.testing.assert_allclose(found["layers/mlp_norm/scale"], [1 / 8, 3 / 4, 1 / 2])
  assert (found["head/kernel"], found["head/bias"]) == (10.0, 160.0)


def test_rates_of_nothing():
  with pytest.raises(UsageError, match=r"rates: 'atn/q' matches no.*near it are .*attn/q"):
    multipliers(patterns={"atn/q": 2.0})
  with pytest.raises(UsageError, match=r"'\^embed' matches only parameters that do not train"):
    multipliers("last:1", patterns={"^embed": 2.0})
  with pytest.raises(UsageError, match=r"layer_decay: found 0\.5.*the same weights"):
    multipliers(stacks={}, layer_decay=0.5)
