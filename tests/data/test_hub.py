"""Data sets of the hub by name: which files are the rows of a split, and what is refused."""

from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

from jaxsft.data import fetch, hub
from jaxsft.errors import JaxsftError, UsageError
from tests.data.test_read import rows_of

COMMIT = "c0ffee" * 6 + "0000"
ROWS = '{"text": "%s"}\n'


@pytest.fixture
def repository(tmp_path, monkeypatch):
  """repository({file: content}) is what the hub holds as "owner/name" at any revision."""
  monkeypatch.setenv("JAXSFT_CACHE", str(tmp_path / "cache"))
  snapshot = tmp_path / "hub" / "snapshots" / COMMIT

  def hold(files):
    for name, content in files.items():
      path = snapshot / name
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(content)
    hold.files = files
    return hold

  class Api:
    def dataset_info(self, name, *, revision):
      hold.asked.append((name, revision))
      if name != "owner/name":
        raise OSError("404 not found")
      siblings = [SimpleNamespace(rfilename=file) for file in hold.files]
      return SimpleNamespace(sha=COMMIT, siblings=siblings)

  def download(name, file, *, repo_type, revision):
    assert (name, repo_type, revision) == ("owner/name", "dataset", COMMIT)
    hold.fetched.append(file)
    return str(snapshot / file)

  hold.asked, hold.fetched = [], []
  monkeypatch.setattr(huggingface_hub, "HfApi", Api)
  monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
  return hold


def texts(name):
  return [row.fields["text"] for row in rows_of(fetch.resolve(name, None))]


def refused(name, *parts, error=JaxsftError, sha256=None):
  with pytest.raises(error) as caught:
    fetch.resolve(name, sha256)
  for part in ("data.", name, *parts):
    assert part in str(caught.value), str(caught.value)


def test_shards(repository):
  names = [
    f"data/{split}-0000{n}-of-00002.jsonl" for split in ("train", "dev_new") for n in "01"
  ]
  repository(
    {"README.md": "# none", "x.py": "boom", "a.csv": ""} | {n: ROWS % n for n in names}
  )
  assert texts("hf:owner/name/train") == names[:2]
  assert texts("hf:owner/name@v2/dev_new") == names[2:]
  assert repository.asked == [("owner/name", None), ("owner/name", "v2")]
  assert "x.py" not in repository.fetched and "a.csv" not in repository.fetched
  path = fetch.resolve("hf:owner/name@refs/convert/x/train", None)
  assert COMMIT in str(path) and repository.asked[-1] == ("owner/name", "refs/convert/x")
  ids = [row.id for row in rows_of(path)]
  assert ids == [f"{name}:1" for name in names[:2]]
  refused(
    "hf:owner/name/test", "no files of the split 'test'", "train (2 files), dev_new (2 files)",
    "x.py", "never run",
  )  # fmt: skip


@pytest.mark.parametrize(
  ("files", "split", "found"),
  [
    (["train.jsonl", "dev.jsonl"], "train", ["train.jsonl"]),
    (["train.jsonl", "dev.jsonl"], "validation", ["dev.jsonl"]),
    (["train.jsonl", "my_val.jsonl"], "dev", ["my_val.jsonl"]),
    (["a/train/1.jsonl", "a/evaluation/1.jsonl"], "test", ["a/evaluation/1.jsonl"]),
    (["rows.jsonl", "LICENSE.txt", "dataset_infos.json", ".x.json"], "train", ["rows.jsonl"]),
    (["trainer.jsonl", "test-1.jsonl.gz"], "test", ["test-1.jsonl.gz"]),
    (["train-0.parquet", "train-1.parquet"], "train", ["train-0.parquet", "train-1.parquet"]),
  ],
)
def test_conventions(files, split, found):
  name = f"hf:owner/name/{split}"
  there = hub.splits(files, None, None, name, "data.path")
  assert hub._of_split(there, split, files, name, "data.path") == found


HEADER = """---
license: mit
configs:
- config_name: main
  data_files:
  - split: train
    path: "main/*.jsonl"
  - split: odd
    path: [x.jsonl, "deep/**"]
- config_name: plain
  data_files: x.jsonl
- config_name: inside
  data_dir: deep
- config_name: names
  data_files: {train: x.jsonl, test: ["main/b.jsonl"]}
---
text
"""
FILES = ["x.jsonl", "main/a.jsonl", "main/b.jsonl", "main/in/c.jsonl", "deep/er/test.jsonl"]


@pytest.mark.parametrize(
  ("name", "found"),
  [
    (":main/train", ["main/a.jsonl", "main/b.jsonl"]),
    (":main/odd", ["deep/er/test.jsonl", "x.jsonl"]),
    (":plain/train", ["x.jsonl"]),
    ("@v1:inside/test", ["deep/er/test.jsonl"]),
    (":names/test", ["main/b.jsonl"]),
  ],
)
def test_header(repository, name, found):
  repository({"README.md": HEADER} | {file: ROWS % file for file in FILES})
  assert texts(f"hf:owner/name{name}") == found


def test_the_default_configuration(repository):
  files = {file: ROWS % file for file in FILES}
  repository({"README.md": HEADER} | files)
  refused("hf:owner/name/train", "4 configurations", "main, plain", "hf:OWNER/NAME:main/SPLIT")
  refused("hf:owner/name:mian/train", "no configuration 'mian'", "did you mean 'main'")
  repository({"README.md": HEADER.replace("name: plain", "name: default")} | files)
  assert texts("hf:owner/name/train") == ["x.jsonl"]
  repository({"README.md": HEADER.replace("name: names", "name: n\n  default: true")} | files)
  assert texts("hf:owner/name/test") == ["main/b.jsonl"]
  two = HEADER.replace("name: names", "name: n\n  default: true")
  repository({"README.md": two.replace("name: plain", "name: default")} | files)
  refused("hf:owner/name/train", "4 configurations", "default")


def test_a_directory_as_configuration(repository):
  repository({"en/train.jsonl": ROWS % "a", "de/train.jsonl": ROWS % "b"})
  assert texts("hf:owner/name:de/train") == ["b"]
  refused("hf:owner/name:fr/train", "no configuration 'fr'", "de, en")


def test_what_is_refused(repository):
  repository({"train.jsonl": ROWS % "a", "train.csv": "text\n"})
  refused("hf:owner/name/train", "several formats", "train.csv, train.jsonl")
  repository({"train_test.jsonl": ROWS % "a"})
  refused("hf:owner/name/train", "train or test (1 file)")
  repository({"README.md": "", "name.py": "boom"})
  refused("hf:owner/name/train", "none; it has a script, name.py")
  refused("hf:owner/other/train", "could not be fetched", "404 not found")
  refused("hf:owner/train", "expected hf:OWNER/NAME/SPLIT", error=UsageError)
  refused("hf:owner/name/train", "a commit", error=UsageError, sha256="0" * 64)


def test_local_copy_is_whole(repository):
  """What the hub's own cache loses later does not matter, nor what lies beside the files."""
  repository({"train.jsonl": ROWS % "a", "test.jsonl": ROWS % "b"})
  path = fetch.resolve("hf:owner/name/train", None)
  assert isinstance(path, Path) and [f.name for f in path.parent.iterdir()] == ["train.jsonl"]
