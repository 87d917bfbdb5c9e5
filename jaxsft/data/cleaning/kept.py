"""Which rows stay: by their length, their language, and whether they were met before."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from jaxsft.data import nearest, read, spool
from jaxsft.data.cleaning import fields, near, record, values
from jaxsft.errors import JaxsftError, UsageError

EXTRA = "pip install 'jaxsft[clean]'"


def kept(
  rows: Sequence[read.Row], task: Any, settings: Any, noted: record.Record
) -> tuple[Sequence[read.Row], list[str]]:
  """(the rows that `settings`, a config's `clean` group, keeps; warnings), the first of equals.

  Raises JaxsftError if none is left.
  """
  stays = rows
  if (settings.language, settings.min_chars, settings.max_chars) != (None, None, None):
    stays = spool.Spool(_fit(rows, task, settings, noted))
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


def _fit(rows, task, settings, noted):
  """The rows that stay, of what can be told of each alone."""
  language = _language(settings.language) if settings.language else None
  for row in rows:
    why = _unfit(row, task, settings, language)
    if why is None:
      yield row
    else:
      noted.leave(why, row, _shown(row, task))


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


def _unmet(rows, task, settings, noted) -> tuple[Sequence[read.Row], list[str]]:
  """(rows without the duplicates of earlier ones, warnings)."""
  written = hasattr(task, "prompt")
  names = task.TEXTS if written else fields.asking(task)
  warnings: list[str] = []

  def without(rows, what, find_or_add):
    """The rows for which find_or_add(row) finds nothing that was added before."""
    for row in rows:
      if find_or_add(row) is None:
        yield row
      else:
        noted.leave(what, row, _shown(row, task))

  if settings.duplicates == "drop":
    seen: set[bytes] = set()

    def met(row):
      own = fields.digest(fields.exact(row.fields, task))
      if own in seen:
        return own
      seen.add(own)

    rows = spool.Spool(without(rows, "duplicates", met))
  if settings.duplicates == "drop" or settings.near_duplicates is not None:
    warnings = [] if written else _conflicts(rows, task, names)
  if settings.near_duplicates is not None:
    index = near.Index(settings.near_duplicates)

    def nearly(row):
      text = fields.folded(row.fields, names)
      said = {"text": text, "answer": _answer(row, task), "apart": _apart(row, task)}
      value = {what: fields.digest(one) for what, one in said.items()}
      return index.find_or_add(text, value, lambda other: _nearly(value, other))

    rows = spool.Spool(without(rows, "near duplicates", nearly))
  return rows, warnings


def _apart(row: read.Row, task: Any) -> str:
  """What rows must share, whatever else they do, of what the task reads: the label, the tools,
  the question.
  """
  there = fields.searched(task)
  tools = values.plain(row.fields.get(fields.TOOLS)) if fields.TOOLS in there else None
  question = ("question",) if "question" in there else ()
  shared = [_labels(row, task), tools]
  return json.dumps([*shared, fields.folded(row.fields, question)], default=repr)


def _labels(row: read.Row, task: Any) -> Any:
  """The label of a row, or its labels in one order; None where the task has none."""
  found = values.plain(row.fields.get("label")) if "label" in task.GOLD else None
  return sorted(found) if isinstance(found, list) else found


def _nearly(one: dict[str, bytes], other: dict[str, bytes]) -> bool:
  """Whether rows whose texts nearly equal one another may be duplicates: not those that say the
  same and answer otherwise.
  """
  same = one["text"] != other["text"] or one["answer"] == other["answer"]
  return same and one["apart"] == other["apart"]


def _answer(row: read.Row, task: Any) -> str:
  """The answer of a row as text; the order of labels does not count."""
  found = {name: values.plain(row.fields.get(name)) for name in task.GOLD}
  return json.dumps(found | {"label": _labels(row, task)}, default=repr)


def _conflicts(rows, task, names) -> list[str]:
  """A warning of rows with the text of an earlier row and another answer."""
  first: dict[bytes, int] = {}
  met = []
  for i, row in enumerate(rows):
    k = first.setdefault(fields.digest(fields.folded(row.fields, names)), i)
    if k != i and _answer(row, task) != _answer(rows[k], task):
      met.append(f"{row.id} and {rows[k].id}")
  if not met:
    return []
  return [
    f"{len(met):,} rows have the text of an earlier row, case and spaces aside, but another "
    f"answer, and stay: {nearest.some(met)}"
  ]
