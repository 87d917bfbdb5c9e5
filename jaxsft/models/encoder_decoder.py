"""The encoder-decoder Transformer: T5, BART and what is like them.

The encoder reads a source in both directions; every layer of the decoder looks at what it
made of it (`cross`). With a cache (`prefill`, `decode`) the decoder answers for tokens that
follow others, and the source's keys and values are made once.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxsft import sharding
from jaxsft.models import attention, attention_layer, layers, loop
from jaxsft.models import relative as relatives


@dataclass(frozen=True)
class Stack:
  """The layers of the encoder, or those of the decoder."""

  layers: int
  heads: attention_layer.Heads
  mlp: int


@dataclass(frozen=True)
class EncoderDecoderConfig:
  """The architecture, as config.json states it; no field has a default."""

  vocab: int
  source_vocab: int | None
  """Rows of the encoder's own token table; None: it reads that of the decoder."""
  width: int
  encoder: Stack
  decoder: Stack
  max_positions: int
  positions: str
  """"relative": a bias on the scores; "learned": a table a stack; "sinusoid": computed."""
  relative: relatives.Relative | None
  position_offset: int
  """Row of position 0 in a learned table."""
  embed_scale: float
  """What token vectors are multiplied by."""
  embed_norm: bool
  """Whether the sum of tokens and positions is normalised."""
  norm: layers.Norm
  placement: str
  """"before": x + f(norm(x)); "residual": norm(x + f(x))."""
  final_norm: bool
  activation: str
  gated: bool
  mlp_bias: bool
  logit_scale: float
  """What hidden states are multiplied by before the projection to the vocabulary."""
  logits_bias: bool
  """Whether a constant is added to the logits (BART's final_logits_bias)."""
  tied: bool
  """Whether the token table is also the output projection."""
  frozen_token: int | None
  """Whose vector gets no gradient as an input: torch's padding_idx, where targets begin with
  the padding token (Marian, Pegasus)."""
  decoder_start: int | None
  """First input of the decoder; None: the last token of the target, as mBART has it."""
  dropout: float
  """After the embedding, attention and MLP."""
  attention_dropout: float
  """On the attention probabilities."""
  mlp_dropout: float
  """Inside of the MLP."""
  final_dropout: float
  """After the last norm."""
  head_dropout: float
  """Before and inside of a classification head."""
  std: float
  """Standard deviation of new weights."""

  @property
  def layers(self):
    """Of the decoder."""
    return self.decoder.layers

  @property
  def heads(self):
    """Of the decoder."""
    return self.decoder.heads

  @property
  def out_width(self):
    """Width of the hidden states that heads read."""
    return self.width

  @property
  def softcap(self):
    """Of the logits: none."""
    return None


class Embedding(nn.Module):
  """Token vectors with their positions: what the first layer of a stack reads."""

  arch: EncoderDecoderConfig
  dtype: str

  @nn.compact
  def __call__(self, x, positions):
    """x [B,T,D], positions [B,T] -> [B,T,D]."""
    arch = self.arch
    if arch.embed_scale != 1:
      x = x * jnp.asarray(arch.embed_scale, x.dtype)
    if arch.positions == "learned":
      rows = arch.max_positions + arch.position_offset
      table = layers.Embed(rows, arch.width, self.dtype, arch.std, name="positions")
      x = x + table(positions + arch.position_offset)
    if arch.positions == "sinusoid":
      table = layers.sinusoids(arch.max_positions, arch.width)
      x = x + jnp.take(table, positions, axis=0, mode="fill").astype(x.dtype)
    if arch.embed_norm:
      x = layers.Normalise(arch.norm, self.dtype, name="norm")(x)
    return x


