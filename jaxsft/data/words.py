"""The words of a row, the tokens that a model reads of them, and spans of its characters.

A row has `tokens`, its words, whose text is " ".join(tokens); or `text`, whose words are the
tokenizer's own, further divided as BERT's are: at white space, and around every punctuation
mark and Chinese character. Tokens find their words by their places in the text, so nothing
depends on how a tokenizer treats words that are given to it one by one.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxsft.data import control
from jaxsft.data.read import near
from jaxsft.errors import JaxsftError

SYMBOLS = frozenset("$+<=>^`|~")  # what Unicode does not call punctuation, but BERT does
CHINESE = (  # as BERT has them (CJK ideographs, not kana or hangul)
  (0x4E00, 0x9FFF),
  (0x3400, 0x4DBF),
  (0x20000, 0x2A6DF),
  (0x2A700, 0x2B73F),
  (0x2B740, 0x2B81F),
  (0x2B820, 0x2CEAF),
  (0xF900, 0xFAFF),
  (0x2F800, 0x2FA1F),
)


class Entity(NamedTuple):
  """A span of a row's text."""

  label: str
  start: int
  end: int


class Read(NamedTuple):
  """A row as a model reads it, whole: T tokens, W words."""

  text: str
  words: list[tuple[int, int]]
  """(start, end) in characters of the text, in order."""
  inputs: np.ndarray
  """[T] int32, with what the tokenizer puts around a text."""
  token_types: np.ndarray
  """[T] int32."""
  inside: tuple[int, int]
  """First token of the text, and the one behind its last."""
  word: np.ndarray
  """[T] int32: the word whose first token this is, or -1."""

  @property
  def lost(self) -> int:
    """Words of which the tokenizer makes no token of their own."""
    return len(self.words) - int(np.sum(self.word >= 0))


def read(fields: Mapping[str, Any], tokenizer: Any) -> Read:
  """`Read` of a row; raises JaxsftError for one without words, or without any token, and for
  a control token in its text.
  """
  text, words = _given(fields)
  control.refuse_in_read({"text": text}, tokenizer)
  tokens = tokenizer(
    text,
    return_offsets_mapping=True,
    return_token_type_ids=True,
    verbose=False,  # of lengths: the caller takes care of them
  )
  inside = np.flatnonzero([side is not None for side in tokens.sequence_ids(0)])
  first, stop = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 0)
  places, own = tokens["offset_mapping"][first:stop], tokens.word_ids(0)[first:stop]
  if words is None:
    words = own_words(text, places, own)
  inputs = np.asarray(tokens["input_ids"], np.int32)
  if not len(inputs):
    raise JaxsftError(
      f"the tokenizer makes no token of {text[:60]!r}; correct the row or leave it out with "
      "config.data.keep"
    )
  word = np.full(len(inputs), -1, np.int32)
  word[first:stop] = first_tokens(words, places, own)
  types = np.asarray(tokens["token_type_ids"], np.int32)
  return Read(text, words, inputs, types, (first, stop), word)


def spans(fields: Mapping[str, Any], tokenizer: Any) -> tuple[str, list[tuple[int, int]]]:
  """(text, (start, end) of its words) of a row."""
  text, words = _given(fields)
  return (text, words) if words is not None else read(fields, tokenizer)[:2]


def _given(fields):
  """(text, words or None) of a row."""
  tokens = fields.get("tokens")
  if tokens is None:
    text = fields.get("text")
    if text is None:
      raise JaxsftError(
        f"no field 'tokens' or 'text', which the task needs{near('tokens', fields)}; map a "
        'column to it: data.columns={"tokens": …}'
      )
    if not isinstance(text, str) or not text.strip():
      raise JaxsftError(f"the text is {text!r}, expected words; correct the row")
    return text, None
  if isinstance(tokens, np.ndarray):
    tokens = tokens.tolist()
  good = isinstance(tokens, list | tuple) and len(tokens)
  bad = [t for t in tokens if not isinstance(t, str) or not t] if good else []
  if not good or bad:
    what = f"{bad[0]!r} among the tokens" if good else f"{tokens!r} for the tokens"
    raise JaxsftError(f"found {what}, expected a list of words; correct the row")
  ends = np.cumsum([len(token) + 1 for token in tokens]) - 1
  return " ".join(tokens), [
    (int(end) - len(token), int(end)) for token, end in zip(tokens, ends, strict=True)
  ]


