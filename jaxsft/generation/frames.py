"""How an answer begins and ends, and what it never contains, as its checkpoint says."""

from dataclasses import dataclass

from jaxsft import models
from jaxsft.errors import JaxsftError
from jaxsft.generation import defaults


@dataclass(frozen=True)
class Frame:
  """What generation adds to the model's own choices."""

  start: int | None = None
  """First input of an encoder-decoder's decoder; no part of the answer. None: a decoder."""
  first: int | None = None
  """First token of every answer, whatever the model says (mBART: the language)."""
  last: tuple[int, ...] = ()
  """What ends an answer at max_new_tokens, in the place of its last token: one of these."""
  banned: tuple[int, ...] = ()
  """Tokens that are never chosen."""


def frame_of(base):
  """The `Frame` of a `pretrained.Pretrained`: generation_config.json, else config.json.

  Raises JaxsftError where an encoder-decoder's start is not known, or a banned word has
  several tokens.
  """
  merged, start, first = defaults.merged(base), None, None
  if models.has_source(base.arch):
    start, first = _begin(base, merged)
  words = merged.get("bad_words_ids") or ()
  if long := [word for word in words if len(word) != 1]:
    raise JaxsftError(
      f"{base.path}: bad_words_ids has {long[0]}, expected words of one token; remove it from "
      "generation_config.json and config.json"
    )
  ends = merged.get("eos_token_id")  # transformers does not ban these
  ends = ends if isinstance(ends, list) else [ends]
  words = [word[0] for word in words if word[0] not in ends]
  banned = (*words, *(merged.get("suppress_tokens") or ()))
  last = merged.get("forced_eos_token_id")
  last = [] if last is None else last if isinstance(last, list) else [last]
  return Frame(start, first, tuple(_id("forced_eos_token_id", i) for i in last), banned)


def _begin(base, merged):
  """(start, first) of an encoder-decoder's targets."""
  start = _one(merged, "decoder_start_token_id", base.arch.decoder_start)
  if start is None:
    raise JaxsftError(
      f"{base.path}: neither generation_config.json nor config.json has a "
      "decoder_start_token_id, expected the token that targets begin with (mBART: that of "
      "the target's language): add it to config.json"
    )
  first = _one(merged, "forced_bos_token_id", None)
  if first is None and merged.get("force_bos_token_to_be_generated"):  # before version 4.7
    first = _one(merged, "bos_token_id", None)
  return start, first


def _one(config, name, absent):
  value = config.get(name)
  if value is None:
    return absent
  return _id(name, value[0] if isinstance(value, list) and len(value) == 1 else value)


def _id(name, value):
  if not isinstance(value, int):
    raise JaxsftError(f"{name} is {value!r}, expected the id of one token: correct config.json")
  return value
