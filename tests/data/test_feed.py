import itertools
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsft.data import feed, order, store
from jaxsft.errors import JaxsftError


def token_examples(lengths, seed=0):
  rng = np.random.default_rng(seed)
  for i, length in enumerate(lengths):
    weights = rng.integers(0, 3, length).astype(np.float32)
    weights[-1] = 2
    example = {
      "inputs": rng.integers(1, 50, length),
      "targets": rng.integers(1, 50, length),
      "weights": weights,
    }
    yield f"row {i}", example


def sentence_examples(lengths, kind=np.int32):
  for i, length in enumerate(lengths):
    tokens = np.arange(length) + 100 * i
    types = (np.arange(length) > length // 2).astype(int)
    yield (f"row {i}", {"inputs": tokens, "token_types": types, "label": kind(i % 3)})


@pytest.fixture
def tokens(tmp_path):
  return store.build(token_examples([3, 5, 2, 7, 4, 6]), {"a": 1}, tmp_path)


@pytest.fixture
def sentences(tmp_path):
  return store.build(sentence_examples([3, 5, 2, 7]), {"a": 2}, tmp_path)


def test_examples_lie_one_after_another(tokens):
  rows = [[1, 2], [], [3]]
  made = feed.batch(tokens, rows, row_length=8, segments=3)
  for key in ("inputs", "targets", "positions", "segments"):
    assert made[key].shape == (3, 8) and made[key].dtype == np.int32
  assert made["weights"].shape == (3, 8) and made["weights"].dtype == np.float32
  assert made["segments"].tolist() == [
    [1, 1, 1, 1, 1, 2, 2, 0], [0] * 8, [1] * 7 + [0],
  ]  # fmt: skip
  assert made["positions"].tolist() == [
    [0, 1, 2, 3, 4, 0, 1, 0], [0] * 8, [0, 1, 2, 3, 4, 5, 6, 0],
  ]  # fmt: skip
  assert made["example_ids"].tolist() == [[1, 2, -1], [-1, -1, -1], [3, -1, -1]]
  expected = np.concatenate([tokens.example(1)["inputs"], tokens.example(2)["inputs"]])
  np.testing.assert_array_equal(made["inputs"][0, :7], expected)
  assert not made["inputs"][made["segments"] == 0].any()
  assert not made["weights"][made["segments"] == 0].any()


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.data())
def test_every_example_is_found_again(tmp_path_factory, lengths, data):
  built = store.build(token_examples(lengths), {"a": 1}, tmp_path_factory.mktemp("s"))
  taken = data.draw(st.permutations(range(len(lengths))))
  cuts = sorted(data.draw(st.lists(st.integers(0, len(lengths)), max_size=4)))
  rows = [taken[a:b] for a, b in itertools.pairwise([0, *cuts, len(lengths)])]
  made = feed.batch(built, rows, row_length=9 * 12, segments=12)
  feed.validate(made, 50, 9, None)
  for r, row in enumerate(rows):
    for m, i in enumerate(row):
      at = made["segments"][r] == m + 1
      example = built.example(i)
      np.testing.assert_array_equal(made["inputs"][r, at], example["inputs"])
      np.testing.assert_array_equal(made["weights"][r, at], example["weights"])
      masked = np.where(example["weights"] > 0, example["targets"], 0)
      np.testing.assert_array_equal(made["targets"][r, at], masked)
      np.testing.assert_array_equal(made["positions"][r, at], np.arange(lengths[i]))
      assert made["example_ids"][r, m] == i
  assert (made["segments"] > 0).sum() == sum(lengths)


def test_labels_lie_by_segment(sentences):
  made = feed.batch(sentences, [[3, 0], [2]], row_length=16, segments=4)
  assert made["labels"].tolist() == [[0, 0, 0, 0], [2, 0, 0, 0]]
  assert made["labels"].dtype == np.int32
  assert made["label_weights"].tolist() == [[1, 1, 0, 0], [1, 0, 0, 0]]
  assert made["label_weights"].dtype == np.float32
  assert made["token_types"][0, :10].tolist() == [0, 0, 0, 0, 1, 1, 1, 0, 0, 1]
  assert "targets" not in made and "label" not in made


def test_numbers_and_their_weights(tmp_path):
  def weighted():
    for id, example in sentence_examples([3, 4], np.float32):
      yield id, example | {"label_weight": np.float32(0.25)}

  built = store.build(weighted(), {"a": 3}, tmp_path)
  made = feed.batch(built, [[1], [0]], row_length=4, segments=2)
  assert made["labels"].dtype == np.float32 and made["labels"][0, 0] == 1
  assert made["label_weights"].tolist() == [[0.25, 0], [0.25, 0]]