class Layer(nn.Module):
  """Attention, in the decoder another one to the source, and MLP."""

  arch: EncoderDecoderConfig
  causal: bool
  """Of the decoder."""
  dtype: str
  backend: str

  @nn.compact
  def __call__(
    self, x, rule, reach, bias=None, source=None, *, key=None, cache=None, places=None
  ):
    """x [B,T,D] -> ([B,T|M,D], the cache or None).

    reach: of `relative.Bias`, for a table of the layer's own. bias: that of the stack.
    source: (rule of all queries, hidden states [B,S,D] or None, keys and values of them or
    None).
    """
    arch = self.arch
    stack = arch.decoder if self.causal else arch.encoder
    before, rows = arch.placement == "before", x.shape[:2]
    attend = partial(attention_layer.Attention, arch.width, stack.heads, self.dtype, arch.std)
    seed = lambda site: None if key is None else layers.seed_of(key, site)
    norm = lambda name: layers.Normalise(arch.norm, self.dtype, name=f"{name}_norm")

    def branch(name, x, site, run, **options):
      own = norm(name)
      y, out = run(own(x) if before else x, **options)
      x = layers.at(x, options.get("places"))
      x = x + layers.dropout(y, arch.dropout, key, site, rows, places)
      return (x if before else own(x)), out

    if arch.relative is not None and arch.relative.per_layer:
      bias = _bias(arch, self.causal, name="relative")(reach)
    rate = arch.attention_dropout
    run = partial(attend(self.backend, name="attn"), rule=rule, bias=bias, cache=cache)
    x, cache = branch("attn", x, 1, run, places=places, rate=rate, seed=seed(0))
    if source is not None:
      looks, hidden, kept = source
      looks = attention.asking(looks, places)
      run = attend("xla" if places is not None else self.backend, name="cross")
      run = partial(run, rule=looks, source=hidden, kept=kept)
      x, _ = branch("cross", x, 3, run, rate=rate, seed=seed(2))
    mlp = layers.Mlp(
      width=arch.width,
      mlp=stack.mlp,
      activation=arch.activation,
      gated=arch.gated,
      bias=arch.mlp_bias,
      dtype=self.dtype,
      std=arch.std,
      name="mlp",
    )
    drop = lambda y: layers.dropout(y, arch.mlp_dropout, key, 4, rows, places)
    x, _ = branch("mlp", x, 5, lambda y: (mlp(y, drop), None))
    return x, cache


def _bias(arch, causal, name=None):
  """The module of one table of relative positions."""
  heads = (arch.decoder if causal else arch.encoder).heads.count
  return relatives.Bias(arch.relative, heads, causal, arch.std, name=name)


def init(arch, key):
  """Random float32 parameters of everything but the head."""
  keys = jax.random.split(key, 3)
  table = lambda rows, key: arch.std * jax.random.normal(key, (rows, arch.width))
  params = {
    "embed": {"tokens": {"embedding": table(arch.vocab, keys[0])}},
    "encoder": _init_stack(arch, False, keys[1]),
    "decoder": _init_stack(arch, True, keys[2]),
  }
  if arch.source_vocab is not None:
    own = {"embedding": table(arch.source_vocab, jax.random.fold_in(keys[0], 1))}
    params["encoder"].setdefault("embed", {})["tokens"] = own
  return params


def _init_stack(arch, causal, key):
  ids, x = jnp.ones((1, 2), jnp.int32), jnp.zeros((1, 2, arch.width))
  rule = attention.Rule(ids, ids, causal)
  source = (attention.Rule(ids, ids, False), x, None) if causal else None
  layer = Layer(arch, causal, "float32", "xla")
  one = lambda key: layer.init(key, x, rule, (2, 2), None, source)["params"]
  stack = arch.decoder if causal else arch.encoder
  keys = jax.random.split(key, 4)
  params = {"layers": jax.vmap(one)(jax.random.split(keys[0], stack.layers))}
  embed = Embedding(arch, "float32").init(keys[1], x, ids).get("params")
  params |= {"embed": embed} if embed else {}
  if arch.final_norm:
    params["norm"] = layers.Normalise(arch.norm, "float32").init(keys[2], x)["params"]
  if arch.relative is not None and not arch.relative.per_layer:
    params["relative"] = _bias(arch, causal).init(keys[3], (2, 2))["params"]
  return params


