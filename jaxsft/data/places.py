"""Files at a URL that fsspec opens (gs://, s3://, https:// …), fetched once into the cache.

A file is kept under what its place says of its content (size, ETag, time, generation …), so
that a changed one is fetched again, or under its pinned sha256; where the place says nothing
but the size, it is fetched every time. It is put in place whole or not at all.
"""

import glob
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from jaxsft.data import arrow, index, parallel
from jaxsft.errors import JaxsftError, UsageError

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
DRIVERS = {
  "gs": ("gcsfs", "gcs"),
  "gcs": ("gcsfs", "gcs"),
  "s3": ("s3fs", "s3"),
  "s3a": ("s3fs", "s3"),
  "http": ("aiohttp", "https"),
  "https": ("aiohttp", "https"),
}
"""Scheme -> the package that opens it, the extra of jaxsft that brings it."""
TELLING = {"etag", "md5hash", "crc32c", "generation", "contentmd5", "digest", "versionid"}
TELLING |= {"lastmodified", "updated", "created", "mtime", "blobid"}
"""What places call that which changes with a file's content; case, - and _ aside."""


class Place(NamedTuple):
  """A URL, opened."""

  url: str
  key: str
  """The config key that holds it."""
  system: Any
  """fsspec's file system."""
  cache: Path


def is_url(path: str) -> bool:
  """Whether a path is a URL, such as gs://bucket/rows.jsonl."""
  return URL.match(path) is not None


def fetched(url: str, sha256: str | None, *, key: str, cache: Path) -> Path:
  """The local file, glob, `{a,b}` files or saved directory behind a URL, fetched where absent.

  A glob becomes the directory of its files, with names below the glob's first `*`. Raises
  JaxsftError where nothing is found, a driver is missing, or sha256 differs; UsageError.
  """
  cache = cache / "places"
  if sha256:
    kept = cache / sha256.lower() / _name(url)
    if kept.is_file() and index.digest_of(kept) == sha256.lower():
      return kept
  place, path = _open(url, key, cache)
  several = _several(place, path)
  if several is None:
    return _file(place, path, sha256)
  if sha256:
    section = key.partition(".")[0]
    raise UsageError(
      f"{section}.sha256 pins one file, but {key} is {url!r}; set {section}.sha256 to None"
    )
  files, name = several
  directory = laid_out(cache, {short: _file(place, one, None) for short, one in files.items()})
  return Path(glob.escape(str(directory)), "**") if name is None else directory / name


def laid_out(cache: Path, files: Mapping[str, Path]) -> Path:
  """A directory in the cache that holds these files, by name relative to it; nothing else."""
  digest = hashlib.sha256(repr(sorted((k, str(v)) for k, v in files.items())).encode())
  directory = cache / digest.hexdigest()[:32]
  if directory.is_dir():
    return directory
  with _work(cache) as work:
    for name, file in files.items():
      target = work / "files" / name
      target.parent.mkdir(parents=True, exist_ok=True)
      try:
        os.link(os.path.realpath(file), target)
      except OSError:  # another disk, or one that has no links
        shutil.copyfile(file, target)
    try:
      os.rename(work / "files", directory)
    except OSError:
      if not directory.is_dir():  # else another process was faster: its copy is as good
        raise
  return directory


def _open(url: str, key: str, cache: Path) -> tuple[Place, str]:
  """(`Place`, the path in its file system)."""
  import fsspec.core  # late: most runs have their rows on disk

  scheme = url.partition("://")[0].lower()
  try:
    system, path = fsspec.core.url_to_fs(url)
    system.invalidate_cache()  # what this process knows may have changed
  except ImportError as error:
    package, extra = DRIVERS.get(scheme, (None, None))
    what = f"{package}, which is not installed: pip install 'jaxsft[{extra}]'"
    raise JaxsftError(
      f"{key}: {url} needs {what if package else f'a package that is missing ({error})'}"
    ) from None
  except Exception as error:
    raise UsageError(
      f"{key}: {url} cannot be opened ({index.reason(error)}); expected a URL that fsspec "
      "knows, such as gs://, s3:// or https://, or a local path"
    ) from error
  return Place(url, key, system, cache), path


