"""Between PEFT's names of adapter tensors and our leaves, by a family's table of names.

PEFT keeps lora_A [R,in] and lora_B [out,R] beside every module; ours are stacked over layers
and stand beside each projection, also where the file keeps several in one module: a fused
module's B is then the parts' under each other, and its A that of all of them.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxsft.errors import JaxsftError
from jaxsft.weights import params, views

SUFFIXES = {"a": "lora_A.weight", "b": "lora_B.weight", "magnitude": "lora_magnitude_vector"}


class Module(NamedTuple):
  """One module of the file that may have an adapter."""

  name: str
  """Without ".weight"."""
  names: list
  """The family's names of the leaves that are its kernel."""
  slot: tuple
  """Of the stacked axes of these leaves."""


class Lora(NamedTuple):
  """The adapter of one module."""

  a: np.ndarray
  b: np.ndarray
  scale: float
  magnitude: np.ndarray | None


def modules(names: Sequence[Any], shapes: Mapping[str, Any], prefix: str) -> list[Module]:
  """All modules with a kernel. shapes: by path; prefix: of the names of the base."""
  found = []
  for group in views.by_tensor([n for n in names if n.path.endswith("/kernel")]):
    tensors = names_of(group[0], shapes[group[0].path].shape, prefix)
    for slot in np.ndindex(tensors.shape):
      found.append(Module(tensors[slot].removesuffix(".weight"), group, slot))
  return found


def names_of(name: Any, shape: tuple[int, ...], prefix: str) -> np.ndarray:
  """The names in the file of a leaf of `shape`, by its stacked axes."""
  full = ("" if name.part == "head" else prefix) + name.hf
  return params.tensor_names(full, shape)


# --- from PEFT -------------------------------------------------------------------------


def from_file(adapter: Any, found: Sequence[Module], shapes: Mapping[str, Any]) -> tuple:
  """({module path: {"a": [L,R,in], …}}, names of tensors that are no adapter).

  Where ranks differ over the layers of a stack, the smaller ones have rows of zeros, which
  add nothing and get no gradient. Raises JaxsftError for a tensor that fits nothing.
  """
  left, leaves = dict(adapter.tensors), {}
  for module in found:
    own = {k: left.pop(f"{module.name}.{end}", None) for k, end in SUFFIXES.items()}
    if own["a"] is None or own["b"] is None:
      continue
    width = shapes[module.names[0].path].shape[-1]
    rows = sum(shapes[name.path].shape[-2] for name in module.names)
    rank = len(own["a"])
    if own["a"].shape != (rank, width) or own["b"].shape != (rows, rank):
      raise JaxsftError(
        f"{adapter.path}: the adapter of {module.name} is {list(own['a'].shape)} and "
        f"{list(own['b'].shape)}, expected {[rank, width]} and {[rows, rank]}: it was trained "
        "on another base model"
      )
    scale = scale_of(adapter.config, module.name, rank)
    for name in module.names:
      shape = shapes[name.path].shape[-2:]
      part = Lora(
        own["a"],
        _rows(own["b"], name, shape[0]),
        scale,
        None if own["magnitude"] is None else _rows(own["magnitude"], name, shape[0]),
      )
      leaves.setdefault(name.path.removesuffix("/kernel"), {})[module.slot] = part
  strange = [name for name in left if ".lora_" in name]
  if strange:
    raise JaxsftError(
      f"{adapter.path}: found {strange[0]} and {len(strange) - 1} more, expected adapters of "
      "projections inside the layers of this model; merge the adapter with PEFT's "
      "merge_and_unload() and load the model that it gives"
    )
  stacked = {path: _stack(path, slots, shapes, adapter) for path, slots in leaves.items()}
  return stacked, list(left)


def ranks(adapter: Any, found: Sequence[Module], shapes: Mapping[str, Any]) -> dict:
  """{module path: ranks [L] of the adapter in each layer, 0 where it has none}."""
  known = {}
  for module in found:
    own = adapter.tensors.get(f"{module.name}.{SUFFIXES['a']}")
    for name in module.names if own is not None else ():
      lead = shapes[name.path].shape[:-2]
      path = name.path.removesuffix("/kernel")
      known.setdefault(path, np.zeros(lead, int))[module.slot] = len(own)
  return known


def scale_of(config: Mapping[str, Any], module: str, rank: int) -> float:
  """What PEFT multiplies B A of a module by."""
  alpha = config["lora_alpha"]
  for pattern, value in (config.get("alpha_pattern") or {}).items():
    if re.match(rf"(.*\.)?({pattern})$", module):
      alpha = value
      break
  return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _rows(values: np.ndarray, name: Any, rows: int) -> np.ndarray:
  """The rows of a fused module's B or magnitude that belong to the leaf `name`."""
  view = name.view and name.view._replace(transposed=False, row=False)
  index = (slice(None),) * values.ndim
  return views.read(lambda _, i: values[i], "", view, (rows, *values.shape[1:]), index)


