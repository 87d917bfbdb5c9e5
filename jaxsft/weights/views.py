"""Leaves that are a part of a tensor: fused q, k and v, fused MLPs, transposed kernels.

A view (families.View) says which rows of the tensor a leaf is; None is the whole tensor.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxsft.errors import JaxsftError
from jaxsft.weights.source import Index

Read = Callable[[str, Index], np.ndarray]
Cast = Callable[[np.ndarray], np.ndarray]


def by_tensor(names: Sequence[Any]) -> list[list[Any]]:
  """The table's names, those of one tensor together, in the order of the table.

  Raises JaxsftError unless the views of every tensor are all of its rows, each once.
  """
  groups: dict[tuple[str, str], list[Any]] = {}
  for name in names:
    groups.setdefault((name.part, name.hf), []).append(name)
  for (_, hf), group in groups.items():
    views = [name.view for name in group]
    if len(group) == 1 and views[0] is None:
      continue
    paths = ", ".join(name.path for name in group)
    if None in views or len({v[2:] for v in views}) > 1:
      raise JaxsftError(
        f"found {hf!r} in the family's table as {paths} with the views {views}; expected "
        "one leaf of the whole tensor, or views of one kind: correct the table"
      )
    edges = [0, *(edge for v in sorted(views) for edge in v[:2]), views[0].of]
    if edges[::2] != edges[1::2]:
      raise JaxsftError(
        f"found a gap or an overlap between the views of {hf!r} ({paths}: rows "
        f"{sorted(v[:2] for v in views)} of {views[0].of}); expected every row in one "
        "leaf: correct the table"
      )
  return list(groups.values())


def tensor_shape(name: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
  """Shape in the file of the tensor that the leaf `name`, one layer of `shape`, is part of.

  Raises JaxsftError where the leaf has other rows than its view.
  """
  view = name.view
  if view is None:
    return shape
  rows = view.groups * (view.stop - view.start)
  if shape[:1] != (rows,) or (view.transposed and len(shape) > 2):
    raise JaxsftError(
      f"found the leaf {name.path} to be {list(shape)}; expected {rows} rows, as the view "
      f"{tuple(view)} of {name.hf!r} says: correct the family's table"
    )
  whole = (view.groups * view.of, *shape[1:])
  if view.row:
    return (1, *whole)
  return whole[::-1] if _turned(view, whole) else whole


def read(source: Read, tensor: str, view: Any, shape: tuple[int, ...], index: Index) -> Any:
  """The slice `index` of a leaf of `shape` from its tensor; reads no other rows."""
  if view is None:
    return source(tensor, index)
  first, rest = (index[0], index[1:]) if index else (slice(None), ())
  parts = []
  for rows in _runs(view, *first.indices(shape[0])[:2]):
    if view.row:
      parts.append(source(tensor, (slice(0, 1), rows))[0])
    elif _turned(view, shape):
      columns = rest[0] if rest else slice(None)
      parts.append(source(tensor, (columns, rows)).T)
    else:
      parts.append(source(tensor, (rows, *rest)))
  return parts[0] if len(parts) == 1 else np.concatenate(parts)


def join(
  parts: Mapping[Any, np.ndarray], shape: tuple[int, ...], dtype: Any, cast: Cast
) -> np.ndarray:
  """The whole tensor of `shape` from its leaves by view, as it lies in the file."""
  out = np.empty(shape, dtype)
  for view, values in parts.items():
    rows = out[0] if view.row else out.T if _turned(view, shape) else out
    runs = _runs(view, 0, values.shape[0])
    done, values = 0, cast(values)
    for run in runs:
      size = run.stop - run.start
      rows[run] = values[done : done + size]
      done += size
  return out


def _turned(view: Any, shape: tuple[int, ...]) -> bool:
  return view.transposed and len(shape) == 2


def _runs(view: Any, start: int, stop: int) -> Iterable[slice]:
  """Where the rows start to stop of the leaf lie in the tensor, run by run."""
  size = view.stop - view.start
  if size == view.of or start >= stop:
    return [slice(start, max(start, stop))]
  runs = []
  for group in range(start // size, -(-stop // size)):
    offset = group * view.of + view.start - group * size  # of the tensor's row to the leaf's
    first, last = max(start, group * size), min(stop, (group + 1) * size)
    runs.append(slice(offset + first, offset + last))
  return runs
