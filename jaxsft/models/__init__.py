"""A network is an architecture, a head and how both are computed; parameters are a dict.

embed/{tokens,positions,types}/embedding, embed/norm, layers/attn/{q,k,v,o}/{kernel,bias},
layers/attn_norm, layers/mlp/{up,gate,down}, layers/mlp_norm (all stacked [L, …]), norm,
pooler, lm_head, head. Kernels are [out, in], as Hugging Face stores them.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxsft.errors import JaxsftError
from jaxsft.models import decoder, encoder, heads, layers


@dataclass(frozen=True)
class Network:
  """Pure functions of (params, batch); hashable, so that jit can close over it."""

  arch: encoder.EncoderConfig | decoder.DecoderConfig
  head: heads.Head
  dtype: str = "float32"
  """Compute type; norms, softmax, rotary angles, logits and losses stay float32."""
  remat: str = "none"
  unroll: int = 1
  attention: str = "auto"

  ROWS: ClassVar = (("data", "fsdp"), "context", None)  # how [B,T,D] lies on the mesh

  @property
  def causal(self):
    return isinstance(self.arch, decoder.DecoderConfig)

  @property
  def tied(self):
    return self.causal and self.arch.tied

  def init(self, key):
    """Random float32 parameters: normal kernels and tables, zero biases, unit scales."""
    return _init(self, key)

  def shapes(self):
    """The same tree of jax.ShapeDtypeStruct, computed without memory."""
    return jax.eval_shape(lambda: self.init(jax.random.key(0)))

  def hidden(self, params, batch, key=None, places=None):
    """[B,T,D]. batch: inputs [B,T]; segments, positions, token_types have defaults.

    places [B,M]: [B,M,D] at these alone, for less work.
    Without segments every token belongs to segment 1; without positions they count from 0
    in each segment; without token_types they are 0. key: dropout; None: none at all.
    """
    module = decoder if self.causal else encoder
    key = None if key is None else jax.random.fold_in(key, 0)
    return module.hidden(self, params, _complete(batch), key, places)

  def logits(self, params, batch, key=None):
    """float32: [B,T,V] for "lm", [B,M,C] for "sequence", [B,T,C] for "token".

    M is that of batch["example_ids"] or batch["labels"] [B,M]; without them it is 1.
    """
    if self.head.kind == "sequence":
      return self.sequence_logits(params, batch, key)
    x = self.hidden(params, batch, key)
    if self.head.kind == "lm":
      return heads.project(x, self.output_kernel(params))
    if self.head.kind == "token":
      return heads.token_logits(params, x, self.head, _head_key(key))
    raise JaxsftError("found a network without a head, expected one to make logits")

  def sequence_logits(self, params, batch, key=None):
    """[B,M,C] float32, as in `logits`."""
    ids = batch.get("example_ids", batch.get("labels"))
    most = 1 if ids is None else ids.shape[1]
    places = heads.segment_places(_complete(batch)["segments"], most, self.head.pool)
    x = self.hidden(params, batch, key, places)
    return heads.sequence_logits(params, x, self.head, _head_key(key))

  def output_kernel(self, params):
    """[V,D] of the projection to the vocabulary: its own, or the token table if tied."""
    if self.tied:
      return params["embed"]["tokens"]["embedding"]
    return params["lm_head"]["kernel"]

  def empty_cache(self, params, rows, length):
    """See decoder.empty_cache."""
    return decoder.empty_cache(self, params, rows, length)

  def decode(self, params, inputs, cache, *, segments=None, positions=None):
    """See decoder.decode; `heads.project` makes logits of what it returns."""
    return decoder.decode(self, params, inputs, cache, segments=segments, positions=positions)


def with_dropout(network, rate):
  """The network with every dropout rate replaced."""
  names = ("dropout", "attention_dropout")
  rates = {name: rate for name in names if hasattr(network.arch, name)}
  head = replace(network.head, dropout=rate)
  return replace(network, arch=replace(network.arch, **rates), head=head)


def _head_key(key):
  return None if key is None else jax.random.fold_in(key, 1)


def _complete(batch):
  """The batch with segments, positions and token_types where it lacks them."""
  inputs = batch["inputs"]
  segments = batch.get("segments")
  segments = jnp.ones_like(inputs) if segments is None else segments
  positions = batch.get("positions")
  positions = layers.positions_of(segments) if positions is None else positions
  types = batch.get("token_types")
  types = jnp.zeros_like(inputs) if types is None else types
  return {
    "inputs": inputs,
    "segments": segments,
    "positions": positions,
    "token_types": types,
  }


def _init(network, key):
  arch, head, dtype = network.arch, network.head, network.dtype
  keys = jax.random.split(key, 3)
  ids, x = jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, 1, arch.width), dtype)
  rule = decoder.attention.Rule(ids + 1, ids + 1, causal=network.causal)
  if network.causal:
    embed, layer = decoder.Embedding(arch, dtype), decoder.Layer(arch, dtype, "xla")
    embed_inputs = (ids,)
    layer_inputs = (x, rule, layers.rotations(arch.rope, arch.head_dim, ids))
  else:
    embed, layer = encoder.Embedding(arch, dtype), encoder.Layer(arch, dtype, "xla")
    embed_inputs, layer_inputs = (ids, ids, ids), (x, rule)
  one = lambda key: layer.init(key, *layer_inputs)["params"]
  params = {
    "embed": embed.init(keys[0], *embed_inputs)["params"],
    "layers": jax.vmap(one)(jax.random.split(keys[1], arch.layers)),
    **heads.init(keys[2], head, arch.width, arch.vocab, network.tied, arch.std),
  }
  if network.causal:
    params["norm"] = {"scale": jnp.ones(arch.width)}
  return params
