"""The rules for the next token, beside those of transformers and on distributions by hand."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft.errors import UsageError
from jaxsft.generation import sampling
from jaxsft.generation.sampling import Rules

V = 37
P = np.array([0.4, 0.3, 0.15, 0.1, 0.05], np.float32)
NONE = np.array([-1], np.int32)
NOTHING = {"stop_ids": NONE, "banned": NONE, "vocab_limit": V, "last": NONE, "limit": 99}


def logits(rows=4, seed=0):
  return np.random.default_rng(seed).normal(0, 3, (rows, V)).astype(np.float32)


def kept(top_k=0, top_p=1.0, min_p=0.0):
  """Which of P's tokens stay; they are given out of order."""
  order = np.array([3, 0, 4, 2, 1])
  found = sampling.restrict(jnp.log(P[order]), top_k, top_p, min_p)
  np.testing.assert_array_equal(
    found[np.isfinite(found)], jnp.log(P[order])[np.isfinite(found)]
  )
  return sorted(order[np.isfinite(found)].tolist())


@pytest.mark.parametrize(
  ("rule", "stay"),
  [
    ({}, 5),
    ({"top_k": 1}, 1),
    ({"top_k": 3}, 3),
    ({"top_k": 99}, 5),
    ({"top_p": 0.39}, 1),
    ({"top_p": 0.41}, 2),
    ({"top_p": 0.69}, 2),
    ({"top_p": 0.71}, 3),
    ({"top_p": 1e-6}, 1),
    ({"min_p": 0.3}, 3),
    ({"min_p": 0.2}, 4),
    ({"min_p": 1.0}, 1),
    # Of two tokens with 4/7 and 3/7 the first alone reaches 0.5; of all five it does not.
    ({"top_k": 2, "top_p": 0.5}, 1),
    ({"top_p": 0.5}, 2),
    ({"top_k": 4, "min_p": 0.3}, 3),
  ],
)
def test_what_stays(rule, stay):
  assert kept(**rule) == list(range(stay))


def test_equally_likely_tokens_stay_together():
  found = sampling.restrict(jnp.array([1.0, 2.0, 1.0, 0.0]), 2, 1.0, 0.0)
  np.testing.assert_array_equal(np.isfinite(found), [True, True, True, False])


@pytest.mark.parametrize("top_p", [0.3, 0.8, 0.97, 1.0])
@pytest.mark.parametrize("top_k", [0, 1, 5, V])
@pytest.mark.parametrize("min_p", [0.0, 0.05])
def test_restriction_is_that_of_transformers(oracle, top_p, top_k, min_p):
  from transformers import generation

  rules = [generation.TopKLogitsWarper(top_k)] if top_k else []
  rules += [generation.TopPLogitsWarper(top_p)] if top_p < 1 else []
  rules += [generation.MinPLogitsWarper(min_p)] if min_p else []
  scores = oracle.tensor(logits())
  for rule in rules:
    scores = rule(None, scores)
  ours = sampling.restrict(logits(), top_k, top_p, min_p)
  np.testing.assert_allclose(ours, scores.numpy())


@pytest.mark.parametrize("penalty", [0.7, 1.0, 1.8])
def test_penalty_is_that_of_transformers(oracle, penalty):
  from transformers import generation

  ids = np.array([[1, 2, 2, 5], [0, 36, 7, 0], [9, 9, 9, 9], [3, 1, 4, 2]])
  seen = np.zeros((4, V), bool)
  np.put_along_axis(seen, ids, True, 1)
  rule = generation.RepetitionPenaltyLogitsProcessor(penalty)
  theirs = rule(oracle.tensor(ids), oracle.tensor(logits()))
  np.testing.assert_allclose(sampling.penalise(logits(), seen, penalty), theirs.numpy())


@pytest.mark.parametrize("size", [1, 2, 3, 4, 9])
def test_what_would_repeat_is_that_of_transformers(oracle, size):
  """Rows of different lengths, of which torch is given each alone."""
  from transformers import generation

  rng = np.random.default_rng(0)
  ids, lengths = rng.integers(0, 3, (40, 12)), np.arange(40) % 12 + 1
  found = np.asarray(sampling.repeating(jnp.asarray(ids), jnp.asarray(lengths), size, V))
  rule = generation.NoRepeatNGramLogitsProcessor(size)
  for row, length, banned in zip(ids, lengths, found, strict=True):
    scores = rule(oracle.tensor(row[None, :length]), oracle.zeros(1, V))
    np.testing.assert_array_equal(banned, scores[0].numpy() == -np.inf)
  assert found.any() == (size < 9)


def test_what_may_come():
  """Stops come late, one token at the limit, banned and unknown ones never."""
  numbers = Rules(min_new_tokens=2).numbers | NOTHING
  numbers |= {"stop_ids": np.array([4, -1]), "banned": np.array([-1, 7]), "vocab_limit": 30}
  numbers |= {"last": np.array([4, 9, -1]), "limit": 5}
  row = {"new": jnp.array([1, 2, 3, 4])}
  found = np.asarray(sampling.ruled(jnp.asarray(logits()), numbers, Rules().parts(), row))
  expected = logits()
  expected[:, 7] = expected[:, 30:] = expected[0, 4] = expected[3] = -np.inf
  expected[3, [4, 9]] = 0  # certain
  np.testing.assert_array_equal(found, expected)


