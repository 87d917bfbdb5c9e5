"""The bidirectional Transformer: BERT and what came after it."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxsft import sharding, stack
from jaxsft.models import attention, attention_layer, disentangled, layers, loop, rope

PLACEMENTS = {  # placement -> whether a branch's input is normalised
  "residual": False,  # norm(x + f(x)): BERT
  "before": True,  # x + f(norm(x)), and a norm at the end: ModernBERT
}


@dataclass(frozen=True)
class Kind:
  """What a layer is beside its weights."""

  window: int | None
  """Of the attention, see attention.Rule; None: the whole text."""
  rope: int | None
  """Which of EncoderConfig.ropes turns its heads; None: nothing does."""


@dataclass(frozen=True)
class Project:
  """From the width of the tables to that of the layers."""

  width: int
  """Of the tables."""
  bias: bool
  before_norm: bool
  """Whether it precedes the embedding's norm and dropout, or follows them."""


@dataclass(frozen=True)
class Conv:
  """A convolution over neighbouring tokens, added after the first layer (DeBERTa-v2)."""

  size: int
  groups: int
  activation: str


@dataclass(frozen=True)
class EncoderConfig:
  """The architecture, as config.json states it; no field has a default."""

  vocab: int
  width: int
  layers: int
  heads: attention_layer.Heads
  mlp: int
  max_positions: int
  activation: str
  gated: bool
  mlp_bias: bool
  norm: layers.Norm
  placement: str
  """One of PLACEMENTS."""
  first_norm: bool
  """"before" only: whether the first layer's attention has a norm."""
  shared: bool
  """Whether all layers have the same weights, which then have no axis L (ALBERT)."""
  kinds: tuple
  """of Kind, one a layer."""
  ropes: tuple
  """of rope.Rope."""
  relative: disentangled.Relative | None
  """Relative positions in the scores (DeBERTa)."""
  conv: Conv | None
  position_rows: int
  """Of the table of learned positions; 0: there is none."""
  position_offset: int
  """Row of position 0 (RoBERTa)."""
  types: int
  """Rows of the token-type table; 0: there is none."""
  project: Project | None
  tied: bool
  """Whether the token table is also the masked-LM head's projection."""
  readers: tuple
  """((kind of head, ((field, value), …)), …): what the family's heads are, see heads.Head."""
  spelling: str
  """Which of its names for the same tensors the family uses, where it has several."""
  embed_dropout: float
  attention_dropout: float
  """On the attention probabilities."""
  attention_out_dropout: float
  mlp_dropout: float
  """Between the MLP's products."""
  mlp_out_dropout: float
  """Also after the convolution."""
  relative_dropout: float
  """On the rows of the table of relative positions, in every layer anew."""
  std: float
  """Standard deviation of new weights."""

  logit_scale = 1.0
  softcap = None

  @property
  def embed_width(self):
    """Width of the tables."""
    return self.width if self.project is None else self.project.width

  @property
  def out_width(self):
    """Width of the hidden states that heads read."""
    return self.width


class Embedding(nn.Module):
  """Token + position + type, normalised, in the width of the layers."""

  arch: EncoderConfig
  dtype: str

  @nn.compact
  def __call__(self, inputs, positions, types, key=None):
    arch = self.arch
    table = partial(layers.Embed, width=arch.embed_width, dtype=self.dtype, std=arch.std)
    x = table(arch.vocab, name="tokens")(inputs)
    if arch.types:
      x = x + table(arch.types, name="types")(types)
    if arch.position_rows:
      places = positions + arch.position_offset
      x = x + table(arch.position_rows, name="positions")(places)
    project = lambda x: layers.Linear(
      arch.width, arch.project.bias, self.dtype, arch.std, name="project"
    )(x)
    early = arch.project is not None and arch.project.before_norm
    x = project(x) if early else x
    x = layers.Normalise(arch.norm, self.dtype, name="norm")(x)
    x = layers.dropout(x, arch.embed_dropout, key, arch.layers)
    return project(x) if arch.project is not None and not early else x


