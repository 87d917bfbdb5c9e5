"""The bytes of text files, compressed or not: one generator a compression."""

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any

COMPRESSIONS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
CHUNK = 2**16


class Damaged(Exception):
  """A compressed stream is no such stream, or ends too early; the message says which."""


def bare(file: str) -> str:
  """A file's name without the suffix of its compression."""
  return file.removesuffix(compression(file))


def compression(file: str) -> str:
  """The suffix among COMPRESSIONS that a file's name ends with; "": there is none."""
  return next((suffix for suffix in COMPRESSIONS if file.endswith(suffix)), "")


def pieces(file: str) -> Iterator[bytes]:
  """The content, cut after each line feed; raises Damaged, OSError of the disk."""
  suffix = compression(file)
  if not suffix:
    with open(file, "rb") as stream:
      yield from stream
    return
  start: list[bytes] = []
  for chunk in chunks(file):
    *complete, rest = chunk.split(b"\n")
    for piece in complete:
      yield b"".join([*start, piece, b"\n"])
      start = []
    start.append(rest)
  yield b"".join(start)


def chunks(file: str) -> Iterator[bytes]:
  """The content in pieces of any length; raises Damaged, OSError of the disk."""
  suffix = compression(file)
  try:
    yield from READ[suffix](file)
  except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
    if isinstance(error, OSError) and error.errno is not None:
      raise  # the disk's
    raise Damaged(
      f"the {COMPRESSIONS.get(suffix, '')} stream is damaged or cut off here ({error})"
    ) from error


def _plain(file: str) -> Iterator[bytes]:
  with open(file, "rb") as stream:
    yield from iter(lambda: stream.read(CHUNK), b"")


def _gzip(file: str) -> Iterator[bytes]:
  with gzip.open(file) as stream:
    yield from iter(lambda: stream.read1(CHUNK), b"")


def _strict(start: Callable[[], Any], file: str) -> Iterator[bytes]:
  """Stream after stream. `bz2.open` and `lzma.open` would take what follows the first one, if
  it is damaged, for an end, and say nothing."""
  decompressor = None
  with open(file, "rb") as source:
    for data in iter(lambda: source.read(CHUNK), b""):
      while data := (data if decompressor else data.lstrip(b"\0")):  # zeros may fill up blocks
        decompressor = decompressor or start()
        yield decompressor.decompress(data)
        data = b""
        if decompressor.eof:
          data, decompressor = decompressor.unused_data, None
  if decompressor is not None:
    raise EOFError("the file ends before the stream does")


def _bzip2(file: str) -> Iterator[bytes]:
  return _strict(bz2.BZ2Decompressor, file)


def _xz(file: str) -> Iterator[bytes]:
  return _strict(lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ), file)


def _zstd(file: str) -> Iterator[bytes]:
  import pyarrow  # late; Python has zstd from 3.14 only

  with pyarrow.OSFile(file) as source, pyarrow.CompressedInputStream(source, "zstd") as stream:
    yield from iter(lambda: stream.read(CHUNK), b"")


READ = {"": _plain, ".gz": _gzip, ".bz2": _bzip2, ".xz": _xz, ".zst": _zstd}
