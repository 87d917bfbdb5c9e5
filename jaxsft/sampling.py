"""Which token comes next: the rules that a distribution over tokens goes through.

Pure functions of logits. Their numbers are arguments of the compiled program, so that
another temperature compiles nothing; which rules there are (`Parts`) is part of it.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsft.errors import UsageError


class Parts(NamedTuple):
  """Which rules a program contains."""

  drawn: bool
  restricted: bool
  penalised: bool


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How a token is chosen: names, meanings and their order are those of transformers."""

  temperature: float = 0.0
  """Logits are divided by it; 0: the likeliest token, nothing is random."""
  top_k: int = 0
  """Only the k likeliest tokens; 0: all."""
  top_p: float = 1.0
  """Only the likeliest tokens that together reach this probability."""
  min_p: float = 0.0
  """Only tokens at least this probable, relative to the likeliest."""
  repetition_penalty: float = 1.0
  """Logits of tokens that the row already has are divided by it (multiplied, if negative)."""

  def __post_init__(self):
    expected = {
      "temperature": ("at least 0", self.temperature >= 0),
      "top_k": ("at least 0 (0: all)", self.top_k >= 0),
      "top_p": ("more than 0 and at most 1", 0 < self.top_p <= 1),
      "min_p": ("from 0 to 1", 0 <= self.min_p <= 1),
      "repetition_penalty": ("more than 0", self.repetition_penalty > 0),
    }
    for name, (words, holds) in expected.items():
      if not holds:
        raise UsageError(f"{name} is {getattr(self, name)}, expected {words}")

  @property
  def numbers(self):
    """The arguments of the program."""
    numbers = {k: np.float32(v) for k, v in dataclasses.asdict(self).items()}
    return numbers | {"top_k": np.int32(self.top_k)}

  @property
  def parts(self):
    """The rules that the program must contain."""
    restricted = self.top_k > 0 or self.top_p < 1 or self.min_p > 0
    drawn = self.temperature > 0
    return Parts(drawn, drawn and restricted, self.repetition_penalty != 1)


def choose(logits, numbers, parts, seen, seeds, places):
  """Ids [B] int32 of the next tokens, from logits [B,V] float32.

  numbers: of `Sampling`. seen [B,V]: tokens that a row has, where it is asked
  for. A row is drawn with fold_in(key(its seed), its place) alone.
  """
  if parts.penalised:
    logits = penalise(logits, seen, numbers["repetition_penalty"])
  if not parts.drawn:
    return jnp.argmax(logits, -1).astype(jnp.int32)
  logits = logits / numbers["temperature"]
  if parts.restricted:
    logits = restrict(logits, numbers["top_k"], numbers["top_p"], numbers["min_p"])

  def draw(seed, place, row):
    return jax.random.categorical(jax.random.fold_in(jax.random.key(seed), place), row)

  return jax.vmap(draw)(seeds, places, logits).astype(jnp.int32)


def penalise(logits, seen, penalty):
  """logits [B,V] of ids in `seen` [B,V] made less likely (arXiv:1909.05858, section 4.1)."""
  less = jnp.where(logits < 0, logits * penalty, logits / penalty)
  return jnp.where(seen, less, logits)


def restrict(logits, top_k, top_p, min_p):
  """logits [...,V], -inf where one of three rules of `Sampling` leaves a token out.

  The rules follow one another: top_p speaks of what top_k has left. All of them are
  thresholds, so equally likely tokens stay or go together; the likeliest always stay.
  """
  V = logits.shape[-1]
  ranked = jnp.sort(logits, -1, descending=True)
  place = jnp.where(top_k > 0, jnp.minimum(top_k, V), V) - 1
  kth = jnp.take(ranked, place, axis=-1)[..., None]
  p = jax.nn.softmax(jnp.where(ranked >= kth, ranked, -jnp.inf), -1)
  before = jnp.cumsum(p, -1) - p  # what the likelier tokens reach without this one
  beyond = (before >= top_p) & (top_p < 1)
  nucleus = jnp.min(jnp.where(beyond, jnp.inf, ranked), -1, keepdims=True)
  near = ranked[..., :1] + jnp.log(min_p)
  least = jnp.maximum(jnp.maximum(kth, nucleus), near)
  return jnp.where(logits >= least, logits, -jnp.inf)
