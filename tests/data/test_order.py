import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsft.data import order, pack
from jaxsft.errors import JaxsftError

UNITS = ("examples", "rows")
PACKINGS = ("pack", "buckets", "none")


def ragged(count, seed=0, longest=60):
  lengths = np.random.default_rng(seed).lognormal(2.8, 0.7, count).astype(int)
  return np.clip(lengths, 1, longest).astype(np.int32)


def training(lengths, **changes):
  values = {
    "seed": 3,
    "batch_size": 8,
    "batch_unit": "examples",
    "packing": "pack",
    "max_length": 64,
    "epochs": 2,
  }
  return order.plan_training(lengths, **(values | changes))


def drawn(plan, step):
  return sorted(itertools.chain(*plan.batch(step)))


@settings(deadline=None, max_examples=60)
@given(
  st.lists(st.integers(1, 60), min_size=1, max_size=50),
  st.sampled_from(UNITS),
  st.sampled_from(PACKINGS),
  st.integers(1, 20),
  st.integers(1, 3),
  st.integers(1, 4),
)
def test_every_example_once_an_epoch(lengths, unit, packing, size, accumulate, multiple):
  plan = training(
    np.array(lengths),
    batch_unit=unit,
    packing=packing,
    batch_size=size,
    accumulate=accumulate,
    row_multiple=multiple,
  )
  met = {0: [], 1: []}
  for step in range(plan.num_steps):
    rows, (count, length, segments) = plan.batch(step), plan.shape(step)
    assert len(rows) == count and count % (accumulate * multiple) == 0
    assert length % 8 == 0
    for row in rows:
      assert sum(lengths[i] for i in row) <= length and len(row) <= segments
    assert drawn(plan, step) == sorted(plan.examples(step).tolist())
    met[plan.epoch(step)] += drawn(plan, step)
  for epoch in met.values():
    assert sorted(epoch) == list(range(len(lengths)))
  assert plan.shapes() == {plan.shape(s) for s in range(plan.num_steps)}


@settings(deadline=None, max_examples=40)
@given(
  st.lists(st.integers(1, 60), min_size=1, max_size=50),
  st.integers(1, 20),
  st.integers(1, 3),
  st.integers(1, 4),
)
def test_layout_never_changes_the_set_of_an_update(lengths, size, accumulate, multiple):
  plain = training(np.array(lengths), batch_size=size, packing="none")
  layout = {"accumulate": accumulate, "row_multiple": multiple}
  for changes in (layout, layout | {"packing": "none"}, {"max_length": 300}):
    plan = training(np.array(lengths), batch_size=size, **changes)
    assert plan.num_steps == plain.num_steps
    for step in range(plan.num_steps):
      assert drawn(plan, step) == drawn(plain, step)
  # Packed rows as the unit: the same rows, dealt differently.
  by_rows = training(np.array(lengths), batch_size=size, batch_unit="rows")
  other = training(np.array(lengths), batch_size=size, batch_unit="rows", **layout)
  for step in range(by_rows.num_steps):
    assert drawn(other, step) == drawn(by_rows, step)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("unit", UNITS)