def hidden(network, params, batch, key=None, places=None):
  """[B,T,D] of the decoder, after the last norm.

  batch: inputs, segments and positions [B,T], and those of the source [B,S]; without a source
  the inputs are read by the encoder and, shifted by one, by the decoder, as the heads for
  sentences and spans have it. A segment looks at the source's segment of the same number.
  places [B,M]: [B,M,D] at these alone; what the last layer would do elsewhere is not done.
  """
  batch = batch if "source" in batch else _of_itself(network.arch, batch)
  keys = (None, None) if key is None else jax.random.split(key, 2)
  names = ("source", "source_segments", "source_positions")
  source = encode(network, params, *(batch[name] for name in names), keys[0])
  segments, tokens = batch["segments"], (batch["inputs"], batch["positions"])
  looks = attention.Rule(segments, batch["source_segments"], causal=False)
  rule, reach = attention.Rule(segments, segments, causal=True), (segments.shape[1],) * 2
  look = (looks, source)
  return _decoder(network, params, tokens, rule, reach, look, keys[1], places=places)[0]


def encode(network, params, source, segments, positions, key=None):
  """[B,S,D] of the encoder, after the last norm, of source, segments and positions [B,S].

  Positions of relative kind are places in the row: those of a segment count on one by one.
  """
  rule = attention.Rule(segments, segments, causal=False)
  own = params["encoder"].get("embed", {}).get("tokens")
  x = _embed(network, own or params["embed"]["tokens"], params["encoder"], source, positions)
  x, _ = _stack(network, False, params["encoder"], x, rule, (source.shape[1],) * 2, None, key)
  return x


def _decoder(network, params, tokens, rule, reach, source, key, **options):
  x = _embed(network, params["embed"]["tokens"], params["decoder"], *tokens)
  return _stack(network, True, params["decoder"], x, rule, reach, source, key, **options)


def _embed(network, table, params, ids, positions):
  arch, dtype = network.arch, network.dtype
  rows = len(table["embedding"])
  tokens = layers.Embed(rows, arch.width, dtype, arch.std).apply({"params": table}, ids)
  if arch.frozen_token is not None:
    frozen = (ids == arch.frozen_token)[..., None]
    tokens = jnp.where(frozen, jax.lax.stop_gradient(tokens), tokens)
  own = {k: v for k, v in params.get("embed", {}).items() if k != "tokens"}
  return Embedding(arch, dtype).apply({"params": own}, tokens, positions)


def _stack(
  network, causal, params, x, rule, reach, source, key=None, past=None, slots=None, places=None
):
  """x [B,T,D] through one stack and its last norm -> (x, the layers' caches).

  source: the first two of `Layer`'s. past: ((k, v), kept) a layer, stacked [L, …] or tuples
  alike to the layers.
  """
  arch, dtype = network.arch, network.dtype
  num_layers, rows = (arch.decoder if causal else arch.encoder).layers, x.shape[:2]
  x = sharding.constrain(layers.dropout(x, arch.dropout, key, num_layers), *network.ROWS)
  bias = None
  if "relative" in params:
    bias = _bias(arch, causal).apply({"params": params["relative"]}, reach)

  def apply(one, x, index, _, past, places):
    held, kept = (None, None) if past is None else past
    x, new = Layer(arch, causal, dtype, network.attention).apply(
      {"params": one},
      x,
      rule,
      reach,
      bias,
      source and (*source, kept),
      key=None if key is None else jax.random.fold_in(key, index),
      cache=None if held is None else (*held, slots),
      places=places,
    )
    return sharding.constrain(x, *network.ROWS[: 2 if places is None else 1]), new

  x, caches = loop.run_layers(
    apply,
    params["layers"],
    x,
    past,
    places=places,
    unroll=network.unroll,
    remat=network.remat,
  )
  if arch.final_norm:
    x = layers.Normalise(arch.norm, dtype).apply({"params": params["norm"]}, x)
  return layers.dropout(x, arch.final_dropout, key, num_layers + 1, rows, places), caches


