"""CoNLL files: a token a line with its columns, and a blank line between sentences.

  EU NNP I-NP I-ORG        {"tokens": ["EU", "rejects"], "tags": ["I-ORG", "O"],
  rejects VBZ I-VP O        "1": ["NNP", "VBZ"], "2": ["I-NP", "I-VP"]}

Columns are split at tabs, or at runs of spaces where the first line of a token has no tab. Of
CoNLL-U (universaldependencies.org/format.html), the ten columns that begin with a number, the
tokens are FORM and the tags UPOS unless data.columns says otherwise; lines of several words
("1-2") and of none ("5.1") are no tokens.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from jaxsft.data import formats
from jaxsft.errors import JaxsftError, UsageError

DOCUMENT = "-DOCSTART-"
FIRST = re.compile(r"1|1-\d+|0\.1")
"""The id that CoNLL-U's first line of a sentence has."""
APART = re.compile(r"\d+[-.]\d+")
"""Ids of CoNLL-U's lines that are no words."""


class Layout(NamedTuple):
  """What the first line of a token says of all others."""

  line: int
  columns: int
  tabs: bool
  """Columns are split at tabs, else at runs of spaces."""
  universal: bool
  """CoNLL-U."""

  @property
  def words(self) -> str:
    at = "tabs" if self.tabs else "spaces"
    return f"{self.columns} as in line {self.line} (columns are split at {at})"


def sentences(
  file: str, encoding: str, columns: Mapping[str, str | int]
) -> Iterator[formats.Record]:
  """One record a sentence, at its first line; every column is a list with a value a token.

  columns: field -> position; "tokens" is the first and "tags" the last column (if there are
  two; see above for CoNLL-U) where it does not say otherwise, other columns are named by their
  position. A line of white space ends a sentence. `-DOCSTART-` lines are no tokens: where a
  file has them, "document" counts from 1 which one a sentence is in. Lines of "# …" in front
  of a sentence are comments, kept in "comments", unless they have as many columns as a token.
  Lines of CoNLL-U that are no words are kept in "ranges".
  Raises JaxsftError with file:line.
  """
  layout = _layout(file, encoding)
  if layout is None:
    return
  names = _names(columns, layout, file)
  document, first, comments, ranges, found = 0, 0, [], [], []
  for number, line in formats.lines(file, encoding):
    line = line.rstrip("\r\n")
    opens = line.startswith(DOCUMENT)
    if not line.strip() or opens:
      if found:
        yield _record(first, found, names, document, comments, ranges)
        found, comments, ranges = [], [], []
      document += opens
      continue
    values = _split(line, layout.tabs)
    if not found and line.startswith("# ") and len(values) != layout.columns:
      comments.append(line[2:])
      continue
    if layout.universal and APART.fullmatch(values[0]):
      ranges.append(line)
      continue
    _check(values, names, layout, f"{file}:{number}")
    first = first if found else number
    found.append(values)
  if found:
    yield _record(first, found, names, document, comments, ranges)


def _layout(file: str, encoding: str) -> Layout | None:
  """`Layout` of the first line that is surely a token's; None: there is none."""
  for number, line in formats.lines(file, encoding):
    line = line.rstrip("\r\n")
    if line.strip() and not line.startswith((DOCUMENT, "# ")):
      tabs = "\t" in line
      values = _split(line, tabs)
      universal = tabs and len(values) == 10 and bool(FIRST.fullmatch(values[0]))
      return Layout(number, len(values), tabs, universal)
  return None


def _split(line: str, tabs: bool) -> list[str]:
  # No split(): a token may be, or hold, another white space than these.
  return line.split("\t") if tabs else [value for value in line.split(" ") if value]


def _names(columns: Mapping[str, str | int], layout: Layout, file: str) -> dict[str, int]:
  """Field -> position, for all columns; the user's first."""
  for field, column in columns.items():
    if not isinstance(column, int):
      raise UsageError(
        f"data.columns gives the name {column!r} for {field!r}, but the columns of {file}, "
        "which is read as CoNLL, have no names; give a position, counted from 0"
      )
    if not 0 <= column < layout.columns:
      raise JaxsftError(
        f"{file}:{layout.line}: no column {column}, which data.columns gives for {field!r}: "
        f"there are {layout.words}, counted from 0; correct data.columns"
      )
  defaults = {"tokens": 0} | ({"tags": layout.columns - 1} if layout.columns > 1 else {})
  defaults = {"tokens": 1, "tags": 3} if layout.universal else defaults
  names = dict(columns) | {f: c for f, c in defaults.items() if f not in columns}
  if names["tokens"] == names.get("tags"):
    raise UsageError(
      f"data.columns: column {names['tokens']} of {file} would be both the tokens and the "
      'tags; give both, e.g. {"tokens": 0, "tags": 3}'
    )
  taken = set(names.values())
  return names | {str(c): c for c in range(layout.columns) if c not in taken}


def _check(values: list[str], names: dict[str, int], layout: Layout, where: str) -> None:
  if len(values) != layout.columns:
    raise JaxsftError(
      f"{where}: found {len(values)} columns, expected {layout.words}; correct the line, or "
      "end the sentence before it with a blank line"
    )
  for field in ("tokens", "tags"):
    if field in names and not values[names[field]].strip():
      raise JaxsftError(
        f"{where}: the column {names[field]}, which holds the {field}, is empty in "
        f"{values!r}; correct the line, or choose another column in data.columns"
      )


def _record(
  first: int,
  found: list[list[str]],
  names: dict[str, int],
  document: int,
  comments: list[str],
  ranges: list[str],
) -> formats.Record:
  fields: dict[str, Any] = {"document": document} if document else {}
  if comments:
    fields["comments"] = comments
  if ranges:
    fields["ranges"] = ranges
  fields |= {name: [values[column] for values in found] for name, column in names.items()}
  return formats.Record(first, str(first), fields)