def test_any_step_is_the_same_after_a_restart(unit, packing):
  lengths = ragged(150)
  changes = {"batch_unit": unit, "packing": packing, "accumulate": 2, "epochs": 3}
  plan = training(lengths, **changes)
  whole = [(plan.batch(s), plan.shape(s)) for s in range(plan.num_steps)]
  for step in (plan.num_steps - 1, 7, 0, plan.num_steps // 2):
    fresh = training(lengths, **changes)
    assert (fresh.batch(step), fresh.shape(step)) == whole[step]
    assert fresh.batch(step) == fresh.batch(step)


def test_restart_in_data_of_several_windows(monkeypatch):
  monkeypatch.setattr(order, "WINDOW", 40)
  lengths = ragged(150)
  plan = training(lengths, batch_unit="rows", batch_size=3, epochs=4)
  whole = [plan.batch(s) for s in range(plan.num_steps)]
  for step in (plan.num_steps - 1, 5):
    assert training(lengths, batch_unit="rows", batch_size=3).batch(step) == whole[step]
  met = {}
  for step in range(plan.num_steps):
    met.setdefault(plan.epoch(step), []).extend(drawn(plan, step))
  assert list(met) == [0, 1, 2, 3]
  assert all(sorted(m) == list(range(150)) for m in met.values())
  assert len(plan.cache["orders"]) <= 2


def test_epochs_of_several_windows_may_differ_in_updates(monkeypatch):
  monkeypatch.setattr(order, "WINDOW", 8)
  lengths = ragged(150)
  plan = training(lengths, batch_unit="rows", batch_size=1, epochs=6)
  each = [len(order._draw(plan, epoch)) for epoch in range(6)]
  assert len(set(each)) > 1
  assert plan.num_steps == sum(each)
  assert training(lengths, batch_unit="rows", batch_size=1, epochs=2.5).num_steps == (
    each[0] + each[1] + math.ceil(each[2] / 2)
  )
  assert [plan.epoch(sum(each[:e]) + d) for e in range(1, 6) for d in (-1, 0)] == [
    e + d for e in range(1, 6) for d in (-1, 0)
  ]
  assert plan.summary()["tokens"] == 6 * lengths.sum()


def test_packed_rows_are_shuffled():
  lengths = ragged(300)
  plan = training(lengths, batch_unit="rows", batch_size=1, epochs=1)
  # packing puts the longest examples into the first rows
  longest = [int(lengths[plan.examples(step)].max()) for step in range(plan.num_steps)]
  assert longest != sorted(longest, reverse=True)
  assert np.mean(longest[:20]) < np.mean(sorted(longest)[-20:])


def test_epochs_and_seeds_draw_anew():
  for changes in ({}, {"batch_unit": "rows"}, {"packing": "buckets"}):
    lengths = ragged(64)
    plan = training(lengths, **changes)
    per_epoch = plan.steps(1)
    assert plan.batch(0) != plan.batch(per_epoch)
    assert plan.batch(0) != training(lengths, seed=4, **changes).batch(0)


def test_an_update_is_the_permutation_cut_in_pieces():
  plan = training(ragged(20), batch_size=8, epochs=2)
  first = np.random.default_rng((3, 0)).permutation(20)
  second = np.random.default_rng((3, 1)).permutation(20)
  expected = [first[:8], first[8:16], first[16:], second[:8], second[8:16], second[16:]]
  assert plan.num_steps == 6
  for step, ids in enumerate(expected):
    assert plan.examples(step).tolist() == ids.tolist()


def test_rows_of_one_update_are_dealt_evenly_to_micro_batches():
  plan = training(ragged(200), batch_size=40, accumulate=4)
  for step in range(plan.num_steps):
    rows = plan.batch(step)
    each = len(rows) // 4
    used = [sum(map(bool, rows[a * each : (a + 1) * each])) for a in range(4)]
    assert max(used) - min(used) <= 1


@pytest.mark.parametrize(
  "epochs, expected", [(1, 13), (3, 39), (0.5, 7), (2.01, 27), (0.1 * 3, 4), (0.01, 1)]
)
def test_fractional_epochs(epochs, expected):
  # 100 examples, 8 an update: 13 updates an epoch.
  assert training(ragged(100), epochs=epochs).num_steps == expected
  assert training(ragged(100), epochs=epochs, steps=5).num_steps == 5


def test_float_noise_adds_no_update():
  assert training(ragged(80), epochs=0.1 + 0.2).num_steps == 3


def test_updates_of_rows_follow_from_the_materialised_plan():
  lengths = ragged(300)
  plan = training(lengths, batch_unit="rows", batch_size=4, epochs=1.5)
  rows = len(pack.pack(lengths, 64, plan.segments))
  each = math.ceil(rows / 4)
  assert plan.num_steps == math.ceil(1.5 * each)
  assert plan.row_length == 64
  assert len([r for r in plan.batch(each - 1) if r]) == (rows % 4 or 4)
  assert len(plan.batch(each - 1)) == 4


def test_few_shapes_and_little_padding():
  lengths = ragged(4000)
  plan = training(lengths, batch_size=32, epochs=3)
  assert 1 <= len(plan.shapes()) <= 3
  assert {m for _, _, m in plan.shapes()} == {plan.segments}
  summary = plan.summary()
  assert summary["tokens"] == 3 * lengths.sum()
  assert summary["efficiency"] > 0.86
  places = sum(r * t * n for r, t, _, n in summary["shapes"])
  assert summary["efficiency"] == pytest.approx(summary["tokens"] / places)
  assert sum(n for *_, n in summary["shapes"]) == plan.num_steps == summary["updates"]
  # one example a row, for comparison
  alone = training(lengths, batch_size=32, epochs=3, packing="none").summary()
  assert alone["efficiency"] < 0.5


def test_buckets_by_length():
  lengths = ragged(4000)
  plan = training(lengths, batch_size=8, packing="buckets", epochs=3)
  assert len(plan.shapes()) <= 6
  assert {r for r, _, _ in plan.shapes()} == {8}
  assert plan.summary()["efficiency"] > 0.75
  # inside a group of 50 updates lengths only fall
  for step in range(49):
    now, then = plan.examples(step), plan.examples(step + 1)
    assert lengths[now].min() >= lengths[then].max()


def test_one_example_a_row_is_padded_to_the_longest():
  lengths = ragged(40)
  plan = training(lengths, packing="none", row_multiple=3)
  for step in range(plan.num_steps):
    longest = lengths[plan.examples(step)].max()
    assert plan.shape(step) == (9, math.ceil(longest / 8) * 8, 1)


def test_beyond_the_buckets_the_next_multiple():
  plan = training(ragged(100), accumulate=2, row_multiple=2)
  small = dataclasses.replace(plan, row_counts=())
  for step in range(plan.num_steps):
    needed = len(plan.rows(step))
    assert small.shape(step)[0] == math.ceil(needed / 4) * 4


def test_auto_packs():
  lengths = ragged(50)
  one, other = training(lengths, packing="auto"), training(lengths)
  assert one.batch(3) == other.batch(3) and one.packing == "pack"


@pytest.mark.parametrize("unit", UNITS)
def test_a_batch_larger_than_the_data_is_one_smaller_update(unit):
  plan = training(ragged(5), batch_size=64, batch_unit=unit, epochs=2)
  assert plan.num_steps == 2
  assert drawn(plan, 0) == drawn(plan, 1) == list(range(5))
  assert len(plan.batch(0)) <= 5
  assert len(plan.notes) == 1 and "batch_size 64 is larger" in plan.notes[0]
  assert training(ragged(50)).notes == ()


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"steps": 0}, "0 updates"),
    ({"epochs": 0}, "0 updates"),
    ({"batch_size": 0}, "batch_size is 0"),
    ({"accumulate": 0}, "accumulate is 0"),
    ({"row_multiple": 0}, "row_multiple is 0"),
    ({"max_length": 59}, "example 2 has 60 tokens, expected 1 to 59"),
  ],
)
def test_impossible_plans(changes, message):
  with pytest.raises(JaxsftError, match=message):
    training(np.array([5, 7, 60]), **changes)


