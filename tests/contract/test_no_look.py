"""No token sees what it must not: later tokens, other segments; a packed row is its parts."""

import jax
import numpy as np
import pytest

from jaxsft import pretrained

LENGTHS = (9, 14, 6)  # segments of the row; the rest of T is padding
T = 36


@pytest.fixture(scope="module", params=["bert", "llama"])
def hidden(request, files):
  """(family, function (inputs [B,T], segments [B,T]) -> [B,T,D]) of a tiny checkpoint."""
  family = request.param
  base = pretrained.open_pretrained(files(family, "classify")[0])
  network = base.network("classify", ("a", "b"))
  params, _ = pretrained.load_params(base, network)
  run = jax.jit(lambda i, s: network.hidden(params, {"inputs": i, "segments": s}))
  return family, lambda inputs, segments: np.asarray(run(inputs, segments))


def packed(rng, copies=1):
  segments = np.zeros((copies, T), np.int32)
  segments[:, : sum(LENGTHS)] = np.repeat(np.arange(1, len(LENGTHS) + 1), LENGTHS)
  row = rng.integers(4, 40, T).astype(np.int32)
  return np.repeat(row[None], copies, 0), segments


def test_changed_tokens_reach_only_their_own(hidden):
  """Row i of the batch has token i changed; row 0 of the second result has none."""
  family, run = hidden
  inputs, segments = packed(np.random.default_rng(0), T)
  before = run(inputs, segments)
  changed = inputs.copy()
  changed[np.arange(T), np.arange(T)] += 7
  after = run(changed, segments)
  same = (before == after).all(-1)  # [changed token, reader]
  for token in range(T):
    for reader in range(sum(LENGTHS)):
      mine = segments[0, token] == segments[0, reader]
      allowed = mine and (family == "bert" or reader >= token)
      assert same[token, reader] != allowed, (token, reader)


def test_a_packed_row_is_its_parts(hidden):
  _, run = hidden
  inputs, segments = packed(np.random.default_rng(1), 4)
  whole = run(inputs, segments)[0]
  starts = np.cumsum([0, *LENGTHS])
  alone, one = np.zeros_like(inputs), np.zeros_like(segments)
  for m, (start, length) in enumerate(zip(starts, LENGTHS, strict=False)):
    alone[m, :length], one[m, :length] = inputs[0, start : start + length], 1
  apart = run(alone, one)
  for m, (start, length) in enumerate(zip(starts, LENGTHS, strict=False)):
    np.testing.assert_allclose(apart[m, :length], whole[start : start + length], atol=2e-6)


SOURCES, TARGETS = (7, 4, 9), (5, 8, 3)  # segments of a row of two streams


@pytest.mark.parametrize("family", ["t5", pytest.param("bart", marks=pytest.mark.full)])
def test_a_target_sees_its_own_source_and_what_it_has_written(family, files):
  """Row i has token i changed, of the source or of the target; the last row has none."""
  base = pretrained.open_pretrained(files(family, "seq2seq")[0])
  network = base.network("seq2seq")
  params, _ = pretrained.load_params(base, network)
  S, T, rng = sum(SOURCES) + 2, sum(TARGETS) + 3, np.random.default_rng(0)
  rows = sum(SOURCES) + sum(TARGETS) + 1
  batch = {}
  for name, lengths, width in (("source", SOURCES, S), ("inputs", TARGETS, T)):
    prefix = "source_" if name == "source" else ""
    segments = np.zeros((rows, width), np.int32)
    segments[:, : sum(lengths)] = np.repeat(np.arange(1, 4), lengths)
    batch[f"{prefix}segments"] = segments
    batch[name] = np.repeat(rng.integers(4, 40, width)[None], rows, 0).astype(np.int32)
  places = [("source", i) for i in range(sum(SOURCES))]
  places += [("inputs", i) for i in range(sum(TARGETS))]
  for row, (name, token) in enumerate(places):
    batch[name][row, token] += 7
  x = np.asarray(jax.jit(lambda batch: network.hidden(params, batch))(batch))
  same = (x == x[-1]).all(-1)  # [changed token, reader]
  for row, (name, token) in enumerate(places):
    prefix = "source_" if name == "source" else ""
    mine = batch[f"{prefix}segments"][0, token]
    for reader in range(sum(TARGETS)):
      allowed = batch["segments"][0, reader] == mine
      if name == "inputs":
        allowed = allowed and reader >= token
      assert same[row, reader] != allowed, (name, token, reader)