def _several(place: Place, path: str) -> tuple[dict[str, str], str | None] | None:
  """({short name: path} of more than one file, what they are in the end); None: it is one.

  What they are: None for a glob, else the name below their directory.
  """
  below = lambda root, file: file[len(root) :].lstrip("/")
  with _asked(place):
    if parallel.braced(path):
      root = path[: path.index("{")].rpartition("/")[0]
      sides = parallel.files(path, place.key).values()
      return {below(root, side): side for side in sides}, below(root, path)
    if "*" in path if place.url.startswith("http") else glob.has_magic(path):
      root = path[: re.search(r"[*?\[]", path).start()].rpartition("/")[0]
      found = place.system.glob(path, detail=True).items()
      files = {below(root, one): one for one, info in found if info["type"] != "directory"}
      files = {name: one for name, one in files.items() if not re.search(r"(^|/)\.", name)}
      if files:
        return files, None
    if place.url.startswith("http") or not place.system.isdir(path):
      return None
    names = [one.rstrip("/").rpartition("/")[2] for one in place.system.ls(path, detail=False)]
  if arrow.STATE not in names:
    raise JaxsftError(
      f"{place.key}: {place.url} is a directory; give a file, a glob such as "
      f"{place.url.rstrip('/')}/*.jsonl, or a split that `datasets` saved there"
    )
  last = path.rstrip("/").rpartition("/")[2]
  kept = [name for name in names if name.endswith((".arrow", ".json"))]
  return {f"{last}/{name}": f"{path.rstrip('/')}/{name}" for name in kept}, last


def _file(place: Place, path: str, sha256: str | None) -> Path:
  """The cached copy of one remote file."""
  with _asked(place):
    info = place.system.info(path)
  told, name = _told(info), _name(path)
  key = sha256 or (
    told and hashlib.sha256(repr((place.system.protocol, path, told)).encode()).hexdigest()
  )
  target = place.cache / key.lower() / name if key else None
  if target and not sha256 and target.is_file() and _sized(target, info):
    return target
  with _work(place.cache) as work:
    part = work / "part"
    with _asked(place):
      place.system.get_file(path, str(part))
      changed = _told(place.system.info(path)) != told
    if changed or not _sized(part, info):
      raise JaxsftError(
        f"{place.key}: {place.url} changed while {path} was fetched, or came incompletely "
        f"({part.stat().st_size:,} of {info.get('size')} bytes); start again"
      )
    digest = index.digest_of(part)
    if sha256 and digest != sha256.lower():
      section = place.key.partition(".")[0]
      raise JaxsftError(
        f"{place.key}: {place.url} has sha256 {digest}, expected {sha256}; put the pinned file "
        f"back, or set {section}.sha256 to the new value if the change is meant"
      )
    target = target or place.cache / digest / name
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(part, target)
  return target


def _name(path: str) -> str:
  """The last part of a path or URL, without a query of the web."""
  path = re.split(r"[?#]", path)[0] if path.startswith("http") else path
  return path.rstrip("/").rpartition("/")[2]


def _told(info: Mapping[str, Any]) -> list[tuple[str, str]]:
  """What a place says of a file's content, beside its size; []: nothing."""
  plain = {re.sub(r"[-_]", "", str(name)).lower(): value for name, value in info.items()}
  told = [(k, str(v)) for k, v in sorted(plain.items()) if k in TELLING and v is not None]
  return [*told, ("size", str(info.get("size")))] if told else []


def _sized(file: Path, info: Mapping[str, Any]) -> bool:
  return info.get("size") is None or file.stat().st_size == info["size"]


@contextmanager
def _asked(place: Place) -> Iterator[None]:
  """Turns what a driver raises into a sentence."""
  try:
    yield
  except JaxsftError:
    raise
  except FileNotFoundError as error:
    raise JaxsftError(
      f"{place.key}: found no file {place.url} ({index.reason(error)}); correct {place.key}"
    ) from error
  except Exception as error:  # drivers raise their own, their HTTP library's and OS errors
    raise JaxsftError(
      f"{place.key}: {place.url} could not be fetched ({index.reason(error)}); check the name, "
      "the network and the credentials, or copy the file here and name the copy"
    ) from error


@contextmanager
def _work(cache: Path) -> Iterator[Path]:
  """A directory in the cache that is gone afterwards."""
  try:
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".fetching-") as work:
      yield Path(work)
  except OSError as error:
    raise JaxsftError(
      f"the cache {cache} cannot be written ({error}); make room, or set the environment "
      "variable JAXSFT_CACHE to another directory"
    ) from error