class Layer(nn.Module):
  """Attention and mlp, each with residual and norm."""

  arch: EncoderConfig
  dtype: str
  backend: str

  @nn.compact
  def __call__(self, x, rule, rotation=None, table=None, key=None, first=False, places=None):
    """x [B,T,D]; table [2 x span,D]: of relative positions. first: whether it is layer 0."""
    arch = self.arch
    before, rows = PLACEMENTS[arch.placement], x.shape[:2]
    norm = lambda name, x: layers.Normalise(arch.norm, self.dtype, name=name)(x)
    y = norm("attn_norm", x) if before else x
    if before and not arch.first_norm:
      y = jnp.where(first, x, y)
    y = self._attend(y, rule, rotation, table, key, places)
    y = layers.dropout(y, arch.attention_out_dropout, key, 1, rows, places)
    x = layers.at(x, places) + y
    x = x if before else norm("attn_norm", x)
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
    drop = lambda y: layers.dropout(y, arch.mlp_dropout, key, 3, rows, places)
    y = mlp(norm("mlp_norm", x) if before else x, drop)
    x = x + layers.dropout(y, arch.mlp_out_dropout, key, 2, rows, places)
    return x if before else norm("mlp_norm", x)

  def _attend(self, x, rule, rotation, table, key, places):
    arch = self.arch
    seed = None if key is None else layers.seed_of(key, 0)
    chance = {"rate": arch.attention_dropout, "seed": seed}
    parts = {"width": arch.width, "heads": arch.heads, "dtype": self.dtype, "std": arch.std}
    parts |= {"backend": self.backend, "name": "attn"}
    if arch.relative is not None:
      table = layers.dropout(table, arch.relative_dropout, key, 4)
      module = disentangled.Attention(relative=arch.relative, **parts)
      return module(x, rule, table, **chance)
    module = attention_layer.Attention(**parts)
    return module(x, rule, rotation=rotation, places=places, **chance)[0]