def _stack(path: str, slots: Mapping[tuple, Lora], shapes: Mapping[str, Any], adapter: Any):
  *lead, out, width = shapes[f"{path}/kernel"].shape
  rank = max(len(part.a) for part in slots.values())
  with_length = [part.magnitude is not None for part in slots.values()]
  if any(with_length) and not (all(with_length) and len(slots) == np.prod(lead, dtype=int)):
    raise JaxsftError(
      f"{adapter.path}: some layers of {path} have a lora_magnitude_vector and some have none, "
      "expected all or none; merge the adapter with PEFT's merge_and_unload()"
    )
  leaves = {
    "a": np.zeros((*lead, rank, width), np.float32),
    "b": np.zeros((*lead, out, rank), np.float32),
    "scale": np.ones(lead, np.float32),
  }
  if all(with_length):
    leaves["magnitude"] = np.zeros((*lead, out), np.float32)
  for slot, part in slots.items():
    leaves["a"][slot][: len(part.a)] = part.a
    leaves["b"][slot][:, : len(part.a)] = part.b
    leaves["scale"][slot] = part.scale
    if part.magnitude is not None:
      leaves["magnitude"][slot] = part.magnitude.reshape(-1)
  return leaves


# --- to PEFT ---------------------------------------------------------------------------


def to_file(leaves: Mapping[str, Mapping[str, np.ndarray]], found: Sequence[Module], shapes):
  """{module: Lora} of {module path: {"a": …}}; those of zeros alone are left out."""
  done = {}
  for module in found:
    paths = [name.path.removesuffix("/kernel") for name in module.names]
    parts = {
      name: _of_layer(leaves[path], module.slot)
      for name, path in zip(module.names, paths, strict=True)
      if path in leaves
    }
    parts = {name: part for name, part in parts.items() if len(part.a)}
    if parts:
      whole = [name.view for name in module.names] == [None]
      done[module.name] = parts.popitem()[1] if whole else _fused(module, parts, shapes)
  return done


def _of_layer(leaves: Mapping[str, np.ndarray], slot: tuple) -> Lora:
  """One layer's adapter, without the rows of zeros at its end."""
  a, b = leaves["a"][slot], leaves["b"][slot]
  used = np.flatnonzero(np.any(a != 0, 1) | np.any(b != 0, 0))
  rank = used[-1] + 1 if used.size else 0
  magnitude = leaves["magnitude"][slot] if "magnitude" in leaves else None
  return Lora(a[:rank], b[:, :rank], float(leaves["scale"][slot]), magnitude)


def _fused(module: Module, parts: Mapping[Any, Lora], shapes: Mapping[str, Any]) -> Lora:
  """One adapter of a module that is several projections: A on A, B a diagonal of blocks.

  Where all have the same A and scale, as PEFT makes them, A is theirs and B under B.
  """
  first = next(iter(parts.values()))
  lengths = [part.magnitude is not None for part in parts.values()]
  shared = all(
    np.array_equal(part.a, first.a) and part.scale == first.scale for part in parts.values()
  )
  ranks = [len(part.a) for part in parts.values()]
  total, start, blocks = ranks[0] if shared else sum(ranks), 0, {}
  for name in module.names:
    rows = shapes[name.path].shape[-2]
    blocks[name] = np.zeros((rows, total), np.float32)
    if name in parts:
      part = parts[name]
      end = start + len(part.a)
      blocks[name][:, start:end] = part.b * np.float32(part.scale / first.scale)
      start = 0 if shared else end
  magnitude = None
  if all(lengths):
    magnitude = _joined({name: part.magnitude for name, part in parts.items()})
  a = first.a if shared else np.concatenate([part.a for part in parts.values()])
  return Lora(a, _joined(blocks), first.scale, magnitude)


def _joined(parts: Mapping[Any, np.ndarray]) -> np.ndarray:
  by_view = {
    name.view._replace(transposed=False, row=False): part for name, part in parts.items()
  }
  rows = sum(len(part) for part in parts.values())
  shape = (rows, *next(iter(parts.values())).shape[1:])
  return views.join(by_view, shape, np.float32, lambda part: part)


def config_of(
  done: Mapping[str, Lora], all_modules: Sequence[str], rslora: bool
) -> dict[str, Any]:
  """r, lora_alpha, their patterns and target_modules of adapters by module."""
  numbers = {}
  for module, part in done.items():
    rank = len(part.a)
    alpha = _tidy(part.scale * (rank**0.5 if rslora else rank))
    numbers[module] = (rank, alpha)
  (rank, alpha), _ = Counter(numbers.values()).most_common(1)[0]
  return {
    "r": rank,
    "lora_alpha": alpha,
    "rank_pattern": {m: own[0] for m, own in numbers.items() if own[0] != rank},
    "alpha_pattern": {m: own[1] for m, own in numbers.items() if own[1] != alpha},
    "use_rslora": rslora,
    "use_dora": any(part.magnitude is not None for part in done.values()),
    "target_modules": _targets(set(done), set(all_modules)),
  }


def _tidy(alpha: float) -> float:
  """Without what float32 rounded: 32 and not 31.9999993."""
  near = round(alpha, 4)
  if abs(near - alpha) <= 1e-6 * abs(alpha):
    alpha = near
  return int(alpha) if alpha == int(alpha) else alpha


def _targets(chosen: set, everything: set) -> list[str]:
  """The shortest ends of names that mean exactly the modules `chosen`."""
  for size in (1, 2, 3):
    ends = {".".join(name.split(".")[-size:]) for name in chosen}
    means = {
      name for name in everything if any(name == e or name.endswith(f".{e}") for e in ends)
    }
    if means == chosen:
      return sorted(ends)
  return sorted(chosen)
