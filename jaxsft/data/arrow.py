"""Rows of Parquet and Arrow files, and of directories that `datasets.save_to_disk` writes.

Rows are numbered from 1, since there are no lines. Dates and times become ISO 8601 text,
decimal numbers the text of their digits, bytes the text that they are in UTF-8, and class ids
their names where Hugging Face's description of the features stands in the file or beside it.
"""

import contextlib
import datetime
import decimal
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

from jaxsft.data.formats import Record, shown
from jaxsft.errors import JaxsftError

BATCH = 1024
END = b"\xff\xff\xff\xff\0\0\0\0"
"""Ends a stream: arrow.apache.org/docs/format/Columnar.html#ipc-streaming-format."""
INFO, STATE, SPLITS = "dataset_info.json", "state.json", "dataset_dict.json"


def parquet(file: str) -> Iterator[Record]:
  """Raises JaxsftError with file:row for what is not Parquet, or holds other values."""
  import pyarrow.parquet  # late: most runs read text

  def batches():
    with pyarrow.parquet.ParquetFile(file) as table:
      yield table.schema_arrow
      yield from table.iter_batches(batch_size=BATCH)

  return _rows(file, "Parquet", batches, {})


def ipc(file: str) -> Iterator[Record]:
  """An Arrow file (Feather is one) or stream; raises as `parquet` does."""
  import pyarrow.ipc

  def batches():
    with pyarrow.OSFile(file) as source:
      magic = source.read(6)
      source.seek(0)
      if magic != b"ARROW1":
        with pyarrow.ipc.open_stream(source) as stream:
          yield stream.schema
          yield from stream
        end = source.tell()
        source.seek(max(0, end - len(END)))
        if source.read() != END:
          raise ValueError("the stream does not end in its end mark, so it may be cut off")
        return
      with pyarrow.ipc.open_file(source) as table:
        yield table.schema
        yield from map(table.get_batch, range(table.num_record_batches))

  directory = os.path.dirname(file)
  beside = os.path.isfile(os.path.join(directory, INFO))
  return _rows(file, "Arrow", batches, _features(_json(directory, INFO)) if beside else {})


def _rows(file: str, kind: str, batches: Callable[[], Iterator], features: Any):
  """Records of an iterator that gives a schema, then record batches of it."""
  import pyarrow

  number = 0
  try:
    found = batches()
    schema = next(found)
    twice = [name for name in schema.names if schema.names.count(name) > 1]
    if twice:
      raise JaxsftError(
        f"{file}: the column {twice[0]!r} stands twice; write the file with different names"
      )
    features = features or _described(schema.metadata)
    for batch in found:
      batch.validate(full=True)
      for start in range(0, batch.num_rows, BATCH):
        for fields in batch.slice(start, BATCH).to_pylist():
          number += 1
          where = f"{file}:{number}"
          fields = {
            name: _named(_plain(value, name, where), features.get(name), name, where)
            for name, value in fields.items()
          }
          yield Record(number, str(number), fields)
  except (pyarrow.ArrowException, OSError, UnicodeError, ValueError, OverflowError) as error:
    if isinstance(error, OSError) and error.errno is not None:
      raise
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    raise JaxsftError(
      f"{file}:{number + 1}: not readable as {kind}: {first}; write the file again, or "
      "correct data.format"
    ) from error


def _plain(value: Any, column: str, where: str) -> Any:
  """A value of Arrow as text, numbers, lists and dicts; raises JaxsftError for others."""
  if value is None or isinstance(value, str | int | float):
    return value
  if isinstance(value, list | tuple):
    return [_plain(part, column, where) for part in value]
  if isinstance(value, dict):
    return {name: _plain(part, column, where) for name, part in value.items()}
  if isinstance(value, datetime.date | datetime.time):  # a datetime is a date
    return value.isoformat()
  if isinstance(value, decimal.Decimal | datetime.timedelta):
    return str(value)
  if isinstance(value, bytes):
    with contextlib.suppress(UnicodeDecodeError):
      return value.decode()
  raise JaxsftError(
    f"{where}: the column {column!r} holds {shown(value)} ({type(value).__name__}), expected "
    "text, numbers, dates, or lists of these; write the file without this column"
  )


