"""The causal Transformer: GPT-2, Llama and what came after them.

With a cache (`decode`) it answers for tokens that follow others of the same row.
"""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxsft import sharding, stack
from jaxsft.models import attention, attention_layer, experts, layers, loop, rope

PLACEMENTS = {  # placement -> whether a branch's input is normalised, and its output
  "before": (True, False),  # x + f(norm(x))
  "after": (False, True),  # x + norm(f(x)): OLMo 2
  "around": (True, True),  # x + norm(f(norm(x))): Gemma 2 and 3, GLM-4
  "parallel": (True, False),  # x + attn(norm(x)) + mlp(norm(x)): GPT-NeoX
  "residual": (False, False),  # norm(x + f(x)): the 350M OPT
}


@dataclass(frozen=True)
class Kind:
  """What a layer is beside its weights."""

  window: int | None
  """Of the attention, see attention.Rule; None: the whole text."""
  rope: int | None
  """Which of DecoderConfig.ropes turns its heads; None: nothing does."""
  scale: float | None
  """Of the scores, where layers differ (GPT-2's scale_attn_by_inverse_layer_idx); None:
  that of the heads."""


@dataclass(frozen=True)
class DecoderConfig:
  """The architecture, as config.json states it; no field has a default."""

  vocab: int
  width: int
  layers: int
  heads: attention_layer.Heads
  mlp: int
  experts: experts.Experts | None
  """What stands in every layer in the place of an MLP of width `mlp`."""
  max_positions: int
  activation: str
  gated: bool
  mlp_bias: bool
  norm: layers.Norm
  placement: str
  """One of PLACEMENTS."""
  final_norm: bool
  ropes: tuple
  """of rope.Rope."""
  kinds: tuple
  """of Kind, one a layer."""
  position_rows: int
  """Of the table of learned positions; 0: there is none."""
  position_offset: int
  """Row of position 0."""
  embed_width: int
  """Of the token table and of what heads read; not `width` where OPT projects in and out."""
  embed_scale: float
  """What token vectors are multiplied by, rounded to the compute type as Gemma does."""
  residual_scale: float
  """What branches are multiplied by before they are added (Granite)."""
  logit_scale: float
  """What hidden states are multiplied by before the projection to the vocabulary."""
  softcap: float | None
  """Of the logits."""
  tied: bool
  """Whether the token table is also the output projection."""
  embed_dropout: float
  dropout: float
  """After attention and MLP."""
  attention_dropout: float
  """On the attention probabilities."""
  head_dropout: float
  """Before a head that reads every token."""
  std: float
  """Standard deviation of new weights."""

  @property
  def out_width(self):
    """Width of the hidden states that heads read."""
    return self.embed_width


class Embedding(nn.Module):
  """Tokens, scaled and projected to the width, and learned positions."""

  arch: DecoderConfig
  dtype: str

  @nn.compact
  def __call__(self, inputs, positions):
    arch = self.arch
    table = partial(layers.Embed, dtype=self.dtype, std=arch.std)
    x = table(arch.vocab, arch.embed_width, name="tokens")(inputs)
    if arch.embed_scale != 1:
      x = x * jnp.asarray(arch.embed_scale, x.dtype)
    if arch.embed_width != arch.width:
      x = layers.Linear(arch.width, False, self.dtype, arch.std, name="project")(x)
    if arch.position_rows:
      places = positions + arch.position_offset
      x = x + table(arch.position_rows, arch.width, name="positions")(places)
    return x


class Layer(nn.Module):
  """Attention and MLP, each a branch beside the stream, normalised by `placement`."""

  arch: DecoderConfig
  kind: Kind
  dtype: str
  backend: str

  @nn.compact
  def __call__(self, x, rule, rotations, key=None, cache=None, places=None):
    """x [B,T,D] -> ([B,T|M,D], {"cache": …, "router": …}), either of them or None.

    rule: without a window. rotations: one of `rope.rotations` for each of the ropes.
    """
    arch, kind = self.arch, self.kind
    enters, leaves = PLACEMENTS[arch.placement]
    norm = partial(layers.Normalise, arch.norm, self.dtype)
    rows = x.shape[:2]

    def leave(name, y, site):
      y = norm(name=f"{name}_out_norm")(y) if leaves else y
      if arch.residual_scale != 1:
        y = (y.astype(jnp.float32) * arch.residual_scale).astype(y.dtype)
      return layers.dropout(y, arch.dropout, key, site, rows, places)

    scale = arch.heads.scale if kind.scale is None else kind.scale
    attend = attention_layer.Attention(
      arch.width,
      replace(arch.heads, scale=scale),
      self.dtype,
      arch.std,
      self.backend,
      name="attn",
    )
    turned = kind.rope is not None
    y, cache = attend(
      norm(name="attn_norm")(x) if enters else x,
      replace(rule, window=kind.window),
      rotation=rotations[kind.rope] if turned else None,
      interleaved=turned and arch.ropes[kind.rope].interleaved,
      rate=arch.attention_dropout,
      seed=None if key is None else layers.seed_of(key, 0),
      cache=cache,
      places=places,
    )
    before = layers.at(x, places)
    x = before + leave("attn", y, 1)
    if arch.placement == "residual":
      x = norm(name="attn_norm")(x)
    z = before if arch.placement == "parallel" else x
    real = layers.at(rule.q_segments, places)
    y, router = self._mlp(norm(name="mlp_norm")(z) if enters else z, real)
    x = x + leave("mlp", y, 2)
    if arch.placement == "residual":
      x = norm(name="mlp_norm")(x)
    return x, {"cache": cache, "router": router}

  def _mlp(self, x, real):
    """(the MLP's or the experts' answer, the router's sums or None)."""
    arch = self.arch
    if arch.experts is not None:
      mixture = experts.Mixture(
        arch.width, arch.experts, arch.activation, self.dtype, arch.std, name="mlp"
      )
      return mixture(x, real)
    mlp = layers.Mlp(
      width=arch.width,
      mlp=arch.mlp,
      activation=arch.activation,
      gated=arch.gated,
      bias=arch.mlp_bias,
      dtype=self.dtype,
      std=arch.std,
      name="mlp",
    )
    return mlp(x), None