def own_words(
  text: str, places: Sequence[tuple[int, int]], own: Sequence[int]
) -> list[tuple[int, int]]:
  """(start, end) of the words of a text.

  places: (start, end) of its tokens in characters; own: which of the tokenizer's words each
  belongs to. A word neither begins nor ends with white space or what is not seen.
  """
  words: list[tuple[int, int]] = []
  before = None
  for (start, end), mine in zip(places, own, strict=True):
    while start < end and _unseen(text[start]):
      start += 1
    while start < end and _unseen(text[end - 1]):
      end -= 1
    if start == end:
      continue
    while end < len(text) and unicodedata.category(text[end]).startswith("M"):
      end += 1  # marks belong to their letter, though a tokenizer may have removed them
    if words and _goes_on(text, words[-1][1], start, mine == before):
      words[-1] = (words[-1][0], max(words[-1][1], end))
    else:
      words.append((start, end))
    before = mine
  return words


def _goes_on(text, end, start, same):
  """Whether a token from `start` belongs to the word that has reached `end`."""
  if start < end:
    return True  # bytes of one character, or a mark on the last
  apart = _alone(text[end - 1]) or _alone(text[start])
  return same and not apart and not any(c.isspace() for c in text[end:start])


def _unseen(c):
  return c.isspace() or unicodedata.category(c) in ("Cc", "Cf")


def _alone(c):
  """Whether BERT makes a word of this character alone."""
  if unicodedata.category(c).startswith("P") or c in SYMBOLS:
    return True
  return c >= "㐀" and any(low <= ord(c) <= high for low, high in CHINESE)


def first_tokens(
  words: Sequence[tuple[int, int]], places: Sequence[tuple[int, int]], own: Sequence[int]
) -> np.ndarray:
  """[T] int32: for each token the index of the word whose first it is, or -1.

  A token belongs to the first word that it shares a character with; white space with which a
  word of the tokenizer begins (SentencePiece's) belongs to that, as with `is_split_into_words`.
  """
  result = np.full(len(places), -1, np.int32)
  if not len(places) or not len(words):
    return result
  starts, ends = np.array(words).T
  begin, end = np.array(places).T
  word = np.searchsorted(ends, begin, side="right")
  there = np.minimum(word, len(words) - 1)
  word = np.where((word < len(words)) & (starts[there] < end), word, -1)
  for i in np.flatnonzero(word[:-1] < 0)[::-1]:
    begins = own[i] == own[i + 1] and (i == 0 or own[i - 1] != own[i])
    if word[i + 1] >= 0 and begins:
      word[i] = word[i + 1]
  found, first = np.unique(word, return_index=True)
  result[first[found >= 0]] = found[found >= 0]
  return result


def windows(count: int, room: int, stride: int) -> list[tuple[int, int]]:
  """[(start, stop)] of windows of at most `room` of `count` tokens; neighbours share `stride`.

  As the tokenizers library cuts them: all but the last are full, and none lies in another.
  stride: below room.
  """
  if count <= room:
    return [(0, count)]
  return [(at, min(at + room, count)) for at in range(0, count - stride, room - stride)]


def window(
  columns: Mapping[str, np.ndarray], inside: tuple[int, int], part: tuple[int, int]
) -> dict[str, np.ndarray]:
  """Columns [T] with only the tokens of `part` of those that lie `inside`; both (start, stop).

  What a tokenizer puts around a text stands around every window.
  """
  (first, stop), (start, end) = inside, part
  return {
    name: np.concatenate([x[:first], x[start:end], x[stop:]]) for name, x in columns.items()
  }


