"""Between Hugging Face's tensor names and our parameter tree, checked both ways.

The table is a family's list of families.Name. Stacked leaves [L, …] are the tensors of
their layers one after another, [L, E, …] those of every layer's experts; a leaf with a view
is a part of a tensor (views.py).
"""

import gc
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsft.errors import JaxsftError
from jaxsft.weights import views
from jaxsft.weights.source import Index, Source

FLOATS = ("float64", "float32", "float16", "bfloat16")
BLOCK = 1 << 12  # rows compared at a time
READ = 1 << 22  # bytes of a leaf read at a time: what is held beside the leaf itself
AXES = ("{i}", "{i+1}", "{e}")  # in a name: the layer, the expert; leading axes of a leaf
SPELLINGS = (  # end of a name, and what some files have instead
  ("LayerNorm.weight", "LayerNorm.gamma"),  # the first BERT checkpoints
  ("LayerNorm.bias", "LayerNorm.beta"),
  ("predictions.bias", "predictions.decoder.bias"),  # one bias that has two names in torch
  ("lm_head.bias", "lm_head.decoder.bias"),
  ("shared.weight", "encoder.embed_tokens.weight"),  # one table that has three
  ("shared.weight", "decoder.embed_tokens.weight"),
)


class Report(NamedTuple):
  """What `load` did with every tensor of the file and every leaf of the tree."""

  loaded: int
  """Tensors read."""
  new: tuple[str, ...]
  """Paths of head leaves that the file does not have: the caller initialises them."""
  ignored: tuple[str, ...]
  """Tensors of the file that the model has no use for, by the family's patterns."""


class _Leaf(NamedTuple):
  path: str
  tensors: np.ndarray
  """Names in the file, of the leaf's stacked axes: (), [L] or [L, E]."""
  shape: tuple[int, ...]
  view: Any


def load(
  source: Source,
  names: Sequence[Any],
  shapes: Mapping[str, Any],
  *,
  base_prefix: str = "",
  ignored: Sequence[str] = (),
  tied: Sequence[tuple[str, str]] = (),
  shardings: Mapping[str, Any] | None = None,
  dtype: Any = np.float32,
) -> tuple[dict[str, Any], Report]:
  """Reads a parameter tree straight into its shards.

  names: the family's table. shapes: nested dict of jax.ShapeDtypeStruct, whose leaves are
  exactly the paths of the table; only shapes are used, every leaf gets `dtype`.
  base_prefix: what stands before the names of part "base" ("bert."); a file without it is
  read as well. ignored: patterns (re.search) of tensors that may be in the file and are
  not used. tied: (name, name of part "base") that must be equal where config.json says
  tie_word_embeddings and the file has both all the same; with True as a third, always.
  shardings: nested dict like `shapes`; None: one device.

  Head tensors that the file does not have are left out of the tree and named in the
  report. Raises JaxsftError that names every missing, unknown, wrongly shaped, wrongly
  typed and non-finite tensor.
  """
  planned, report = _plan(source, names, shapes, base_prefix, ignored, tied)
  params: dict[str, Any] = {}
  for leaf in planned:
    sharding = _default_sharding() if shardings is None else _get(shardings, leaf.path)
    _set(params, leaf.path, _read_leaf(source, leaf, sharding, dtype))
  return params, report


def leaves(
  source: Source,
  names: Sequence[Any],
  shapes: Mapping[str, Any],
  *,
  base_prefix: str = "",
  ignored: Sequence[str] = (),
  tied: Sequence[tuple[str, str]] = (),
  dtype: Any = np.float32,
) -> dict[str, Callable[[], np.ndarray]]:
  """Like `load`, on the host: {path: a function that reads this leaf}, nothing read yet."""
  planned, _ = _plan(source, names, shapes, base_prefix, ignored, tied)
  whole = lambda leaf: tuple(slice(None) for _ in leaf.shape)
  return {leaf.path: partial(_reader(source, leaf, dtype), whole(leaf)) for leaf in planned}


