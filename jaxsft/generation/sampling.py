"""Which token comes next: the rules that a distribution over tokens goes through.

Pure functions of logits. Their numbers are arguments of the compiled program, so that
another temperature compiles nothing; which rules there are (`Parts`) is part of it.
"""

import dataclasses
from numbers import Real
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsft.config import values
from jaxsft.errors import UsageError

EARLY = (False, True, "never")  # values of early_stopping; a program is told the index
WHOLE = ("top_k", "no_repeat_ngram_size", "min_new_tokens", "num_beams")
REAL = ("temperature", "top_p", "min_p", "repetition_penalty", "length_penalty")


class Parts(NamedTuple):
  """Which rules a program contains."""

  drawn: bool
  restricted: bool
  penalised: bool
  unrepeated: bool
  beams: bool
  copies: int
  """Rows of one prompt: its beams, or the answers that are drawn for it."""


@dataclasses.dataclass(frozen=True)
class Rules:
  """How an answer is chosen: names, meanings and their order are those of transformers."""

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
  no_repeat_ngram_size: int = 0
  """No sequence of so many tokens comes twice in prompt and answer; 0: any may."""
  min_new_tokens: int = 0
  """Nothing but a stop string ends an answer of fewer tokens."""
  num_beams: int = 1
  """Beginnings that are followed side by side (beam search); 1: one, greedy or drawn."""
  length_penalty: float = 1.0
  """A score is the sum of log-probabilities over tokens**length_penalty: more favours
  longer answers."""
  early_stopping: bool | str = False
  """When beams end: True, as soon as num_beams answers are complete; "never", when no better
  one can come; False, when none is likely to."""

  def __post_init__(self):
    for name in WHOLE:
      object.__setattr__(self, name, whole(name, getattr(self, name), int(name == "num_beams")))
    most = float(np.finfo(np.float32).max)
    for name in REAL:
      value = getattr(self, name)
      if isinstance(value, bool) or not isinstance(value, Real) or not abs(value) <= most:
        raise UsageError(f"{name} is {value}, expected a finite number")
    expected = {
      "temperature": (
        "0, or at least 0.0001",
        self.temperature == 0 or self.temperature >= 1e-4,
      ),
      "top_p": ("more than 0 and at most 1", 0 < self.top_p <= 1),
      "min_p": ("from 0 to 1", 0 <= self.min_p <= 1),
      "repetition_penalty": ("more than 0", self.repetition_penalty > 0),
      "early_stopping": ("True, False or 'never'", self.early_stopping in EARLY),
    }
    for name, (words, holds) in expected.items():
      if not holds:
        raise UsageError(f"{name} is {getattr(self, name)}, expected {words}")
    if self.num_beams > 1 and self.temperature > 0:
      raise UsageError(
        f"temperature is {self.temperature} and num_beams {self.num_beams}, expected one of "
        "them: beam search draws nothing; set temperature=0 or num_beams=1"
      )
    for name in ("top_k", "top_p", "min_p"):  # no checkpoint's are followed: they were given
      if not self.temperature and getattr(self, name) != getattr(Rules, name):
        raise UsageError(
          f"{name} is {getattr(self, name)} with temperature 0, which draws nothing; expected "
          f"a temperature above 0: give one, or leave {name} out"
        )

  @property
  def numbers(self):
    """The arguments of the program."""
    numbers = {name: np.int32(getattr(self, name)) for name in WHOLE if name != "num_beams"}
    numbers |= {name: np.float32(getattr(self, name)) for name in REAL}
    return numbers | {"early_stopping": np.int32(EARLY.index(self.early_stopping))}

  def parts(self, num_return=1):
    """The rules that the program must contain, for so many answers to a prompt.

    Raises UsageError where the rules do not give as many.
    """
    drawn, beams = self.temperature > 0, self.num_beams > 1
    if num_return < 1 or (not drawn and num_return > self.num_beams):
      raise UsageError(
        f"num_return is {num_return} with num_beams={self.num_beams}, expected from 1 to "
        "num_beams, or a temperature above 0: there is one likeliest token"
      )
    if self.early_stopping and not beams:
      raise UsageError(
        f"early_stopping is {self.early_stopping} with num_beams=1, which searches nothing; "
        "expected more beams: set num_beams, or leave early_stopping out"
      )
    return Parts(
      drawn=drawn,
      restricted=drawn and (self.top_k > 0 or self.top_p < 1 or self.min_p > 0),
      penalised=self.repetition_penalty != 1,
      unrepeated=self.no_repeat_ngram_size > 0,
      beams=beams,
      copies=self.num_beams if beams else num_return,
    )


