"""How each file format becomes records: one generator a format, every error with its line."""

import codecs
import csv
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from jaxsft.data import streams
from jaxsft.errors import JaxsftError

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
    for piece in streams.pieces(file):
      # A piece need not end a line: in UTF-16, the byte 10 is half of many characters.
      *complete, rest = (rest + decoder.decode(piece)).split("\n")
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
  except streams.Damaged as error:
    raise JaxsftError(f"{file}:{number + 1}: {error}; fetch or write the file again") from error
  rest = rest if number else rest.removeprefix("\ufeff")
  if rest:
    yield number + 1, rest


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


def check_characters(value: Any, source: str, where: str) -> None:
  """Raises JaxsftError for half of a surrogate pair: it is no character, nothing encodes it."""
  try:
    json.dumps(value, ensure_ascii=False).encode()
  except UnicodeEncodeError:
    raise JaxsftError(
      f"{where}: the escape of half a character (\\ud800 … \\udfff alone), in "
      f"{shown(source)}; write the file again without cutting characters in two"
    ) from None


def _check_object(value: Any, source: str, where: str) -> None:
  if "\\ud" in source.lower():
    check_characters(value, source, where)
  if not isinstance(value, dict):
    raise JaxsftError(
      f"{where}: found {shown(value)}, expected an object such as "
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
        f"{file}:{number}: malformed JSON: {parse_error(error)}, in {shown(line)}; correct "
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
      f"{file}:1: found {shown(text[at : at + 40])}, expected a list of objects [{{…}}, …]; "
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
        f"{file}:{line}: malformed JSON: found {shown(text[at : at + 20])} after item "
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


def shown(value: Any) -> str:
  """A value as a sentence quotes it: at most 60 characters, on one line."""
  text = value if isinstance(value, str) else repr(value)
  text = text.strip()
  text = text if len(text) <= 60 else f"{text[:60]}…"
  return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