def seeded(*numbers):
  """[B,3] of what draws follow from: these, then zeros."""
  return jnp.stack([*numbers, *[jnp.zeros_like(numbers[0])] * (3 - len(numbers))], 1)


def draws(count, **settings):
  """Tokens drawn from P by `count` rows that differ in their seeds alone."""
  rules = Rules(**settings)
  rows = jnp.broadcast_to(jnp.log(P), (count, len(P)))
  places, seen = jnp.full(count, 3), jnp.zeros(rows.shape, bool).at[:, 0].set(True)
  row = {"seen": seen, "tokens": None, "places": places, "new": places}
  rows = sampling.ruled(rows, rules.numbers | NOTHING, rules.parts(), row)
  return np.asarray(
    sampling.choose(rows, rules.numbers, rules.parts(), seeded(jnp.arange(count)), places)
  )


@pytest.mark.parametrize(
  ("settings", "expected"),
  [
    ({"temperature": 1.0}, P),
    ({"temperature": 0.5}, P**2),
    ({"temperature": 2.0, "top_k": 3}, np.sqrt(P) * (np.arange(5) < 3)),
    # top_p speaks of the distribution at this temperature: 0.55, 0.31, 0.08, 0.03, 0.01.
    ({"temperature": 0.5, "top_p": 0.8}, P**2 * (np.arange(5) < 2)),
    ({"temperature": 1.0, "repetition_penalty": 2.0}, P ** np.array([2, 1, 1, 1, 1])),
  ],
)
def test_draws_follow_the_distribution(settings, expected):
  count = 20000
  found = np.bincount(draws(count, **settings), minlength=5) / count
  expected = expected / expected.sum()
  assert (found[expected == 0] == 0).all()
  np.testing.assert_allclose(found, expected, atol=4 * np.sqrt(0.25 / count))


def test_without_temperature_the_likeliest():
  np.testing.assert_array_equal(draws(3), 0)
  np.testing.assert_array_equal(draws(3, repetition_penalty=2.0), 1)  # log p is negative


def test_a_draw_depends_on_its_seeds_and_its_number_alone():
  rules = Rules(temperature=1.0)
  choose = lambda rows, seeds, places: np.asarray(
    sampling.choose(jnp.asarray(rows), rules.numbers, rules.parts(), seeds, places)
  )
  rows, seeds, places = logits(64), seeded(jnp.arange(64) // 2), jnp.arange(64) + 5
  whole = choose(rows, seeds, places)
  np.testing.assert_array_equal(choose(rows[40:41], seeds[40:41], places[40:41]), whole[40:41])
  flat = np.zeros((64, V), np.float32)
  none, each = jnp.zeros(64, int), jnp.arange(64)
  assert len(set(choose(flat, seeded(none), places))) > 20
  for seeds in ((each,), (none, each), (none, none, each)):
    assert len(set(choose(flat, seeded(*seeds), none))) > 20
  assert len(set(choose(flat, seeded(none), none))) == 1


def test_a_draw_is_by_the_key_that_is_promised():
  """Of seed, crc32 of the prompt, number of the answer and of the token."""
  rules, key = Rules(temperature=1.0), jax.random.key(7)
  for number in (3_000_000_000, 2, 9):
    key = jax.random.fold_in(key, np.uint32(number))
  seeds = jnp.array([[7, 3_000_000_000, 2]], jnp.uint32)
  found = sampling.choose(logits(1), rules.numbers, rules.parts(), seeds, jnp.array([9]))
  assert found[0] == jax.random.categorical(key, logits(1)[0])


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("temperature", -0.1),
    ("top_k", -1),
    ("top_p", 0.0),
    ("top_p", 1.1),
    ("min_p", -0.1),
    ("min_p", 1.5),
    ("repetition_penalty", 0.0),
    ("temperature", float("nan")),
    ("temperature", float("inf")),
    ("temperature", 1e-40),
    ("temperature", "warm"),
    ("repetition_penalty", float("inf")),
    ("repetition_penalty", 1e39),
    ("top_k", 1.5),
    ("top_k", True),
    ("no_repeat_ngram_size", 2**31),
  ],
)
def test_bad_numbers(name, value):
  with pytest.raises(UsageError, match=re.escape(f"{name} is {value}, expected")):
    Rules(**{name: value})


def test_whole_numbers_of_other_kinds():
  assert Rules(num_beams=np.int64(2)) == Rules(num_beams=2.0) == Rules(num_beams=2)


@pytest.mark.parametrize(("name", "value"), [("top_k", 5), ("top_p", 0.9), ("min_p", 0.1)])
def test_what_only_draws_mean(name, value):
  with pytest.raises(UsageError, match=f"{name} is {value} with temperature 0, which draws"):
    Rules(**{name: value})
  Rules(**{name: value}, temperature=0.7)
  Rules(**{name: getattr(Rules, name)})


def test_numbers_are_no_part_of_a_program():
  one, other = Rules(temperature=1, top_p=0.5), Rules(temperature=0.3, top_k=7)
  assert one.parts() == other.parts()
  kinds = lambda rules: jax.tree.map(lambda x: (x.dtype, x.shape), rules.numbers)
  assert kinds(one) == kinds(other)
