"""Rotary positions (arXiv:2104.09864) and the ways to stretch them, as config.json says.

Formulas and roundings are those of transformers' modeling_rope_utils.
"""

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import lax

KINDS = {  # kind -> (fields that it needs beside theta, fields that it may have)
  "default": ((), ()),
  "linear": (("factor",), ()),
  "dynamic": (("factor",), ()),
  "llama3": (
    ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    (),
  ),
  "yarn": (
    ("factor", "original_max_position_embeddings"),
    ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
  ),
  "longrope": (
    ("factor", "short_factor", "long_factor", "original_max_position_embeddings"),
    ("attention_factor",),
  ),
}


@dataclass(frozen=True)
class Rope:
  """What turns queries and keys by their position."""

  kind: str
  """One of KINDS."""
  theta: float
  dim: int
  """Leading components of a head that turn; the others stay."""
  interleaved: bool
  """Whether neighbours are the pairs (GLM-4), not the halves."""
  fields: tuple
  """((name, value), …) of the kind, sorted; a list of numbers as a tuple."""


def frequencies(rope, long=False):
  """[dim/2] float32 radians a position; long: those of longrope's long contexts.

  "dynamic" stretches the base only beyond max_position_embeddings, where this library lets
  no token stand; up to there it is "default".
  """
  get = dict(rope.fields).get
  exponent = np.arange(0, rope.dim, 2, dtype=np.float32) / np.float32(rope.dim)
  # numpy's float32 power is off by one unit for some, which is seen at position 4000.
  power = (rope.theta ** exponent.astype(np.float64)).astype(np.float32)
  freqs = np.float32(1) / power
  if rope.kind == "linear":
    return freqs / np.float32(get("factor"))
  if rope.kind == "llama3":
    return _llama3(freqs, get)
  if rope.kind == "yarn":
    return _yarn(rope, power, get)
  if rope.kind == "longrope":
    divisors = np.asarray(get("long_factor" if long else "short_factor"), np.float32)
    return np.float32(1) / (divisors * power)
  return freqs


def _llama3(freqs, get):
  """Long wavelengths are stretched, short ones kept (arXiv:2407.21783)."""
  factor, original = get("factor"), get("original_max_position_embeddings")
  low, high = get("low_freq_factor"), get("high_freq_factor")
  wavelength = np.float32(2 * math.pi) / freqs
  smooth = (original / wavelength - low) / (high - low)
  medium = (1 - smooth) * freqs / factor + smooth * freqs
  long, short = wavelength > original / low, wavelength < original / high
  scaled = np.where(long, freqs / factor, np.where(short, freqs, medium))
  return scaled.astype(np.float32)


def _yarn(rope, power, get):
  """Interpolates slow components, keeps fast ones, ramps between (arXiv:2309.00071)."""
  original = get("original_max_position_embeddings")

  def component(turns):  # that makes so many turns within the original length
    return rope.dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

  low, high = component(get("beta_fast") or 32), component(get("beta_slow") or 1)
  if get("truncate", True):
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, rope.dim - 1)
  high += 0.001 if low == high else 0
  index = np.arange(rope.dim // 2, dtype=np.float32)
  kept = 1 - np.clip((index - np.float32(low)) / np.float32(high - low), 0, 1)
  one = np.float32(1)
  slow, fast = one / (np.float32(get("factor")) * power), one / power
  return (slow * (1 - kept) + fast * kept).astype(np.float32)


def magnitude(rope):
  """What sines and cosines are multiplied by: yarn and longrope sharpen attention so."""
  get = dict(rope.fields).get
  if rope.kind not in ("yarn", "longrope"):
    return 1.0
  if get("attention_factor") is not None:
    return get("attention_factor")
  factor = get("factor")
  if rope.kind == "longrope":
    original = get("original_max_position_embeddings")
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
  scale = lambda m: 1.0 if factor <= 1 else 0.1 * m * math.log(factor) + 1.0
  if get("mscale") and get("mscale_all_dim"):
    return scale(get("mscale")) / scale(get("mscale_all_dim"))
  return scale(1)


def original_length(rope):
  """Tokens of a text up to which longrope has its short factors; None for the other kinds."""
  if rope.kind != "longrope":
    return None
  return int(dict(rope.fields)["original_max_position_embeddings"])


def rotations(rope, positions, segments=None, long=None):
  """positions [B,T] -> (cos, sin), each [B,T,1,dim/2] float32.

  longrope chooses by the length of the whole text: of each run of equal `segments` [B,T], or
  as `long` [B] says of rows whose earlier tokens are held turned. A row that is not long and
  stands beyond the original length cannot be right any more, and is NaN.
  """
  freqs, lost = frequencies(rope), False
  if rope.kind == "longrope":
    original = original_length(rope)
    if long is None:
      long = _last_of_run(positions, segments) >= original
    else:
      long = jnp.broadcast_to(long[:, None], positions.shape)
    lost = (~long & (positions >= original))[..., None, None]
    freqs = jnp.where(long[..., None, None], frequencies(rope, long=True), freqs)
  angles = positions.astype(jnp.float32)[..., None, None] * freqs
  scale = jnp.where(lost, np.float32(np.nan), np.float32(magnitude(rope)))
  return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def _last_of_run(values, segments):
  """For each place of [B,T] the value where its run of equal segments ends."""
  T = segments.shape[1]
  ends = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (0, 1)), constant_values=True)
  index = lax.broadcasted_iota(jnp.int32, segments.shape, 1)
  end = lax.cummin(jnp.where(ends, index, T), axis=1, reverse=True)
  return jnp.take_along_axis(values, end, axis=1)


def rotate(x, rotation, interleaved=False):
  """x [B,T,N,H] turned by `rotations`; components beyond them stay as they are."""
  cos, sin = rotation
  dim = 2 * cos.shape[-1]
  turned = x[..., :dim].astype(jnp.float32)
  if interleaved:
    a, b = turned[..., 0::2], turned[..., 1::2]
    turned = jnp.stack([a * cos - b * sin, b * cos + a * sin], -1).reshape(turned.shape)
  else:
    a, b = jnp.split(turned, 2, axis=-1)
    turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
  turned = turned.astype(x.dtype)
  return turned if dim == x.shape[-1] else jnp.concatenate([turned, x[..., dim:]], -1)
