"""How a sentence names some of many things."""

import difflib
from collections.abc import Iterable


def near(name: str, names: Iterable[str]) -> str:
  """How an error ends that names an unknown thing: the known ones, the nearest first."""
  names = list(names)
  close = difflib.get_close_matches(name, names, 3, 0.6)
  shown = close + [other for other in names if other not in close][: 12 - len(close)]
  more = ", …" if len(names) > len(shown) else ""
  hint = f"; did you mean {close[0]!r}?" if close else ""
  return f"{hint} (there is {', '.join(shown)}{more})" if names else ""


def some(names: Iterable, total: int | None = None, most: int = 3) -> str:
  """The first names, and how many there are besides."""
  names = list(names)
  total = len(names) if total is None else total
  more = f" and {total - most} more" if total > most else ""
  return ", ".join(map(str, names[:most])) + more