class Last(nn.Module):
  """What stands between the last layer and the heads: a norm, a projection, or nothing."""

  arch: DecoderConfig
  dtype: str

  @nn.compact
  def __call__(self, x):
    arch = self.arch
    if arch.final_norm:
      x = layers.Normalise(arch.norm, self.dtype, name="norm")(x)
    if arch.embed_width != arch.width:
      x = layers.Linear(arch.embed_width, False, self.dtype, arch.std, name="project")(x)
    return x


def init(arch, key):
  """Random float32 parameters of everything but the head."""
  ids = jnp.ones((1, 2), jnp.int32)
  x = jnp.zeros((1, 2, arch.width))
  rule = attention.Rule(ids, ids, causal=True)
  turns = tuple(rope.rotations(one, ids, ids) for one in arch.ropes)
  keys = jax.random.split(key, 3)
  layer = Layer(arch, arch.kinds[0], "float32", "xla")
  one = lambda key: layer.init(key, x, rule, turns)["params"]
  params = {
    "embed": Embedding(arch, "float32").init(keys[0], ids, ids)["params"],
    "layers": jax.vmap(one)(jax.random.split(keys[1], arch.layers)),
  }
  return params | Last(arch, "float32").init(keys[2], x).get("params", {})


def hidden(network, params, batch, key=None, places=None):
  """[B,T,E] of a batch with inputs, segments and positions [B,T], after the last norm.

  places [B,M]: [B,M,E] at these alone; what the last layer would do elsewhere is not done.
  """
  return hidden_and_auxiliary(network, params, batch, key, places)[0]


def hidden_and_auxiliary(network, params, batch, key=None, places=None):
  """`hidden`, and {"router": (sum, weight)} of the load-balancing loss of the experts.

  The objective adds arch.experts.auxiliary x sum / weight. {} without experts, and with
  places: as in transformers, only language models balance their experts.
  """
  segments = batch["segments"]
  rule = attention.Rule(segments, segments, causal=True)
  turns = tuple(rope.rotations(one, batch["positions"], segments) for one in network.arch.ropes)
  x, outs = _stack(
    network, params, batch["inputs"], batch["positions"], rule, turns, key, places=places
  )
  if network.arch.experts is None or places is not None:
    return x, {}
  if isinstance(outs, tuple):
    outs = jax.tree.map(lambda *leaves: jnp.stack(leaves), *outs)
  return x, {"router": experts.balance(outs["router"], segments)}


def _stack(
  network, params, inputs, positions, rule, turns, key=None, cache=None, slots=None, places=None
):
  """cache: (k, v), stacked [L, …] or tuples alike to the layers -> (x, what layers return)."""
  arch, dtype = network.arch, network.dtype
  x = Embedding(arch, dtype).apply({"params": params["embed"]}, inputs, positions)
  x = layers.dropout(x, arch.embed_dropout, key, arch.layers)
  x = sharding.constrain(x, *network.ROWS)

  def apply(one, x, index, kind, past, places):
    layer = Layer(arch, kind, dtype, network.attention)
    layer_key = None if key is None else jax.random.fold_in(key, index)
    past = None if past is None else (*past, slots)
    x, out = layer.apply({"params": one}, x, rule, turns, layer_key, past, places)
    return sharding.constrain(x, *network.ROWS[: 2 if places is None else 1]), out

  x, outs = loop.run_layers(
    apply,
    params["layers"],
    x,
    cache,
    kinds=arch.kinds,
    places=places,
    unroll=network.unroll,
    remat=network.remat,
  )
  rest = {name: params[name] for name in ("norm", "project") if name in params}
  return Last(arch, dtype).apply({"params": rest}, x), outs


