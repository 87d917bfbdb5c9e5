"""What a JSON file is by its content: one list, or an object a line, whatever its name says."""

import itertools
import json

from jaxsft.data import formats


def json_kind(file: str, encoding: str, named: str) -> str:
  """ "json" or "jsonl" for a file whose name says `named`, the one or the other.

  A file that begins with a list is "json", unless a line of its own ends the list. One with a
  whole object in its first line and more lines behind it is "jsonl". Where neither is so, the
  name decides. Raises JaxsftError where the first lines cannot be read.
  """
  filled = (line for _, line in formats.lines(file, encoding) if line.strip())
  first = next(filled, "")
  begins = first.lstrip()[:1]
  if (named, begins) == ("jsonl", "[") and not (_whole(first) and next(filled, "")):
    return "json"
  if (named, begins) == ("json", "{") and next(filled, "") and _whole(first):
    return "jsonl"
  return named


def _whole(line: str) -> bool:
  """Whether a line is JSON by itself."""
  try:
    json.loads(line)
  except (ValueError, RecursionError):
    return False
  return True


def said(kinds: list[tuple[str, str, str]]) -> str:
  """What the report says of [(file, format, format that its name says)].

  "2 files of jsonl", or with those named that are something else than their name says.
  """
  parts = []
  for kind, group in itertools.groupby(sorted(kinds, key=lambda k: k[1]), lambda k: k[1]):
    found = list(group)
    other = [file for file, _, named in found if named != kind]
    text = kind if len(found) == 1 else f"{kind} ({len(found):,} files)"
    if other:
      more = f" and {len(other) - 1:,} more" if len(other) > 1 else ""
      text += f" by the content of {other[0]}{more}, not by its name"
    parts.append(text)
  return ", ".join(parts)
