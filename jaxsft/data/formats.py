"""How each file format becomes records: one generator a format, every error with its line."""

import codecs
import contextlib
import csv
import datetime
import decimal
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxsft.errors import JaxsftError, UsageError

MAX_FIELD = 2**24
"""Characters of a CSV field; csv's own limit (2**17) is shorter than a long document."""


class Record(NamedTuple):
  """What a reader found, before columns are mapped and ids are given."""

  number: int | str
  """Makes the default id: the line, the item or row, or the TFDS id."""
  place: str
  """The part of `Row.where` after the file's name."""
  fields: dict[str, Any]


def lines(file: str, encoding: str) -> Iterator[tuple[int, str]]:
  """(number from 1, line with its newline); only \\n ends a line, whatever the encoding."""
  decoder = codecs.getincrementaldecoder(encoding)()
  number, rest = 0, ""
  try:
    with gzip.open(file) if file.endswith(".gz") else open(file, "rb") as stream:
      for chunk in stream:
        # A chunk need not end a line: in UTF-16, the byte 10 is half of many characters.
        *complete, rest = (rest + decoder.decode(chunk)).split("\n")
        for line in complete:
          number += 1
          yield number, (line if number > 1 else line.removeprefix("\ufeff")) + "\n"
      rest += decoder.decode(b"", final=True)
  except UnicodeError as error:
    if not isinstance(error, UnicodeDecodeError):  # UTF-16 and UTF-32 without their mark
      raise JaxsftError(
        f"{file}:{number + 1}: is not {encoding} ({error}); set data.encoding to what the "
        "file is written in"
      ) from None
    byte = error.object[error.start]
    guess = "utf-16" if number == 0 and error.object[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
    raise JaxsftError(
      f"{file}:{number + 1}: byte 0x{byte:02x} is not {encoding}; set data.encoding to what "
      f"the file is written in ({guess or 'latin-1, cp1252, gb18030, …'})"
    ) from None
  except (gzip.BadGzipFile, EOFError, zlib.error) as error:
    raise JaxsftError(
      f"{file}:{number + 1}: the gzip stream is damaged or cut off here ({error}); fetch or "
      "write the file again"
    ) from error
  if rest:
    yield number + 1, rest if number else rest.removeprefix("\ufeff")


def text(file: str, encoding: str) -> Iterator[Record]:
  for number, line in lines(file, encoding):
    yield Record(number, str(number), {"text": line.rstrip("\r\n")})


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """json's object_pairs_hook that raises ValueError for a key that stands twice."""
  result = dict(pairs)
  if len(result) != len(pairs):  # json would keep the last one and say nothing
    names = [name for name, _ in pairs]
    twice = next(name for name in names if names.count(name) > 1)
    raise ValueError(f"the key {twice!r} stands twice in one object")
  return result


def parse_error(error: Exception) -> str:
  """What json says of a text, without its line."""
  if isinstance(error, json.JSONDecodeError):
    return f"{error.msg} at column {error.colno}"
  return str(error)


def check_characters(value: Any, shown: str, where: str) -> None:
  """Raises JaxsftError for half of a surrogate pair: it is no character, nothing encodes it."""
  try:
    json.dumps(value, ensure_ascii=False).encode()
  except UnicodeEncodeError:
    raise JaxsftError(
      f"{where}: the escape of half a character (\\ud800 … \\udfff alone), in "
      f"{_shown(shown)}; write the file again without cutting characters in two"
    ) from None


def _check_object(value: Any, source: str, where: str) -> None:
  if "\\ud" in source.lower():
    check_characters(value, source, where)
  if not isinstance(value, dict):
    raise JaxsftError(
      f"{where}: found {_shown(value)}, expected an object such as "
      '{"text": "…", "label": "…"}; every row is one object'
    )


def jsonl(file: str, encoding: str) -> Iterator[Record]:
  for number, line in lines(file, encoding):
    if not line.strip():
      continue
    try:
      value = json.loads(line, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
      hint = ""
      if (number == 1 and line.strip() in ("[", "{")) or line.lstrip().startswith("[{"):
        hint = "; if the whole file is one JSON list, set data.format to 'json'"
      raise JaxsftError(
        f"{file}:{number}: malformed JSON: {parse_error(error)}, in {_shown(line)}; correct "
        f"the line{hint}"
      ) from None
    if number == 1 and isinstance(value, list):
      raise JaxsftError(
        f"{file}:1: found a list, expected one object a line; if the whole file is one JSON "
        "list, set data.format to 'json'"
      )
    _check_object(value, line, f"{file}:{number}")
    yield Record(number, str(number), value)


def whole(file: str, encoding: str) -> str:
  """The text of a file; errors as in `lines`."""
  return "".join(line for _, line in lines(file, encoding))


def json_items(file: str, text: str) -> Iterator[Record]:
  """The objects of a file that is one list; parsed item by item to know each one's line."""
  decode = json.JSONDecoder(object_pairs_hook=unique_keys).raw_decode
  skip = lambda at: re.compile(r"[ \t\r\n]*").match(text, at).end()
  at = skip(0)
  if not text[at:]:
    return
  if text[at] != "[":
    raise JaxsftError(
      f"{file}:1: found {_shown(text[at : at + 40])}, expected a list of objects [{{…}}, …]; "
      "if every line is an object of its own, set data.format to 'jsonl'"
    )
  line, counted, number, at = 1, 0, 0, skip(at + 1)
  while text[at : at + 1] != "]" or (number and comma):
    line, counted = line + text.count("\n", counted, at), at
    number += 1
    where = f"{line} (item {number})"
    start = at
    try:
      value, at = decode(text, at)
    except (ValueError, RecursionError) as error:
      place = getattr(error, "lineno", line)
      raise JaxsftError(
        f"{file}:{place}: malformed JSON in item {number}: {parse_error(error)}; correct it, "
        "or set data.format to 'jsonl' if every line is an object of its own"
      ) from None
    _check_object(value, text[start:at], f"{file}:{where}")
    yield Record(number, where, value)
    at = skip(at)
    comma = text[at : at + 1] == ","
    if comma:
      at = skip(at + 1)
    elif text[at : at + 1] != "]":
      line = 1 + text.count("\n", 0, at)
      raise JaxsftError(
        f"{file}:{line}: malformed JSON: found {_shown(text[at : at + 20])} after item "
        f"{number}, expected ',' or ']'; the file may be cut off"
      )
  if text[skip(at + 1) :]:
    line = 1 + text.count("\n", 0, at)
    raise JaxsftError(
      f"{file}:{line}: malformed JSON: the list ends here but the file goes on; one list "
      "holds all rows"
    )


def delimited(
  file: str, encoding: str, delimiter: str, header: bool, quoting: bool
) -> Iterator[Record]:
  """CSV and TSV. Every record has as many fields as the first one."""
  csv.field_size_limit(MAX_FIELD)
  kind = "tsv" if delimiter == "\t" else "csv"
  hint = "; if quotes are part of the text, set data.quoting to False" if quoting else ""
  quotes = csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE
  rows = (line for _, line in lines(file, encoding))
  reader = csv.reader(rows, delimiter=delimiter, quoting=quotes, strict=True)
  names: list[str] = []
  while True:
    first = reader.line_num + 1
    try:
      values = next(reader, None)
    except csv.Error as error:
      raise JaxsftError(
        f"{file}:{first}: not readable as {kind}: {error}; correct the line{hint}"
      ) from None
    if values is None:
      return
    if not values:
      continue
    if not names:
      start, names = first, _names(values, header, f"{file}:{first}")
      if header:
        continue
    # A stray quote at the start of a field takes in the lines up to the next one.
    swallowed = kind == "tsv" and any("\t" in v and "\n" in v for v in values)
    if swallowed or len(values) != len(names):
      lasts = f" to {reader.line_num}" if reader.line_num > first else ""
      raise JaxsftError(
        f"{file}:{first}{lasts}: found {len(values)} fields, expected {len(names)} as in "
        f"line {start}, each on one line; correct it, or data.format, which is {kind}{hint}"
      )
    yield Record(first, str(first), dict(zip(names, values, strict=True)))


def _names(values: list[str], header: bool, where: str) -> list[str]:
  if not header:
    return [str(position) for position in range(len(values))]
  twice = [name for name in values if values.count(name) > 1]
  if twice:
    raise JaxsftError(
      f"{where}: the column {twice[0]!r} stands twice in the first line; rename one, or set "
      "data.header to False if this line is a row, and give positions in data.columns"
    )
  return values


def parquet(file: str) -> Iterator[Record]:
  """Rows are numbered from 1, since there are no lines.

  Dates and times become ISO 8601 text, decimal numbers the text of their digits, bytes the text
  that they are in UTF-8.
  """
  import pyarrow  # late: most runs read text
  import pyarrow.parquet

  number = 0
  try:
    with pyarrow.parquet.ParquetFile(file) as table:
      for batch in table.iter_batches(batch_size=1024):
        for fields in batch.to_pylist():
          number += 1
          where = f"{file}:{number}"
          fields = {name: _arrow(value, name, where) for name, value in fields.items()}
          yield Record(number, str(number), fields)
  except (pyarrow.ArrowException, OSError) as error:
    raise JaxsftError(
      f"{file}:{number + 1}: not readable as Parquet: {error}; write the file again, or "
      "correct data.format"
    ) from error


def _arrow(value: Any, column: str, where: str) -> Any:
  """A value of Arrow as text, numbers, lists and dicts; raises JaxsftError for others."""
  if value is None or isinstance(value, str | int | float):
    return value
  if isinstance(value, list | tuple):
    return [_arrow(part, column, where) for part in value]
  if isinstance(value, dict):
    return {name: _arrow(part, column, where) for name, part in value.items()}
  if isinstance(value, datetime.date | datetime.time):  # a datetime is a date
    return value.isoformat()
  if isinstance(value, decimal.Decimal | datetime.timedelta):
    return str(value)
  if isinstance(value, bytes):
    with contextlib.suppress(UnicodeDecodeError):
      return value.decode()
  raise JaxsftError(
    f"{where}: the column {column!r} holds {_shown(value)} ({type(value).__name__}), expected "
    "text, numbers, dates, or lists of these; write the file without this column"
  )


def tfds(name: str, data_dir: str | None) -> Iterator[Record]:
  """`tfds:NAME/SPLIT`; NAME may be a directory that holds a prepared data set.

  Class ids become their names, bytes become text, arrays become lists.
  """
  import tensorflow  # late: seconds to import
  import tensorflow_datasets

  for kind in ("GPU", "TPU"):  # the devices are JAX's
    with contextlib.suppress(RuntimeError):  # already in use: then it was settled before
      tensorflow.config.set_visible_devices([], kind)
  dataset, _, split = name.removeprefix("tfds:").rpartition("/")
  if not dataset or re.search(r":(?!\d|\*)", dataset):
    raise UsageError(f"data.path is {name!r}, expected tfds:NAME/SPLIT, e.g. tfds:imdb/train")
  try:
    if Path(dataset, "dataset_info.json").is_file():
      builder = tensorflow_datasets.builder_from_directory(dataset)
    else:
      builder = tensorflow_datasets.builder(dataset, data_dir=data_dir)
      builder.download_and_prepare()
    options = tensorflow_datasets.ReadConfig(
      add_tfds_id=True, interleave_cycle_length=1, try_autocache=False
    )
    examples = builder.as_dataset(split=split, shuffle_files=False, read_config=options)
    features = builder.info.features
    for example in tensorflow_datasets.as_numpy(examples):
      key = example.pop("tfds_id").decode()
      where = f"{name}:{key}"
      fields = {k: _plain(v, features[k], where) for k, v in example.items()}
      yield Record(key, key, fields)
  except JaxsftError:
    raise
  except Exception as error:  # a data set's own code runs here and raises what it likes
    first = next(iter(str(error).strip().splitlines()), "")
    raise JaxsftError(
      f"data.path: {name} cannot be read by TFDS ({type(error).__name__}: {first}); expected "
      "tfds:NAME/SPLIT with a name that tensorflow_datasets lists and one of its splits, or "
      "tfds:DIRECTORY/SPLIT with a prepared data set"
    ) from error


def _plain(value: Any, feature: Any, where: str) -> Any:
  """A TFDS value as text, numbers, lists and dicts."""
  while hasattr(feature, "feature"):  # a sequence: what holds for its elements
    feature = feature.feature
  if isinstance(value, dict):
    return {name: _plain(part, feature[name], where) for name, part in value.items()}
  for method in ("to_list", "tolist"):  # ragged tensors; arrays and scalars
    if hasattr(value, method):
      value = getattr(value, method)()
  return _named(value, getattr(feature, "int2str", None), where)


def _named(value: Any, name_of: Callable[[int], str] | None, where: str) -> Any:
  if isinstance(value, list):
    return [_named(part, name_of, where) for part in value]
  if isinstance(value, bytes):
    try:
      return value.decode()
    except UnicodeDecodeError as error:
      raise JaxsftError(
        f"{where}: {_shown(value)} is not UTF-8 ({error.reason}); only text, numbers and "
        "lists of these can be trained on: choose a data set without raw bytes"
      ) from None
  if name_of and isinstance(value, int):
    return name_of(value) if value >= 0 else None  # -1: not labelled
  return value


def _shown(value: Any) -> str:
  text = value if isinstance(value, str) else repr(value)
  text = text.strip()
  return text if len(text) <= 60 else f"{text[:60]}…"
