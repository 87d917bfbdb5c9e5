"""What a method chooses of a tree: leaves, layers of a stack, and nothing unsaid."""

import jax
import numpy as np
import pytest

from jaxsft import config, families, models, optim, preflight, stack, step
from jaxsft.errors import UsageError
from jaxsft.tuning import select
from tests import tiny

STACKS = {"layers": 0, "later": 1}
TREE = {
  "embed": {"tokens": {"embedding": np.zeros((5, 2))}},
  "layers": {
    "attn": {"q": {"kernel": np.arange(12.0).reshape(3, 2, 2), "bias": np.zeros((3, 2))}},
    "mlp_norm": {"scale": np.ones((3, 2))},
  },
  "later": {"attn_norm": {"scale": np.arange(4.0).reshape(2, 2)}},
  "norm": {"scale": np.ones(2)},
  "head": {"kernel": np.zeros((4, 2)), "bias": np.zeros(4)},
}
TOP = {"norm/scale", "head/kernel", "head/bias"}
STACKED = {"layers/attn/q/kernel", "layers/attn/q/bias", "layers/mlp_norm/scale"}
LATER = "later/attn_norm/scale"


def choose(method, patterns=(), tree=TREE, **more):
  return select.choose(tree, method, patterns, **({"stacks": STACKS} | more))


def test_last_layers_are_cut_from_the_stack_and_come_back():
  one, two, three = choose("last:1"), choose("last:2"), choose("last:3")
  assert one.paths == two.paths == three.paths == TOP | STACKED | {LATER}
  assert one.first == dict.fromkeys(STACKED, 2) | {LATER: 1}
  assert two.first == dict.fromkeys(STACKED, 1)  # all that the first layer lacks
  assert not three.first and not one.masks
  trainable, frozen = select.split(TREE, one)
  np.testing.assert_array_equal(trainable["later"]["attn_norm"]["scale"], [[2.0, 3.0]])
  assert frozen["layers"]["attn"]["q"]["kernel"].shape == (2, 2, 2)
  assert list(frozen) == ["embed", "layers", "later"]
  merged = step.merge(trainable, frozen)
  assert merged["layers"]["attn"]["q"]["kernel"].shape == (3, 2, 2)
  jax.tree.map(np.testing.assert_array_equal, stack.whole(merged), TREE)
  count = sum(one.trained(path, leaf) for path, leaf in select.paths(TREE))
  assert count == sum(leaf.size for _, leaf in select.paths(trainable))


def test_of_two_stacks_the_last_layers_are_the_decoders():
  module = families.FAMILIES["t5"]
  arch = module.architecture(tiny.T5 | {"vocab_size": 50, "num_decoder_layers": 3})
  network = models.Network(arch, families.head_of(module, arch, "lm", 0))
  shapes = network.shapes()
  chosen = select.choose(shapes, "last:2", stacks=network.stacks, has_head=False)
  assert {path.split("/layers/")[0] for path in chosen.first} == {"decoder"}
  rest = chosen.paths - set(chosen.first)
  assert rest == {"decoder/norm/scale", "lm_head/kernel"}  # it is untied
  assert set(chosen.first.values()) == {1}
  passed = select.passed(shapes, chosen)
  assert passed["encoder/layers/attn/o/kernel"] == 0
  assert passed["decoder/layers/attn/o/kernel"] == pytest.approx(2 / 3)
  with pytest.raises(UsageError, match=r"last:4'.*expected 1 to 3: the decoder has 3 layers"):
    select.choose(shapes, "last:4", stacks=network.stacks)


def test_the_table_names_layers_and_sizes():
  chosen, factors = choose("last:1"), {"layers/attn/q/kernel": np.array([0.5], np.float32)}
  rule = optim.Rule(None, None, factors, starts={LATER: 3})
  leaves = preflight.leaves_of(TREE, chosen, rule, "bfloat16")
  table = {leaf.path: leaf for leaf in leaves}
  query, later = table["layers/attn/q/kernel"], table[LATER]
  assert (query.layers, query.trained, query.rate, query.decays) == ([2], 4, [0.5], True)
  assert (query.dtype, later.dtype) == ("float64, frozen layers bfloat16", "float64")
  assert (later.layers, later.trained, later.start, later.decays) == ([2], 2, 3, False)
  assert (table["norm/scale"].layers, table["norm/scale"].trained) == (None, 2)
  still = table["embed/tokens/embedding"]
  assert (still.trained, still.layers, still.dtype) == (0, None, "bfloat16")


