"""Saved states that can be trusted: written, read back, matched; the only importer of orbax.

A run directory holds `checkpoints/STEP/` for resuming and `best/STEP/` (parameters only), two
rules that do not touch each other. A step is one directory:

  arrays/          what orbax wrote, leaves under their path names (`opt_state/0/mu/…`)
  loop.json        what the host must remember (best/: info.json), Python numbers
  manifest.json    shape, dtype and checksum of every leaf; size and sha256 of every file

It is made under `tmp-STEP` and gets its name by one rename after every leaf was read back
from disk and equalled the leaf in memory. So a name that is a number is a whole checkpoint, or
one that was damaged later; its files' hashes tell.
"""

import contextlib
import functools
import json
import logging
import math
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxsft import manifest
from jaxsft.errors import JaxsftError

READ_BACK_BYTES = 256 * 2**20  # read back at a time: the memory that verifying needs
MEANING = {"config": "the settings", "data": "the data", "weights": "the base weights"}
NOTES = {"checkpoints": "loop.json", "best": "info.json"}


class Checkpoints:
  """The saved states of one run directory.

  `say` gets a line for everything that a person should know: damaged steps passed over,
  leftovers removed. With `read_only` nothing on disk is touched (another process may train).
  """

  def __init__(
    self,
    directory: str | os.PathLike,
    keep: int = 2,
    say: Callable[[str], Any] = print,
    read_only: bool = False,
  ):
    if keep < 1:
      raise JaxsftError(f"found checkpoint.keep = {keep}, expected at least 1")
    root = pathlib.Path(directory).absolute()
    self.directory = root / "checkpoints"
    self.best_directory = root / "best"
    self._keep, self._say, self._read_only = keep, say, read_only
    self._problems = {}  # directory -> why it is damaged, None: whole; each hashed once
    self._stack = contextlib.ExitStack()
    if not read_only:
      _first(self._clean)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._stack.close()

  @functools.cached_property
  def _orbax(self):
    import orbax.checkpoint as ocp  # late: slow to import, and not every verb saves

    handler = ocp.PyTreeCheckpointHandler()
    return self._stack.enter_context(ocp.Checkpointer(handler))

  def save(self, step: int, state: Any, loop: dict) -> None:
    """Saves a pytree of arrays and a JSON dict; returns when they were read back and matched.

    Raises JaxsftError, with earlier checkpoints as they were, where that fails or where a
    leaf is not finite.
    """
    self._write(self.directory / str(step), state, loop)
    _first(lambda: self._retain(self.directory, step, self._keep))

  def save_best(self, params: Any, info: dict) -> None:
    """Replaces the best parameters; `info` has "step" and "value", the finite metric."""
    value = info.get("value")
    if not isinstance(value, int | float) or not math.isfinite(value):
      raise JaxsftError(
        f"found {value!r} as the value of {info.get('metric', 'the best metric')} at step "
        f"{info.get('step')}, expected a finite number: such parameters are never the best"
      )
    self._write(self.best_directory / str(info["step"]), params, info)
    _first(lambda: self._retain(self.best_directory, info["step"], 1))

  def steps(self) -> list[int]:
    """Steps that have a directory, ascending; damaged ones included."""
    return _steps(self.directory)

  def latest(self) -> int | None:
    """The newest step whose files are as they were written; None: there is none."""
    return self._newest(self.directory, "checkpoint")

  def loop(self, step: int) -> dict:
    """The JSON dict that was saved with a step."""
    return _note(self.directory / str(step))

  def best(self) -> dict | None:
    """What `save_best` was given with the best parameters; None: there are none."""
    step = self._newest(self.best_directory, "best parameters")
    return None if step is None else _note(self.best_directory / str(step))

  def restore(self, step: int, abstract: Any) -> tuple[Any, dict]:
    """State and loop of a step, placed as the shardings of `abstract`'s leaves say.

    `abstract` has the structure of the saved state and leaves with shape, dtype and
    sharding (None: the first device); any mesh will do. Raises JaxsftError where the step is
    missing or damaged, or where a name, shape or dtype differs.
    """
    return self._read(self.directory / str(step), abstract)

  def restore_best(self, abstract: Any) -> tuple[Any, dict]:
    """Best parameters and their info, placed as `restore` does."""
    info = self.best()
    if info is None:
      raise JaxsftError(f"found no best parameters in {self.best_directory}: train first")
    return self._read(self.best_directory / str(info["step"]), abstract)

  def _write(self, target, tree, note):
    if self._read_only:
      raise JaxsftError(f"{target} cannot be saved: the run was opened for reading only")
    temporary = target.with_name(f"tmp-{target.name}")
    what = f"step {target.name} in {target.parent}"
    try:
      leaves = manifest.by_name(tree)
      described, bad = manifest.describe(leaves)
      if bad:  # a checkpoint is a place to go back to
        raise JaxsftError(f"found NaN or infinity in {bad[0]} ({len(bad)} leaves in all)")
      _first(lambda: _make_empty(temporary))
      with _quiet():
        self._orbax.save(temporary / "arrays", manifest.nested(_with_bytes(leaves)))
      self._read_back(temporary / "arrays", leaves, described)
      _first(lambda: _commit(temporary, target, note, described))
      self._problems[target] = None
    except Exception as error:  # orbax raises OSError, ValueError and several of its own
      _first(lambda: manifest.discard(temporary))
      if isinstance(error, JaxsftError):
        raise JaxsftError(f"{what} was not saved: {error}") from error
      raise JaxsftError(
        f"{what} was not saved: {_brief(error)}. Earlier checkpoints are as they were; free "
        "space on that disk or choose another --workdir, then run the same command again"
      ) from error

  def _read_back(self, arrays, leaves, described):
    for group in _groups(_with_bytes(leaves)):
      found, _ = manifest.describe(_flat(self._load(arrays, group)))
      for name in map("/".join, group):
        if found[name] != described[name]:
          raise JaxsftError(
            f"{name} read back from disk as {found[name]}, expected {described[name]}; "
            "the disk or its driver is not reliable, choose another --workdir"
          )

  def _load(self, arrays, wanted):
    """Reads the leaves of `wanted` (name -> shape, dtype, sharding) as a nested dict."""
    import orbax.checkpoint as ocp

    tree = manifest.nested({name: _abstract(leaf) for name, leaf in wanted.items()})
    how = ocp.checkpoint_utils.construct_restore_args(tree)
    args = ocp.args.PyTreeRestore(item=tree, restore_args=how, partial_restore=True)
    return self._orbax.restore(arrays, args=args)

  def _read(self, directory, abstract):
    problem = self._problem(directory)
    if problem:
      known = ", ".join(map(str, _steps(directory.parent))) or "none"
      raise JaxsftError(
        f"step {directory.name} in {directory.parent} cannot be used: {problem}. Steps "
        f"there: {known}; leave the step out to take the newest whole one"
      )
    saved = manifest.read(directory)
    wanted = manifest.by_name(abstract)
    manifest.check_leaves(directory, wanted)
    found = _flat(self._load(directory / "arrays", _with_bytes(wanted)))
    for name, leaf in wanted.items():
      if name not in found:  # orbax keeps no arrays without elements
        leaf = _abstract(leaf)
        found[name] = jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)
    for name, got in manifest.describe(found)[0].items():
      if got != saved[name]:
        raise JaxsftError(
          f"{name} of step {directory.name} in {directory.parent} was restored as {got}, "
          f"expected {saved[name]}: use an earlier step"
        )
    tree = jax.tree.unflatten(jax.tree.structure(abstract), [found[n] for n in wanted])
    return tree, _note(directory)

  def _problem(self, directory):
    if directory not in self._problems:
      self._problems[directory] = manifest.problem(directory)
    return self._problems[directory]

  def _newest(self, directory, what):
    chosen = -1
    if jax.process_index() == 0:
      for step in reversed(_steps(directory)):
        problem = self._problem(directory / str(step))
        if problem is None:
          chosen = step
          break
        self._say(f"{what} of step {step} in {directory} is damaged: {problem}")
      if _steps(directory) and chosen != _steps(directory)[-1]:
        use = f"step {chosen}" if chosen >= 0 else "nothing"
        self._say(f"using {use} from {directory}: the newest that is whole")
    if jax.process_count() > 1:
      chosen = int(multihost_utils.broadcast_one_to_all(np.int32(chosen)))
    return None if chosen < 0 else chosen

  def _retain(self, directory, saved, keep):
    """Keeps `saved`, which was verified just now, and the newest whole ones besides."""
    others = [s for s in reversed(_steps(directory)) if s != saved]
    whole = [s for s in others if self._problem(directory / str(s)) is None]
    for step in others:
      if step not in whole[: keep - 1]:
        if step not in whole:
          self._say(f"removing the damaged step {step} from {directory}")
        _remove(directory / str(step))
        self._problems.pop(directory / str(step), None)

  def _clean(self):
    """Removes what an interrupted save left; a step that was being replaced comes back."""
    for directory in (self.directory, self.best_directory):
      for path in sorted(directory.glob("old-*")):
        target = path.with_name(path.name.removeprefix("old-"))
        if not target.exists():
          os.rename(path, target)
      for path in [*directory.glob("tmp-*"), *directory.glob("old-*")]:
        if re.fullmatch(r"(tmp|old)-\d+", path.name):
          self._say(f"removing {path}: left by an interrupted save")
          shutil.rmtree(path)


