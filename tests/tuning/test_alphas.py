"""Which alpha a leaf has, and which row is chosen."""

import numpy as np
import pytest

from jaxsft.errors import JaxsftError, UsageError
from jaxsft.tuning import alphas

STACKS = {"decoder/layers": 0, "decoder/later": 1}
TREE = {
  "embed": {"tokens": {"embedding": np.zeros((9, 4))}},
  "decoder": {
    "layers": {
      "attn": {"q": {"kernel": np.zeros((12, 4, 4))}},
      "mlp": {"up": {"bias": np.zeros((12, 6))}},
    },
    "later": {"attn_norm": {"scale": np.zeros((11, 4))}},
  },
  "head": {"kernel": np.zeros((2, 4))},
}


def test_a_grid_is_numbers():
  assert alphas.grid("0:1:11") == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]
  assert alphas.grid("0.5,-0.25,0.5") == [-0.25, 0.5]
  for bad in ("", "0:1", "a,b", "0:1:0", "0:inf:3", "nan"):
    with pytest.raises(UsageError, match="--alphas="):
      alphas.grid(bad)


def test_groups_are_json_of_numbers():
  assert alphas.groups(None) == {}
  assert alphas.groups('{"embed": 0, "layers.0-5": 0.5}') == {"embed": 0.0, "layers.0-5": 0.5}
  for bad in ("[1]", "{", '{"a": "b"}', '{"a": NaN}', '{"a": null}'):
    with pytest.raises(UsageError, match="--alphas_of="):
      alphas.groups(bad)


def test_the_first_group_that_matches_counts():
  groups = {"embed": 0.0, "layers.1-3/attn": 0.5, "layers.1": 0.25, "mlp/.*/bias": 2.0}
  found = alphas.assign(TREE, STACKS, groups, 0.75)
  assert found["embed/tokens/embedding"] == 0 and found["head/kernel"] == 0.75
  np.testing.assert_array_equal(
    found["decoder/layers/attn/q/kernel"], [0.75, 0.5, 0.5, 0.5, *[0.75] * 8]
  )  # 1-3 are not 10 and 11
  np.testing.assert_array_equal(found["decoder/layers/mlp/up/bias"], [2.0, 0.25, *[2.0] * 10])
  # the first row of these is layer 1
  np.testing.assert_array_equal(found["decoder/later/attn_norm/scale"], [0.25, *[0.75] * 10])


@pytest.mark.parametrize(
  ("groups", "said"),
  (
    ({"embedd": 0}, "'embedd' matches no parameter"),
    ({"layers.12": 0}, "'layers.12' matches no parameter"),
    (
      {"layers": 0, "layers.3": 1},
      "'layers.3' matches no parameter that is not matched before",
    ),
    ({"layers.5-2": 0}, "ends before it begins"),
    ({"(": 0}, "no valid pattern"),
  ),
)
def test_a_group_of_nothing_is_refused(groups, said):
  groups = {r"layers\.\d+" if p == "layers" else p: a for p, a in groups.items()}
  with pytest.raises(UsageError, match=said):
    alphas.assign(TREE, STACKS, groups, 0.5)


def row(alpha, value, forgetting=0.0):
  return {"alpha": alpha, "value": value, "forgetting": forgetting}


def test_the_best_is_chosen_in_its_direction():
  rows = [row(0, 0.9), row(0.5, 0.95), row(1, 0.2)]
  assert alphas.choose(rows, "max")["alpha"] == 0.5
  assert alphas.choose(rows, "min")["alpha"] == 1


def test_of_equals_the_least_forgetting_then_the_largest_alpha():
  rows = [row(0, 0.9, 0.3), row(0.2, 0.9, 0.1), row(0.4, 0.9, 0.1), row(0.6, 0.8)]
  rows.append(row(0.5, 0.9, 0.2))
  assert alphas.choose(rows, "max")["alpha"] == 0.4
  rows = [{"alpha": a, "value": 0.9} for a in (0.0, 0.6, 0.3)]
  assert alphas.choose(rows, "max")["alpha"] == 0.6


def test_a_budget_of_forgetting_and_what_is_undefined():
  rows = [row(0, 0.9, 0.3), row(0.5, 0.8, 0.02), row(1, 0.7, 0.0), row(0.7, None)]
  assert alphas.choose(rows, "max", 0.02)["alpha"] == 0.5
  assert alphas.choose(rows, "max", 0.0)["alpha"] == 1
  with pytest.raises(JaxsftError, match="--max_forgetting=-1: found no alpha"):
    alphas.choose(rows, "max", -1)
  with pytest.raises(JaxsftError, match="undefined for every alpha"):
    alphas.choose([row(0, None), row(1, float("nan"))], "max")