def shared_out(count: int, parts: Sequence[tuple[int, int]]) -> np.ndarray:
  """[count] the part that each token is read in: where it is farthest from both ends.

  parts: (start, stop); -1 for a token of none. Of equals the earlier.
  """
  at = np.arange(count)
  margins = [
    np.where((at >= a) & (at < b), np.minimum(at - a, b - 1 - at), -1) for a, b in parts
  ]
  return np.where(np.max(margins, 0) < 0, -1, np.argmax(margins, 0))


def entities(fields: Mapping[str, Any]) -> list[Entity] | None:
  """The entities of a row with `text`, by their places; None where it has none to say.

  An entity is {"start", "end", "label"}, maybe with the "text" that it should be, or
  [start, end, label]; end is the character behind its last. Raises JaxsftError for what is
  none, or is not in the text.
  """
  given = fields.get("entities")
  if given is None:
    return None
  if fields.get("tokens") is not None or not isinstance(fields.get("text"), str):
    raise JaxsftError(
      "found entities, which are spans of a text, expected a text and no tokens; correct the "
      "row, or map other columns to these fields in config.data.columns"
    )
  if not isinstance(given, list | tuple | np.ndarray):
    raise JaxsftError(f"found {given!r} for the entities, expected a list; correct the row")
  return sorted((_entity(one, fields["text"]) for one in given), key=lambda e: (e.start, e.end))


def _entity(given, text):
  if isinstance(given, Mapping) and {"start", "end", "label"} <= given.keys():
    start, end, label = given["start"], given["end"], given["label"]
  elif isinstance(given, list | tuple) and len(given) == 3:
    start, end, label = given
    given = {}
  else:
    raise JaxsftError(
      f'found the entity {given!r}, expected {{"start", "end", "label"}}; correct the row'
    )
  whole = all(isinstance(x, int | np.integer) and not isinstance(x, bool) for x in (start, end))
  if not whole or not 0 <= start < end <= len(text):
    raise JaxsftError(
      f"found an entity from {start!r} to {end!r} in a text of {len(text)} characters, "
      "expected 0 ≤ start < end and end in it; correct the row"
    )
  if not isinstance(label, str) or not label.strip():
    raise JaxsftError(f"found the entity label {label!r}, expected a name; correct the row")
  said = given.get("text")
  if said is not None and said != text[start:end]:
    raise JaxsftError(
      f"found the entity {said!r} from {start} to {end}, where the text has "
      f"{text[start:end]!r}; correct the row: places count characters from 0, end is behind "
      "the last"
    )
  return Entity(label, int(start), int(end))


def words_of(
  found: Sequence[Entity], words: Sequence[tuple[int, int]], text: str
) -> list[tuple[str, int, int]]:
  """(label, first word, word behind the last) of entities in order.

  Raises JaxsftError for an entity that holds no word, or part of one, or a word of another.
  """
  starts, ends = np.array(words, int).reshape(-1, 2).T
  result, before = [], None
  for label, start, end in found:
    shown = f"the entity {text[start:end]!r} ({label}, characters {start} to {end})"
    first, stop = (int(np.searchsorted(*x)) for x in ((ends, start + 1), (starts, end)))
    if first >= stop:
      raise JaxsftError(
        f"{shown} holds no word that the tokenizer knows; correct the row or leave it out with "
        "config.data.keep"
      )
    cut = [(a, b) for a, b in (words[first], words[stop - 1]) if a < start or b > end]
    if cut:
      raise JaxsftError(
        f"{shown} holds a part of the word {text[slice(*cut[0])]!r}, characters "
        f"{cut[0][0]} to {cut[0][1]}, and words have one tag; correct the row, leave it out "
        "with config.data.keep, or choose a model that divides the text otherwise"
      )
    if before is not None and result[-1][2] > first:
      raise JaxsftError(
        f"{shown} and {before} share a word, and words have one tag; keep one of the two"
      )
    result.append((label, first, stop))
    before = shown
  return result