# --- with a cache ----------------------------------------------------------------------


def empty_cache(network, params, rows, length, prompts=None):
  """Room for `length` tokens in each of `rows` rows; a tuple a layer if `params` is so.

  k and v [L,B*K,S,H]; segments [B,S], 0 where a slot is empty; lengths [B], tokens held;
  long [B], whether a row has longrope's long factors. prompts [B]: lengths of the prompts,
  for longrope, where `decode` does not read each at once.
  """
  arch = network.arch
  shape = (rows * arch.heads.kv, length, arch.heads.dim)
  zeros = lambda *L: attention_layer.over_rows(jnp.zeros((*L, *shape), network.dtype))

  def room():
    if isinstance(params["layers"], tuple):
      return tuple(zeros() for _ in range(arch.layers))
    return zeros(arch.layers)

  return {
    "k": room(),
    "v": room(),
    "segments": jnp.zeros((rows, length), jnp.int32),
    "lengths": jnp.zeros(rows, jnp.int32),
    "long": (jnp.zeros(rows, int) if prompts is None else prompts) > _original(arch),
  }


def decode(network, params, inputs, cache, *, segments=None, positions=None):
  """Hidden states [B,T,E] of inputs [B,T] that follow what the cache holds, and the cache.

  segments [B,T]: 1 for tokens, 0 for the padding to their right, which is not stored;
  None: all tokens. positions [B,T]; None: they go on from the cache's lengths.
  The caller leaves room: a token beyond the cache's length would be lost. A text that grows
  over longrope's original length would need all that is held to be computed anew: such
  tokens become NaN; `crossing` says so before.
  """
  arch = network.arch
  (_, T), S = inputs.shape, cache["segments"].shape[1]
  segments = jnp.ones_like(inputs) if segments is None else segments
  places = cache["lengths"][:, None] + jnp.arange(T)
  positions = jnp.where(segments == 0, 0, places if positions is None else positions)
  slots = jnp.where(segments == 0, S, places)
  rows = jnp.arange(inputs.shape[0])[:, None]
  held = cache["segments"].at[rows, slots].set(segments, mode="drop")
  rule = attention.Rule(
    segments, held, True, None, places, jnp.arange(S, dtype=jnp.int32)[None]
  )
  first = cache["lengths"] == 0
  long = cache["long"] | (first & (jnp.max(positions, 1) >= _original(arch)))
  turns = tuple(rope.rotations(one, positions, segments, long) for one in arch.ropes)
  straight, past = isinstance(params["layers"], tuple), (cache["k"], cache["v"])
  if straight:
    past = tuple(zip(*past, strict=True))
  x, outs = _stack(network, params, inputs, positions, rule, turns, None, past, slots)
  new = [out["cache"] for out in outs] if straight else outs["cache"]
  k, v = zip(*new, strict=True) if straight else new
  lengths = cache["lengths"] + jnp.sum(segments != 0, 1, dtype=jnp.int32)
  return x, {"k": k, "v": v, "segments": held, "lengths": lengths, "long": long}


def take_rows(network, cache, rows):
  """Of B groups of neighbouring rows of a cache those at rows [B,W] of each: a cache of B*W."""
  take = partial(attention_layer.take_cached_rows, rows=rows, K=network.arch.heads.kv)
  kept = {name: jax.tree.map(take, cache[name]) for name in ("k", "v")}
  rest = ("segments", "lengths", "long")
  return kept | {name: attention_layer.take_rows(cache[name], rows) for name in rest}


def _original(arch):
  """Positions after which longrope changes its factors; those of all else: as good as never."""
  found = [rope.original_length(one) for one in arch.ropes]
  return min([length for length in found if length is not None], default=2**30)


def crossing(arch, prompt, new):
  """Why `new` tokens cannot follow a prompt of `prompt` tokens; None where they can.

  They cannot cross longrope's original length: the keys in the cache would have to be turned
  and computed anew.
  """
  original = _original(arch)
  if prompt <= original < prompt + new - 1:  # the last new token is not read
    return (
      f"has {prompt} tokens, with max_new_tokens={new} that crosses the original length of "
      f"{original} tokens where this model's longrope changes; expected both on one side: ask "
      f"for at most {original - prompt + 1} new tokens"
    )
  return None


def unstack(params):
  """The same parameters with `layers` as a tuple of dicts, one a layer.

  For decoding: a loop over stacked weights copies each layer's slice at every token, which
  on a CPU costs as much as the products. Call it once, outside of jit.
  """
  own = stack.whole(params["layers"])
  one = lambda i: jax.tree.map(lambda leaf: leaf[i], own)
  size = loop.stack_size(own)
  return {**params, "layers": tuple(one(i) for i in range(size))}
