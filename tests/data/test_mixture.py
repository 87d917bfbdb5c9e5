"""Draws of several sets: exact counts, every example of a set equally often, and no state."""

import hashlib
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsft.data import mixture, order
from jaxsft.errors import JaxsftError
from tests.data.test_order import PACKINGS, UNITS, ragged, training

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=4)


def drawing(sizes, counts, shuffled=0):
  """A Draw of sets of these sizes whose members lie in any order."""
  members = np.repeat(np.arange(len(sizes)), sizes)
  members = np.random.default_rng(shuffled).permutation(members)
  return mixture.make([f"set{s}" for s in range(len(sizes))], members, lambda _: counts)


SETS = st.lists(
  st.integers(1, 30).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, 3 * n))),
  min_size=1,
  max_size=4,
)
"""(examples, examples in an epoch) of each set."""


@settings(deadline=None, max_examples=200)
@given(SETS, st.integers(0, 9), st.integers(0, 2**40), st.integers(1, 6))
def test_counts_are_exact_and_no_example_is_ahead_by_two(sets, shuffled, seed, epochs):
  draw = drawing(*zip(*sets, strict=True), shuffled)
  times = np.zeros(len(draw.members), int)
  for epoch in range(epochs):
    found = mixture.order(draw, seed, epoch)
    assert Counter(draw.members[found].tolist()) == Counter(dict(enumerate(draw.counts)))
    for i in found.tolist():  # at any moment, not at the end of an epoch alone
      times[i] += 1
      own = times[draw.members == draw.members[i]]
      assert own.max() - own.min() <= 1
  assert (mixture.seen(draw, seed, epochs, [], len(times)) == times).all()


@settings(deadline=None, max_examples=60)
@given(SETS, st.integers(0, 99), st.integers(0, 5))
def test_an_epoch_is_a_function_of_its_number(sets, seed, epoch):
  draw = drawing(*zip(*sets, strict=True))
  again = mixture.Draw(draw.names, draw.members.copy(), draw.counts)
  assert (mixture.order(again, seed, epoch) == mixture.order(draw, seed, epoch)).all()


def test_other_seeds_epochs_and_passes_differ():
  draw = drawing([40, 60], [40, 30])
  found = [mixture.order(draw, *key).tolist() for key in ((0, 0), (1, 0), (0, 1))]
  assert len({tuple(one) for one in found}) == 3
  mine = [[i for i in one if draw.members[i] == 0] for one in found]
  assert len({tuple(one) for one in mine}) == 3  # seeds and passes of one set
  assert sorted(mine[0]) == sorted(mine[1]) == sorted(mine[2])
  for epoch in (found[0], found[2]):  # spread over the epoch, not one set after the other
    assert 8 < sum(draw.members[i] == 0 for i in epoch[:30]) < 26


def test_the_stream_of_a_set_does_not_depend_on_the_others():
  alone, both = drawing([20], [15]), drawing([20, 9], [15, 40])
  names = {i: k for k, i in enumerate(np.flatnonzero(both.members == 0).tolist())}
  for epoch in range(3):
    first = mixture.order(alone, 5, epoch).tolist()
    assert [names[i] for i in mixture.order(both, 5, epoch).tolist() if i in names] == first


def test_sets_of_one_size_go_their_own_ways():
  draw = drawing([50, 50], [50, 50])
  found = mixture.order(draw, 0, 0)
  ranks = [np.argsort(np.argsort(found[draw.members[found] == s])) for s in (0, 1)]
  assert ranks[0].tolist() != ranks[1].tolist()


@settings(deadline=None, max_examples=200)
@given(SIZES, st.data())
def test_weights_share_out_all_examples(sizes, data):
  weights = [data.draw(st.floats(0.01, 100)) for _ in sizes]
  counts = mixture.by_weights(sizes, weights)
  total, whole = sum(sizes), math.fsum(weights)
  exact = [total * w / whole for w in weights]
  for n, x in zip(counts, exact, strict=True):
    assert math.floor(x - 1e-9) <= n <= math.ceil(x + 1e-9) or n == 1
  assert sum(counts) == total or 1 in counts
  assert sum(counts) >= total


def test_weights_by_hand():
  assert mixture.by_weights([1000, 1000], [9, 1]) == [1800, 200]
  assert mixture.by_weights([5, 5, 5], [1, 1, 2]) == [4, 4, 7]  # 3.75, 3.75, 7.5
  assert mixture.by_weights([2, 2, 3], [1, 1, 1]) == [3, 2, 2]  # the first of equals
  assert mixture.by_weights([10, 3], [1e9, 1]) == [13, 1]  # never nothing


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 1 / 0.3, 100.0])
def test_temperature_is_the_published_formula(temperature):
  """T5: "raise each task's mixing rate r_m to the power of 1/T and renormalize"."""
  sizes = [12_345, 678, 40]
  rates = np.array(sizes) / sum(sizes)
  expected = rates ** (1 / temperature) / np.sum(rates ** (1 / temperature)) * sum(sizes)
  counts = mixture.by_temperature(sizes, temperature)
  assert sum(counts) - sum(sizes) in (0, 1)  # one, where a set would have none
  np.testing.assert_allclose(counts, expected, atol=1)


def test_epochs_and_balance_by_hand():
  assert mixture.by_epochs([10, 7, 3], [1, 0.5, 4]) == [10, 4, 12]
  assert mixture.by_epochs([10], [0.001]) == [1]
  assert mixture.as_the_largest([5, 90, 1]) == [90, 90, 90]


def test_an_empty_set_is_named():
  with pytest.raises(JaxsftError, match="no row of 'set1' has an example to train on"):
    drawing([3, 0, 2], [1, 1, 1])


