"""Beam search: of every prompt some beginnings are followed, and the best ends are kept.

What it finds, its scores and when it ends are those of transformers' `generate(num_beams=…)`.
The W beams of a prompt are neighbours in the rows of a state (see growth.py), which
has two entries more: scores [B*W], the sums of their log-probabilities; and found, the best
complete answers of each prompt: scores [B,W], -inf where there is none yet, falling; tokens
[B,W,S], prompt and answer; lengths [B,W], tokens of the answer without its stop id.
"""

import jax
import jax.numpy as jnp

from jaxsft.generation import sampling
from jaxsft.models import attention_layer

BLOCK = 64  # ids of which the largest is found first


def begin(state, W):
  """The state of rows that are all alike in a prompt: the first of them alone is followed."""
  rows, room = state["tokens"].shape
  found = {
    "scores": jnp.full((rows // W, W), -jnp.inf),
    "tokens": jnp.zeros((rows // W, W, room), jnp.int32),
    "lengths": jnp.zeros((rows // W, W), jnp.int32),
  }
  first = jnp.arange(rows) % W == 0
  return state | {"scores": jnp.where(first, 0.0, -jnp.inf), "found": found}


def choose(logits, state, numbers, parts):
  """What comes next in each beam, from logits [B*W,V] float32.

  (rows [B,W] of each prompt's that go on, ids [B*W] of their next tokens, entries of the state
  of those rows).
  """
  W, places = parts.copies, state["cache"]["lengths"]
  by_prompt = lambda x: x.reshape(-1, W)[:, 0]  # of what all beams of a prompt share
  broken = ~jnp.all(jnp.isfinite(logits), -1)
  row = {name: state.get(name) for name in ("tokens", "seen")}
  row |= {"places": places, "new": places - state["prompts"]}
  log_p = sampling.ruled(jax.nn.log_softmax(logits), numbers, parts, row)
  going, best = _continuations(state["scores"][:, None] + log_p, W, numbers["stop_ids"])
  live, new = by_prompt(state["live"]), by_prompt(row["new"]) + 1
  found = _keep_best(state, best, live, new, by_prompt(places), numbers)
  scores, rows, ids, _ = going
  goes_on = live & _improvable(scores[:, 0], found["scores"], new, numbers)
  goes_on &= (new < numbers["limit"]) & ~jnp.any(broken.reshape(-1, W), 1)
  stuck = live & (scores[:, 0] == -jnp.inf) & (found["scores"][:, 0] == -jnp.inf)
  chosen = {
    "live": jnp.repeat(goes_on, W),
    "broken": state["broken"] | (state["live"] & broken),
    "stuck": state["stuck"] | jnp.repeat(stuck, W),
    "scores": scores.reshape(-1),
    "found": found,
  }
  return jnp.where(live[:, None], rows, jnp.arange(W)), ids.reshape(-1), chosen


def _continuations(total, W, stop_ids):
  """The likeliest W of each prompt that go on, and of all; total [B*W,V] are sums.

  Each is (sums, which row of the prompt, ids, whether a stop id completes them), [B,W].
  """
  ends = jnp.where(stop_ids < 0, -jnp.inf, total[:, stop_ids])
  is_stop = jnp.any(jnp.arange(total.shape[1])[:, None] == stop_ids, -1)
  sums, ids = largest(jnp.where(is_stop, -jnp.inf, total), W)
  sums = jnp.concatenate([sums, ends], 1)
  ids = jnp.concatenate([ids, jnp.broadcast_to(stop_ids, ends.shape)], 1)
  each = sums.shape[1]
  complete = jnp.arange(each) >= W

  def pick(sums):
    best, at = jax.lax.top_k(sums.reshape(-1, W * each), W)
    found = jnp.take_along_axis(ids.reshape(-1, W * each), at, 1)
    return best, at // each, found, complete[at % each]

  return pick(jnp.where(complete, -jnp.inf, sums)), pick(sums)


def largest(x, k):
  """(values, places) [R,k] of the k largest in each row of x [R,V], falling.

  Those of blocks that have the largest maxima: `jax.lax.top_k` of a vocabulary sorts all of
  it on a CPU, which takes as long as a small model does.
  """
  (R, V), size = x.shape, BLOCK
  count = -(-V // size)
  if count <= k:
    return jax.lax.top_k(x, k)
  blocks = jnp.pad(x, ((0, 0), (0, count * size - V)), constant_values=-jnp.inf)
  blocks = blocks.reshape(R, count, size)
  _, at = largest(jnp.max(blocks, -1), k)
  some = jnp.take_along_axis(blocks, at[..., None], 1)
  values, places = jax.lax.top_k(some.reshape(R, -1), k)
  return values, jnp.take_along_axis(at, places // size, 1) * size + places % size


def _keep_best(state, best, live, new, places, numbers):
  """`found` after the likeliest continuations, where they are complete or at the limit."""
  (sums, rows, ids, complete), found = best, state["found"]
  ended = (complete | (new >= numbers["limit"])[:, None]) & live[:, None]
  B, W = ids.shape
  index = (jnp.arange(B)[:, None], jnp.arange(W), places[:, None])
  tokens = attention_layer.take_rows(state["tokens"], rows).reshape(B, W, -1)
  offered = {
    "scores": jnp.where(ended, sums / _power(new, numbers)[:, None], -jnp.inf),
    "tokens": tokens.at[index].set(ids, mode="drop"),
    "lengths": new[:, None] - complete,
  }
  both = {name: jnp.concatenate([found[name], offered[name]], 1) for name in found}
  scores, kept = jax.lax.top_k(both["scores"], W)
  take = lambda x: jnp.take_along_axis(x, kept.reshape(B, W, *(1,) * (x.ndim - 2)), 1)
  return {"scores": scores, "tokens": take(both["tokens"]), "lengths": take(both["lengths"])}


def _improvable(best, found, new, numbers):
  """[B] whether the best open sum [B] may still displace one of the scores found [B,W].

  By early_stopping: judged at the present length, or ("never") at the one that suits it best.
  """
  early, penalty = numbers["early_stopping"], numbers["length_penalty"]
  at_limit = (early == sampling.EARLY.index("never")) & (penalty > 0)
  worst = jnp.min(found, 1)  # -inf: a place is free
  done = (early == sampling.EARLY.index(True)) & (worst > -jnp.inf)
  return ~done & (best / _power(jnp.where(at_limit, numbers["limit"], new), numbers) > worst)


def _power(length, numbers):
  return length.astype(jnp.float32) ** numbers["length_penalty"]
