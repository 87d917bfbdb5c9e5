"""Which scripts put no spaces between words."""

import functools
import unicodedata

UNSPACED = (
  "CJK", "HIRAGANA", "KATAKANA", "BOPOMOFO", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN",
)  # fmt: skip
"""What Unicode's names of their characters begin with."""


@functools.cache
def unspaced(character: str) -> bool:
  """Whether a character is of a script that puts no spaces between words."""
  return unicodedata.name(character, "").startswith(UNSPACED)
