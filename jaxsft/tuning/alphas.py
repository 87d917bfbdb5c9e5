"""Which alpha a leaf has, or each of its layers, and which row of their table is chosen."""

import json
import math
import re

import numpy as np

from jaxsft.errors import JaxsftError, UsageError

RANGE = r"layers\.(\d+)-(\d+)"


def grid(text):
  """Numbers of "FIRST:LAST:COUNT" or "A,B,…", sorted, each once."""
  try:
    if ":" in text:
      first, last, count = text.split(":")
      ends = [float(first), float(last)]
      found = np.linspace(*ends, int(count)).tolist() if all(map(math.isfinite, ends)) else []
    else:
      found = [float(word) for word in text.split(",")]
  except ValueError:
    found = []
  found = sorted({round(alpha, 12) for alpha in found})  # 0.3, not 0.30000000000000004
  if not found or not all(map(math.isfinite, found)):
    raise UsageError(f"--alphas={text}: expected FIRST:LAST:COUNT, such as 0:1:11, or A,B,…")
  return found


def groups(text):
  """{pattern: alpha} of the JSON of --alphas_of; {} of None."""
  try:
    found = json.loads(text or "{}")
    good = isinstance(found, dict) and all(math.isfinite(value) for value in found.values())
  except (ValueError, TypeError):
    good = False
  if not good:
    raise UsageError(
      f"--alphas_of={text}: expected JSON of parameters and numbers, such as "
      '{"embed": 0.0, "layers.0-5": 0.5}'
    )
  return {pattern: float(alpha) for pattern, alpha in found.items()}


def addresses(name, shape):
  """["layers.0/attn/q/kernel", …] of a leaf that is stacked by layers, else [its path].

  name: families.Name.
  """
  if "{i" not in name.hf:
    return [name.path]
  first = int("{i+1}" in name.hf)
  at = lambda row: rf"\1layers.{first + row}/"
  return [
    re.sub("(^|/)(?:layers|later)/", at(row), name.path, count=1) for row in range(shape[0])
  ]


def assign(names, shapes, chosen, default, key="--alphas_of"):
  """{path: alpha, or [L] float64} of every leaf.

  names: families.Name of the leaves; shapes: {path: shape}; chosen: {pattern: alpha}, of which
  the first that matches counts. A pattern (a regular expression, in which layers.A-B are these
  layers) must match whole parts of an address: "embed", "layers.0-5", "attn/.*bias". Raises
  UsageError for one that no leaf is left for.
  """
  rules = [(pattern, _compiled(pattern, key), alpha) for pattern, alpha in chosen.items()]
  used, found = set(), {}
  for name in names:
    values = []
    for address in addresses(name, shapes[name.path]):
      hit = next(((p, alpha) for p, rule, alpha in rules if rule.search(address)), None)
      used |= {hit[0]} if hit else set()
      values.append(hit[1] if hit else default)
    found[name.path] = values[0] if len(set(values)) == 1 else np.array(values)
  if unused := [pattern for pattern in chosen if pattern not in used]:
    raise UsageError(
      f"{key}: {unused[0]!r} matches no parameter that is not matched before it; expected "
      "parts of paths such as "
      f"{', '.join(addresses(name, shapes[name.path])[-1] for name in names[:4])}"
    )
  return found


def _compiled(pattern, key):
  layers = lambda found: rf"layers\.(?:{'|'.join(map(str, _range(found, pattern, key)))})"
  try:
    return re.compile(rf"(?:^|/)(?:{re.sub(RANGE, layers, pattern)})(?:/|$)")
  except re.error as error:
    raise UsageError(f"{key}: {pattern!r} is no valid pattern: {error}") from None


def _range(found, pattern, key):
  first, last = map(int, found.groups())
  if last < first:
    raise UsageError(f"{key}: {pattern!r} ends before it begins; expected layers.A-B, A <= B")
  return range(first, last + 1)


def choose(rows, mode, max_forgetting=None):
  """The row of the best "value"; of equal ones that of the least forgetting, then of the
  largest alpha, nearest to the pretrained model.

  rows: dicts with "value", "alpha" and, where a general text was measured, "forgetting". mode:
  "max" or "min". max_forgetting: rows above it are not chosen. Raises JaxsftError where no row
  is left.
  """
  allowed = [row for row in rows if row["value"] is not None and math.isfinite(row["value"])]
  if not allowed:
    raise JaxsftError(
      "the metric is undefined for every alpha; choose another config.evaluate.metric"
    )
  if max_forgetting is not None:
    allowed = [row for row in allowed if row["forgetting"] <= max_forgetting]
  if not allowed:
    raise JaxsftError(
      f"--max_forgetting={max_forgetting}: found no alpha that forgets as little; allow more"
    )
  sign = 1 if mode == "max" else -1
  rank = lambda row: (sign * row["value"], -row.get("forgetting", 0.0), row["alpha"])
  return max(allowed, key=rank)
