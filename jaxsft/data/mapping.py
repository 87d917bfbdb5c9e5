"""The columns of a record become the fields of a row, as data.columns says.

A column may be nested: "translation.en" is the key "en" of the column "translation",
"choices[0]" the first of its items, [-1] the last, "answers.text[0]" both. A column whose
whole name is written so comes first.
"""

import re
from collections.abc import Mapping
from typing import Any

from jaxsft.data.nearest import near
from jaxsft.errors import JaxsftError

PATH = re.compile(r"([^.\[\]]+)((?:\.[^.\[\]]+|\[-?\d+\])+)")
STEP = re.compile(r"\.([^.\[\]]+)|\[(-?\d+)\]")


def fields(record: dict[str, Any], names: Mapping[str, str], where: str) -> dict[str, Any]:
  """The fields of a record; names: field -> column.

  A column that is not mapped keeps its name, one that is mapped as a whole loses it, and a
  field hides a column of its name. Nothing inside null is null. Raises JaxsftError for a
  column, a key or an item that is not there.
  """
  if not names:
    return record
  found, taken = {}, set(names)
  for field, column in names.items():
    if column in record:
      found[field] = record[column]
      taken.add(column)
    else:
      found[field] = _inside(record, column, field, where)
  return found | {name: value for name, value in record.items() if name not in taken}


def _inside(record: dict[str, Any], path: str, field: str, where: str) -> Any:
  """What stands at a path into a nested column."""
  asked = f"which data.columns gives for {field!r}"
  found = PATH.fullmatch(path)
  top = found[1] if found else path
  if not found or top not in record:
    of = f" (of {path!r})" if found else ""
    raise JaxsftError(
      f"{where}: no column {top!r}{of}, {asked}{near(top, record)}; correct data.columns"
    )
  value, here = record[top], top
  for step in STEP.finditer(found[2]):
    if value is None:
      return None
    key, item = step[1], step[2]
    there = f"{where}: {here!r} is {_kind(value)}"
    here += step[0]
    if key is not None and isinstance(value, dict):
      if key not in value:
        raise JaxsftError(
          f"{there} without the key {key!r} of {path!r}, {asked}{near(key, value)}; correct "
          "data.columns"
        )
      value = value[key]
    elif item is not None and isinstance(value, list | tuple):
      if not -len(value) <= int(item) < len(value):
        raise JaxsftError(
          f"{there} of {len(value)} and has no item [{item}] of {path!r}, {asked}; items are "
          "counted from 0; correct data.columns or the row"
        )
      value = value[int(item)]
    else:
      what = f"the key {key!r}" if key is not None else f"the item [{item}]"
      way = "; an item is written [0]" if isinstance(value, list | tuple) else ""
      way += "; a key is written .name" if isinstance(value, dict) else ""
      raise JaxsftError(
        f"{there}, in which there is not {what} of {path!r}, {asked}{way}; correct data.columns"
      )
  return value


def _kind(value: Any) -> str:
  kinds = {dict: "an object", list: "a list", tuple: "a list", str: "a text", bool: "a bool"}
  return kinds.get(type(value), "a number")
