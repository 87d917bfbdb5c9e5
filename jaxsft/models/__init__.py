"""A network is an architecture, a head and how both are computed; parameters are a dict.

embed/{tokens,positions,types}/embedding, embed/norm, layers/attn/{q,k,v,o}/{kernel,bias},
layers/attn_norm, layers/mlp/{up,gate,down}, layers/mlp_norm (all stacked [L, …]), norm, and
the head: dense, dense_norm, lm_head, head. Encoder-decoders have encoder/… and decoder/…
with the same inside. Kernels are [out, in], as Hugging Face stores them.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxsft import sharding
from jaxsft.errors import JaxsftError
from jaxsft.models import decoder, encoder, encoder_decoder, heads, layers

MODULES = {  # kind of architecture -> the module that computes it
  encoder.EncoderConfig: encoder,
  decoder.DecoderConfig: decoder,
  encoder_decoder.EncoderDecoderConfig: encoder_decoder,
}

STACKS = {  # kind of architecture -> its stacks, see Network.stacks
  encoder.EncoderConfig: {"layers": 0, "later": 1},  # "later": what the first layer lacks
  decoder.DecoderConfig: {"layers": 0},
  encoder_decoder.EncoderDecoderConfig: {"encoder/layers": 0, "decoder/layers": 0},
}

KINDS = {  # kind of architecture -> heads that it can carry
  encoder.EncoderConfig: ("none", "masked_lm", "sequence", "token", "span"),
  decoder.DecoderConfig: ("none", "lm", "sequence", "token", "span"),
  encoder_decoder.EncoderDecoderConfig: ("none", "lm", "sequence", "token", "span"),
}


@dataclass(frozen=True)
class Network:
  """Pure functions of (params, batch); hashable, so that jit can close over it."""

  arch: encoder.EncoderConfig | decoder.DecoderConfig | encoder_decoder.EncoderDecoderConfig
  head: heads.Head
  dtype: str = "float32"
  """Compute type; norms, softmax, rotary angles, logits and losses stay float32."""
  remat: str = "none"
  unroll: int = 1
  attention: str = "auto"

  ROWS: ClassVar = (sharding.ROWS, "context", None)  # how [B,T,D] lies on the mesh

  @property
  def module(self):
    """The module of jaxsft.models that computes this architecture."""
    return MODULES[type(self.arch)]

  @property
  def causal(self):
    """Whether a token sees only what stands before it."""
    return self.module is not encoder

  @property
  def stacks(self):
    """{path of stacked leaves: the layer of their first row}, the top stack last; {} where
    all layers share their leaves."""
    return {} if getattr(self.arch, "shared", False) else STACKS[type(self.arch)]

  @property
  def has_source(self):
    """Whether its batches have a `source` beside their `inputs`."""
    return has_source(self.arch)

  @property
  def tied(self):
    """Whether the token table is also the projection to the vocabulary."""
    return self.arch.tied

  @partial(jax.jit, static_argnums=0)  # one program: each leaf would be some of its own
  def init(self, key):
    """Random float32 parameters: normal kernels and tables, zero biases, neutral scales."""
    arch, keys = self.arch, jax.random.split(key, 2)
    head = heads.init(keys[1], self.head, arch.out_width, arch.vocab, arch.tied, arch.std)
    return self.module.init(arch, keys[0]) | head

  def shapes(self):
    """The same tree of jax.ShapeDtypeStruct, computed without memory."""
    return jax.eval_shape(lambda: self.init(jax.random.key(0)))

  def hidden(self, params, batch, key=None, places=None):
    """[B,T,D]. batch: inputs [B,T]; segments, positions, token_types have defaults, and so
    have those of a source [B,S].

    places [B,M]: [B,M,D] at these alone, for less work.
    Without segments every token belongs to segment 1; without positions they count from 0
    in each segment; without token_types they are 0. key: dropout; None: none at all.
    """
    key = None if key is None else jax.random.fold_in(key, 0)
    return self.module.hidden(self, params, _complete(batch), key, places)

  def hidden_and_auxiliary(self, params, batch, key=None):
    """(`hidden`, what the objective adds to the mean loss of the batch: a scalar, or None).

    The load-balancing loss of experts, times its coefficient.
    """
    if getattr(self.arch, "experts", None) is None:
      return self.hidden(params, batch, key), None
    key = None if key is None else jax.random.fold_in(key, 0)
    found = self.module.hidden_and_auxiliary(self, params, _complete(batch), key)
    total, weight = found[1]["router"]
    return found[0], self.arch.experts.auxiliary * total / jnp.maximum(weight, 1)

  def logits(self, params, batch, key=None):
    """float32: [B,T,V] for "lm" and "masked_lm", [B,M,C] for "sequence", [B,T,C] for "token",
    [B,T,2] for "span".

    M is that of batch["example_ids"] or batch["labels"] [B,M]; without them it is 1.
    """
    kind = self.head.kind
    if kind == "sequence":
      return self.sequence_logits(params, batch, key)
    if kind == "none":
      raise JaxsftError("found a network without a head, expected one to make logits")
    x = self.hidden(params, batch, key)
    if kind in ("lm", "masked_lm"):
      return self.vocabulary_logits(params, x, key)
    return heads.class_logits(params, x, self.head, _head_key(key))

  def sequence_logits(self, params, batch, key=None):
    """[B,M,C] float32, as in `logits`."""
    ids = batch.get("example_ids", batch.get("labels"))
    most = 1 if ids is None else ids.shape[1]
    segments = _complete(batch)["segments"]
    if self.head.pool == "mean":
      x = heads.segment_means(self.hidden(params, batch, key), segments, most)
    else:
      places = heads.segment_places(segments, most, self.head.pool)
      x = self.hidden(params, batch, key, places)
    return heads.class_logits(params, x, self.head, _head_key(key))

  def vocabulary_logits(self, params, x, key=None):
    """Hidden states [...,D] -> [...,V] float32, all of them at once."""
    x, kernel, bias, softcap = self.to_vocabulary(params, x, key)
    return heads.project(x, kernel, bias=bias, softcap=softcap)

  def to_vocabulary(self, params, x, key=None):
    """(x [...,E] ready for the projection, its kernel [V,E], its bias [V] or None, softcap).

    What `heads.project` and `heads.cross_entropy` take.
    """
    x = heads.transform(params, x, self.head, _head_key(key))
    if self.arch.logit_scale != 1:
      x = x * jnp.asarray(self.arch.logit_scale, x.dtype)
    own = params.get("lm_head", {})
    table = params["embed"]["tokens"]["embedding"] if self.tied else own["kernel"]
    bias = own.get("bias")
    bias = jax.lax.stop_gradient(bias) if self.head.logits_bias else bias
    return x, table, bias, self.arch.softcap

  def empty_cache(self, params, rows, length, prompts=None):
    """See decoder.empty_cache."""
    return self.module.empty_cache(self, params, rows, length, prompts)

  def prefill(self, params, batch, length):
    """See encoder_decoder.prefill."""
    return self.module.prefill(self, params, _complete(batch), length)

  def take_rows(self, cache, rows):
    """See decoder.take_rows."""
    return self.module.take_rows(self, cache, rows)

  def decode(self, params, inputs, cache, *, segments=None, positions=None):
    """See decoder.decode; `vocabulary_logits` makes logits of what it returns."""
    return self.module.decode(
      self, params, inputs, cache, segments=segments, positions=positions
    )


def has_source(arch):
  """Whether an architecture is an encoder-decoder, whose batches have a `source`."""
  return isinstance(arch, encoder_decoder.EncoderDecoderConfig)


def with_dropout(network, rate):
  """The network with every dropout rate replaced."""
  return replace(
    network, arch=_with_rate(network.arch, rate), head=_with_rate(network.head, rate)
  )


def _with_rate(record, rate):
  """A dataclass whose fields named dropout, …_dropout or dropout_… are `rate`."""
  names = [name for name in record.__dataclass_fields__ if "dropout" in name]
  return replace(record, **dict.fromkeys(names, rate))


def _head_key(key):
  return None if key is None else jax.random.fold_in(key, 1)


def _complete(batch):
  """The batch with segments, positions and token_types where it lacks them."""
  full = {}
  if "inputs" in batch:
    inputs, types = batch["inputs"], batch.get("token_types")
    types = jnp.zeros_like(inputs) if types is None else types
    full |= {"inputs": inputs, "token_types": types}
    full["segments"], full["positions"] = _places(batch, "inputs", "")
  if "source" in batch:
    full["source"] = batch["source"]
    full["source_segments"], full["source_positions"] = _places(batch, "source", "source_")
  return full


def _places(batch, name, prefix):
  """(segments, positions) of the tokens `name`, given or by default."""
  segments, positions = batch.get(f"{prefix}segments"), batch.get(f"{prefix}positions")
  segments = jnp.ones_like(batch[name]) if segments is None else segments
  return segments, layers.positions_of(segments) if positions is None else positions