def rules_of(settings):
  """`Rules` of settings by name; raises UsageError for a name that is none."""
  names = [field.name for field in dataclasses.fields(Rules)]
  check_names(settings, names)
  return Rules(**settings)


def check_names(settings, names):
  """Raises UsageError, with the nearest of `names`, for a setting that has none of them."""
  for name in settings:
    if name == "do_sample":
      raise UsageError("found the setting do_sample; draw by a temperature above 0")
    if name not in names:
      raise UsageError(f"found the setting {name}{values.nearest(name, names)}")


def whole(name, value, least, most=2**31 - 1):
  """A whole number as an int, be it numpy's or 2.0; raises UsageError for anything else."""
  number = isinstance(value, Real) and not isinstance(value, bool)
  if not number or not least <= value <= most or value != int(value):
    beyond = f" and at most {most}" if number and value > most else ""
    raise UsageError(f"{name} is {value}, expected a whole number of at least {least}{beyond}")
  return int(value)


def ruled(logits, numbers, parts, row):
  """logits [B,V] after all rules but those of drawing; -inf for ids that must not come.

  row: tokens [B,S], of which places [B] are filled; new [B], those of the answer; seen
  [B,V], ids that a row has, where they are penalised. numbers: of `Rules`, and stop_ids,
  banned and last (ids, or -1; at the limit only the last may come), vocab_limit, limit (most
  new tokens).
  """
  ids, new = jnp.arange(logits.shape[1]), row["new"][:, None]
  if parts.penalised:
    logits = penalise(logits, row["seen"], numbers["repetition_penalty"])
  may = (ids < numbers["vocab_limit"]) & jnp.all(ids[:, None] != numbers["banned"], -1)
  may &= ~(is_stop(ids, numbers) & (new < numbers["min_new_tokens"]))
  if parts.unrepeated:
    size = numbers["no_repeat_ngram_size"]
    may &= ~repeating(row["tokens"], row["places"], size, len(ids))
  only = jnp.where(jnp.any(ids[:, None] == numbers["last"], -1), 0.0, -jnp.inf)
  return jnp.where(forced(new, numbers), only, jnp.where(may, logits, -jnp.inf))


def is_stop(ids, numbers):
  """Whether each of `ids` [...] ends an answer."""
  return jnp.any(ids[..., None] == numbers["stop_ids"], -1)


def forced(new, numbers):
  """Whether the token after `new` of an answer is the checkpoint's, not the model's."""
  return jnp.any(numbers["last"] >= 0) & (new + 1 == numbers["limit"])


def choose(logits, numbers, parts, seeds, new):
  """Ids [B] int32 of the next tokens, from logits [B,V] float32.

  A row is drawn with the key of the first of its seeds [B,3], into which the others are folded
  and then new [B], the number of the tokens that its answer has.
  """
  if not parts.drawn:
    return jnp.argmax(logits, -1).astype(jnp.int32)
  logits = logits / numbers["temperature"]
  if parts.restricted:
    logits = restrict(logits, numbers["top_k"], numbers["top_p"], numbers["min_p"])

  def draw(seeds, new, row):
    key = jax.random.key(seeds[0])
    for number in (seeds[1], seeds[2], new):
      key = jax.random.fold_in(key, number)
    return jax.random.categorical(key, row)

  return jax.vmap(draw)(seeds, new, logits).astype(jnp.int32)


def penalise(logits, seen, penalty):
  """logits [B,V] of ids in `seen` [B,V] made less likely (arXiv:1909.05858, section 4.1)."""
  less = jnp.where(logits < 0, logits * penalty, logits / penalty)
  return jnp.where(seen, less, logits)


def repeating(tokens, lengths, size, vocab):
  """[B,V] bool: ids that would repeat a sequence of `size` tokens that the row has.

  tokens [B,S], of which lengths [B] are filled. size may be traced: another one compiles
  nothing.
  """
  B, S = tokens.shape
  places, lengths = jnp.arange(S), lengths[:, None]

  def one(back, same):
    """Rows and places whose token `back` before is also that before the next token."""
    newest = jnp.take_along_axis(tokens, jnp.maximum(lengths - back, 0), 1)
    return same & (places >= back) & (jnp.roll(tokens, back, 1) == newest)

  same = jax.lax.fori_loop(1, size, one, places < lengths)
  ids = jnp.where(same, tokens, vocab)
  found = jnp.zeros((B, vocab), bool)
  return found.at[jnp.arange(B)[:, None], ids].set(True, mode="drop")


def restrict(logits, top_k, top_p, min_p):
  """logits [...,V], -inf where one of three rules of `Rules` leaves a token out.

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
