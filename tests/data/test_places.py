"""Rows at URLs: fetched once, again when changed, never by half, refused in a sentence."""

import hashlib
import json
import sys
from pathlib import Path

import fsspec
import pyarrow
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from jaxsft import sources, tasks
from jaxsft.config import Config, Data, override
from jaxsft.data import fetch, places
from jaxsft.errors import JaxsftError, UsageError
from tests.data.test_arrow import stream
from tests.data.test_read import rows_of

ROWS = b'{"text": "a"}\n{"text": "b"}\n'


@pytest.fixture
def remote(tmp_path, monkeypatch):
  """put(path, content) writes to memory://; `fetched` counts what is downloaded."""
  monkeypatch.setenv("JAXSFT_CACHE", str(tmp_path / "cache"))
  system = fsspec.filesystem("memory")
  system.store.clear()
  get_file = MemoryFileSystem.get_file

  def counted(self, path, target, **options):
    put.fetched.append(path)
    return get_file(self, path, target, **options)

  def put(path, content=ROWS):
    system.pipe_file(path, content)

  put.fetched, put.system = [], system
  monkeypatch.setattr(MemoryFileSystem, "get_file", counted)
  yield put
  system.store.clear()


def refused(url, *parts, error=JaxsftError, sha256=None):
  with pytest.raises(error) as caught:
    fetch.resolve(url, sha256)
  for part in ("data.", url, *parts):
    assert part in str(caught.value), str(caught.value)


def left():
  """Files of the cache that are not whole."""
  return [path for path in fetch.cache_directory().rglob("*") if ".fetching-" in str(path)]


def test_a_file_is_fetched_once_and_again_when_it_changed(remote):
  remote("/d/rows.jsonl")
  first = fetch.resolve("memory://d/rows.jsonl", None)
  assert first.name == "rows.jsonl" and first.read_bytes() == ROWS
  assert [row.id for row in rows_of(first)] == ["rows.jsonl:1", "rows.jsonl:2"]
  assert fetch.resolve("memory://d/rows.jsonl", None) == first
  assert len(remote.fetched) == 1
  remote("/d/rows.jsonl", ROWS.replace(b"a", b"c"))  # of the same size
  second = fetch.resolve("memory://d/rows.jsonl", None)
  assert second.read_bytes() == ROWS.replace(b"a", b"c") and first.read_bytes() == ROWS
  second.write_bytes(b"half")  # a cache that lost something
  assert fetch.resolve("memory://d/rows.jsonl", None).read_bytes() == second.read_bytes()
  assert second.read_bytes() != b"half" and not left()


def test_a_pinned_file_needs_no_network_the_second_time(remote):
  remote("/d/rows.jsonl")
  pin = hashlib.sha256(ROWS).hexdigest()
  first = fetch.resolve("memory://d/rows.jsonl", pin.upper())
  remote.system.store.clear()
  assert fetch.resolve("memory://d/rows.jsonl", pin) == first
  remote("/d/rows.jsonl", ROWS + ROWS)
  first.write_bytes(b"other")
  refused("memory://d/rows.jsonl", "has sha256", "expected " + pin, "sha256", sha256=pin)
  assert not left()


def test_a_place_that_tells_only_the_size_is_asked_every_time(remote, monkeypatch):
  remote("/d/rows.jsonl")
  info = MemoryFileSystem.info
  dull = lambda self, path, **kw: {k: v for k, v in info(self, path).items() if k != "created"}
  monkeypatch.setattr(MemoryFileSystem, "info", dull)
  first = fetch.resolve("memory://d/rows.jsonl", None)
  assert fetch.resolve("memory://d/rows.jsonl", None) == first
  remote("/d/rows.jsonl", ROWS.replace(b"a", b"c"))
  assert fetch.resolve("memory://d/rows.jsonl", None).read_bytes() != ROWS
  assert len(remote.fetched) == 3


def test_never_half_a_file(remote, monkeypatch):
  remote("/d/rows.jsonl")
  url = "memory://d/rows.jsonl"

  def half(self, path, target, **options):
    Path(target).write_bytes(ROWS[:9])

  def broken(self, path, target, **options):
    Path(target).write_bytes(ROWS[:9])
    raise ConnectionError("gone")

  def changing(self, path, target, **options):
    Path(target).write_bytes(ROWS)
    remote("/d/rows.jsonl", ROWS.replace(b"a", b"c"))

  for get, said in ((half, "9 of 28 bytes"), (broken, "gone"), (changing, "changed while")):
    with monkeypatch.context() as patch:
      patch.setattr(MemoryFileSystem, "get_file", get)
      refused(url, said)
  assert not [path for path in fetch.cache_directory().rglob("*") if path.is_file()]
  assert fetch.resolve(url, None).read_bytes() == ROWS.replace(b"a", b"c")