class Convolution(nn.Module):
  """What Conv makes of the neighbours of every token, within its segment: [B,T,D]."""

  arch: EncoderConfig
  dtype: str

  @nn.compact
  def __call__(self, x, segments, key=None):
    conv, width = self.arch.conv, self.arch.width
    shape = (width, width // conv.groups, conv.size)
    kernel = self.param("kernel", nn.initializers.normal(self.arch.std), shape)
    bias = self.param("bias", nn.initializers.zeros, shape[:1])
    grouped = kernel.reshape(conv.groups, -1, *shape[1:]).astype(self.dtype)
    x = x.astype(self.dtype).reshape(*x.shape[:2], conv.groups, -1)
    reach, y = conv.size // 2, 0
    for place in range(conv.size):
      near = _shift(x, place - reach)
      same = (segments != 0) & (segments == _shift(segments, place - reach))
      near = jnp.where(same[..., None, None], near, 0)
      y = y + jnp.einsum("btgi,goi->btgo", near, grouped[..., place])
    y = y.reshape(*y.shape[:2], -1) + bias.astype(self.dtype)
    y = jnp.where((segments != 0)[..., None], y, 0)
    y = layers.dropout(y, self.arch.mlp_out_dropout, key, self.arch.layers + 1)
    return layers.ACTIVATIONS[conv.activation](y)


def _shift(x, distance):
  """x [B,T,…] -> at each place what stands `distance` to its right; zeros beyond the row."""
  T, room = x.shape[1], abs(distance)
  padded = jnp.pad(x, [(0, 0), (room, room)] + [(0, 0)] * (x.ndim - 2))
  start = room + distance
  return padded[:, start : start + T]


def hidden(network, params, batch, key=None, places=None):
  """[B,T,D] of a batch with inputs, segments, positions and token_types [B,T].

  places [B,M]: [B,M,D] at these alone; what the last layer would do elsewhere is not done.
  """
  arch, dtype = network.arch, network.dtype
  inputs, segments, positions = batch["inputs"], batch["segments"], batch["positions"]
  embed, layer = Embedding(arch, dtype), Layer(arch, dtype, network.attention)
  x = embed.apply({"params": params["embed"]}, inputs, positions, batch["token_types"], key)
  x = sharding.constrain(x, *network.ROWS)
  rotations = [rope.rotations(one, positions, segments) for one in arch.ropes]
  table = None if arch.relative is None else disentangled.table(params["relative"], arch, dtype)
  near = None
  if arch.conv is not None:
    near = Convolution(arch, dtype).apply({"params": params["conv"]}, x, segments, key)
  norm = layers.Normalise(arch.norm, dtype)

  def apply(one, x, index, kind, _, places):
    layer_key = None if key is None else jax.random.fold_in(key, index)
    rule = attention.Rule(segments, segments, causal=False, window=kind.window)
    turn = None if kind.rope is None else rotations[kind.rope]
    first = index == 0
    x = layer.apply({"params": one}, x, rule, turn, table, layer_key, first, places)
    if near is not None:
      y = norm.apply({"params": params["conv_norm"]}, x + near)
      x = jnp.where(first, y, x)
    return sharding.constrain(x, *network.ROWS[: 2 if places is None else 1]), None

  last = None if arch.relative is not None else places  # whose scores are those of all
  x, _ = loop.run_layers(
    apply,
    _layers(arch, params),
    x,
    kinds=arch.kinds,
    repeats=arch.layers if arch.shared else None,
    places=last,
    unroll=network.unroll,
    remat=network.remat,
  )
  x = x if last is places else layers.at(x, places)
  if not PLACEMENTS[arch.placement]:
    return x
  return norm.apply({"params": params["norm"]}, x)


def _layers(arch, params):
  """The layers' parameters, alike in all of them.

  Where the first has no attention norm, those of the others are a stack of their own; it
  gets one that nothing reads.
  """
  own = params["layers"]
  if arch.placement != "before" or arch.first_norm:
    return own
  norms = jax.tree.map(
    partial(_after_none, cut=stack.cut(own)), params["later"], is_leaf=stack.is_parts
  )
  if isinstance(own, tuple):
    some = lambda i: jax.tree.map(lambda leaf: leaf[i], norms)
    return tuple({**one, **some(i)} for i, one in enumerate(own))
  return {**own, **norms}


def _after_none(leaf, cut):
  """[L,…] of a leaf that the first layer lacks; in two parts where the stack is `cut`."""
  if stack.is_parts(leaf):
    return stack.Parts(_after_none(leaf.first, False), leaf.last)
  none = jnp.zeros_like(leaf[:1])
  return stack.Parts(none, leaf) if cut else jnp.concatenate([none, leaf])


def init(arch, key):
  """Random parameters of everything but the head."""
  keys = jax.random.split(key, 4)
  ids = jnp.zeros((1, 1), jnp.int32)
  x = jnp.zeros((1, 1, arch.width))
  embed = Embedding(arch, "float32").init(keys[0], ids, ids, ids)
  rule = attention.Rule(ids, ids, causal=False)
  rotation = rope.rotations(arch.ropes[0], ids, ids) if arch.ropes else None
  table = None if arch.relative is None else jnp.zeros((2 * arch.relative.span, arch.width))

  def one(key):
    return Layer(arch, "float32", "xla").init(key, x, rule, rotation, table)["params"]

  params = {"embed": embed["params"]}
  if arch.shared:
    params["layers"] = one(keys[1])
  else:
    params["layers"] = jax.vmap(one)(jax.random.split(keys[1], arch.layers))
  norm = lambda: layers.Normalise(arch.norm, "float32").init(keys[0], x)["params"]
  if PLACEMENTS[arch.placement]:
    params["norm"] = norm()
    if not arch.first_norm:
      norms = params["layers"].pop("attn_norm")
      params["later"] = {"attn_norm": jax.tree.map(lambda leaf: leaf[1:], norms)}
  if arch.relative is not None:
    params["relative"] = disentangled.init(arch, keys[2])
  if arch.conv is not None:
    params["conv"] = Convolution(arch, "float32").init(keys[3], x, ids)["params"]
    params["conv_norm"] = norm()
  return params
