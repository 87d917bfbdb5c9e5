"""Which rows stay: by their length, their language, and whether they were met before."""

from collections.abc import Callable, Sequence
from typing import Any

from jaxsft.data import nearest, read
from jaxsft.data.cleaning import fields, near, record
from jaxsft.errors import JaxsftError, UsageError

EXTRA = "pip install 'jaxsft[clean]'"


def kept(
  rows: Sequence[read.Row], task: Any, settings: Any, noted: record.Record
) -> tuple[list[read.Row], list[str]]:
  """(the rows that `settings`, a config's `clean` group, keeps; warnings), the first of equals.

  Raises JaxsftError if none is left.
  """
  rows = list(rows)
  language = _language(settings.language) if settings.language else None
  stays = []
  for row in rows:
    why = _unfit(row, task, settings, language)
    if why is None:
      stays.append(row)
    else:
      noted.leave(why, row, _shown(row, task))
  stays, warnings = _unmet(stays, task, settings, noted)
  if rows and not stays:
    raise JaxsftError(
      f"config.clean leaves none of {len(rows)} rows ("
      + "; ".join(f"{n} {why}" for why, n in noted.left_out().items())
      + "); change its settings"
    )
  return stays, warnings


def _shown(row: read.Row, task: Any) -> str:
  return " | ".join(fields.texts(row.fields, task.TEXTS))


def _unfit(row, task, settings, language) -> str | None:
  """Why a row does not stay, of what can be told of it alone."""
  if settings.min_chars is not None or settings.max_chars is not None:
    size = sum(map(len, fields.texts(row.fields, task.TEXTS)))
    if settings.min_chars is not None and size < settings.min_chars:
      return f"fewer than {settings.min_chars} characters"
    if settings.max_chars is not None and size > settings.max_chars:
      return f"more than {settings.max_chars} characters"
  if language is not None:
    found = language("\n".join(fields.texts(row.fields, fields.asking(task) or task.TEXTS)))
    if found != settings.language:
      return f"language {found}, not {settings.language}"
  return None


def _language(wanted: str) -> Callable[[str], str]:
  """What tells the language of a text, as a code of ISO 639-1."""
  try:
    from py3langid import langid  # an extra
  except ModuleNotFoundError:
    raise UsageError(
      f"config.clean.language={wanted!r} needs the package py3langid; install it: {EXTRA}"
    ) from None
  known = sorted(str(code) for code, _ in langid.rank("a"))
  if wanted not in known:
    raise UsageError(
      f"config.clean.language: found {wanted!r}, expected a code of ISO 639-1 such as 'en'"
      f"{nearest.near(wanted, known)}"
    )
  return lambda text: str(langid.classify(text)[0])


def _unmet(rows, task, settings, noted) -> tuple[list[read.Row], list[str]]:
  """(rows without the duplicates of earlier ones, warnings)."""
  names = task.TEXTS if hasattr(task, "prompt") else fields.asking(task)
  conflicts: list[str] = []

  def without(rows, what, find_or_add):
    """The rows of whose text find_or_add(text, row) finds no row that was added before."""
    stays = []
    for row in rows:
      first = find_or_add(fields.plain(row.fields, names), row)
      if first is None:
        stays.append(row)
        continue
      noted.leave(what, row, _shown(row, task))
      if not hasattr(task, "prompt") and _answer(row, task) != _answer(first, task):
        conflicts.append(f"{row.id} and {first.id}")
    return stays

  if settings.duplicates == "drop":
    seen: dict[str, read.Row] = {}
    first = lambda text, row: None if seen.setdefault(text, row) is row else seen[text]
    rows = without(rows, "duplicates", first)
  if settings.near_duplicates is not None:
    index = near.Index(settings.near_duplicates)
    rows = without(rows, "near duplicates", index.find_or_add)
  return rows, _warning(conflicts)


def _answer(row: read.Row, task: Any) -> Any:
  return [row.fields.get(name) for name in task.GOLD]


def _warning(conflicts: list[str]) -> list[str]:
  if not conflicts:
    return []
  return [
    f"{len(conflicts):,} duplicates that were left out contradict the row that stays: "
    f"{nearest.some(conflicts)}"
  ]
