"""The compiled half of generation: a batch of rows that grow token by token.

The state of a batch, beside the cache: x [B,D], the hidden states that the next tokens are
chosen from; tokens [B,S], prompts and answers; prompts [B], the lengths of the prompts;
live [B], rows that go on; broken [B], rows whose logits are not finite; stuck [B], rows in
which no token may come; seen [B,V], where repetitions are penalised. Of a row, the cache holds
lengths tokens; while it is live, its newest token is not among them. Once the prompts are read
each has `parts.copies` rows, side by side: either beams (see beams.py), or answers of their
own, with log_p [B,S], what the model gave to every token that was chosen, the stop id included.
"""

from functools import partial

import jax
import jax.numpy as jnp

from jaxsft import sharding
from jaxsft.generation import beams, sampling
from jaxsft.models import attention_layer


def _read(network, params, state, inputs, segments, numbers, *, parts, room, last):
  """The state after one more piece of the prompts [B,T]; after the last, a token each."""
  inputs, segments = (sharding.constrain(x, sharding.ROWS, None) for x in (inputs, segments))
  if state is None:
    lengths = numbers["prompts"]
    cache = network.empty_cache(params, inputs.shape[0], room, lengths)
    state = _empty(network, cache, lengths, parts)
  places = state["cache"]["lengths"][:, None] + jnp.arange(inputs.shape[1])
  x, cache = network.decode(params, inputs, state["cache"], segments=segments)
  some = jnp.sum(segments, 1)
  x = jnp.take_along_axis(x, jnp.maximum(some - 1, 0)[:, None, None], 1)[:, 0]
  state |= {"x": jnp.where(some[:, None] > 0, x, state["x"]), "cache": cache}
  state["live"] = state["live"] | (some > 0)
  rows = jnp.arange(inputs.shape[0])[:, None]
  at = jnp.where(segments > 0, places, room)
  state["tokens"] = state["tokens"].at[rows, at].set(inputs, mode="drop")
  if parts.penalised:
    ids = jnp.where(segments > 0, inputs, network.arch.vocab)
    state["seen"] = state["seen"].at[rows, ids].set(True, mode="drop")
  return _first(network, params, state, numbers, parts) if last else _over_rows(state)


_static = {"static_argnames": ("network", "parts", "room", "last")}
read = jax.jit(_read, **_static, donate_argnames="state")
read_into_copies = jax.jit(_read, **_static)  # no buffer of the state fits what comes out


@partial(jax.jit, static_argnames=("network", "parts", "room"))
def open_target(network, params, source, segments, begin, numbers, *, parts, room):
  """The state after sources [B,S] and the first inputs [P] of every target, and a token."""
  source, segments = (sharding.constrain(x, sharding.ROWS, None) for x in (source, segments))
  batch = {"source": source, "source_segments": segments}
  cache = network.prefill(params, batch, room)
  state = _empty(network, cache, jnp.ones(len(source), jnp.int32), parts)
  live = jnp.any(segments > 0, 1)
  inputs = jnp.broadcast_to(begin, (len(source), len(begin)))
  real = jnp.where(live[:, None], 1, jnp.zeros_like(inputs))
  x, cache = network.decode(params, inputs, state["cache"], segments=real)
  state |= {"x": x[:, -1], "cache": cache, "live": live}
  state["tokens"] = state["tokens"].at[:, : len(begin)].set(begin)
  if parts.penalised:
    state["seen"] = state["seen"].at[:, begin].set(True)
  return _first(network, params, state, numbers, parts)


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

  return _over_rows(jax.lax.while_loop(goes_on, step, (jnp.int32(0), state))[1])


def _empty(network, cache, prompts, parts):
  rows, room = cache["segments"].shape
  state = {
    "cache": cache,
    "x": jnp.zeros((rows, network.arch.out_width), network.dtype),
    "tokens": jnp.zeros((rows, room), jnp.int32),
    "prompts": prompts,
    "live": jnp.zeros(rows, bool),
    "broken": jnp.zeros(rows, bool),
    "stuck": jnp.zeros(rows, bool),
  }
  if parts.penalised:
    state["seen"] = jnp.zeros((rows, network.arch.vocab), bool)
  return state


def _first(network, params, state, numbers, parts):
  """The state of rows that have been read, with the first token of each copy of them."""
  if parts.copies > 1:
    same = jnp.zeros((len(state["live"]), parts.copies), jnp.int32)
    state = _take_rows(network, state, same)
  if parts.beams:
    state = beams.begin(state, parts.copies)
  else:
    state = state | {"log_p": jnp.zeros(state["tokens"].shape, jnp.float32)}
  return _choose(network, params, state, numbers, parts)


def _choose(network, params, state, numbers, parts):
  """The state with the next token of each live row, or with the row ended by a stop id."""
  logits = network.vocabulary_logits(params, state["x"])
  places, room = state["cache"]["lengths"], state["tokens"].shape[1]
  if parts.beams:
    source, token, chosen = beams.choose(logits, state, numbers, parts)
    state = _take_rows(network, state, source)
  else:
    token, chosen = _of_its_own(logits, state, numbers, parts)
  rows, at = jnp.arange(len(token)), jnp.where(chosen["live"], places, room)
  chosen["tokens"] = state["tokens"].at[rows, at].set(token, mode="drop")
  if parts.penalised:
    chosen["seen"] = state["seen"].at[rows, token].set(True)
  return _over_rows(state | chosen)


def _of_its_own(logits, state, numbers, parts):
  """(the next token of each row, entries of the state), of rows that are answers."""
  broken, places = ~jnp.all(jnp.isfinite(logits), -1), state["cache"]["lengths"]
  row = {name: state.get(name) for name in ("tokens", "seen")}
  row |= {"places": places, "new": places - state["prompts"]}
  allowed = sampling.ruled(logits, numbers, parts, row)
  stuck = jnp.max(allowed, -1) == -jnp.inf
  token = sampling.choose(allowed, numbers, parts, numbers["seeds"], row["new"])
  log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], 1)[:, 0]
  log_p = jnp.where(sampling.forced(row["new"], numbers), 0.0, log_p)
  rows, room = jnp.arange(len(token)), state["tokens"].shape[1]
  at = jnp.where(state["live"], places, room)
  return token, {
    "log_p": state["log_p"].at[rows, at].set(log_p, mode="drop"),
    "live": state["live"] & ~broken & ~stuck & ~sampling.is_stop(token, numbers),
    "broken": state["broken"] | (state["live"] & broken),
    "stuck": state["stuck"] | (state["live"] & stuck),
  }


def _take_rows(network, state, rows):
  """The state of the rows [B,W] of each prompt's; what beams have found stays."""
  take = lambda x: attention_layer.take_rows(x, rows)
  moved = {name: take(x) for name, x in state.items() if name not in ("cache", "found")}
  return state | moved | {"cache": network.take_rows(state["cache"], rows)}


def _over_rows(state):
  """The state with its rows where batches have them on the mesh: what goes in comes out."""
  pin = lambda x: sharding.constrain(x, sharding.ROWS, *(None,) * (x.ndim - 1))
  held = {name: pin(x) for name, x in state["cache"].items() if getattr(x, "ndim", 9) < 3}
  rest = {name: jax.tree.map(pin, x) for name, x in state.items() if name != "cache"}
  return rest | {"cache": state["cache"] | held}