def export_tensors(
  params: Mapping[str, Any],
  names: Sequence[Any],
  *,
  base_prefix: str = "",
  dtype: Any = np.float32,
) -> Iterator[tuple[str, np.ndarray]]:
  """(Hugging Face name, array in `dtype`) for every tensor of a parameter tree.

  Stacked leaves come apart again; one leaf is on the host at a time. Raises JaxsftError
  for leaves that the table does not name (adapters: merge them first), for leaves that
  are missing, and for values that do not fit `dtype`.
  """
  paths = {name.path for name in names}
  have = set(flatten(params))
  if problem := _differences(have, paths):
    raise JaxsftError(
      f"found parameters that differ from the family's table: {problem}; expected "
      "exactly its paths: merge adapters before the export"
    )
  for group in views.by_tensor(names):
    leaves = {name: on_host(_get(params, name.path)) for name in group}
    prefix = "" if group[0].part == "head" else base_prefix
    tensors = tensor_names(prefix + group[0].hf, leaves[group[0]].shape)
    for slot in np.ndindex(tensors.shape):
      parts = {name: leaf[slot] for name, leaf in leaves.items()}
      yield tensors[slot], _whole(parts, dtype, tensors[slot])


def _whole(parts: dict[Any, np.ndarray], dtype: Any, hf: str) -> np.ndarray:
  """The tensor of a leaf, or of the leaves that are views of it."""
  shapes = {views.tensor_shape(name, part.shape) for name, part in parts.items()}
  if len(shapes) > 1:
    raise JaxsftError(
      f"found leaves of tensors of the shapes {sorted(shapes)} as parts of {hf!r}; "
      "expected parts of one tensor: correct the family's table"
    )
  if [name.view for name in parts] == [None]:
    return cast(*parts.values(), dtype, hf)
  by_view = {name.view: part for name, part in parts.items()}
  return views.join(by_view, shapes.pop(), dtype, lambda part: cast(part, dtype, hf))


def cast(values: np.ndarray, dtype: Any, name: str) -> np.ndarray:
  """`values` in `dtype` (round to nearest even); finite values must stay finite."""
  with np.errstate(over="ignore"):
    stored = values.astype(dtype, copy=False)
  finite = np.isfinite(stored)
  if not finite.all():
    bad = int(finite.size - finite.sum())
    biggest = float(np.nanmax(np.abs(values.astype(np.float32))))
    raise JaxsftError(
      f"found {bad} values of {name!r} that are not finite in {np.dtype(dtype).name} "
      f"(largest magnitude {biggest:.3g}); expected finite weights: if they were finite "
      "before, store them as float32 or bfloat16 (export.dtype)"
    )
  return stored


