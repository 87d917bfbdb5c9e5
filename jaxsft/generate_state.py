"""The compiled half of generation: a batch of rows that grow token by token.

The state of a batch, beside the cache: x [B,D], the hidden states that the next tokens are
chosen from; tokens [B,S], prompts and answers; live [B], rows that go on; broken [B], rows
whose logits are not numbers; seen [B,V], where repetitions are penalised. Of a row, the
cache holds lengths tokens; while it is live, its newest token is not among them.
"""

from functools import partial

import jax
import jax.numpy as jnp

from jaxsft import sampling


@partial(jax.jit, static_argnames=("network", "parts", "room", "last"), donate_argnames="state")
def read(network, params, state, inputs, segments, numbers, *, parts, room, last):
  """The state after one more piece of the prompts [B,T]; after the last, a token each."""
  if state is None:
    cache = network.empty_cache(params, inputs.shape[0], room, numbers["prompts"])
    state = _empty(network, cache, parts)
  x, cache = network.decode(params, inputs, state["cache"], segments=segments)
  some = jnp.sum(segments, 1)
  x = jnp.take_along_axis(x, jnp.maximum(some - 1, 0)[:, None, None], 1)[:, 0]
  state |= {"x": jnp.where(some[:, None] > 0, x, state["x"]), "cache": cache}
  state["live"] = state["live"] | (some > 0)
  if parts.penalised:
    ids = jnp.where(segments > 0, inputs, network.arch.vocab)
    rows = jnp.arange(inputs.shape[0])[:, None]
    state["seen"] = state["seen"].at[rows, ids].set(True, mode="drop")
  return _choose(network, params, state, numbers, parts) if last else state


@partial(jax.jit, static_argnames=("network", "parts", "room"))
def open_target(network, params, source, segments, begin, numbers, *, parts, room):
  """The state after sources [B,S] and the first inputs [P] of every target, and a token."""
  batch = {"source": source, "source_segments": segments}
  state = _empty(network, network.prefill(params, batch, room), parts)
  live = jnp.any(segments > 0, 1)
  inputs = jnp.broadcast_to(begin, (len(source), len(begin)))
  real = jnp.where(live[:, None], 1, jnp.zeros_like(inputs))
  x, cache = network.decode(params, inputs, state["cache"], segments=real)
  state |= {"x": x[:, -1], "cache": cache, "live": live}
  state["tokens"] = state["tokens"].at[:, : len(begin)].set(begin)
  if parts.penalised:
    state["seen"] = state["seen"].at[:, begin].set(True)
  return _choose(network, params, state, numbers, parts)


@partial(jax.jit, static_argnames=("network", "parts"), donate_argnames="state")
def extend(network, params, state, steps, numbers, *, parts):
  """The state after at most `steps` more tokens in each row."""

  def goes_on(carry):
    return (carry[0] < steps) & jnp.any(carry[1]["live"])

  def step(carry):
    done, state = carry
    newest = jnp.take_along_axis(state["tokens"], state["cache"]["lengths"][:, None], 1)
    live = state["live"].astype(jnp.int32)[:, None]
    x, cache = network.decode(params, newest, state["cache"], segments=live)
    state = state | {"x": x[:, 0], "cache": cache}
    return done + 1, _choose(network, params, state, numbers, parts)

  return jax.lax.while_loop(goes_on, step, (jnp.int32(0), state))[1]


def _empty(network, cache, parts):
  rows, room = cache["segments"].shape
  state = {
    "cache": cache,
    "x": jnp.zeros((rows, network.arch.out_width), network.dtype),
    "tokens": jnp.zeros((rows, room), jnp.int32),
    "live": jnp.zeros(rows, bool),
    "broken": jnp.zeros(rows, bool),
  }
  if parts.penalised:
    state["seen"] = jnp.zeros((rows, network.arch.vocab), bool)
  return state


def _choose(network, params, state, numbers, parts):
  """The state with the next token of each live row, or with the row ended by a stop id."""
  places = state["cache"]["lengths"]
  logits = network.vocabulary_logits(params, state["x"])
  broken = jnp.isnan(jnp.max(logits, -1))
  ids = jnp.arange(logits.shape[1])
  may = (ids < numbers["vocab_limit"]) & jnp.all(ids[:, None] != numbers["banned"], -1)
  logits = jnp.where(may, logits, -jnp.inf)
  token = sampling.choose(logits, numbers, parts, state.get("seen"), numbers["seeds"], places)
  live = state["live"] & ~broken & jnp.all(token[:, None] != numbers["stop_ids"], -1)
  rows, room = jnp.arange(len(token)), state["tokens"].shape[1]
  at = jnp.where(live, places, room)
  chosen = {
    "tokens": state["tokens"].at[rows, at].set(token, mode="drop"),
    "live": live,
    "broken": state["broken"] | (state["live"] & broken),
  }
  if parts.penalised:
    chosen["seen"] = state["seen"].at[rows, token].set(True)
  return state | chosen
