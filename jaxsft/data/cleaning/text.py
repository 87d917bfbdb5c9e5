"""Steps that normalise texts: each finds the edits that a text needs."""

import functools
import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxsft.data import words
from jaxsft.data.cleaning import edits, markup, private
from jaxsft.errors import JaxsftError, UsageError

Step = Callable[[str], list[edits.Edit]]

INVISIBLE = frozenset(
  "\u00ad\u061c\u180e\u200b\u200e\u200f\ufeff"
  + "".join(map(chr, (*range(0x202A, 0x202F), *range(0x2060, 0x2070))))
)
"""What is not seen; the joiners U+200C and U+200D are, since scripts and emoji need them."""
CONTROL = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f{''.join(sorted(INVISIBLE))}]")
URL = re.compile(
  r"(?<![A-Za-z0-9_@])(?:(?:https?|ftp)://|www\.)[^\s<>\"，。；：！？）】」、]*"
  r"[^\s<>\".,;:!?)\]}'’，。；：！？）】」、]",
  re.IGNORECASE,
)
WORD = re.compile(r"\w+(?:['’]\w+)*")
SPACES = re.compile(r"\s{2,}|[^\S ]|\A\s|\s\Z")
STOP_WORDS = "stop_words:"
ONCE = ("markup",)
"""Steps that are taken once: what "&amp;lt;b>" says is "&lt;b>", which is no tag."""
DESTROYING = ("whitespace", "lower", "punctuation", "urls", STOP_WORDS)
"""Steps after which secrets and personal data may no longer be told."""


def normal_form(form: str, text: str) -> list[edits.Edit]:
  """Unicode's normal form (UAX 15), by pieces that do not act on one another."""
  if unicodedata.is_normalized(form, text):
    return []
  pieces, start = [], 0
  for at in range(1, len(text) + 1):
    if at == len(text) or _begins(text[at], "NFKD" if form == "NFKC" else "NFD"):
      pieces.append(((start, at), unicodedata.normalize(form, text[start:at])))
      start = at
  return edits.differences(text, pieces)


@functools.cache
def _begins(character: str, decomposed: str) -> bool:
  """Whether nothing before a character can change what becomes of it, nor it what is before."""
  first = unicodedata.normalize(decomposed, character)[0]
  return unicodedata.combining(first) == 0 and first not in _seconds()


@functools.cache
def _seconds() -> frozenset[str]:
  """Characters that may melt into the one before them though they are no marks."""
  found = {chr(c) for c in (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3))}  # Hangul's
  for code in range(0x110000):
    parts = unicodedata.decomposition(chr(code)).split()
    if len(parts) == 2 and not parts[0].startswith("<"):
      found.add(chr(int(parts[1], 16)))
  return frozenset(found)


def control(text: str) -> list[edits.Edit]:
  """Without control characters but tab and newline, zero-width characters and BOMs."""
  found = []
  for match in CONTROL.finditer(text):
    lone = match.group() == "\r" and text[match.end() : match.end() + 1] != "\n"
    found.append((*match.span(), "\n" if lone else ""))
  return found


def whitespace(text: str) -> list[edits.Edit]:
  """One space for every run of white space, none at the ends."""
  found = []
  for match in SPACES.finditer(text):
    outer = match.start() == 0 or match.end() == len(text)
    found.append((*match.span(), "" if outer else " "))
  return found


def lower(text: str) -> list[edits.Edit]:
  """In small letters, as str.lower makes them."""
  small = text.lower()
  if len(small) == len(text):
    pairs = enumerate(zip(text, small, strict=True))
    return [(i, i + 1, b) for i, (a, b) in pairs if a != b]
  at, pieces = 0, []
  for i, c in enumerate(text):
    size = len(c.lower())
    pieces.append(((i, i + 1), small[at : at + size]))
    at += size
  return edits.differences(text, pieces)


