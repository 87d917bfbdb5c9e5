"""Rows of all file formats and of TFDS, each with its place and its id.

Reading streams: one row at a time (`.json` is held whole), files in the order of
their names. A row is what the user wrote; `clean.py` decides which rows stay.
"""

import codecs
import glob
import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jaxsft.data import (
  arrow,
  conll,
  detect,
  formats,
  mapping,
  parallel,
  records,
  squad,
  streams,
)
from jaxsft.data.nearest import near
from jaxsft.errors import JaxsftError, UsageError

SUFFIXES = {
  ".jsonl": "jsonl",
  ".ndjson": "jsonl",
  ".json": "json",
  ".csv": "csv",
  ".tsv": "tsv",
  ".tab": "tsv",
  ".parquet": "parquet",
  ".arrow": "arrow",
  ".feather": "arrow",
  ".tfrecord": "tfrecord",
  ".tfrecords": "tfrecord",
  ".txt": "text",
  ".conll": "conll",
  ".conllu": "conll",
  ".bio": "conll",
  ".iob": "conll",
  ".iob2": "conll",
}
TEXT_FORMATS = {
  "jsonl": formats.jsonl,
  "json": squad.json_rows,
  "squad": squad.file_rows,
  "text": formats.text,
}
OTHER_FORMATS = {
  "parquet": arrow.parquet,
  "arrow": arrow.ipc,
  "tfrecord": records.tfrecord,
}
FORMATS = ("jsonl", "json", "csv", "tsv", "parquet", "arrow", "text")
FORMATS += ("conll", "squad", "parallel", "tfrecord", "tfds")
SHARD = re.compile(r"-\d+-of-\d+$")
"""What stands after the suffix where TensorFlow names the parts of a data set."""


class Source(NamedTuple):
  """One file, or files that are read as one."""

  name: str
  short: str
  """What ids begin with."""
  read: Callable[[], Iterator[formats.Record]]
  columns: dict[str, str | int]
  """Field -> column; {}: `read` has mapped them."""


class Row(NamedTuple):
  """One row as the user wrote it."""

  id: str
  where: str
  """"file:line", lines from 1; CoNLL: of the first token; Parquet, Arrow and TFRecord:
  rows from 1; TFDS and SQuAD: the id that stands there."""
  fields: dict[str, Any]
  part: str = ""
  """Name of the data set of a mixture that it is of, in front of the id too."""


def read_rows(
  path: Path | str,
  *,
  format: str,
  encoding: str,
  header: bool | None,
  quoting: bool,
  columns: Mapping[str, str | int] | None,
  id: str | None,
  data_dir: str | None = None,
) -> Iterator[Row]:
  """The rows of a file, a glob, `DIR/train.{en,de}`, a directory that `datasets` saved, or
  `tfds:NAME/SPLIT`.

  The settings are those of `Data`. `columns` maps a field to a column's name or position, or
  to a place inside a column (see mapping.py); a column that is not mapped keeps its name (its
  position, "0", "1" …, where there is no header), and a mapped field hides a column of the
  same name. Ids are "filename:line" or
  the field `id` as text; the same id twice is an error (only ids from a field are remembered,
  so memory stays constant without). Blank lines are no rows, except in `text` and in parallel
  text. `data_dir` is where TFDS keeps its data.
  Raises JaxsftError with file:line, UsageError for settings that do not fit.
  """
  name = str(path)
  if format != "auto" and format not in FORMATS:
    raise UsageError(f"data.format is {format!r}{near(format, FORMATS)}")
  tfds = name.startswith("tfds:")
  if tfds != (format == "tfds") and (not tfds or format != "auto"):
    raise UsageError(
      f"data.format is {format!r} but data.path is {name!r}; a TFDS data set is named "
      "tfds:NAME/SPLIT, with data.format 'auto' or 'tfds'"
    )
  columns = dict(columns or {})
  if tfds:
    return _rows([Source(name, "", partial(records.tfds, name, data_dir), columns)], id)
  try:
    codecs.lookup(encoding)
  except LookupError:
    raise UsageError(
      f"data.encoding is {encoding!r}, which Python does not know; try utf-8, latin-1, "
      "cp1252 or gb18030"
    ) from None
  sources = []
  for file, short in _files(name, format):
    kind, _ = _format_of(file, format, encoding)
    read = _reader(kind, file, encoding, header, quoting, columns)
    sources.append(Source(file, short, read, {} if kind == "conll" else columns))
  return _rows(sources, id)


def files_of(path: str | Path, format: str) -> list[str]:
  """The files that `read_rows` opens for a path; [] for a TFDS data set."""
  name = str(path)
  if name.startswith("tfds:"):
    return []
  found = []
  for file, _ in _files(name, format):
    sides = parallel.braced(file) and not os.path.isfile(file)
    found += parallel.files(file).values() if sides else [file]
  return found


def formats_of(path: str | Path, format: str, encoding: str) -> str:
  """How `read_rows` reads the files of a path, as the report says it: "jsonl (2 files)"."""
  name = str(path)
  if name.startswith("tfds:"):
    return "tfds"
  found = []
  for file, _ in _files(name, format):
    kind, named = _format_of(file, format, encoding)
    told = kind == "json" and squad.is_squad(file, encoding)
    found.append((file, "squad", "squad") if told else (file, kind, named))
  return detect.said(found)


