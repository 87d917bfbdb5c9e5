"""Beam search: of every prompt some beginnings are followed, and the best ends are kept.

What it finds, its scores and when it ends are those of transformers' `generate(num_beams=…)`.
The W beams of a prompt are neighbours in the rows of a state (see generate_state.py), which
has two entries more: scores [B*W], the sums of their log-probabilities; and found, the best
complete answers of each prompt: scores [B,W], -inf where there is none yet, falling; tokens
[B,W,S], prompt and answer; lengths [B,W], tokens of the answer without its stop id.
"""

import jax
import jax.numpy as jnp

from jaxsft import sampling


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


def take_rows(network, state, rows):
  """The state with what row rows[i] holds in row i; what is found stays."""
  moved = {name: x[rows] for name, x in state.items() if name not in ("cache", "found")}
  return state | moved | {"cache": network.take_rows(state["cache"], rows)}


def choose(logits, network, state, numbers, parts):
  """The state with the next token of each beam, from logits [B*W,V] float32."""
  W, places = parts.copies, state["cache"]["lengths"]
  by_prompt = lambda x: x.reshape(-1, W)[:, 0]  # of what all beams of a prompt share
  broken = jnp.isnan(jnp.max(logits, -1))
  row = {name: state.get(name) for name in ("tokens", "seen")}
  row |= {"places": places, "new": places - state["prompts"]}
  log_p = sampling.ruled(jax.nn.log_softmax(logits), numbers, parts, row)
  total = state["scores"][:, None] + log_p
  live, new = by_prompt(state["live"]), by_prompt(row["new"]) + 1
  stops = sampling.is_stop(jnp.arange(total.shape[1]), numbers)
  found = _keep_best(state, _likeliest(total, W), stops, live, new, by_prompt(places), numbers)
  scores, rows, ids = _likeliest(jnp.where(stops, -jnp.inf, total), W)
  goes_on = live & _improvable(scores[:, 0], found["scores"], new, numbers)
  goes_on &= (new < numbers["limit"]) & ~jnp.any(broken.reshape(-1, W), 1)
  stays = jnp.arange(len(total)).reshape(-1, W)
  rows = jnp.where(live[:, None], rows, stays).reshape(-1)
  ids, alive = ids.reshape(-1), jnp.repeat(goes_on, W)
  broken = state["broken"] | (state["live"] & broken)
  state = take_rows(network, state, rows)
  at = jnp.where(alive, places, state["tokens"].shape[1])
  chosen = {
    "tokens": state["tokens"].at[jnp.arange(len(at)), at].set(ids, mode="drop"),
    "live": alive,
    "broken": broken,
    "scores": scores.reshape(-1),
    "found": found,
  }
  if parts.penalised:
    chosen["seen"] = state["seen"].at[jnp.arange(len(at)), ids].set(True)
  return state | chosen


def _likeliest(total, W):
  """Of the sums total [B*W,V], the W largest of each prompt: (sums, their rows, ids) [B,W]."""
  sums, ids = jax.lax.top_k(total, W)
  sums, at = jax.lax.top_k(sums.reshape(-1, W * W), W)
  rows = jnp.arange(len(at))[:, None] * W + at // W
  return sums, rows, jnp.take_along_axis(ids.reshape(-1, W * W), at, 1)


def _keep_best(state, likeliest, stops, live, new, places, numbers):
  """`found` after the likeliest continuations that are complete: at a stop id, or the limit."""
  (sums, rows, ids), found = likeliest, state["found"]
  ended = (stops[ids] | (new >= numbers["limit"])[:, None]) & live[:, None]
  norm = _power(new, numbers)[:, None]
  B, W = ids.shape
  index = (jnp.arange(B)[:, None], jnp.arange(W), places[:, None])
  tokens = state["tokens"][rows].at[index].set(ids, mode="drop")
  offered = {
    "scores": jnp.where(ended, sums / norm, -jnp.inf),
    "tokens": tokens,
    "lengths": new[:, None] - stops[ids],
  }
  both = {name: jnp.concatenate([found[name], offered[name]], 1) for name in found}
  scores, best = jax.lax.top_k(both["scores"], W)
  take = lambda x: jnp.take_along_axis(x, best.reshape(B, W, *(1,) * (x.ndim - 2)), 1)
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
