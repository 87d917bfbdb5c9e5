"""Which leaves train: all, the task head, or those that patterns name."""

import re

from jaxsft.errors import UsageError


def paths(tree, prefix=""):
  """("layers/attn/q/kernel", leaf) for every leaf of a nested dict, in order."""
  for name, value in tree.items():
    path = f"{prefix}{name}"
    if isinstance(value, dict):
      yield from paths(value, f"{path}/")
    else:
      yield path, value


def trainable_paths(tree, method, patterns):
  """The set of paths that train.

  method: "all", "head" (leaves under head/, dense/, dense_norm/ and lm_head/) or "regex"
  (`patterns` searched in the path). Raises UsageError when a pattern, or the whole choice,
  matches nothing.
  """
  names = [path for path, _ in paths(tree)]
  if method == "all":
    return set(names)
  if method == "head":
    patterns = ("^(head|dense|dense_norm|lm_head)/",)
  for pattern in patterns:
    try:
      hits = [n for n in names if re.search(pattern, n)]
    except re.error as error:
      raise UsageError(f"config.tune.train: {pattern!r} is no valid pattern: {error}") from None
    if not hits:
      raise UsageError(
        f"config.tune.train: {pattern!r} matches no parameter; there are {', '.join(names)}"
      )
  return {n for n in names if any(re.search(p, n) for p in patterns)}


def split(tree, chosen, prefix=""):
  """(part with the paths in `chosen`, the rest) of a nested dict."""
  inside, outside = {}, {}
  for name, value in tree.items():
    path = f"{prefix}{name}"
    if isinstance(value, dict):
      a, b = split(value, chosen, f"{path}/")
      if a:
        inside[name] = a
      if b:
        outside[name] = b
    else:
      (inside if path in chosen else outside)[name] = value
  return inside, outside