def _of_itself(arch, batch):
  """The batch with its inputs as the source, and shifted as the decoder's inputs."""
  inputs, segments = batch["inputs"], batch["segments"]
  before = jnp.pad(segments[:, :-1], ((0, 0), (1, 0)))
  if arch.decoder_start is None:
    T = inputs.shape[1]
    same = segments[:, :, None] == segments[:, None, :]
    last = T - 1 - jnp.argmax(same[..., ::-1], -1)
    first = jnp.take_along_axis(inputs, last, 1)
  else:
    first = arch.decoder_start
  shifted = jnp.where(segments == before, jnp.roll(inputs, 1, 1), first)
  return {
    **batch,
    "inputs": jnp.where(segments == 0, 0, shifted),
    "source": inputs,
    **{f"source_{name}": batch[name] for name in ("segments", "positions")},
  }


# --- with a cache ----------------------------------------------------------------------


def prefill(network, params, batch, length):
  """The cache of a source [B,S] (source, source_segments, source_positions), with room for
  `length` tokens in each row; tuples a layer if the decoder's layers are so.

  own: (k, v) [L,B*K,length,H]; kept: those of the source [L,B*K,S,H]; source_segments [B,S];
  segments [B,length], 0 where a slot is empty; lengths [B], tokens held.
  """
  heads, decoder = network.arch.decoder.heads, params["decoder"]["layers"]
  names = ("source", "source_segments", "source_positions")
  source = encode(network, params, *(batch[name] for name in names))
  rows = len(source)
  make = lambda cross: attention_layer.keys_and_values(cross, source, heads)
  room = lambda: jnp.zeros((rows * heads.kv, length, heads.dim), network.dtype)
  if isinstance(decoder, tuple):
    kept = tuple(make(one["cross"]) for one in decoder)
    own = tuple((room(), room()) for _ in decoder)
  else:
    _, kept = jax.lax.scan(lambda _, cross: (None, make(cross)), None, decoder["cross"])
    empty = jnp.zeros((network.arch.layers, *room().shape), network.dtype)
    own = (empty, empty)
  return {
    "own": own,
    "kept": kept,
    "source_segments": batch["source_segments"],
    "segments": jnp.zeros((rows, length), jnp.int32),
    "lengths": jnp.zeros(rows, jnp.int32),
  }


def take_rows(network, cache, rows):
  """See decoder.take_rows; the sources stay as they are, one for each group of rows."""
  take = partial(attention_layer.take_cached_rows, rows=rows, K=network.arch.heads.kv)
  rest = {x: attention_layer.take_rows(cache[x], rows) for x in ("segments", "lengths")}
  return {**cache, **rest, "own": jax.tree.map(take, cache["own"])}


def decode(network, params, inputs, cache, *, segments=None, positions=None):
  """Hidden states [B,T,D] of inputs [B,T] that follow what the cache holds, and the cache.

  B is that of the sources or a multiple of it, see `take_rows`. segments [B,T]: 1 for tokens,
  0 for the padding to their right, which is not stored; None: all tokens. positions [B,T];
  None: they go on from the cache's lengths.
  The caller leaves room: a token beyond the cache's length would be lost.
  """
  (_, T), S = inputs.shape, cache["segments"].shape[1]
  segments = jnp.ones_like(inputs) if segments is None else segments
  places = cache["lengths"][:, None] + jnp.arange(T)
  positions = jnp.where(segments == 0, 0, places if positions is None else positions)
  slots = jnp.where(segments == 0, S, places)
  rows = jnp.arange(inputs.shape[0])[:, None]
  held = cache["segments"].at[rows, slots].set(segments, mode="drop")
  keys = jnp.arange(S, dtype=jnp.int32)[None]
  rule = attention.Rule(segments, held, True, None, places, keys)
  sources = cache["source_segments"]  # rows of one source are more queries of it
  looks = attention.Rule(segments.reshape(len(sources), -1), sources, causal=False)
  past = (cache["own"], cache["kept"])
  if isinstance(params["decoder"]["layers"], tuple):
    past = tuple(zip(*past, strict=True))
  tokens, reach = (inputs, positions), keys[:, None] - places[..., None]
  options = {"past": past, "slots": slots}
  x, own = _decoder(network, params, tokens, rule, reach, (looks, None), None, **options)
  lengths = cache["lengths"] + jnp.sum(segments != 0, 1, dtype=jnp.int32)
  return x, {**cache, "own": own, "segments": held, "lengths": lengths}
