import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsft.data import pack
from jaxsft.errors import JaxsftError

LENGTHS = st.lists(st.integers(1, 40), max_size=60)


@given(LENGTHS, st.integers(40, 64), st.none() | st.integers(1, 5))
def test_every_example_once_and_every_row_fits(lengths, capacity, most):
  rows = pack.pack(lengths, capacity, most)
  assert sorted(itertools.chain(*rows)) == list(range(len(lengths)))
  for row in rows:
    assert sum(lengths[i] for i in row) <= capacity
    assert 1 <= len(row) <= (most or len(lengths))


@given(LENGTHS.filter(bool), st.integers(40, 64))
def test_never_worse_than_known_for_best_fit_decreasing(lengths, capacity):
  rows = len(pack.pack(lengths, capacity))
  # OPT >= ceil(sum / capacity); BFD <= 11/9 OPT + 4 (Johnson 1973), and OPT is at most
  # what any first fit finds, 1.7 OPT: compare with a plain quadratic best fit instead.
  assert rows == len(plain_best_fit(lengths, capacity))
  assert rows >= math.ceil(sum(lengths) / capacity)


def plain_best_fit(lengths, capacity):
  left = []
  for length in sorted(lengths, reverse=True):
    fits = [k for k, space in enumerate(left) if space >= length]
    if fits:
      left[min(fits, key=lambda k: left[k])] -= length
    else:
      left.append(capacity - length)
  return left


def test_best_fit_not_first_fit():
  # After 6 and 5 open two rows, 4 belongs into the row with exactly 4 left.
  assert pack.pack([5, 6, 4, 5], 10) == [[1, 2], [0, 3]]


def test_equal_lengths_keep_their_order_and_calls_agree():
  lengths = [7, 7, 7, 3, 3, 3]
  rows = pack.pack(lengths, 10)
  assert [row[0] for row in rows] == [0, 1, 2]
  assert rows == pack.pack(np.array(lengths), 10)


@pytest.mark.parametrize("length", [0, 11])
def test_a_length_that_cannot_be_packed_is_named(length):
  with pytest.raises(JaxsftError, match=f"example 2 has {length} tokens"):
    pack.pack([4, 5, length, 6], 10)


def test_efficiency_counts_empty_rows():
  assert pack.efficiency([[0, 1], []], [3, 5], 8) == 0.5


@given(
  st.lists(st.integers(1, 30), min_size=1, max_size=40),
  st.integers(1, 3),
  st.sampled_from([0, 5, 40, 10_000]),
)
def test_buckets_are_the_cheapest(values, most, price):
  def cost(chosen):
    return sum(min(c for c in chosen if c >= v) for v in values) + price * len(chosen)

  distinct = sorted(set(values))
  tries = [
    (*few, distinct[-1])
    for n in range(most)
    for few in itertools.combinations(distinct[:-1], n)
  ]
  chosen = pack.choose_buckets(values, most, price)
  assert list(chosen) == sorted(chosen) and chosen[-1] == max(values)
  assert cost(chosen) == min(map(cost, tries))


def test_buckets_of_many_distinct_values():
  values = np.random.default_rng(0).integers(1, 5000, 9000)
  chosen = pack.choose_buckets(values, 3, 0)
  assert len(chosen) == 3 and chosen[-1] == values.max()
  assert abs(chosen[0] - 1667) < 100 and abs(chosen[1] - 3333) < 100


def test_next_size():
  assert [pack.next_size(v, (4, 12), 4) for v in (1, 4, 5, 12, 13, 17)] == [
    4, 4, 12, 12, 16, 20,
  ]  # fmt: skip


def test_the_row_length_avoids_padding():
  # 9 tokens in rows of 16 waste nearly half; in longer rows little, up to the limit.
  sample = [np.full(32, 9)] * 4
  assert pack.choose_row_length(sample, 9, 512, 1) in (64, 128)
  assert pack.choose_row_length(sample, 9, 16, 1) == 16
  assert pack.choose_row_length([np.array([3, 50])], 50, 50, 1) == 56
  # Many rows are needed anyway (devices): longer ones would only hold padding.
  assert pack.choose_row_length(sample, 9, 512, 32) == 16


def test_segments_cost_few_rows():
  rng = np.random.default_rng(0)
  sample = [rng.integers(4, 60, 32) for _ in range(20)]
  segments = pack.choose_segments(sample, 128)
  free = sum(len(pack.pack(update, 128)) for update in sample)
  assert sum(len(pack.pack(u, 128, segments)) for u in sample) <= 1.01 * free
  assert segments < max(len(r) for u in sample for r in pack.pack(u, 128)) + 1
