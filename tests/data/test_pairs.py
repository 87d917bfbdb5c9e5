"""Two streams of tokens, a source and a target: packed, planned, stored and fed together."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsft.data import feed, order, pack, pairs, store
from jaxsft.errors import JaxsftError

LENGTHS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 20)), min_size=1, max_size=40)
PACKINGS = ("pack", "buckets", "none")


def ragged(count, seed=0):
  """Sources of about 20 tokens, targets that go with them."""
  rng = np.random.default_rng(seed)
  source = np.clip(rng.lognormal(2.9, 0.4, count), 2, 60)
  target = np.clip(source * rng.lognormal(-0.1, 0.2, count), 1, 70)
  return np.stack([source, target], 1).astype(np.int32)


def training(lengths, **changes):
  values = {"seed": 3, "batch_size": 8, "batch_unit": "examples", "packing": "pack"}
  values |= {"max_length": (64, 72), "epochs": 2}
  return order.plan_training(lengths, **(values | changes))


@given(LENGTHS, st.integers(40, 70), st.integers(20, 50), st.none() | st.integers(1, 5))
def test_every_example_once_and_both_streams_fit(lengths, S, T, most):
  rows = pack.pack(lengths, (S, T), most)
  assert sorted(itertools.chain(*rows)) == list(range(len(lengths)))
  for row in rows:
    source, target = np.sum([lengths[i] for i in row], 0)
    assert source <= S and target <= T and 1 <= len(row) <= (most or len(lengths))


@given(LENGTHS)
def test_one_stream_without_weight_packs_as_one(lengths):
  """Where the targets never fill a row, the sources are packed best-fit decreasing."""
  sources = [source for source, _ in lengths]
  rows = pack.pack([(source, 1) for source in sources], (40, 10_000))
  assert len(rows) == len(pack.pack(sources, 40))


def test_the_row_that_is_left_fullest():
  # 0 opens a row, so does 1; 2 fits both and fills the second.
  assert pack.pack([(6, 6), (5, 5), (5, 4)], (10, 10)) == [[0], [1, 2]]
  # a free source is no use to a target that finds no room
  assert pack.pack([(1, 9), (1, 8), (1, 2), (1, 1)], (10, 10)) == [[0, 3], [1, 2]]


def test_equal_ones_keep_their_order_and_calls_agree():
  lengths = [(7, 3)] * 3 + [(3, 7)] * 3
  rows = pack.pack(lengths, (10, 10))
  assert rows == [[0, 3], [1, 4], [2, 5]] == pack.pack(np.array(lengths), (10, 10))


@pytest.mark.parametrize(
  ("bad", "words"), [((0, 4), "0 source and 4"), ((4, 21), "4 source and 21 target")]
)
def test_what_fits_no_row_is_named(bad, words):
  with pytest.raises(JaxsftError, match=f"example 1 has {words}"):
    pack.pack([(4, 5), bad], (40, 20))


def test_rows_fill_in_proportion():
  """Rows of the longest source and the longest target would leave half of the targets empty."""
  plan = training(ragged(3000), batch_size=32)
  filled = plan.summary()["filled"]
  assert filled["source"] > 0.8 and filled["target"] > 0.8
  S, T = plan.row_length
  assert S % 8 == T % 8 == 0 and (S, T) >= (60, 70) and len(plan.shapes()) <= 3
  rows = [[i] for i in range(32)]
  alone = ragged(3000)[:32].sum(0) / (len(rows) * np.array([64, 72]))
  assert (alone < 0.5).all()


def test_what_the_summary_says_is_filled():
  lengths = ragged(300)
  for packing in PACKINGS:
    plan = training(lengths, packing=packing)
    summary, places = plan.summary(), np.zeros(2)
    for rows, size, _, n in summary["shapes"]:
      places += rows * n * np.array(size)
    assert summary["tokens"] == 2 * lengths.sum()
    assert summary["efficiency"] == pytest.approx(2 * lengths.sum() / places.sum())
    expected = 2 * lengths.sum(0) / places
    assert summary["filled"] == pytest.approx({"source": expected[0], "target": expected[1]})
  assert (
    order.plan_training(
      lengths[:, 0], seed=0, batch_size=8, batch_unit="examples", packing="pack", max_length=64
    ).summary()["filled"]
    == {}
  )


@settings(deadline=None, max_examples=40)
@given(
  LENGTHS,
  st.sampled_from(("examples", "rows")),
  st.sampled_from(PACKINGS),
  st.integers(1, 12),
  st.integers(1, 3),
)
def test_every_example_once_an_epoch(lengths, unit, packing, size, accumulate):
  plan = training(
    lengths, batch_unit=unit, packing=packing, batch_size=size, accumulate=accumulate
  )
  met = {0: [], 1: []}
  for step in range(plan.num_steps):
    rows, (count, (S, T), most) = plan.batch(step), plan.shape(step)
    assert len(rows) == count and count % accumulate == 0 and S % 8 == T % 8 == 0
    for row in filter(None, rows):
      source, target = np.sum([lengths[i] for i in row], 0)
      assert source <= S and target <= T and len(row) <= most
    met[plan.epoch(step)] += itertools.chain(*rows)
  assert all(sorted(ids) == list(range(len(lengths))) for ids in met.values())


def test_packing_never_changes_the_examples_of_an_update():
  lengths = ragged(100)
  plans = [training(lengths, packing=p, accumulate=a) for p in ("pack", "none") for a in (1, 4)]
  for step in range(plans[0].num_steps):
    drawn = [sorted(itertools.chain(*plan.batch(step))) for plan in plans]
    assert drawn[0] == drawn[1] == drawn[2] == drawn[3]


@pytest.mark.parametrize("packing", PACKINGS)
def test_few_shapes(packing):
  lengths = ragged(4000)
  plan = training(lengths, packing=packing, batch_size=16)
  assert len(plan.shapes()) <= (3 if packing == "pack" else 6)
  fresh = training(lengths, packing=packing, batch_size=16)
  for step in (plan.num_steps - 1, 0, 37):
    assert (fresh.batch(step), fresh.shape(step)) == (plan.batch(step), plan.shape(step))
  evaluated = order.plan_evaluation(
    lengths, batch_size=16, batch_unit="examples", packing=packing, max_length=(64, 72)
  )
  assert len(evaluated.shapes()) <= (1 if packing == "pack" else 3)
  met = [i for step in range(evaluated.num_steps) for i in evaluated.examples(step)]
  assert sorted(met) == list(range(4000))


def test_buckets_waste_less_than_the_longest_of_each():
  lengths = ragged(4000)
  filled = {p: training(lengths, packing=p).summary()["efficiency"] for p in PACKINGS}
  assert filled["buckets"] > filled["none"] + 0.1 and filled["pack"] > 0.7


@given(LENGTHS, st.integers(1, 4), st.sampled_from([0, 20, 10_000]))
def test_a_size_for_every_value(values, most, price):
  sizes = pairs.choose_buckets(values, most, price)
  assert 1 <= len(sizes) <= most and (len(sizes) == 1 or price < 10_000)
  for value in values:
    S, T = pairs.next_size(value, sizes, 8)
    assert (S, T) in sizes and value[0] <= S and value[1] <= T
    fits = [size for size in sizes if value[0] <= size[0] and value[1] <= size[1]]
    assert pairs.work((S, T)) == min(pairs.work(size) for size in fits)


def test_sizes_that_save_work():
  values = [(8, 8)] * 10 + [(8, 64)] * 10 + [(64, 8)] * 10
  assert pairs.choose_buckets(values, 1, 0) == ((64, 64),)
  assert pairs.choose_buckets(values, 2, 0) == ((64, 8), (64, 64))  # saves most of all
  assert pairs.choose_buckets(values, 4, 0) == ((8, 8), (8, 64), (64, 8), (64, 64))
  assert pairs.next_size((9, 70), ((8, 8), (64, 64)), 8) == (16, 72)  # beyond them


@pytest.mark.parametrize(
  ("limit", "words"), [((59, 72), "source tokens, expected 1 to 59"), ((64, 9), "target")]
)
def test_a_length_beyond_the_limit_is_named(limit, words):
  with pytest.raises(JaxsftError, match=words):
    training([(60, 9), (5, 12)], max_length=limit)


# --- the store and the feed ------------------------------------------------------------


def examples(lengths, seed=0):
  rng = np.random.default_rng(seed)
  for i, (S, T) in enumerate(lengths):
    example = {
      "source": rng.integers(1, 50, S),
      "inputs": rng.integers(1, 50, T),
      "targets": rng.integers(1, 50, T),
      "weights": np.ones(T, np.float32),
      "row": np.int32(i),
    }
    yield f"row {i}", example


@pytest.fixture
def built(tmp_path):
  return store.build(examples([(3, 2), (5, 7), (2, 4), (4, 1)]), {"a": 1}, tmp_path)


def test_examples_come_back_as_they_were(built, tmp_path):
  assert built.lengths.tolist() == [[3, 2], [5, 7], [2, 4], [4, 1]]
  assert built.lengths.dtype == np.int32 and set(built.sources) == {"source"}
  again = store.open_store(built.directory)
  memory = store.in_memory(examples([(3, 2), (5, 7), (2, 4), (4, 1)]))
  for other in (again, memory):
    np.testing.assert_array_equal(other.lengths, built.lengths)
    for i, (_, expected) in enumerate(examples(built.lengths.tolist())):
      found = other.example(i)
      assert found.keys() == expected.keys()
      for key, values in expected.items():
        np.testing.assert_array_equal(found[key], values)
  assert store.supervised(built).tolist() == [2, 7, 4, 1]


def test_the_fingerprint_sees_the_sources(tmp_path):
  def other():
    for id, example in examples([(3, 2)]):
      yield id, example | {"source": example["source"] + 1}

  one = store.build(examples([(3, 2)]), {"a": 1}, tmp_path)
  assert store.build(other(), {"a": 2}, tmp_path).fingerprint != one.fingerprint
  moved = store.build(examples([(2, 2)]), {"a": 3}, tmp_path)
  assert moved.fingerprint != one.fingerprint


@pytest.mark.parametrize("name", ["source_offsets.npy", "source.source.npy"])
def test_a_store_without_its_sources_is_damaged(built, name):
  (built.directory / name).unlink()
  with pytest.raises(JaxsftError, match="damaged"):
    store.open_store(built.directory)


@pytest.mark.parametrize(
  ("change", "words"),
  [({"source_types": np.ones(2, int)}, "source"), ({"source": np.ones(0, int)}, "source': 0")],
)
def test_streams_of_ragged_arrays_are_refused(tmp_path, change, words):
  id, example = next(examples([(3, 2)]))
  with pytest.raises(JaxsftError, match=words):
    store.build([(id, example | change)], {"a": 1}, tmp_path)


def test_an_example_has_a_target(tmp_path):
  with pytest.raises(JaxsftError, match="expected one length"):
    store.build([("a", {"source": np.ones(3, int)})], {"a": 1}, tmp_path)


def test_segments_of_both_streams_have_the_same_numbers(built):
  made = feed.batch(built, [[1, 2], [], [3]], row_length=(8, 12), segments=3)
  assert made["source_segments"].tolist() == [
    [1, 1, 1, 1, 1, 2, 2, 0], [0] * 8, [1] * 4 + [0] * 4,
  ]  # fmt: skip
  assert made["segments"].tolist() == [
    [1] * 7 + [2] * 4 + [0], [0] * 12, [1] + [0] * 11,
  ]  # fmt: skip
  assert made["source_positions"][0].tolist() == [0, 1, 2, 3, 4, 0, 1, 0]
  assert made["positions"][0].tolist() == [*range(7), *range(4), 0]
  assert made["example_ids"].tolist() == [[1, 2, -1], [-1, -1, -1], [3, -1, -1]]
  expected = np.concatenate([built.example(1)["source"], built.example(2)["source"]])
  np.testing.assert_array_equal(made["source"][0, :7], expected)
  assert made["source"].dtype == made["source_segments"].dtype == np.int32
  assert not made["source"][made["source_segments"] == 0].any()
  assert set(made) == {
    *("source", "source_segments", "source_positions", "inputs", "targets", "weights"),
    *("segments", "positions", "example_ids"),
  }


def test_weights_of_examples_are_those_of_their_targets(built):
  made = feed.batch(built, [[1, 2]], row_length=(8, 12), segments=2, weighting="example")
  sums = [made["weights"][made["segments"] == m].sum() for m in (1, 2)]
  assert sums == pytest.approx([1, 1])


def test_accumulation_splits_both_streams(built):
  rows = [[0], [1], [2], [3]]
  whole = feed.batch(built, rows, row_length=(8, 8), segments=1)
  parts = feed.batch(built, rows, row_length=(8, 8), segments=1, accumulate=2)
  for key, values in parts.items():
    assert values.shape[:2] == (2, 2)
    np.testing.assert_array_equal(values.reshape(whole[key].shape), whole[key])


@pytest.mark.parametrize(
  ("settings", "words"),
  [
    ({"vocab_size": 50, "source_vocab": 20}, "found source .* in example row 1 at position"),
    ({"vocab_size": 20, "source_vocab": 50}, "found inputs"),
    ({"max_positions": 4}, "found source_positions 4 in example row 1 at position 4"),
  ],
)
def test_what_the_model_does_not_have_is_refused(tmp_path, settings, words):
  one = store.build(examples([(3, 2), (5, 3)]), {"a": 1}, tmp_path)
  for values in one.sources.values():
    assert values.max() >= 20
  made = feed.batch(one, [[0, 1]], row_length=(8, 8), segments=2)
  made["source"][0, :3] = 1
  feed.validate(made, 50, 8, None, one.ids)
  with pytest.raises(JaxsftError, match=words):
    feed.validate(made, **({"vocab_size": 50, "max_positions": 8} | settings),
                  num_classes=None, ids=one.ids)  # fmt: skip


def test_the_work_of_longer_windows(monkeypatch):
  """batch_unit="rows": what shares a row is looked for among some thousand examples."""
  monkeypatch.setattr(order, "WINDOW", 200)
  lengths = ragged(150)
  plan = training(lengths, batch_unit="rows", batch_size=2, epochs=1)
  assert plan.row_length == (64, 72)
  seen = sorted(i for step in range(plan.num_steps) for i in plan.examples(step))
  assert seen == list(range(150))
  windows = math.ceil(150 / (200 // order.SLOWER))
  rows = order._windows(lengths, np.arange(150), plan.row_length, plan.segments)
  spans = [(min(row) // 20, max(row) // 20) for row in rows]
  assert all(a == b for a, b in spans) and len({a for a, _ in spans}) == windows