def test_accumulation_splits_the_rows_in_order(tokens):
  rows = [[0], [1], [2], [3], [4], []]
  whole = feed.batch(tokens, rows, row_length=8, segments=2)
  parts = feed.batch(tokens, rows, row_length=8, segments=2, accumulate=3)
  for key, values in parts.items():
    assert values.shape[:2] == (3, 2)
    np.testing.assert_array_equal(values.reshape(whole[key].shape), whole[key])
  assert feed.batch(tokens, rows, row_length=8, segments=2, accumulate=1)["inputs"].shape == (
    1,
    6,
    8,
  )
  with pytest.raises(JaxsftError, match="6 rows do not split into 4"):
    feed.batch(tokens, rows, row_length=8, segments=2, accumulate=4)


def test_examples_of_equal_weight(tokens):
  rows = [[0, 1], [3]]
  plain = feed.batch(tokens, rows, row_length=8, segments=2)
  made = feed.batch(tokens, rows, row_length=8, segments=2, weighting="example")
  for r, m in ((0, 1), (0, 2), (1, 1)):
    at = plain["segments"][r] == m
    total = plain["weights"][r, at].sum()
    assert total > 1
    np.testing.assert_allclose(
      made["weights"][r, at], plain["weights"][r, at] / total, rtol=1e-6
    )
  np.testing.assert_array_equal(made["targets"], plain["targets"])


def test_an_example_without_weight_stays_zero(tmp_path):
  example = {
    "inputs": np.ones(3, int),
    "targets": np.ones(3, int),
    "weights": np.zeros(3),
  }
  built = store.build([("a", example)], {"a": 1}, tmp_path)
  made = feed.batch(built, [[0]], row_length=4, segments=1, weighting="example")
  assert not made["weights"].any() and not made["targets"].any()


def test_rows_that_do_not_fit(tokens):
  with pytest.raises(JaxsftError, match="holds 8 tokens"):
    feed.batch(tokens, [[0, 1]], row_length=7, segments=2)
  with pytest.raises(JaxsftError, match="3 examples"):
    feed.batch(tokens, [[0, 2, 4]], row_length=16, segments=2)


def test_only_padding(tokens):
  made = feed.batch(tokens, [[], []], row_length=8, segments=2, weighting="example")
  assert not any(v.any() for k, v in made.items() if k != "example_ids")
  assert (made["example_ids"] == -1).all()


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_processes_share_the_rows(count, accumulate):
  lengths = np.random.default_rng(0).integers(1, 30, 61)
  plan = order.plan_training(
    lengths, seed=0, batch_size=16, batch_unit="examples", packing="pack",
    max_length=32, accumulate=accumulate, row_multiple=4,
  )  # fmt: skip
  for step in range(plan.num_steps):
    rows = plan.batch(step)
    parts = [feed.rows_of_process(rows, p, count, accumulate) for p in range(count)]
    assert len({len(part) for part in parts}) == 1
    ids = [sorted(itertools.chain(*part)) for part in parts]
    assert sorted(itertools.chain(*ids)) == sorted(plan.examples(step).tolist())
    for one, other in itertools.combinations(ids, 2):
      assert not set(one) & set(other)
    # blocks of every micro-batch, one process after another, are the micro-batch
    each = len(rows) // accumulate
    for a in range(accumulate):
      size = each // count
      blocks = [part[a * size : (a + 1) * size] for part in parts]
      assert list(itertools.chain(*blocks)) == rows[a * each : (a + 1) * each]


def test_processes_that_do_not_divide_the_rows():
  with pytest.raises(JaxsftError, match="6 rows do not split"):
    feed.rows_of_process([[i] for i in range(6)], 0, 4)


def test_the_feed_is_in_order_with_any_shape():
  make = lambda step: {
    "b": np.full((step, 2), step, np.float32),
    "a": np.arange(step, dtype=np.int32),
  }
  made = list(feed.batches(make, 2, 9, prefetch=3))
  assert len(made) == 7
  for step, found in enumerate(made, 2):
    assert found.keys() == {"a", "b"}
    for key, values in make(step).items():
      np.testing.assert_array_equal(found[key], values)
      assert found[key].dtype == values.dtype and found[key].shape == values.shape
  assert list(feed.batches(make, 4, 4, prefetch=1)) == []


def test_the_feed_runs_ahead():
  asked = []

  def make(step):
    asked.append(step)
    return {"a": np.array([step])}

  iterator = feed.batches(make, 0, 100, prefetch=3)
  next(iterator)
  for _ in range(200):
    if len(asked) >= 4:
      break
    time.sleep(0.01)
  assert 4 <= len(asked) <= 6
  iterator.close()


@pytest.mark.parametrize("bad", [0, 3])
def test_an_error_of_the_feed_is_the_original(bad):
  error = JaxsftError("example 7 is wrong")

  def make(step):
    if step == bad:
      raise error
    return {"a": np.array([step])}

  met = []
  with pytest.raises(JaxsftError) as caught:
    met.extend(int(b["a"][0]) for b in feed.batches(make, 0, 6, prefetch=4))
  assert caught.value is error