def check_loop(saved: dict, current: dict) -> None:
  """Compares `saved["hashes"]` with `current`: "config", "data", "weights" -> a hash.

  A value may also be a dict, e.g. of settings; then the keys that differ are named. Raises
  JaxsftError where this is not the run that was saved.
  """
  hashes, current = saved.get("hashes", {}), _listed(current)
  differing = [key for key in MEANING if hashes.get(key) != current.get(key)]
  if not differing:
    return
  parts = [MEANING[k] + _changes(hashes.get(k), current.get(k)) for k in differing]
  raise JaxsftError(
    f"found a checkpoint of another run: {' and '.join(parts)} differ, so going on would be "
    "neither the old run nor a new one; choose a new --workdir, or restore what the "
    "checkpoint was made with"
  )


def _changes(old, new):
  if not isinstance(old, dict) or not isinstance(new, dict):
    return ""
  old, new = dict(_dotted(old)), dict(_dotted(new))
  keys = [k for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
  shown = [f"{k}: {old.get(k)!r} then, {new.get(k)!r} now" for k in keys[:5]]
  more = f"; {len(keys) - 5} more" if len(keys) > 5 else ""
  return f" ({'; '.join(shown)}{more})"


def _dotted(tree, prefix=""):
  for key, value in tree.items():
    if isinstance(value, dict) and value:
      yield from _dotted(value, f"{prefix}{key}.")
    else:
      yield prefix + key, value


def _listed(value):
  """As JSON gives it back: tuples as lists."""
  if isinstance(value, dict):
    return {key: _listed(part) for key, part in value.items()}
  return [_listed(part) for part in value] if isinstance(value, list | tuple) else value


def _first(action):
  """Process 0 does it; no process goes on before it is done, all of them know of a failure."""
  failure = None
  if jax.process_index() == 0:
    try:
      action()
    except Exception as error:
      failure = error
  if jax.process_count() > 1:
    done = bool(multihost_utils.broadcast_one_to_all(np.int32(failure is None)))
    if not done and failure is None:
      failure = JaxsftError("process 0 failed, see its message")
  if failure:
    raise failure


def _flat(tree):
  return manifest.by_name(tree) if tree else {}


def _with_bytes(leaves):
  return {name: leaf for name, leaf in leaves.items() if math.prod(leaf.shape)}


def _abstract(leaf):
  where = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)


