"""Line-parallel text: a file a side, where lines of the same number belong together.

`DIR/train.{en,de}.gz` names DIR/train.en.gz and DIR/train.de.gz; its rows have "en" and "de".
"""

import itertools
import re
from collections.abc import Iterator

from jaxsft.data import formats
from jaxsft.errors import JaxsftError, UsageError

BRACES = re.compile(r"\{([^{}]*,[^{}]*)\}")


def braced(path: str) -> bool:
  """Whether the path names sides in braces."""
  return BRACES.search(path) is not None


def files(path: str, key: str = "data.path") -> dict[str, str]:
  """Side -> file, for the path that config key `key` holds; raises UsageError for others."""
  before, *rest = BRACES.split(path)
  if len(rest) != 2 or re.search(r"[{}]", before + rest[1]):
    raise UsageError(
      f"{key} is {path!r}, expected the sides of parallel text once in braces, such as "
      "'train.{en,de}.gz'"
    )
  if re.search(r"[*?\[]", path):
    raise UsageError(
      f"{key} is {path!r}: a glob cannot pair the files of parallel text; name two files, "
      "such as 'train.{en,de}.gz', or put the parts of each side into one file"
    )
  sides = rest[0].split(",")
  if len(set(sides)) < len(sides) or not all(side.strip() == side != "" for side in sides):
    raise UsageError(
      f"{key} is {path!r}: the braces hold {', '.join(map(repr, sides))}, expected different "
      "sides without spaces, such as {en,de}"
    )
  return {side: f"{before}{side}{rest[1]}" for side in sides}


def rows(path: str, encoding: str) -> Iterator[formats.Record]:
  """One record a line number, with a field a side; blank lines count as empty text.

  Raises JaxsftError where one file has more lines than another.
  """
  named = files(path)
  streams = {side: formats.lines(file, encoding) for side, file in named.items()}
  for number, found in enumerate(itertools.zip_longest(*streams.values()), 1):
    if None in found:
      ends = zip(named.values(), streams.values(), found, strict=True)
      counts = [
        f"{file} has {number - 1 if line is None else number + sum(1 for _ in stream):,} lines"
        for file, stream, line in ends
      ]
      raise JaxsftError(
        f"{' but '.join(counts)}: lines of the same number belong together, so correct the "
        "files, or data.path if these are not the sides of one text"
      )
    fields = dict(zip(named, (line.rstrip("\r\n") for _, line in found), strict=True))
    yield formats.Record(number, str(number), fields)