def on_host(leaf: Any) -> np.ndarray:
  """The whole of a leaf as NumPy, wherever its shards are."""
  if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
    from jax.experimental import multihost_utils

    leaf = multihost_utils.process_allgather(leaf, tiled=True)
  return np.asarray(leaf)


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
  """{"a/b/c": leaf} -> nested dict."""
  tree: dict[str, Any] = {}
  for path, leaf in flat.items():
    _set(tree, path, leaf)
  return tree


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Nested dict -> {"a/b/c": leaf}."""
  flat = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      flat |= flatten(value, f"{prefix}{key}/")
    else:
      flat[prefix + key] = value
  return flat


def _plan(
  source: Source,
  names: Sequence[Any],
  shapes: Mapping[str, Any],
  base_prefix: str,
  ignored: Sequence[str],
  tied: Sequence[tuple[str, str]],
) -> tuple[list[_Leaf], Report]:
  """Finds the tensors of every leaf, or raises with all that does not fit."""
  flat, ignored = flatten(shapes), [*ignored, *(f"^{re.escape(head)}$" for head, *_ in tied)]
  if problem := _differences(flat.keys(), {name.path for name in names}):
    raise JaxsftError(
      f"found a parameter tree that differs from the family's table: {problem}; "
      "expected the same paths in both"
    )
  views.by_tensor(names)
  prefix = _prefix(source, names, base_prefix)
  found, new, missing, wrong, used = [], [], {}, {}, set()
  for name in names:
    shape = tuple(flat[name.path].shape)
    full = ("" if name.part == "head" else prefix) + name.hf
    tensors = tensor_names(full, shape, source)
    absent = [tensor for tensor in tensors.flat if tensor not in source.tensors]
    if name.part != "base" and len(absent) == tensors.size:
      new.append(name.path)
      continue
    missing |= dict.fromkeys(absent)
    expected = views.tensor_shape(name, shape[tensors.ndim :])
    for tensor in set(tensors.flat) - set(absent):
      used.add(tensor)
      wrong |= dict.fromkeys(_misfit(source, tensor, expected))
    found.append(_Leaf(name.path, tensors, shape, name.view))
  rest = sorted(source.tensors.keys() - used)
  skipped = [name for name in rest if any(re.search(p, name) for p in ignored)]
  unknown = sorted(set(rest) - set(skipped))
  problems = [
    _some(list(missing), "missing"),
    _some(unknown, "not part of this model"),
    _some(sorted(wrong), "that do not fit"),
  ]
  if any(problems):
    raise JaxsftError(
      f"found weights in {source.path} that differ from its config.json: "
      f"{'; '.join(filter(None, problems))}. Expected the tensors of "
      f"{source.config.get('model_type')!r} exactly: check that config.json and weights "
      "belong together and are complete"
    )
  _check_tied(source, tied, names, base_prefix)
  return found, Report(len(used), tuple(new), tuple(skipped))


def tensor_names(hf: str, shape: tuple[int, ...], source: Source | None = None) -> np.ndarray:
  """Names in the file of a leaf of `shape`, by layer and expert where `hf` has them."""
  axes = [axis for axis in AXES if axis in hf]
  tensors = np.empty(shape[: len(axes)], object)
  for slot in np.ndindex(tensors.shape):
    name = hf
    for axis, number in zip(axes, slot, strict=True):
      name = name.replace(axis, str(number + 1 if axis == "{i+1}" else number))
    tensors[slot] = name if source is None else _present(source, name)
  return tensors


def _prefix(source: Source, names: Sequence[Any], base_prefix: str) -> str:
  """The prefix of the base's names in this file: a model with a head saves it, a bare
  base does not."""
  if not base_prefix:
    return ""
  found = lambda prefix: sum(
    tensor_names(prefix + name.hf, (1, 1), source).flat[0] in source.tensors
    for name in names
    if name.part == "base"
  )
  return base_prefix if found(base_prefix) >= found("") else ""


def _present(source: Source, name: str) -> str:
  """`name`, or its other spelling where the file has that."""
  if name not in source.tensors:
    for end, other in SPELLINGS:
      found = name.removesuffix(end) + other
      if name.endswith(end) and found in source.tensors:
        return found
  return name


def _misfit(source: Source, tensor: str, shape: tuple[int, ...]) -> list[str]:
  info = source.tensors[tensor]
  if info.shape != shape:
    return [f"{tensor} is {list(info.shape)}, expected {list(shape)}"]
  if info.dtype not in FLOATS:
    return [f"{tensor} is {info.dtype}, expected one of {', '.join(FLOATS)}"]
  return []


def _differences(found: Any, expected: Any) -> str:
  found, expected = set(found), set(expected)
  return "; ".join(
    filter(
      None,
      [
        _some(sorted(expected - found), "missing"),
        _some(sorted(found - expected), "unknown"),
      ],
    )
  )


def _some(items: Sequence[str], what: str) -> str:
  """ "3 missing (a, b, c)", with the first few of many; "" for none."""
  if not items:
    return ""
  more = f" and {len(items) - 4} more" if len(items) > 4 else ""
  return f"{len(items)} {what} ({', '.join(items[:4])}{more})"


def _read_leaf(source: Source, leaf: _Leaf, sharding: Any, dtype: Any) -> jax.Array:
  """One leaf: every distinct shard is read once, put on its devices and let go."""
  read, devices, indices = _reader(source, leaf, dtype), {}, {}
  for device, index in sharding.addressable_devices_indices_map(leaf.shape).items():
    key = repr(index)  # slices are not hashable before Python 3.12
    devices.setdefault(key, []).append(device)
    indices[key] = index
  shards = []
  for key, index in indices.items():
    gc.collect(0)  # jax lets go of what it has copied only here, or at its next operation
    values = read(index)
    shards += [jax.device_put(values, device) for device in devices[key]]
    jax.block_until_ready(shards)
    del values
  return jax.make_array_from_single_device_arrays(leaf.shape, sharding, shards)


def _reader(source: Source, leaf: _Leaf, dtype: Any) -> Callable[[Index], np.ndarray]:
  """A function that reads the slice `index` of a leaf, a few rows at a time, in `dtype`."""
  lead, shape = leaf.tensors.ndim, leaf.shape[leaf.tensors.ndim :]

  def read(index: Index) -> np.ndarray:
    tensors, index = leaf.tensors[(*index[:lead], ...)], index[lead:]
    sizes = [len(range(n)[i]) for n, i in zip(shape, index, strict=True)]
    values = np.empty((*tensors.shape, *sizes), dtype)
    rows = max(1, READ // max(1, values.itemsize * math.prod(sizes[1:])))
    for slot in np.ndindex(tensors.shape):
      for place, part in _blocks(shape, index, rows):
        found = views.read(source.read, tensors[slot], leaf.view, shape, part)
        values[(*slot, *place)] = cast(found, dtype, tensors[slot])
    return values

  return read


def _blocks(shape: tuple[int, ...], index: Index, rows: int) -> Iterator[tuple[Index, Index]]:
  """(its place in the slice, the part) of every `rows` rows of the slice `index`."""
  if not shape:
    yield (), ()
    return
  wanted = range(shape[0])[index[0]]
  for start in range(0, len(wanted), rows):
    part = wanted[start : start + rows]
    yield (slice(start, start + rows),), (slice(part.start, part.stop), *index[1:])


def _check_tied(
  source: Source,
  tied: Sequence[tuple[str, str]],
  names: Sequence[Any],
  base_prefix: str,
) -> None:
  """A tied head that was saved all the same must be the embedding, row by row."""
  said = bool(source.config.get("tie_word_embeddings"))
  prefix = _prefix(source, names, base_prefix)
  table = {name.hf for name in names}
  for head, base, *always in tied:
    embedding = prefix + base
    both = head in source.tensors and embedding in source.tensors
    if head in table or not both or not (said or always):
      continue
    info, other = source.tensors[head], source.tensors[embedding]
    same = info.shape == other.shape
    for start in range(0, info.shape[0] if same else 0, BLOCK):
      rows = (slice(start, start + BLOCK),)
      same = same and np.array_equal(source.read(head, rows), source.read(embedding, rows))
    if not same:
      raise JaxsftError(
        f"found {head!r} in {source.path} to differ from {embedding!r} although "
        "the model ties them; expected equal matrices: set tie_word_embeddings to "
        "false in config.json if the file is right"
      )


def _default_sharding() -> jax.sharding.Sharding:
  return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def _get(tree: Mapping[str, Any], path: str) -> Any:
  for key in path.split("/"):
    tree = tree[key]
  return tree


def _set(tree: dict[str, Any], path: str, value: Any) -> None:
  *parents, last = path.split("/")
  for key in parents:
    tree = tree.setdefault(key, {})
  tree[last] = value