def _groups(leaves):
  """Splits leaves into dicts of about READ_BACK_BYTES, at least one leaf each."""
  group, size = {}, 0
  for name, leaf in leaves.items():
    if group and size + leaf.nbytes > READ_BACK_BYTES:
      yield group
      group, size = {}, 0
    group[name] = leaf
    size += leaf.nbytes
  if group:
    yield group


def _steps(directory):
  if not directory.is_dir():
    return []
  names = [p.name for p in directory.iterdir() if re.fullmatch(r"\d+", p.name)]
  return sorted(map(int, names))


def _note(directory):
  return json.loads((directory / NOTES[directory.parent.name]).read_text())


def _make_empty(directory):
  shutil.rmtree(directory, ignore_errors=True)
  directory.mkdir(parents=True)


def _commit(temporary, target, note, leaves):
  """Adds the host's files and gives the step its name."""
  path = temporary / NOTES[target.parent.name]
  path.write_text(json.dumps(note, allow_nan=False, indent=1))
  if json.loads(path.read_text()) != _listed(note):
    raise JaxsftError(f"found values in {path.name} that JSON does not keep: {note}")
  for file in filter(pathlib.Path.is_file, temporary.rglob("*")):
    manifest.sync(file)
  manifest.write(temporary, int(target.name), leaves)
  if target.exists():  # the same step again, after going back to an earlier one
    old = target.with_name(f"old-{target.name}")
    os.rename(target, old)
    try:
      os.rename(temporary, target)
    except OSError:
      os.rename(old, target)
      raise
    shutil.rmtree(old)
  else:
    os.rename(temporary, target)
  manifest.sync(target.parent)


def _remove(directory):
  """Takes the number away first: a half-removed directory must not look like a step."""
  doomed = directory.with_name(f"tmp-{directory.name}")
  os.rename(directory, doomed)
  shutil.rmtree(doomed)


@contextlib.contextmanager
def _quiet():
  """Keeps off the screen what orbax's threads say of an error that is raised here anyway."""
  logger, hook = logging.getLogger("absl"), sys.unraisablehook
  level = logger.level
  logger.setLevel(logging.CRITICAL)
  sys.unraisablehook = functools.partial(_unraisable, hook)
  yield
  sys.unraisablehook = hook  # not after an error: they go on reporting until the process ends
  logger.setLevel(level)


def _unraisable(hook, event):
  if str(event.exc_value) != "Event loop is closed":
    hook(event)


def _brief(error):
  """One line: tensorstore's messages repeat the file and end in pages of settings."""
  line = " ".join(str(error).split()).split(" [tensorstore_spec=")[0] or "no message"
  line = line if len(line) <= 300 else f"{line[:140]} … {line[-150:]}"
  return f"{type(error).__name__}: {line}"