def _rows(sources: list[Source], id: str | None) -> Iterator[Row]:
  places: dict[str, str] = {}
  for file, short, read, columns in sources:
    names: dict[str, str] | None = None
    for number, place, record in read():
      where = f"{file}:{place}"
      if names is None:
        names = _by_name(columns, list(record), where)
      fields = mapping.fields(record, names, where)
      if id is None:
        yield Row(f"{short}:{number}" if short else str(number), where, fields)
        continue
      key = _identify(fields, id, where)
      if key in places:
        raise JaxsftError(
          f"{where}: the id {key!r} (field {id!r}) stands at {places[key]} already; ids "
          "decide what is held out: make them different, or set data.id to another field or "
          "to None (file:line)"
        )
      places[key] = where
      yield Row(key, where, fields)
    if names is None:
      raise JaxsftError(
        f"{file} holds no rows; check that data.path names the right file and that it was "
        "written completely"
      )


def _by_name(columns: dict, found: list[str], where: str) -> dict[str, str]:
  """`columns` with positions replaced by the names of the columns found there."""
  names = {}
  for field, column in columns.items():
    if isinstance(column, int) and not 0 <= column < len(found):
      raise JaxsftError(
        f"{where}: no column {column}, which data.columns gives for {field!r}: there are "
        f"{len(found)}, counted from 0; correct data.columns, or data.format if the fields "
        "are not told apart"
      )
    names[field] = found[column] if isinstance(column, int) else column
  return names


def _identify(fields: dict[str, Any], id: str, where: str) -> str:
  if id not in fields:
    raise JaxsftError(
      f"{where}: no field {id!r}, which data.id names{near(id, fields)}; correct data.id"
    )
  value = fields[id]
  if value is None or isinstance(value, list | dict) or not str(value).strip():
    raise JaxsftError(
      f"{where}: the id (field {id!r}, data.id) is {value!r}; give every row an id, or set "
      "data.id to None (file:line)"
    )
  return str(value)


def _files(name: str, format: str) -> list[tuple[str, str]]:
  """(path as given, short name for ids) of a file or of all files of a glob, sorted."""
  paired = parallel.braced(name) and not os.path.isfile(name)
  if paired and format not in ("auto", "parallel"):
    raise UsageError(
      f"data.path names sides in braces, {name}, but data.format is {format!r}; set it to "
      "'parallel' or 'auto'"
    )
  if os.path.isfile(name) or format == "parallel" or paired:
    return [(name, os.path.basename(name))]
  if format in ("auto", "arrow") and arrow.saved(name):
    # All saved splits have the same file names.
    last = os.path.basename(os.path.abspath(name))
    return [(file, f"{last}/{os.path.basename(file)}") for file in arrow.shards(name)]
  found = []
  if not os.path.exists(name) and glob.has_magic(name):
    found = sorted(f for f in glob.glob(name, recursive=True) if os.path.isfile(f))
  if not found:
    what = "is a directory" if os.path.isdir(name) else "names no file"
    raise JaxsftError(
      f"data.path: {name} {what}; give a file, or a glob such as "
      f"{os.path.join(name if os.path.isdir(name) else 'rows', '*.jsonl')}"
    )
  # Two files of the same name in two directories must not share their ids.
  root = name[: re.search(r"[*?\[]", name).start()].rpartition("/")[0]
  return [(file, os.path.relpath(file, root or ".")) for file in found]


def _format_of(file: str, format: str, encoding: str) -> tuple[str, str]:
  """(format of a file, the one that its name says)."""
  if format != "auto":
    return format, format
  if parallel.braced(file) and not os.path.isfile(file):
    return "parallel", "parallel"
  suffix = Path(SHARD.sub("", streams.bare(file))).suffix.lower()
  if suffix not in SUFFIXES:
    raise UsageError(
      f"data.format is 'auto', but the suffix {suffix!r} of {file} does not tell a format; "
      f"set data.format to one of {', '.join(FORMATS)}"
    )
  named = SUFFIXES[suffix]
  json = named in ("json", "jsonl")
  return (detect.json_kind(file, encoding, named) if json else named), named


def _reader(kind, file, encoding, header, quoting, columns) -> Callable:
  """The generator function of one file, with its settings filled in."""
  if kind == "conll":
    return partial(conll.sentences, file, encoding, columns)
  positions = [field for field, column in columns.items() if isinstance(column, int)]
  if kind in ("csv", "tsv"):
    if header is None:
      header = not positions
    if not header and len(positions) < len(columns):
      raise UsageError(
        "data.columns gives names, but there is no line that names the columns "
        f"(data.header={header}); give positions, counted from 0"
      )
    delimiter = "," if kind == "csv" else "\t"
    return partial(formats.delimited, file, encoding, delimiter, header, quoting)
  if positions:
    raise UsageError(
      f"data.columns gives a position for {positions[0]!r}, but {file} is {kind}: positions "
      "are for CSV, TSV and CoNLL; give the column's name"
    )
  if kind in OTHER_FORMATS:
    return partial(OTHER_FORMATS[kind], file)
  if kind == "parallel":
    parallel.files(file)  # the path is checked before anything is read
    return partial(parallel.rows, file, encoding)
  return partial(TEXT_FORMATS[kind], file, encoding)
