"""Take one file or directory out of a zip or tar archive that nobody has vouched for.

Names that leave the target, links, devices, doubled names and bombs are refused. Python's
own `extractall` filters differ between versions and know nothing of zip links.
"""

import contextlib
import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from jaxsft.data.read import near
from jaxsft.errors import JaxsftError

MAX_BYTES = 16 * 2**30
"""Most that one archive may unpack to: more than an index carries, less than a bomb."""

DAMAGED = (
  tarfile.TarError,
  zipfile.BadZipFile,
  gzip.BadGzipFile,
  zlib.error,
  lzma.LZMAError,
  EOFError,
  NotImplementedError,  # a compression that zipfile does not know
  RuntimeError,  # an encrypted zip
)


class Member(NamedTuple):
  """An entry of an archive, before it is trusted."""

  name: str
  kind: str
  """"file", "directory", or what it is instead."""
  open: Callable[[], IO[bytes] | None]


def unpack(archive: Path, wanted: str, target: Path, title: str) -> Path:
  """Copy file or directory `wanted` of `archive` into the new directory `target`.

  Names are matched element by element, exactly. Returns target/NAME; `title` names the
  archive in errors. Raises JaxsftError; what is in `target` then is to be thrown away.
  """
  wanted = wanted.strip("/")
  with _members(archive, title) as members:
    named = [(_safe_name(member.name, title), member) for member in members]
    inside = [
      (name, member)
      for name, member in named
      if name == wanted or name.startswith(f"{wanted}/")
    ]
    if not inside:
      raise JaxsftError(_missing(wanted, [name for name, _ in named], title))
    parent = wanted.rpartition("/")[0]
    left = MAX_BYTES
    for name, member in inside:
      if member.kind not in ("file", "directory"):
        raise JaxsftError(
          f"{title} holds {name} as a {member.kind}; only files and directories are "
          "unpacked: name a path without it"
        )
      left -= _copy(member, target / PurePosixPath(name).relative_to(parent), left, title)
  return target / wanted.rpartition("/")[2]


def _copy(member: Member, destination: Path, left: int, title: str) -> int:
  """Write one member; returns its bytes."""
  try:
    if member.kind == "directory":
      destination.mkdir(parents=True, exist_ok=True)
      return 0
    destination.parent.mkdir(parents=True, exist_ok=True)
    size = 0
    with member.open() as source, open(destination, "xb") as sink:
      while block := source.read(2**20):
        size += len(block)
        if size > left:  # counted while writing: the stated sizes may lie
          raise JaxsftError(
            f"{title} unpacks to more than {MAX_BYTES} bytes; if it is not a bomb, unpack "
            "it by hand and set the path to the result"
          )
        sink.write(block)
    return size
  except (FileExistsError, NotADirectoryError) as error:
    raise JaxsftError(f"{title} holds {member.name} twice; it was not unpacked") from error


@contextlib.contextmanager
def _members(path: Path, title: str) -> Iterator[list[Member]]:
  """The entries of a tar (plain, gz, bz2, xz) or a zip, told apart by their content."""
  try:
    if tarfile.is_tarfile(path):
      with tarfile.open(path) as archive:
        yield [
          Member(info.name, _tar_kind(info), partial(archive.extractfile, info))
          for info in archive
        ]
    elif zipfile.is_zipfile(path):
      with zipfile.ZipFile(path) as archive:
        yield [
          Member(info.filename, _zip_kind(info), partial(archive.open, info))
          for info in archive.infolist()
        ]
    else:
      raise JaxsftError(f"{title} is neither a zip nor a tar archive; drop the ! behind it")
  except DAMAGED as error:
    raise JaxsftError(f"{title} is damaged or cannot be read: {error}") from error


def _tar_kind(info: tarfile.TarInfo) -> str:
  if info.isreg():
    return "file"
  if info.isdir():
    return "directory"
  return "link" if info.issym() or info.islnk() else "device"


def _zip_kind(info: zipfile.ZipInfo) -> str:
  mode = info.external_attr >> 16  # unix mode, 0 where the zip was written elsewhere
  if stat.S_ISLNK(mode):
    return "link"
  if info.is_dir():
    return "directory"
  return "file" if stat.S_IFMT(mode) in (0, stat.S_IFREG) else "device"


def _safe_name(name: str, title: str) -> str:
  """`name` without ./ and closing /; refused where it could lead out of the target."""
  path = PurePosixPath(name)
  unsafe = path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name
  if unsafe or name[1:2] == ":":
    raise JaxsftError(
      f"{title} holds {name!r}, a path that leads out of the archive; nothing was unpacked, "
      "do not trust this file"
    )
  return str(path)


def _missing(wanted: str, files: list[str], title: str) -> str:
  names = dict.fromkeys(files)  # in order, and with the directories that have no entry
  names |= dict.fromkeys(str(p) for f in files for p in PurePosixPath(f).parents if p.name)
  last = wanted.rpartition("/")[2]
  same = [name for name in names if PurePosixPath(name).name == last][:5]
  hint = f" (did you mean {', '.join(same)}?)" if same else near(wanted, names)
  return f"{title} holds no {wanted}{hint}; give the whole path inside the archive"