def punctuation(text: str) -> list[edits.Edit]:
  """Without punctuation and the symbols that BERT counts as such.

  A space takes the place of what stands between two letters or digits, but for apostrophes.
  """
  found = []
  for match in _marks().finditer(text):
    start, end = match.span()
    between = (
      start > 0 and end < len(text) and text[start - 1].isalnum() and text[end].isalnum()
    )
    found.append((start, end, " " if between and match.group() not in ("'", "’") else ""))
  return found


@functools.cache
def _marks() -> re.Pattern:
  """Runs of what `punctuation` removes."""
  every = map(chr, range(0x110000))
  marks = [c for c in every if c in words.SYMBOLS or unicodedata.category(c).startswith("P")]
  return re.compile(f"[{re.escape(''.join(marks))}]+")


def urls(text: str) -> list[edits.Edit]:
  """Without addresses that begin with http://, https://, ftp:// or www."""
  return [(*match.span(), "") for match in URL.finditer(text)]


def without_words(stop: frozenset[str], text: str) -> list[edits.Edit]:
  """Without the words of a list (in small letters), each with the white space behind it."""
  found = []
  for match in WORD.finditer(text):
    if match.group().lower().replace("’", "'") in stop:
      end = match.end()
      while end < len(text) and text[end].isspace():
        end += 1
      found.append((match.start(), end, ""))
  return found


PLAIN: dict[str, Step] = {
  "nfc": functools.partial(normal_form, "NFC"),
  "nfkc": functools.partial(normal_form, "NFKC"),
  "control": control,
  "markup": markup.edits_of,
  "whitespace": whitespace,
  "lower": lower,
  "punctuation": punctuation,
  "urls": urls,
  "mask:secrets": functools.partial(private.masks, "secrets"),
  "mask:personal": functools.partial(private.masks, "personal"),
}


def program(steps: Sequence[str], *, masks: Sequence[str] = ()) -> tuple[str, ...]:
  """The steps with the words of their files in them, and `masks`, kinds of private data, where
  these can still be told: before the first step that would hide them.

  What it returns needs no file, so that an exported model can hold it.
  """
  done = [_with_words(step) for step in steps]
  at = next((i for i, step in enumerate(done) if step.startswith(DESTROYING)), len(done))
  return (*done[:at], *(f"mask:{kind}" for kind in masks), *done[at:])


def _with_words(step: str) -> str:
  name = step.removeprefix(STOP_WORDS)
  if name == step or name in ("english",) or name.startswith("["):
    return step
  try:
    text = Path(name).read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    why = getattr(error, "strerror", None) or "it is not UTF-8"
    raise UsageError(
      f"config.clean.text: {step!r} cannot be read ({why}); expected 'stop_words:english', "
      "'stop_words:FILE' with one word a line, or 'stop_words:[\"a\", …]'"
    ) from error
  found = sorted({line.strip().lower() for line in text.splitlines()} - {""})
  if not found:
    raise UsageError(f"config.clean.text: {name} holds no word, expected one a line")
  return STOP_WORDS + json.dumps(found, ensure_ascii=False)


@functools.cache
def step_of(name: str) -> Step:
  """The function of a step of `program`."""
  if name in PLAIN:
    return PLAIN[name]
  listed = name.removeprefix(STOP_WORDS)
  if listed == "english":
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS  # slow to import

    return functools.partial(without_words, frozenset(ENGLISH_STOP_WORDS))
  found = json.loads(listed)
  plain = (word.lower().replace("’", "'") for word in found)
  return functools.partial(without_words, frozenset(plain))


def changed(step: str, text: str, spans: Sequence[edits.Span] = ()):
  """(text, spans) after a step, which is repeated until it finds nothing more to change, but
  for those of ONCE.
  """
  find, spans = step_of(step), list(spans)
  for _ in range(len(text) + 2):
    found = find(text)
    if not found:
      return text, spans
    text, spans = edits.apply(text, found), edits.moved(spans, found)
    if step in ONCE:
      return text, spans
  raise JaxsftError(f"the step {step!r} of config.clean.text never ends on {text[:40]!r}")
