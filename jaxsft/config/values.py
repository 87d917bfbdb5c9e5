"""Values of settings by their annotations: parse a command-line text, check a type."""

import dataclasses
import difflib
import json
import types
import typing
from typing import Literal

from jaxsft.errors import UsageError


def nearest(name, names):
  near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
  return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(names)}"


def parse(text, annotation, key):
  """`text` from the command line as a value of `annotation`."""
  choices = options(annotation)
  if type(None) in choices and text in ("None", "none", "null"):
    return None
  literals = [v for o in choices if typing.get_origin(o) is Literal for v in _args(o)]
  if text in literals:
    return text
  if bool in choices and text.lower() in ("true", "false"):
    return text.lower() == "true"
  for number in (int, float):
    if number in choices:
      try:
        return number(text)
      except ValueError:
        pass
  if any(typing.get_origin(o) in (dict, tuple) for o in choices):
    try:
      value = json.loads(text)
      return tuple(value) if isinstance(value, list) else value
    except json.JSONDecodeError:
      raise UsageError(f'{key}={text}: expected JSON, such as ["a"] or {{}}') from None
  if str in choices:
    return text
  raise UsageError(_expected(text, annotation, key))


def _args(annotation):
  return typing.get_args(annotation)


def section(annotation):
  """The dataclass of the values of `dict[str, …]` (or None); None where it holds no groups."""
  for option in options(annotation):
    if typing.get_origin(option) is dict and dataclasses.is_dataclass(_args(option)[1]):
      return _args(option)[1]
  return None


def options(annotation):
  """The alternatives of a union, or the annotation alone."""
  if typing.get_origin(annotation) in (typing.Union, types.UnionType):
    return _args(annotation)
  return (annotation,)


def describe(annotation):
  if typing.get_origin(annotation) in (typing.Union, types.UnionType):
    return " or ".join(describe(o) for o in _args(annotation))
  if typing.get_origin(annotation) is Literal:
    return "one of " + ", ".join(map(repr, _args(annotation)))
  if group := section(annotation):
    return f"dict of {group.__name__}"
  return getattr(annotation, "__name__", str(annotation)).replace("NoneType", "None")


def fits(value, annotation):
  """Whether `value` is of the annotated type."""
  origin, args = typing.get_origin(annotation), _args(annotation)
  if origin in (typing.Union, types.UnionType):
    return any(fits(value, a) for a in args)
  if origin is Literal:
    return value in args and type(value) in {type(a) for a in args}
  if origin is dict:
    return isinstance(value, dict) and all(
      fits(k, args[0]) and fits(v, args[1]) for k, v in value.items()
    )
  if origin is tuple:
    return isinstance(value, tuple) and all(fits(v, args[0]) for v in value)
  if annotation is float:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
  if annotation is int:
    return isinstance(value, int) and not isinstance(value, bool)
  return isinstance(value, annotation)


def check(value, annotation, key):
  """Raises UsageError, with the nearest valid name, unless `value` is of the annotated type."""
  if not fits(value, annotation):
    raise UsageError(_expected(value, annotation, key))


def _expected(value, annotation, key):
  names = [v for o in options(annotation) for v in _args(o) if isinstance(v, str)]
  near = difflib.get_close_matches(value, names, n=1) if isinstance(value, str) else []
  hint = f"; did you mean {near[0]!r}?" if near else ""
  return f"{key}: found {value!r}, expected {describe(annotation)}{hint}"