def test_decay_of_what_does_not_decay_is_said():
  def said(method, **settings):
    chosen, rule = choose(method, has_head=False), optim.Rule(None, None)
    leaves = preflight.leaves_of(TREE, chosen, rule, "float32")
    return [*preflight.without_effect(config.Optim(**settings), leaves)]

  assert said("norms") == said("norms", weight_decay=0.0, penalty_weight=0.0) == []
  assert said("last:1", weight_decay=0.5, penalty_weight=0.5) == []
  first, second = said("norms", weight_decay=0.5, penalty_weight=0.25)
  assert "config.optim.weight_decay is 0.5, but nothing that trains decays" in first
  assert "config.optim.penalty_weight is 0.25" in second


def test_last_layers_that_there_are_not():
  with pytest.raises(UsageError, match=r"last:4'.*found 4, expected 1 to 3.* has 3 layers"):
    choose("last:4")
  with pytest.raises(UsageError, match="all layers of this model have the same weights"):
    choose("last:1", stacks={})


def test_kinds_of_leaves_come_with_the_head_of_the_task():
  biases, norms = {"layers/attn/q/bias"}, {"layers/mlp_norm/scale", LATER, "norm/scale"}
  head = {"head/kernel", "head/bias"}
  assert choose("bias").paths == biases | head
  assert choose("norms").paths == norms | head
  assert choose("norms", has_head=False).paths == norms
  assert choose("head").paths == head
  no_bias = {"layers": {"q": {"kernel": np.zeros((3, 2, 2))}}, "head": TREE["head"]}
  with pytest.raises(UsageError, match="'bias': found no bias"):
    choose("bias", tree=no_bias)


def test_a_pattern_names_a_leaf_or_a_layer_of_it():
  one = choose("regex", (r"layers\.1/attn", "^head/bias"))
  assert one.paths == {"layers/attn/q/kernel", "layers/attn/q/bias", LATER, "head/bias"}
  rows = dict.fromkeys(STACKED - {"layers/mlp_norm/scale"}, (False, True, False))
  assert one.masks == rows | {LATER: (True, False)}
  assert choose("regex", (r"layers\.[12]/attn_norm",)).paths == {LATER}
  assert not choose("regex", (r"layers\.[12]/attn_norm",)).masks  # all of its rows
  both = choose("regex", (r"layers\.0/.*bias", r"layers\.2/.*bias"))
  assert both.masks == {"layers/attn/q/bias": (True, False, True)}
  assert not choose("regex", ("layers.attn.q",)).masks
  whole = choose("regex", (r"layers\.2/", "^head/"))
  assert whole.first == choose("last:1").first  # as cheap as that
  assert not whole.masks


def test_a_pattern_that_matches_nothing_names_what_is_near():
  with pytest.raises(UsageError, match=r"'attn/query' matches no.*near it are .*attn/q/kernel"):
    choose("regex", ("head", "attn/query"))
  with pytest.raises(UsageError, match=r"near it are layers\.\d"):
    choose("regex", (r"layers\.7/attn",))
  with pytest.raises(UsageError, match=r"'\(' is no valid pattern"):
    choose("regex", ("(",))


@pytest.mark.parametrize(
  ("patterns", "error"),
  [
    ({r"layers\.0/": 0.1}, "matches only parameters that do not train"),
    ({r"^layers/": 0.1, r"layers\.1/": 0.2}, "matches only parameters that patterns before it"),
  ],
)
def test_patterns_without_effect_on_a_row_that_trains_are_refused(patterns, error):
  tree = {
    "layers": {"attn": {"q": {"kernel": np.zeros((2, 1, 1))}}},
    "norm": {"scale": np.ones(1)},
  }
  stacks = {"layers": 0}
  chosen = select.choose(tree, "last:1", stacks=stacks)
  with pytest.raises(UsageError, match=error):
    select.values(tree, chosen, stacks, patterns, 1.0, "config.optim.rates")
