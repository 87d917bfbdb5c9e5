"""Questions with answers in a context: SQuAD's JSON (1.1 and 2.0), and rows like it.

  {"data": [{"title", "paragraphs": [{"context", "qas": [{"id", "question", "answers": …}]}]}]}

Format: https://rajpurkar.github.io/SQuAD-explorer. Whatever a row was read from, `question`
makes the same fields of it and checks every answer against its context.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from jaxsft.data import formats
from jaxsft.errors import JaxsftError

STRUCTURE = ("paragraphs", "qas", "is_impossible")


def question(fields: dict[str, Any]) -> dict[str, Any]:
  """`fields` with answers as [{"text", "start"}, …] and whether it is "impossible".

  Answers may be such a list, with "answer_start" for "start" (SQuAD), or {"text": […],
  "answer_start": […]} (`datasets`, TFDS). start counts characters from 0. A question without
  answers is impossible, which "is_impossible" or "impossible" may also say. Fields without
  "answers" have none to learn from and stay as they are. Raises JaxsftError, without the
  row's place, for what does not fit and for an answer that is not in the context where it
  should be.
  """
  for name in ("context", "question"):
    if not isinstance(fields.get(name), str):
      raise JaxsftError(
        f"{name} is {_shown(fields.get(name))}, expected text; correct the row or map the "
        "right column with data.columns"
      )
  if fields.get("answers") is None:
    return fields
  answers = [_answer(i, *found, fields["context"]) for i, found in enumerate(_pairs(fields))]
  for name in ("is_impossible", "impossible"):
    said = fields.get(name)
    if said is not None and said is not (not answers):
      raise JaxsftError(
        f"{name} is {_shown(said)}, but there are {len(answers)} answers; expected true "
        "without answers and false with them: correct the row"
      )
  rest = {name: value for name, value in fields.items() if name != "is_impossible"}
  return rest | {"answers": answers, "impossible": not answers}


def _pairs(fields: dict[str, Any]) -> list[tuple[Any, Any]]:
  """(text, start) of every answer, as found."""
  found = fields["answers"]
  if isinstance(found, dict):
    texts, starts = found.get("text"), found.get("answer_start")
    if isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts):
      return list(zip(texts, starts, strict=True))
  elif isinstance(found, list) and all(isinstance(answer, dict) for answer in found):
    return [(a.get("text"), a.get("answer_start", a.get("start"))) for a in found]
  raise JaxsftError(
    f"answers is {_shown(found)}, expected a list of {{'text', 'answer_start'}}, or {{'text': "
    "[…], 'answer_start': […]} with lists of the same length; correct the row"
  )


def _answer(index: int, text: Any, start: Any, context: str) -> dict[str, Any]:
  here = f"answers[{index}]"
  if not isinstance(text, str) or not text.strip():
    raise JaxsftError(
      f"{here}: the text is {_shown(text)}, expected a piece of the context; correct it, or "
      "leave the list of answers empty where the question has none"
    )
  if isinstance(start, bool) or not isinstance(start, int) or start < 0:
    raise JaxsftError(
      f"{here}: answer_start is {_shown(start)}, expected the number of characters of the "
      "context before the answer"
    )
  found = context[start : start + len(text)]
  if found != text:
    places = [str(match.start()) for match in re.finditer(re.escape(text), context)]
    hint = f"it stands at {', '.join(places[:3])}" if places else "it is nowhere in it"
    raise JaxsftError(
      f"{here}: expected {_shown(text)} at character {start} of the context, found "
      f"{_shown(found)} ({hint}); correct answer_start or the text"
    )
  return {"text": text, "start": start}


def file_rows(file: str, encoding: str) -> Iterator[formats.Record]:
  """The questions of a file in SQuAD's form, each named by its id; see `question`."""
  text = formats.whole(file, encoding)
  if text.strip():
    yield from _records(file, text, _top(file, text))


def json_rows(file: str, encoding: str) -> Iterator[formats.Record]:
  """A `.json` file: questions in SQuAD's form, told by its keys, else a list of rows."""
  text = formats.whole(file, encoding)
  if text.lstrip(" \t\r\n").startswith("{") and re.search(r'"paragraphs"\s*:', text):
    yield from _records(file, text, _top(file, text))
  else:
    yield from formats.json_items(file, text)


def is_squad(file: str, encoding: str) -> bool:
  """Whether a `.json` file that `json_rows` read is in SQuAD's form: the other is a list."""
  first = next((line for _, line in formats.lines(file, encoding) if line.strip()), "")
  return first.lstrip(" \t\r\n").startswith("{")


def _top(file: str, text: str) -> list[Any]:
  """The articles of a file."""
  try:
    top = json.loads(text, object_pairs_hook=formats.unique_keys)
  except (ValueError, RecursionError) as error:
    raise JaxsftError(
      f"{file}:{getattr(error, 'lineno', 1)}: malformed JSON: {formats.parse_error(error)}; "
      "expected one object in SQuAD's form: the file may be cut off, or set data.format to "
      "'jsonl' if every line is a row"
    ) from None
  if isinstance(top, dict) and isinstance(top.get("data"), list):
    return top["data"]
  if isinstance(top, dict) and "paragraphs" in top:
    return [top]  # one article by itself
  raise JaxsftError(
    f'{file}: found {_shown(top)}, expected SQuAD\'s form {{"data": [{{"title", "paragraphs": '
    "…}]}; for rows with context, question and answers set data.format to 'json' (one list) or "
    "'jsonl' (one row a line)"
  )


def _records(file: str, text: str, articles: list[Any]) -> Iterator[formats.Record]:
  halves = "\\ud" in text.lower()  # the escapes of characters that take two of them
  places: dict[str, str] = {}
  for where, fields in _questions(file, articles):
    key = fields.get("id")
    if not isinstance(key, str | int) or not str(key).strip():
      raise JaxsftError(f"{file}: {where} has the id {_shown(key)}, expected text; give it one")
    key = str(key)
    if key in places:
      raise JaxsftError(
        f"{file}: {where} has the id {key!r} of {places[key]}; give every question its own"
      )
    places[key] = where
    if halves:
      formats.check_characters(fields, repr(fields["question"]), f"{file}: question {key!r}")
    try:
      fields = question(fields | {"id": key})
    except JaxsftError as error:
      raise JaxsftError(f"{file}: question {key!r} ({where}): {error}") from None
    yield formats.Record(key, key, fields)


def _questions(file: str, articles: list[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
  """(place in the file, all that is said of it) of every question."""
  for a, article in enumerate(articles):
    for p, paragraph in enumerate(_list(file, f"data[{a}]", article, "paragraphs")):
      here = f"data[{a}].paragraphs[{p}]"
      for q, asked in enumerate(_list(file, here, paragraph, "qas")):
        where = f"{here}.qas[{q}]"
        if not isinstance(asked, dict):
          raise JaxsftError(f"{file}: {where} is {_shown(asked)}, expected an object")
        outer = {k: v for k, v in (article | paragraph).items() if k not in STRUCTURE}
        fields = {"id": None, "title": None, "context": None, "question": None}
        yield where, fields | outer | asked


def _list(file: str, where: str, value: Any, key: str) -> list[Any]:
  """value[key], which must be a list."""
  if isinstance(value, dict) and isinstance(value.get(key), list):
    return value[key]
  raise JaxsftError(
    f"{file}: {where} is {_shown(value)}, expected an object with a list of {key}, as SQuAD has"
  )


def _shown(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 60 else f"{text[:60]}…"
