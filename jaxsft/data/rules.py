"""Rules such as "abs(rating) >= 0.5" over the fields of a row, as in `data.keep`.

A rule is a small part of Python's expressions: comparisons (also chained), + - * / // %,
and, or, not, in, not in, numbers, text in quotes, tuples, fields by name, and the functions
abs, len, float, int, str, lower, strip, startswith(text, start), endswith(text, end).
It must give true or false. Nothing of Python can be reached from it.

Fields of a CSV are text, so numbers are told by what they meet:
- arithmetic, abs, and a comparison with a number turn text into a number ("0.5" -> 0.5);
  text that is no finite number is an error, in == and in it is unequal.
- == of two texts compares text. < <= > >= of two fields that are both text is an error:
  write float(a) < float(b), or str(a) < str(b) for the order of the alphabet.
"""

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

from jaxsft.data.read import Row, near
from jaxsft.errors import JaxsftError, UsageError

Rule = Callable[[Row], bool]
Node = Callable[[Row], Any]

ARITHMETIC = {
  ast.Add: operator.add,
  ast.Sub: operator.sub,
  ast.Mult: operator.mul,
  ast.Div: operator.truediv,
  ast.FloorDiv: operator.floordiv,
  ast.Mod: operator.mod,
}
ORDER = {ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge}
TEXT_FUNCTIONS = {"str", "lower", "strip"}


class Unfit(Exception):
  """A value does not fit its rule; becomes a JaxsftError with the row's place."""


def compile_rule(text: str, key: str) -> Rule:
  """A function row -> bool for the rule that config key `key` holds.

  Raises UsageError for a rule that is not one; the function raises JaxsftError, with
  row.where, for an unknown field or a value that does not fit.
  """
  if not isinstance(text, str) or not text.strip() or len(text) > 1000:
    raise UsageError(f'{key} is {text!r}, expected a rule such as "abs(rating) >= 0.5"')
  try:
    tree = ast.parse(text.strip(), mode="eval").body
    node = _compile(tree, f"{key} {text!r}")
  except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
    place = f" at column {error.offset}" if getattr(error, "offset", None) else ""
    raise UsageError(
      f"{key} {text!r} is not a rule: {getattr(error, 'msg', error)}{place}; write it like "
      '"abs(rating) >= 0.5", and map a column whose name is no plain word in data.columns'
    ) from None

  def rule(row: Row) -> bool:
    try:
      return _truth(node(row))
    except Unfit as error:
      raise JaxsftError(f"{row.where}: {key} {text!r}: {error}") from None
    except ZeroDivisionError:
      raise JaxsftError(f"{row.where}: {key} {text!r} divides by zero") from None

  return rule


def _compile(tree: ast.expr, rule: str) -> Node:
  """Closures, innermost first: fast enough, and no `eval` to guard."""
  build = lambda part: _compile(part, rule)
  match tree:
    case ast.Constant(value=bool() | int() | float() | str() | None as value):
      return lambda row: value
    case ast.Name(id=name):
      return lambda row: _field(row, name)
    case ast.Tuple(elts=parts) | ast.List(elts=parts):
      nodes = [build(part) for part in parts]
      return lambda row: tuple(node(row) for node in nodes)
    case ast.UnaryOp(op=ast.Not(), operand=part):
      node = build(part)
      return lambda row: not _truth(node(row))
    case ast.UnaryOp(op=ast.USub() | ast.UAdd() as op, operand=part):
      node, sign = build(part), -1 if isinstance(op, ast.USub) else 1
      return lambda row: sign * _number(node(row))
    case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
      a, b, apply = build(left), build(right), ARITHMETIC[type(op)]
      return lambda row: apply(_number(a(row)), _number(b(row)))
    case ast.BoolOp(op=op, values=parts):
      nodes, every = [build(part) for part in parts], isinstance(op, ast.And)
      if every:
        return lambda row: all(_truth(node(row)) for node in nodes)
      return lambda row: any(_truth(node(row)) for node in nodes)
    case ast.Compare():
      return _compile_comparison(tree, rule)
    case ast.Call(func=ast.Name(id=name), args=parts, keywords=[]) if name in FUNCTIONS:
      arity, function = FUNCTIONS[name]
      if len(parts) != arity:
        raise UsageError(f"{rule}: {name} takes {arity} values, found {len(parts)}")
      nodes = [build(part) for part in parts]
      return lambda row: function(*(node(row) for node in nodes))
    case ast.Call(func=ast.Name(id=name)):
      raise UsageError(f"{rule}: no function {name}{near(name, FUNCTIONS)}")
  raise UsageError(
    f"{rule}: {ast.unparse(tree)!r} is not allowed in a rule; use comparisons, arithmetic, "
    f"and, or, not, in, and the functions {', '.join(FUNCTIONS)}"
  )