# --- plans -------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("unit", UNITS)
def test_plans_draw_what_the_epoch_holds_and_resume_anywhere(unit, packing):
  lengths, draw = ragged(100), drawing([70, 30], [35, 75])
  changes = {"batch_unit": unit, "packing": packing, "accumulate": 2, "epochs": 4, "draw": draw}
  plan = training(lengths, **changes)
  epochs, times = {}, np.zeros(100, int)
  for step in range(plan.num_steps):
    met = [i for row in plan.batch(step) for i in row]
    assert sorted(met) == sorted(plan.examples(step).tolist())
    assert len(plan.batch(step)) == plan.shape(step)[0]
    epochs.setdefault(plan.epoch(step), []).extend(met)
    np.add.at(times, met, 1)
  assert list(epochs) == [0, 1, 2, 3]
  for epoch, met in epochs.items():
    assert sorted(met) == sorted(mixture.order(draw, 3, epoch).tolist())
  for s in (0, 1):
    assert np.ptp(times[draw.members == s]) <= 1
  fresh = training(lengths, **changes)
  for step in (plan.num_steps - 1, 2, 7):
    assert fresh.batch(step) == plan.batch(step) and fresh.shape(step) == plan.shape(step)
  assert fresh.digest("x") == plan.digest("x")


def test_epochs_of_packed_rows_may_differ_in_updates():
  lengths, draw = ragged(100), drawing([70, 30], [23, 10])
  plan = training(lengths, batch_unit="rows", batch_size=1, epochs=6, draw=draw)
  each = [len(order._draw(plan, epoch)) for epoch in range(6)]
  assert len(set(each)) > 1 and plan.num_steps == sum(each)
  met = [i for step in range(plan.num_steps) for i in plan.examples(step)]
  assert np.bincount(draw.members[met]).tolist() == [6 * 23, 6 * 10]


def test_the_mesh_changes_no_update():
  lengths, draw = ragged(100), drawing([70, 30], [35, 75])
  plan = training(lengths, draw=draw)
  other = training(lengths, draw=draw, row_multiple=4, accumulate=2)
  for step in range(plan.num_steps):
    assert sorted(plan.examples(step)) == sorted(other.examples(step))
  assert training(lengths, draw=draw, row_multiple=4).digest() == plan.digest()


def test_the_digest_tells_mixtures_apart():
  lengths, sizes = ragged(100), [70, 30]
  shapes = (([35, 75],), ([35, 76],), ([70, 30],), ([35, 75], 1))
  draws = [drawing(sizes, *rest) for rest in shapes]
  draws.append(mixture.Draw(("set0", "other"), draws[0].members, draws[0].counts))
  found = {training(lengths, draw=draw, steps=3).digest() for draw in draws}
  assert len(found | {training(lengths, steps=3).digest()}) == 6
  assert len({mixture.digest(draw) for draw in draws}) == 5  # not by the first update alone


def test_the_digest_sees_what_the_first_update_does_not(monkeypatch):
  lengths, draw = ragged(100), drawing([70, 30], [35, 75])
  whole = training(lengths, draw=draw).digest()
  monkeypatch.setattr(mixture, "digest", lambda draw: "another")
  assert training(lengths, draw=draw).digest() != whole


def test_the_summary_counts_what_a_run_meets():
  lengths, draw = ragged(100), drawing([70, 30], [35, 75])
  plan = training(lengths, draw=draw, epochs=2.6)
  met = np.concatenate([plan.examples(step) for step in range(plan.num_steps)])
  times, summary = np.bincount(met, minlength=100), plan.summary()
  assert summary["tokens"] == lengths[met].sum()
  for s, one in enumerate(summary["mixture"]):
    mine = draw.members == s
    assert one == {
      "name": f"set{s}",
      "examples": [70, 30][s],
      "an_epoch": [35, 75][s],
      "share": [35, 75][s] / 110,
      "drawn": times[mine].sum(),
      "seen": [times[mine].min(), times[mine].max()],
      "tokens": lengths[met[mine[met]]].sum(),
    }
  assert training(lengths).summary()["mixture"] == []


STORED = {
  ("examples", "pack"): "25bd051816b92cb3 68ac2b09d7aa1d37",
  ("examples", "buckets"): "f8f92863ebcc610b 45a598971682fada",
  ("examples", "none"): "140940895a8dfbb3 f505d2994d96b5c3",
  ("rows", "pack"): "f586a3163bd322de fe76a9924a562414",
  ("rows", "buckets"): "b89d7e35d2edc1dc 45a598971682fada",
  ("rows", "none"): "691d3d7f2deaccb6 f505d2994d96b5c3",
}
"""Digest and layout of plans as they were before there were mixtures."""


@pytest.mark.parametrize(("unit", "packing"), STORED)
def test_one_data_set_is_drawn_as_it_always_was(unit, packing):
  changes = {"batch_unit": unit, "packing": packing, "accumulate": 2, "epochs": 2.5}
  lengths = np.random.default_rng(0).lognormal(2.8, 0.7, 150).astype(int)
  plan = training(np.clip(lengths, 1, 60), **changes)
  layout = repr([plan.batch(step) for step in range(plan.num_steps)]).encode()
  found = f"{plan.digest('x')[:16]} {hashlib.sha256(layout).hexdigest()[:16]}"
  assert found == STORED[unit, packing]


def test_two_streams_of_tokens_are_counted_together():
  lengths = np.stack([ragged(20), ragged(20, seed=1)], 1)
  plan = order.plan_training(
    lengths, seed=0, batch_size=4, batch_unit="examples", packing="none", max_length=(64, 64),
    draw=drawing([15, 5], [15, 10]),
  )  # fmt: skip
  found = plan.summary()
  assert sum(one["tokens"] for one in found["mixture"]) == found["tokens"]
