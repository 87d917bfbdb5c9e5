"""Archives that lie, leave their directory or never end are refused, and nothing is kept."""

import gzip
import io
import stat
import tarfile
import zipfile

import pytest

from jaxsft.data import unpack
from jaxsft.errors import JaxsftError


def write_tar(path, members):
  """members: (name, bytes) or (TarInfo, None)."""
  with tarfile.open(path, "w:gz") as archive:
    for name, content in members:
      if content is None:
        archive.addfile(name)
        continue
      info = tarfile.TarInfo(name)
      info.size = len(content)
      archive.addfile(info, io.BytesIO(content))
  return path


def write_zip(path, members):
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    for name, content in members:
      archive.writestr(name, content)
  return path


def special(name, kind, target="/etc/passwd"):
  info = tarfile.TarInfo(name)
  info.type, info.linkname = kind, target
  return info


def take(archive, wanted, tmp_path):
  target = tmp_path / "out"
  target.mkdir()
  return unpack.unpack(archive, wanted, target, "data.path: x==1")


@pytest.mark.parametrize("write", [write_tar, write_zip])
@pytest.mark.parametrize("name", ["d/../../evil", "../evil", "/evil", "d\\..\\evil", "C:/evil"])
def test_paths_that_lead_out(write, name, tmp_path):
  archive = write(tmp_path / "a", [("d/good", b"1"), (name, b"2")])
  with pytest.raises(JaxsftError, match=r"data.path: x==1 holds .*leads out of the archive"):
    take(archive, "d", tmp_path)
  assert not list((tmp_path / "out").iterdir()) and not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
  "kind,word",
  [
    (tarfile.SYMTYPE, "link"),
    (tarfile.LNKTYPE, "link"),
    (tarfile.CHRTYPE, "device"),
    (tarfile.FIFOTYPE, "device"),
  ],
)
def test_links_and_devices_in_tar(kind, word, tmp_path):
  archive = write_tar(tmp_path / "a", [("d/good", b"1"), (special("d/x", kind), None)])
  with pytest.raises(JaxsftError, match=f"holds d/x as a {word}"):
    take(archive, "d", tmp_path)
  assert unpack.unpack(archive, "d/good", tmp_path / "out2", "t").read_bytes() == b"1"


@pytest.mark.parametrize("mode,word", [(stat.S_IFLNK, "link"), (stat.S_IFCHR, "device")])
def test_links_and_devices_in_zip(mode, word, tmp_path):
  info = zipfile.ZipInfo("d/x")
  info.external_attr = (mode | 0o777) << 16
  archive = write_zip(tmp_path / "a", [("d/good", b"1"), (info, b"/etc/passwd")])
  with pytest.raises(JaxsftError, match=f"holds d/x as a {word}"):
    take(archive, "d", tmp_path)


@pytest.mark.parametrize("write", [write_tar, write_zip])
def test_bomb(write, tmp_path, monkeypatch):
  monkeypatch.setattr(unpack, "MAX_BYTES", 1500)
  archive = write(tmp_path / "a", [("d/x", bytes(1000)), ("d/y", bytes(1000)), ("z", b"1")])
  with pytest.raises(JaxsftError, match="more than 1500 bytes"):
    take(archive, "d", tmp_path)
  assert unpack.unpack(archive, "d/x", tmp_path / "out2", "t").stat().st_size == 1000


@pytest.mark.parametrize(
  "members", [[("d", b"1"), ("d/x", b"2")], [("d/x", b"1"), ("d/x", b"2")]]
)
def test_names_that_clash(members, tmp_path):
  archive = write_tar(tmp_path / "a", members)
  with pytest.raises(JaxsftError, match="holds d/x twice"):
    take(archive, "d", tmp_path)


def test_only_exact_names_match(tmp_path):
  archive = write_tar(tmp_path / "a", [("./d/x", b"1"), ("d2/x", b"2"), ("d/x2", b"3")])
  assert take(archive, "d/x/", tmp_path).read_bytes() == b"1"
  assert [p.name for p in (tmp_path / "out").iterdir()] == ["x"]
  with pytest.raises(JaxsftError, match=r"holds no x \(did you mean d/x, d2/x\?\)"):
    unpack.unpack(archive, "x", tmp_path / "out", "t")
  with pytest.raises(JaxsftError, match=r"holds no quite_else.*d2/x"):
    unpack.unpack(archive, "quite_else", tmp_path / "out", "t")


def test_damaged(tmp_path):
  whole = write_tar(tmp_path / "a", [("d/x", bytes(range(256)) * 99)]).read_bytes()
  for name, content in [("cut", whole[:-40]), ("empty.gz", gzip.compress(b"no tar"))]:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(JaxsftError, match=r"data.path: x==1 is (damaged|neither a zip nor)"):
      unpack.unpack(tmp_path / name, "d/x", tmp_path / f"out-{name}", "data.path: x==1")
  crc = bytearray(write_zip(tmp_path / "z", [("d/x", b"hello " * 50)]).read_bytes())
  crc[14] ^= 1  # in the local header; the directory's copy is at the end
  crc[crc.rindex(b"PK\x01\x02") + 16] ^= 1
  (tmp_path / "z").write_bytes(bytes(crc))
  with pytest.raises(JaxsftError, match=r"damaged.*CRC"):
    unpack.unpack(tmp_path / "z", "d/x", tmp_path / "out-z", "t")
