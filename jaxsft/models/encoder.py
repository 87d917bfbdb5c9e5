"""The bidirectional Transformer: BERT and what is like it. Norms follow the residuals."""

from dataclasses import dataclass
from functools import partial

import jax
from flax import linen as nn

from jaxsft import sharding
from jaxsft.models import attention, layers


@dataclass(frozen=True)
class EncoderConfig:
  """The architecture, as config.json states it; no field has a default."""

  vocab: int
  width: int
  layers: int
  heads: int
  mlp: int
  max_positions: int
  types: int
  """Rows of the token-type table."""
  eps: float
  activation: str
  dropout: float
  """After the embedding, attention and mlp."""
  attention_dropout: float
  """On the attention probabilities."""
  head_dropout: float
  """Before a classification head."""
  std: float
  """Standard deviation of new weights."""


class Embedding(nn.Module):
  """Token + position + type, normalised."""

  arch: EncoderConfig
  dtype: str

  @nn.compact
  def __call__(self, inputs, positions, types):
    arch = self.arch
    table = partial(layers.Embed, width=arch.width, dtype=self.dtype, std=arch.std)
    x = table(arch.vocab, name="tokens")(inputs)
    x = x + table(arch.types, name="types")(types)
    x = x + table(arch.max_positions, name="positions")(positions)
    return layers.LayerNorm(arch.eps, self.dtype, name="norm")(x)


class Layer(nn.Module):
  """Attention and mlp, each followed by residual and norm."""

  arch: EncoderConfig
  dtype: str
  backend: str

  @nn.compact
  def __call__(self, x, rule, key=None, places=None):
    arch = self.arch
    attend = attention.SelfAttention(
      width=arch.width,
      heads=arch.heads,
      kv_heads=arch.heads,
      head_dim=arch.width // arch.heads,
      bias=True,
      dtype=self.dtype,
      std=arch.std,
      backend=self.backend,
      name="attn",
    )
    mlp = layers.Mlp(
      width=arch.width,
      mlp=arch.mlp,
      activation=arch.activation,
      gated=False,
      bias=True,
      dtype=self.dtype,
      std=arch.std,
      name="mlp",
    )
    norm = partial(layers.LayerNorm, arch.eps, self.dtype)
    seed = None if key is None else layers.seed_of(key, 0)
    y, _ = attend(x, rule, rate=arch.attention_dropout, seed=seed, places=places)
    rows = x.shape[:2]
    x = layers.at(x, places) + layers.dropout(y, arch.dropout, key, 1, rows, places)
    x = norm(name="attn_norm")(x)
    y = layers.dropout(mlp(x), arch.dropout, key, 2, rows, places)
    return norm(name="mlp_norm")(x + y)


def hidden(network, params, batch, key=None, places=None):
  """[B,T,D] of a batch with inputs, segments, positions and token_types [B,T].

  places [B,M]: [B,M,D] at these alone; what the last layer would do elsewhere is not done.
  """
  arch, dtype = network.arch, network.dtype
  inputs, segments = batch["inputs"], batch["segments"]
  embed, layer = Embedding(arch, dtype), Layer(arch, dtype, network.attention)
  x = embed.apply({"params": params["embed"]}, inputs, batch["positions"], batch["token_types"])
  x = layers.dropout(x, arch.dropout, key, arch.layers)
  x = sharding.constrain(x, *network.ROWS)
  rule = attention.Rule(segments, segments, causal=False)

  def apply(one, x, index, _, places):
    layer_key = None if key is None else jax.random.fold_in(key, index)
    x = layer.apply({"params": one}, x, rule, layer_key, places)
    return sharding.constrain(x, *network.ROWS[: 2 if places is None else 1]), None

  x, _ = layers.run_layers(
    apply,
    params["layers"],
    x,
    places=places,
    unroll=network.unroll,
    remat=network.remat,
  )
  return x
