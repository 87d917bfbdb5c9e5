"""Texts inside of a field's value: of messages, of their parts, of calls of tools, in JSON."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxsft.data import forms, spans

SAID = ("content", "value", *spans.THOUGHTS)
"""Keys of a message that hold text."""
NAMED = ("name", "tool_call_id")
"""Keys of a message that hold names, which templates may write."""
LEAF = re.compile(r'"(?:[^"\\]|\\.)*"(?P<name>\s*:)?|-?[0-9][0-9.eE+-]*')
"""A name, a text or a number of a JSON text."""

Function = Callable[[str], str]


def plain(value: Any) -> Any:
  """The value with lists in the place of arrays and tuples, and Python's texts and numbers in
  that of NumPy's; itself where nothing of it is such.
  """
  if isinstance(value, np.ndarray | np.generic):
    return plain(value.tolist())
  if isinstance(value, list | tuple):
    parts = [plain(part) for part in value]
    same = isinstance(value, list) and all(a is b for a, b in zip(parts, value, strict=True))
    return value if same else parts
  if isinstance(value, dict):
    found = {key: plain(part) for key, part in value.items()}
    return value if all(found[key] is value[key] for key in value) else found
  return value


def mapped(value: Any, function: Function, deep: bool = False) -> Any:
  """A plain value with every text in it replaced.

  deep: also names, what calls of tools give as arguments, and what a text that is JSON holds,
  each as `inside` has it.
  """
  if isinstance(value, str):
    return _text(value, function) if deep else function(value)
  if isinstance(value, list):
    return [mapped(part, function, deep) for part in value]
  if not isinstance(value, dict):
    return value
  calls = value.get("from") == "function_call"
  said = [key for key in SAID if key in value and not (calls and key == "value")]
  if value.get("type") == "text" and "text" in value:  # a part of a message's content
    said.append("text")
  said += [key for key in NAMED if deep and key in value]
  found = {key: mapped(value[key], function, deep) for key in said}
  if deep and calls and "value" in value:
    found["value"] = inside(value["value"], function)
  if deep and isinstance(value.get("tool_calls"), list):
    found["tool_calls"] = [_call(call, function) for call in value["tool_calls"]]
  if deep and "function_call" in value:  # OpenAI's older form
    found["function_call"] = _call(value["function_call"], function)
  return value | found


def _call(call: Any, function: Function) -> Any:
  """A call of a tool with other arguments."""
  named = forms.function_of(call) if isinstance(call, dict) else None
  if not isinstance(named, dict) or "arguments" not in named:
    return call  # which is refused where calls are read
  return forms.with_arguments(call, inside(named["arguments"], function))


def inside(value: Any, function: Function, name: str = "") -> Any:
  """A JSON value with its texts and whole numbers replaced; names stay.

  The function sees "name: value", since some values are told by their names alone, and what it
  leaves behind the colon is taken. A number of which it changes something becomes a text.
  """
  if isinstance(value, dict):
    return {key: inside(part, function, str(key)) for key, part in value.items()}
  if isinstance(value, list):
    return [inside(part, function, name) for part in value]
  if isinstance(value, bool) or not isinstance(value, str | int):
    return value
  if isinstance(value, int):
    new = _named(str(value), function, name)
    return value if new == str(value) else new
  return _text(value, function, name)


def _text(text: str, function: Function, name: str = "") -> str:
  """A text after the function, or, if it is JSON, with the values in it after the function."""
  tree = _tree(text)
  if tree is None:
    return _named(text, function, name)
  parts, at = [], 0
  places = [match for match in LEAF.finditer(text) if not match["name"]]
  for match, (own, value) in zip(places, _leaves(tree, name), strict=True):
    new = inside(value, function, own)
    if new != value:
      written = json.dumps(new, ensure_ascii=text.isascii())
      parts += [text[at : match.start()], written]
      at = match.end()
  return "".join([*parts, text[at:]])


def _named(text: str, function: Function, name: str) -> str:
  before = f"{name}: " if name else ""
  after = function(before + text)
  return after[len(before) :] if after.startswith(before) else function(text)


def _tree(text: str) -> Any:
  """What a JSON list or object says, objects as tuples of (name, value); None: it is none."""
  if text.lstrip()[:1] not in ("{", "["):
    return None
  try:
    return json.loads(text, object_pairs_hook=tuple, parse_constant=lambda name: None)
  except (ValueError, RecursionError):
    return None


def _leaves(tree: Any, name: str) -> Iterator[tuple[str, Any]]:
  """(name, value) of the texts and numbers of a `_tree`, in order."""
  if isinstance(tree, tuple):
    for key, part in tree:
      yield from _leaves(part, key)
  elif isinstance(tree, list):
    for part in tree:
      yield from _leaves(part, name)
  elif isinstance(tree, str | int | float) and not isinstance(tree, bool):
    yield name, tree


def spoken(value: Any) -> list[str]:
  """All that a plain value says, in order: who speaks, the texts, the calls of tools."""
  if isinstance(value, list):
    return [one for part in value for one in spoken(part)]
  found: list[str] = []
  if isinstance(value, dict):
    speaker = value.get("role", value.get("from"))
    found += [speaker] if isinstance(speaker, str) else []
  look = lambda one: found.append(one) or one
  mapped(value, look)
  if isinstance(value, dict):
    calls = value.get("tool_calls") or []
    calls = calls if isinstance(calls, list) else [calls]
    calls = [*calls, value["function_call"]] if value.get("function_call") else calls
    calls = [*calls, value.get("value")] if value.get("from") == "function_call" else calls
    found += [_as_said(call) for call in calls]
  return found


def _as_said(call: Any) -> str:
  """A call of a tool as text, the same whether its arguments are an object or JSON."""
  if isinstance(call, str):
    call = _value(call)
  if isinstance(call, dict):
    named = forms.function_of(call)
    if isinstance(named, dict):
      call = [named.get("name"), _value(named.get("arguments"))]
  return json.dumps(call, sort_keys=True, ensure_ascii=False, default=repr)


def _value(given: Any) -> Any:
  """What a JSON text says; what is none is taken as it is."""
  try:
    return json.loads(given) if isinstance(given, str) else given
  except (ValueError, RecursionError):
    return given
