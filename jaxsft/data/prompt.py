"""Fields of a row written by Jinja templates over its columns, as data.prompt says.

A template sees the columns by the names that data.columns leaves them, and all of them as
`row` ({{ row["2nd name"] }}). What {{ x }} writes of

- a text: the text, nothing escaped, stripped or shortened;
- a number, yes or no: what Python does, 3, 3.0, True;
- null, or a float that is no number: an error, unless the template says what it means by
  {{ x or "" }}, {% if x %}, {% if x is none %} or {{ x | default("") }};
- a list or an object: an error, unless it says how it is written, {{ tags | join(", ") }},
  {{ answers.text[0] }}, {{ tools | tojson }};
- a column that is not there: an error, unless it asks {% if x is defined %} or writes
  {{ x | default("") }}.

Lines that hold a {% … %} alone leave nothing behind, as in chat templates. Filters are Jinja's
own (join, trim, replace, upper, truncate, …) without `random`, and tojson escapes nothing for
HTML. A template runs in Jinja's sandbox, and what it writes is text like that of any row.
"""

import functools
import json
import math
import pathlib
import traceback
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jinja2
import jinja2.meta
import jinja2.sandbox
from jinja2 import nodes

from jaxsft.data import forms
from jaxsft.data.nearest import near
from jaxsft.data.read import Row
from jaxsft.errors import JaxsftError, UsageError

ALL = "row"  # what a template calls all columns, where none has this name


class Template(NamedTuple):
  """How one field is written."""

  key: str
  """What names it in errors."""
  names: frozenset[str]
  """All that it speaks of."""
  needed: frozenset[str]
  """Columns that every row must have."""
  maybe: frozenset[str]
  """Columns that the template can do without."""
  text: str
  compiled: jinja2.Template


class _Missing(jinja2.StrictUndefined):
  """What is not in an object; the error says what is."""

  def __init__(self, hint=None, obj=jinja2.utils.missing, name=None, exc=jinja2.UndefinedError):
    if hint is None and isinstance(obj, Mapping):
      hint = f"there is no {name!r}{near(str(name), map(str, obj))}"
    super().__init__(hint, obj, name, exc)


class _Null(jinja2.StrictUndefined):
  """A null of a row: false, `is none`, and an error where it would be written."""

  def __bool__(self):
    return False

  def __eq__(self, other):
    return other is None or isinstance(other, _Null)

  def __ne__(self, other):
    return not self == other

  def __hash__(self):
    return hash(None)


def text_of(given: str, key: str) -> str:
  """A template's text; one that ends in .jinja is a file, without the newline at its end."""
  if not given.endswith(".jinja"):
    return given
  file = pathlib.Path(given)
  if not file.is_file():
    raise UsageError(
      f"{key}: {given} is no file; expected a template, or a file that holds one"
    )
  try:
    return file.read_text(encoding="utf-8").removesuffix("\n")
  except UnicodeDecodeError as error:
    raise UsageError(f"{key}: {given} is not utf-8 ({error}); write it again as that") from None


def template(field: str | int, given: str, of: str = "config.data.prompt") -> Template:
  """The `Template` of one field; raises UsageError for one that is not Jinja."""
  key = f"{of}[{field!r}]"
  text, jinja = text_of(given, key), _jinja()
  if given.endswith(".jinja"):
    key += f" ({given})"
  try:
    tree = jinja.parse(text)
    compiled = jinja.from_string(text)
  except jinja2.TemplateSyntaxError as error:
    why = (error.message or "not readable").rstrip(".")
    raise UsageError(f"{key}, line {error.lineno}: {why}; correct the template") from None
  names = frozenset(jinja2.meta.find_undeclared_variables(tree))
  own = {node.name for node in tree.find_all(nodes.Name)} & jinja.globals.keys()
  asked = tree.find_all((nodes.Filter, nodes.Test))
  maybe = names & {name for node in asked for name in _guarded(node)}
  return Template(key, names | own, names - maybe - {ALL}, maybe, text, compiled)


def templates(given: Mapping[str, str] | None) -> dict[str, Template]:
  """Field -> `Template` of data.prompt."""
  return {field: template(field, text) for field, text in (given or {}).items()}


def filled(rows: Iterable[Row], found: Mapping[str, Template], whole: bool = True) -> Iterator:
  """The rows with the fields that templates make.

  whole: a name that is no column of any row is an error, even if the template could do without.
  """
  unseen = {name: one.key for one in found.values() for name in one.maybe}
  names: dict[str, None] = {}
  for row in rows:
    if unseen:
      names |= dict.fromkeys(row.fields)
      unseen = {name: key for name, key in unseen.items() if name not in row.fields}
    yield fill(row, found)
  if unseen and whole:
    name, key = next(iter(unseen.items()))
    raise JaxsftError(
      f"{key}: {name!r} is no column of any row{near(name, names)}; correct the template"
    )