def test_batches_before_an_error_are_delivered():
  def make(step):
    if step == 3:
      raise JaxsftError("no")
    return {"a": np.array([step])}

  iterator = feed.batches(make, 0, 6, prefetch=4)
  assert [int(next(iterator)["a"][0]) for _ in range(3)] == [0, 1, 2]
  with pytest.raises(JaxsftError):
    next(iterator)


def test_keys_must_not_change():
  make = lambda step: {"a": np.array([1])} | ({"b": np.array([1])} if step else {})
  with pytest.raises(JaxsftError, match=r"step 1 has the keys \['a', 'b'\]"):
    list(feed.batches(make, 0, 2, prefetch=1))


def test_tensorflow_is_late():
  code = "import sys, jaxsft.data.feed; assert 'tensorflow' not in sys.modules"
  assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def spoil(batch, key, at, value):
  batch[key] = batch[key].copy()
  batch[key][at] = value
  return batch


@pytest.mark.parametrize(
  "key, at, value, message",
  [
    ("inputs", (0, 6), 50, r"inputs 50 in example 2 at position 1.*0 to 49"),
    ("inputs", (1, 2), -1, r"inputs -1 in example 3 at position 2"),
    ("targets", (1, 2), 50, r"targets 50 in example 3"),
    ("targets", (1, 2), -100, r"targets -100 in example 3"),
    ("positions", (1, 6), 7, r"positions 7 in example 3.*0 to 6"),
    ("inputs", (0, 7), 50, r"inputs 50 in padding"),
    ("weights", (0, 7), 1, r"weights 1.0 in padding"),
    ("weights", (0, 0), np.nan, r"weights nan in example 1"),
    ("weights", (0, 0), -1, r"weights -1.0 in example 1"),
  ],
)
@pytest.mark.parametrize("accumulate", [None, 1])
def test_bad_tokens_are_named(tokens, key, at, value, message, accumulate):
  made = feed.batch(tokens, [[1, 2], [3]], row_length=8, segments=8, accumulate=accumulate)
  feed.validate(made, 50, 7, None)
  spoil(made, key, at if accumulate is None else (0, *at), value)
  with pytest.raises(JaxsftError, match=message):
    feed.validate(made, 50, 7, None)


def test_a_target_without_weight_is_refused(tokens):
  made = feed.batch(tokens, [[1, 2], [3]], row_length=8, segments=2)
  inside = made["segments"] > 0
  at = tuple(np.argwhere(inside & (made["weights"] == 0))[0])
  spoil(made, "targets", at, 1)
  with pytest.raises(JaxsftError, match="expected 0 where the weight is 0"):
    feed.validate(made, 50, 7, None)


@pytest.mark.parametrize("value", [3, -1, -100])
def test_bad_labels_are_named(sentences, value):
  made = feed.batch(sentences, [[3, 0], [2]], row_length=16, segments=16)
  feed.validate(made, 400, None, 3, sentences.ids)
  spoil(made, "labels", (0, 1), value)
  message = f"labels {value} in example row 0, expected 0 to 2"
  with pytest.raises(JaxsftError, match=message):
    feed.validate(made, 400, None, 3, sentences.ids)
  feed.validate(made, 400, None, None)  # as numbers they are fine
  spoil(made, "label_weights", (0, 1), 0)
  feed.validate(made, 400, None, 3)  # and without weight, harmless


def test_bad_numbers_and_label_weights(sentences):
  made = feed.batch(sentences, [[3, 0], [2]], row_length=16, segments=4)
  made["labels"] = made["labels"].astype(np.float32)
  spoil(made, "labels", (1, 0), np.inf)
  with pytest.raises(JaxsftError, match="labels inf in example 2"):
    feed.validate(made, 400, None, None)
  spoil(made, "labels", (1, 0), 1)
  spoil(made, "label_weights", (1, 3), 1)
  with pytest.raises(JaxsftError, match=r"label_weights 1\.0 in padding"):
    feed.validate(made, 400, None, None)


def test_gathering_is_fast(tmp_path):
  lengths = np.random.default_rng(0).integers(50, 400, 300)
  built = store.build(token_examples(lengths), {"a": 1}, tmp_path)
  plan = order.plan_training(
    lengths, seed=0, batch_size=32, batch_unit="rows", packing="pack", max_length=2048
  )
  rows = plan.batch(0)
  tokens = int(lengths[plan.examples(0)].sum())
  best = float("inf")
  for _ in range(5):
    start = time.perf_counter()
    feed.batch(built, rows, row_length=2048, segments=plan.segments)
    best = min(best, time.perf_counter() - start)
  assert tokens > 50_000
  # a loop over tokens takes about 1e-6 s for each of the five arrays
  assert best < 1e-6 * tokens