def test_nothing_to_plan_for():
  with pytest.raises(JaxsftError, match="no examples"):
    training(np.zeros(0, int))
  with pytest.raises(JaxsftError, match="example 1 has 0 tokens"):
    training(np.array([3, 0]))


@settings(deadline=None, max_examples=60)
@given(
  st.lists(st.integers(1, 60), min_size=1, max_size=60),
  st.sampled_from(UNITS),
  st.sampled_from(PACKINGS),
  st.integers(1, 20),
  st.integers(1, 8),
)
def test_evaluation_meets_every_example_once(lengths, unit, packing, size, multiple):
  plan = order.plan_evaluation(
    np.array(lengths),
    batch_size=size,
    batch_unit=unit,
    packing=packing,
    max_length=64,
    row_multiple=multiple,
  )
  met = []
  for step in range(plan.num_steps):
    rows, (count, length, segments) = plan.batch(step), plan.shape(step)
    assert len(rows) == count and count % multiple == 0 and any(rows)
    for row in rows:
      assert sum(lengths[i] for i in row) <= length and len(row) <= segments
    met += drawn(plan, step)
  assert sorted(met) == list(range(len(lengths)))
  assert len(plan.shapes()) <= (1 if packing == "pack" else 3)


def test_evaluation_batches_hold_about_batch_size_examples():
  lengths = ragged(1000)
  plan = order.plan_evaluation(
    lengths, batch_size=32, batch_unit="examples", packing="pack", max_length=64
  )
  assert 1000 / 40 <= plan.num_steps <= 1000 / 28
  assert plan.summary()["efficiency"] > 0.9


def test_the_digest_sees_another_generator(monkeypatch):
  """NumPy may change its permutations between versions; a resumed run must notice."""
  one = training(ragged(40)).digest()
  draw = order._permutation
  monkeypatch.setattr(order, "_permutation", lambda *a: draw(*a)[::-1])
  assert training(ragged(40)).digest() != one


def test_part_of_an_epoch_in_the_summary():
  lengths = ragged(100)
  plan = training(lengths, epochs=1.5)
  expected = lengths.sum() + sum(lengths[plan.examples(s)].sum() for s in range(13, 20))
  assert plan.num_steps == 20 and plan.summary()["tokens"] == expected


def test_the_digest_sees_what_decides_the_order():
  lengths = ragged(40)
  changed = lengths.copy()
  changed[[0, 1]] = changed[[1, 0]] + np.array([1, 0], np.int32)
  one = training(lengths).digest("f")
  assert one == training(lengths).digest("f")
  others = [
    training(lengths).digest("g"),
    training(lengths, seed=4).digest("f"),
    training(lengths, batch_size=4).digest("f"),
    training(lengths, accumulate=2).digest("f"),
    training(lengths, packing="none").digest("f"),
    training(changed).digest("f"),
  ]
  assert len({one, *others}) == 7