def fill(row: Row, found: Mapping[str, Template], answers: Collection[str] = ()) -> Row:
  """The row with the fields that templates make of its columns.

  answers: fields that are left out where a row lacks what they are made of. What is made tells
  the form of a chat: columns by which the row would be of another form are left out of it.
  Raises JaxsftError with row.where for a column that is not there, and for what cannot be
  written.
  """
  if not found:
    return row
  check(row, found, answers)
  made = {
    field: _written(one, row)
    for field, one in found.items()
    if field not in answers or _answered(one, row)
  }
  others = _of_other_forms({**row.fields, **made}, made)
  fields = {name: value for name, value in row.fields.items() if name not in others}
  return row._replace(fields=fields | made)


def check(row: Row, found: Mapping[str, Template], answers: Collection[str] = ()) -> None:
  """Raises JaxsftError for a column that a template needs and the row has not."""
  for field, one in found.items():
    absent = sorted(one.needed - row.fields.keys())
    if absent and field not in answers:
      raise JaxsftError(
        f"{row.where}: no column {absent[0]!r}, which {one.key} writes"
        f'{near(absent[0], row.fields)}; correct the template, or say default("") where rows '
        "may lack it"
      )


def _answered(one: Template, row: Row) -> bool:
  return all(row.fields.get(name) is not None for name in one.needed)


def _written(one: Template, row: Row) -> str:
  """What a template makes of a row."""
  columns = row.fields if ALL in row.fields else row.fields | {ALL: row.fields}
  values = {name: _held(columns[name], name) for name in one.names & columns.keys()}
  try:
    return one.compiled.render(values)
  except Exception as error:  # the user's own code: anything
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == "<template>"]
    line = f", line {lines[-1]}" if lines else ""
    why = str(error).rstrip(".")
    if not isinstance(error, jinja2.UndefinedError | _Unwritable):
      why = f"{type(error).__name__}: {why}"
    raise JaxsftError(
      f"{row.where}: {one.key}{line}: {why}; correct the row or the template"
    ) from None


class _Unwritable(TypeError):
  """A value that is not written as text."""


def _text(value: Any) -> Any:
  """What {{ … }} writes; raises _Unwritable for what is neither text nor number."""
  if isinstance(value, str | int | float | jinja2.Undefined):  # undefined: it says so itself
    return value
  if isinstance(value, list | tuple):
    raise _Unwritable(
      'found a list, expected text; write it out, as in {{ tags | join(", ") }}'
    )
  if isinstance(value, dict):
    raise _Unwritable(
      "found an object, expected text; write one of its keys, or {{ x | tojson }}"
    )
  found = "null" if value is None else f"a {type(value).__name__}"
  raise _Unwritable(f"found {found}, expected text")


def _held(value: Any, name: str) -> Any:
  """A value as a template sees it: with `_Null` for null, at any depth."""
  if value is None or (isinstance(value, float) and math.isnan(value)):
    word = "null" if value is None else "no number (nan)"
    return _Null(f'{name!r} is {word}; say what to write then, as in {{{{ {name} or "" }}}}')
  if isinstance(value, list | tuple):
    return [_held(part, f"{name}[{i}]") for i, part in enumerate(value)]
  if isinstance(value, dict):
    return {key: _held(part, f"{name}.{key}") for key, part in value.items()}
  return value


def _guarded(node: nodes.Node) -> list[str]:
  """The name that a filter or test can do without."""
  names = ("default", "d") if isinstance(node, nodes.Filter) else ("defined", "undefined")
  guards = node.name in names and isinstance(node.node, nodes.Name)
  return [node.node.name] if guards else []


def _of_other_forms(fields: Mapping[str, Any], made: Mapping[str, str]) -> set[str]:
  """Columns by which a row is of another form of chat than what was made for it."""
  meant = [name for name, needed in forms.NEEDED.items() if not made.keys().isdisjoint(needed)]
  if not meant and "text" not in made:
    return set()
  there = {name for name, value in fields.items() if value is not None}
  return {
    column
    for name, needed in forms.NEEDED.items()
    if name not in meant and there.issuperset(needed)
    for column in needed
  }


@functools.cache
def _jinja() -> jinja2.Environment:
  jinja = jinja2.sandbox.ImmutableSandboxedEnvironment(
    undefined=_Missing,
    finalize=_text,
    autoescape=False,
    keep_trailing_newline=True,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  del jinja.globals["lipsum"], jinja.filters["random"]  # a row is the same each time it is read
  jinja.tests["none"] = lambda value: value is None or isinstance(value, _Null)
  jinja.filters["tojson"] = _json
  return jinja


def _json(value: Any, indent: int | None = None) -> str:
  null = lambda found: None if isinstance(found, _Null) else json.JSONEncoder().default(found)
  return json.dumps(value, ensure_ascii=False, indent=indent, default=null)
