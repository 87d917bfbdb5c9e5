"""Which alpha a leaf has, or each of its layers, and which row of their table is chosen."""

import json
import math
import re

import numpy as np

from jaxsft.errors import JaxsftError, UsageError
from jaxsft.tuning import select

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


def assign(tree, stacks, chosen, default, key="--alphas_of"):
  """{path: alpha, or [L] float64} of every leaf of a parameter tree.

  stacks: of models.Network. chosen: {pattern: alpha}, of which the first that matches counts. A
  pattern (a regular expression, in which layers.A-B are these layers) must match whole parts of
  a path or of an address of select.addresses: "embed", "layers.0-5", "attn/.*bias". Raises
  UsageError for one that no leaf is left for.
  """
  found = {}
  for path, leaf in select.paths(tree):
    found[path] = [None] * max(1, len(select.addresses(path, leaf, stacks)))
  for pattern, alpha in chosen.items():
    layers = lambda hit, pattern=pattern: _layers(hit, pattern, key)
    whole = rf"(?:^|/)(?:{re.sub(RANGE, layers, pattern)})(?:/|$)"
    before = sum(values.count(None) for values in found.values())
    for path, rows in select.rows_of(tree, whole, stacks, key).items():
      values = zip(found[path], rows, strict=True)
      found[path] = [alpha if own is None and hit else own for own, hit in values]
    if sum(values.count(None) for values in found.values()) == before:
      raise UsageError(
        f"{key}: {pattern!r} matches no parameter that is not matched before it; near it are "
        f"{select.near(tree, pattern, stacks)}"
      )
  return {path: _of_leaf(values, default) for path, values in found.items()}


def _of_leaf(values, default):
  values = [default if value is None else value for value in values]
  return values[0] if len(set(values)) == 1 else np.array(values)


def _layers(hit, pattern, key):
  """The pattern of the layers from the first to the last number of a range."""
  first, last = map(int, hit.groups())
  if last < first:
    raise UsageError(f"{key}: {pattern!r} ends before it begins; expected layers.A-B, A <= B")
  return rf"layers\.(?:{'|'.join(map(str, range(first, last + 1)))})"


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
