"""What a whole checkpoint is: a checksum of every leaf, a hash of every file, in one manifest.

A directory whose files match its manifest was finished and is as it was written.
"""

import functools
import hashlib
import json
import os
import pathlib
import shutil
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsft.errors import JaxsftError

FILE = "manifest.json"
Leaves = dict[tuple[str, ...], Any]  # path of a leaf -> array


@jax.jit
def checksum(x):
  """64 bits over values and positions, and how many are not finite, as uint32[3].

  A sum modulo 2^32 of mixed (bits, index) does not depend on order, so it is taken where the
  shards are, without a copy on the host, and is the same on every mesh. The mixer (fmix32 of
  MurmurHash3) is one-to-one, so no change of a single element goes unseen.
  """
  bad = jnp.uint32(0)
  if jnp.issubdtype(x.dtype, jnp.floating):
    bad = (~jnp.isfinite(x)).sum(dtype=jnp.uint32)
    x = jax.lax.bitcast_convert_type(x, f"uint{min(32, 8 * x.dtype.itemsize)}")
  x = x.astype(jnp.uint32)
  index, stride = jnp.zeros_like(x), 1
  for axis in reversed(range(x.ndim)):
    step = jnp.uint32(stride % 2**32)
    index += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * step
    stride *= x.shape[axis]

  def mix(h):
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)

  first = mix(x ^ mix(index))
  second = mix(first ^ index ^ jnp.uint32(0x9E3779B9))
  sums = [part.sum(dtype=jnp.uint32) for part in (first, second)]
  return jnp.stack([*sums, bad])


def by_name(tree: Any) -> Leaves:
  """Leaves by path: dict keys, field names and indices as strings, so that optax's tuples
  become plain names that another optax can still read."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  names = {
    tuple(jax.tree_util.keystr((key,), simple=True) for key in path): leaf
    for path, leaf in leaves
  }
  if len(names) != len(leaves) or () in names:
    raise JaxsftError("found leaves without a name of their own, expected a dict of arrays")
  for name, leaf in names.items():
    if not hasattr(leaf, "sharding"):
      raise JaxsftError(f"found {type(leaf).__name__} at {'/'.join(name)}, expected an array")
  return names


def nested(leaves: Leaves) -> dict:
  """The nested dict of named leaves."""
  tree = {}
  for name, leaf in leaves.items():
    *parents, last = name
    functools.reduce(lambda node, key: node.setdefault(key, {}), parents, tree)[last] = leaf
  return tree


def describe(leaves: Leaves) -> tuple[dict[str, dict], list[str]]:
  """Shape, dtype and checksum of every leaf by "/"-joined name, and who is not finite."""
  sums = {"/".join(name): checksum(leaf) for name, leaf in leaves.items()}
  sums = {name: np.asarray(found) for name, found in sums.items()}
  shapes = {"/".join(name): (list(x.shape), str(x.dtype)) for name, x in leaves.items()}
  described = {
    name: {
      "shape": shape,
      "dtype": dtype,
      "checksum": f"{sums[name][0]:08x}{sums[name][1]:08x}",
    }
    for name, (shape, dtype) in shapes.items()
  }
  return described, [name for name, found in sums.items() if found[2]]


def write(directory: pathlib.Path, step: int, leaves: dict[str, dict]) -> None:
  """Describes every file below a finished directory; raises JaxsftError if that fails."""
  contents = {"format": 1, "step": step, "leaves": leaves}
  contents["files"] = _hash_files(directory)
  contents["sha256"] = _digest(contents)
  path = directory / FILE
  path.write_text(json.dumps(contents, indent=1))
  sync(path)
  found = problem(directory)  # what was just written is believed only once it was read
  if found:
    raise JaxsftError(found)
  sync(directory)


def read(directory: pathlib.Path) -> dict[str, dict]:
  """The leaves that the manifest lists."""
  return json.loads((directory / FILE).read_text())["leaves"]


def check_leaves(directory: pathlib.Path, wanted: Leaves) -> None:
  """Raises JaxsftError for the first name, shape or dtype that a directory has otherwise."""
  saved = read(directory)
  names = {"/".join(name): leaf for name, leaf in wanted.items()}
  where = f"the checkpoint {directory}"
  advice = "use the settings that made it, or a new --workdir"
  for name in saved:
    if name not in names:
      raise JaxsftError(f"found {name} in {where}, which this run does not have; {advice}")
  for name, leaf in names.items():
    if name not in saved:
      raise JaxsftError(f"found no {name} in {where}, which this run needs; {advice}")
    for key, expected in (("shape", list(leaf.shape)), ("dtype", str(leaf.dtype))):
      if saved[name][key] != expected:
        raise JaxsftError(
          f"found {key} {saved[name][key]} of {name} in {where}, expected {expected}; {advice}"
        )


def problem(directory: pathlib.Path) -> str | None:
  """Why the files are not those that were saved; None: they are."""
  try:
    contents = json.loads((directory / FILE).read_text())
    intact = contents["sha256"] == _digest(contents)
    found = _hash_files(directory)
  except FileNotFoundError as error:
    return f"{pathlib.Path(error.filename).name} is missing"
  except (OSError, ValueError, KeyError, TypeError) as error:
    return f"{FILE} cannot be read ({error})"
  if not intact:
    return f"{FILE} was changed"
  for name, expected in contents["files"].items():
    if name not in found:
      return f"{name} is missing"
    if found[name] != expected:
      return f"{name} was changed ({found[name][0]} bytes, saved with {expected[0]})"
  extra = sorted(set(found) - set(contents["files"]))
  return f"{extra[0]} was added" if extra else None


def sync(path: pathlib.Path) -> None:
  """Waits until a file or directory would survive a power failure."""
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)


def discard(directory: pathlib.Path) -> None:
  """Removes what a failed save wrote, until nothing new has come for two seconds.

  Its threads may still be adding files, and directories that were just removed. What comes
  even later is removed when the run is opened again.
  """
  quiet = 0
  for _ in range(200):
    quiet = 0 if directory.exists() else quiet + 1
    if quiet == 20:
      return
    shutil.rmtree(directory, ignore_errors=True)
    time.sleep(0.1)


def _hash_files(directory):
  files = {}
  for path in sorted(directory.rglob("*")):
    if path.is_file() and path != directory / FILE:
      with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
      files[path.relative_to(directory).as_posix()] = [path.stat().st_size, digest]
  return files


def _digest(contents):
  rest = {key: value for key, value in contents.items() if key != "sha256"}
  return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
