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