def _compile_comparison(tree: ast.Compare, rule: str) -> Node:
  parts = [tree.left, *tree.comparators]
  nodes = [_compile(part, rule) for part in parts]
  # Text that was written as text may be ordered by the alphabet; two bare fields may not.
  meant = [_is_text(part) for part in parts]
  steps = []
  for i, op in enumerate(tree.ops):
    if type(op) in ORDER:
      step = _ordered(ORDER[type(op)], meant[i] or meant[i + 1])
    elif isinstance(op, ast.Eq | ast.NotEq):
      step = _equal if isinstance(op, ast.Eq) else lambda a, b: not _equal(a, b)
    elif isinstance(op, ast.In | ast.NotIn):
      step = _inside if isinstance(op, ast.In) else lambda a, b: not _inside(a, b)
    else:
      raise UsageError(f"{rule}: write == instead of 'is' and != instead of 'is not'")
    steps.append((step, nodes[i + 1]))

  def compare(row):
    left = nodes[0](row)
    for step, node in steps:
      right = node(row)
      if not step(left, right):
        return False
      left = right
    return True

  return compare


def _is_text(tree: ast.expr) -> bool:
  if isinstance(tree, ast.Call):
    return tree.func.id in TEXT_FUNCTIONS
  return isinstance(tree, ast.Constant) and isinstance(tree.value, str)


def _field(row: Row, name: str) -> Any:
  try:
    return row.fields[name]
  except KeyError:
    raise Unfit(
      f"no field {name!r}{near(name, row.fields)}; correct the rule or data.columns"
    ) from None


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any) -> int | float:
  """A number, or text that holds one; NaN and infinity are neither."""
  number = value
  if isinstance(value, str):
    try:
      number = int(value)
    except ValueError:
      try:
        number = float(value)
      except ValueError:
        raise Unfit(f"{value[:60]!r} is not a number") from None
  if not _is_number(number):
    raise Unfit(f"{value!r} is not a number")
  if not math.isfinite(number):
    raise Unfit(f"{value!r} is not a finite number")
  return number


def _truth(value: Any) -> bool:
  if not isinstance(value, bool):
    raise Unfit(
      f"{str(value)[:60]!r} ({type(value).__name__}) is neither true nor false; compare it "
      "with something"
    )
  return value


def _ordered(apply: Callable, as_text: bool) -> Callable[[Any, Any], bool]:
  def ordered(a, b):
    if isinstance(a, str) and isinstance(b, str):
      if not as_text:
        raise Unfit(
          f"{a[:40]!r} and {b[:40]!r} are both text; write float(…) around both for numbers, "
          "or str(…) for the order of the alphabet"
        )
      return apply(a, b)
    return apply(_number(a), _number(b))

  return ordered


def _equal(a: Any, b: Any) -> bool:
  if (_is_number(a) and isinstance(b, str)) or (_is_number(b) and isinstance(a, str)):
    try:
      return _number(a) == _number(b)
    except Unfit:
      return False
  # True == 1 in Python, but a flag is not a number here.
  return isinstance(a, bool) == isinstance(b, bool) and a == b


def _inside(item: Any, container: Any) -> bool:
  if isinstance(container, str):
    return _text(item) in container
  if isinstance(container, tuple | list):
    return any(_equal(item, other) for other in container)
  raise Unfit(f"{container!r} is neither text nor a list, so nothing can be in it")


def _text(value: Any) -> str:
  if not isinstance(value, str):
    raise Unfit(f"{value!r} is not text; write str(…) around it")
  return value


def _length(value: Any) -> int:
  if not isinstance(value, str | list | tuple | dict):
    raise Unfit(f"{value!r} has no length")
  return len(value)


FUNCTIONS = {
  "abs": (1, lambda value: abs(_number(value))),
  "len": (1, _length),
  "float": (1, lambda value: float(_number(value))),
  "int": (1, lambda value: int(_number(value))),
  "str": (1, str),
  "lower": (1, lambda value: _text(value).lower()),
  "strip": (1, lambda value: _text(value).strip()),
  "startswith": (2, lambda value, start: _text(value).startswith(_text(start))),
  "endswith": (2, lambda value, end: _text(value).endswith(_text(end))),
}