def test_globs(remote):
  for name in ("p1/a.jsonl", "p1/.b.jsonl", "p2/a.jsonl", "p2/b.csv"):
    remote(f"/d/{name}")
  local = fetch.resolve("memory://d/*/a.jsonl", None)
  assert [row.id for row in rows_of(local)] == [f"p{n}/a.jsonl:{m}" for n in "12" for m in "12"]
  assert fetch.resolve("memory://d/*/a.jsonl", None) == local and len(remote.fetched) == 2
  remote("/d/p3/a.jsonl")  # one more file: another directory, and only it is fetched
  more = fetch.resolve("memory://d/**/*.jsonl", None)
  assert len(rows_of(more)) == 6 and len(remote.fetched) == 3
  remote("/d/deep.jsonl/a.txt")  # a directory of such a name is no file
  assert len(rows_of(fetch.resolve("memory://d/**/*.jsonl", None))) == 6
  refused("memory://d/*.txt", "found no file")
  pins = dict(error=UsageError, sha256="0" * 64)
  refused("memory://d/*/a.jsonl", "pins one file", **pins)


def test_sides_and_saved_directories(remote):
  remote("/d/t.en", b"a\nb\n")
  remote("/d/t.de", b"x\ny\n")
  rows = rows_of(fetch.resolve("memory://d/t.{en,de}", None))
  assert rows[1].fields == {"en": "b", "de": "y"} and rows[1].id == "t.{en,de}:2"
  refused("memory://d/t.{en,fr}", "found no file", "t.fr")
  remote("/s/train/data-0.arrow", stream(pyarrow.table({"t": ["a"]})))
  remote(
    "/s/train/state.json", json.dumps({"_data_files": [{"filename": "data-0.arrow"}]}).encode()
  )
  directory = fetch.resolve("memory://s/train", None)
  assert [row.id for row in rows_of(directory)] == ["train/data-0.arrow:1"]
  refused("memory://d", "is a directory", "memory://d/*.jsonl")


def test_what_cannot_be_fetched(remote, monkeypatch):
  refused("memory://d/none.jsonl", "found no file", "correct data.path")
  refused("nosuch://d/a.jsonl", "cannot be opened", "gs://, s3://", error=UsageError)
  for name, (package, extra) in {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}.items():
    monkeypatch.setitem(sys.modules, package, None)
    refused(f"{name}://d/a.jsonl", f"needs {package}", f"pip install 'jaxsft[{extra}]'")
  blocked = fetch.cache_directory()
  blocked.parent.mkdir(exist_ok=True)
  blocked.write_text("a file")
  remote("/d/rows.jsonl")
  with pytest.raises(JaxsftError, match=r"cannot be written .* JAXSFT_CACHE"):
    fetch.resolve("memory://d/rows.jsonl", None)


def test_of_every_key_that_names_rows(remote):
  for name in "abc":
    remote(f"/d/{name}.jsonl", b'{"text": "t", "label": "%s"}\n' % name.encode())
  data = Data(path="memory://d/a.jsonl", eval_path="memory://d/b.jsonl", split=0.0)
  config = Config(task="classify", data=data)
  config = override(config, "evaluate.sets", {"more": "memory://d/[c].jsonl"})
  rows = sources.read_data(config.data, tasks.TASKS["classify"])
  assert [rows.train[0].fields["label"], rows.held_out[0].fields["label"]] == ["a", "b"]
  more = sources.further_sets(config)["more"]
  assert more.train[0].fields["label"] == "c"
  said = [(one.path, one.format) for one in (*rows.sources, *more.sources)]
  assert said == [(f"memory://d/{name}.jsonl", "jsonl") for name in ("a", "b", "[c]")]
  assert rows.sources[0].found.startswith(str(fetch.cache_directory()))


def test_drivers_are_extras():
  text = (Path(places.__file__).parents[2] / "pyproject.toml").read_text()
  for package, extra in set(places.DRIVERS.values()):
    assert f'{extra} = ["{package}' in text


def test_queries_are_no_globs_and_no_names():
  assert places._name("https://host/a/rows.csv.gz?download=true&x=/y") == "rows.csv.gz"
  assert places.is_url("https://host/a") and not places.is_url("C:/a")
  assert not places.is_url("pypi:a==1!b") and not places.is_url("hf:a/b/train")