def _described(metadata: dict[bytes, bytes] | None) -> dict[str, Any]:
  """The features that `datasets` notes in the schema of its Arrow and Parquet files."""
  try:
    return _features(json.loads((metadata or {})[b"huggingface"])["info"])
  except (KeyError, ValueError, TypeError):
    return {}


def _features(info: Any) -> dict[str, Any]:
  found = info.get("features") if isinstance(info, dict) else None
  return found if isinstance(found, dict) else {}


def _named(value: Any, feature: Any, column: str, where: str) -> Any:
  """A value with its class ids as names; -1 is None: not labelled."""
  if value is None or not isinstance(feature, dict | list):
    return value
  if isinstance(feature, list):  # [feature]: a list of it
    feature = {"_type": "Sequence", "feature": feature[0] if feature else None}
  names = feature.get("names")
  if feature.get("_type") == "ClassLabel" and isinstance(names, list):
    if isinstance(value, bool) or not isinstance(value, int) or not -1 <= value < len(names):
      raise JaxsftError(
        f"{where}: the column {column!r} holds {shown(value)}, expected the id of one of its "
        f"{len(names)} classes; write the file again"
      )
    return names[value] if value >= 0 else None
  inner = feature["feature"] if {"_type", "feature"} <= feature.keys() else feature
  if isinstance(value, list):
    return [_named(part, inner, column, where) for part in value]
  if isinstance(value, dict) and isinstance(inner, dict):
    columns = inner is not feature  # a sequence of several features is a column of lists each
    part = lambda name: [inner.get(name)] if columns else inner.get(name)
    return {name: _named(one, part(name), column, where) for name, one in value.items()}
  return value


def saved(directory: str) -> bool:
  """Whether a directory is what `save_to_disk` writes: one split, or several by name."""
  return any(os.path.isfile(os.path.join(directory, name)) for name in (STATE, SPLITS))


def shards(directory: str) -> list[str]:
  """The files of a saved split, in order; raises JaxsftError."""
  if not os.path.isfile(os.path.join(directory, STATE)):
    splits = _json(directory, SPLITS).get("splits")
    names = [name for name in splits or [] if isinstance(name, str)]
    first = os.path.join(directory, names[0] if names else "train")
    raise JaxsftError(
      f"data.path: {directory} holds the splits {', '.join(names) or '(none)'}; name one of "
      f"them, such as {first}"
    )
  state = _json(directory, STATE)
  listed = state.get("_data_files")
  files = [one.get("filename") for one in listed or [] if isinstance(one, dict)]
  plain = [file for file in files if isinstance(file, str) and os.path.basename(file) == file]
  if not files or len(plain) < len(listed) or state.get("_indices_data_files"):
    raise JaxsftError(
      f"{os.path.join(directory, STATE)}: found {shown(state)}, expected a list of its files "
      "in _data_files, as `datasets` 2 and later write it; save the data set again"
    )
  missing = [file for file in plain if not os.path.isfile(os.path.join(directory, file))]
  if missing:
    raise JaxsftError(
      f"{os.path.join(directory, STATE)} names {missing[0]}, which is not there; copy the "
      "whole directory again"
    )
  return [os.path.join(directory, file) for file in plain]


def _json(directory: str, name: str) -> dict[str, Any]:
  """The object in a JSON file of a saved data set."""
  file = os.path.join(directory, name)
  try:
    with open(file, encoding="utf-8") as stream:
      found = json.load(stream)
  except (ValueError, RecursionError) as error:
    raise JaxsftError(f"{file}: malformed JSON: {error}; save the data set again") from None
  if not isinstance(found, dict):
    raise JaxsftError(f"{file}: found {shown(found)}, expected an object; save it again")
  return found
