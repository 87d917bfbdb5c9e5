"""What processes of one run must share is compared, part by part."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from jaxsft import agreement, prepare, pretrained
from jaxsft.errors import JaxsftError
from tests import tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """(settings) -> {part: value} of a run with a further set of rows."""
  root = tmp_path_factory.mktemp("run")
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("JAXSFT_CACHE", str(root / "cache"))
    model, rows = tiny.checkpoint(root / "model", "bert"), root / "rows.jsonl"
    more = tiny.sentences(root / "more.jsonl", count=9)
    tiny.rows(rows, "classify")

    def parts(workdir="runs/x", **settings):
      settings = {"evaluate__sets": {"more": str(more)}} | settings
      config = tiny.config("bert", "classify", model, rows, **settings)
      base = pretrained.open_base(config.model)
      data = prepare.prepare(config, base, tiny.devices(1))
      return agreement.parts(config, base, data, workdir)

    parts.rows, parts.more, parts.model = rows, more, model
    yield parts


def refused(one, other):
  """The names of the parts in which the second of three processes differs."""
  gathered = np.stack([agreement.digests(x) for x in (one, other, one)])
  with pytest.raises(JaxsftError) as caught:
    agreement.refuse(list(one), gathered)
  before, said = str(caught.value).split("they differ in ")
  assert before == "the 3 processes of this run do not agree with process 0: "
  assert said.endswith("; start all with the same command, files and packages")
  parts = said.removesuffix("; start all with the same command, files and packages")
  assert all(part.endswith(" (process 1)") for part in parts.split(", "))
  return [part.removesuffix(" (process 1)") for part in parts.split(", ")]


def changed(file, text):
  """A file with another text, and how it was."""
  before = pathlib.Path(file).read_text()
  pathlib.Path(file).write_text(text(before))
  return before


def test_the_same_run_agrees(run):
  one, other = run(), run()
  assert one is not other and len(one) <= agreement.PARTS
  agreement.refuse(list(one), np.stack([agreement.digests(one), agreement.digests(other)]))
  rows = agreement.digests(one)[: len(one)]
  assert len({row.tobytes() for row in rows}) > 0.8 * len(one) and rows.any(1).all()


ROWS, SETS = "the training rows and their order", "the rows to evaluate on"


@pytest.mark.parametrize(
  ("settings", "names"),
  [
    ({"seed": 1}, ["the config", ROWS]),
    ({"log__every": 2}, ["config.log"]),
    ({"optim__peak_lr": 0.5}, ["config.optim"]),
    ({"data__split": 0.4}, ["config.data", ROWS, SETS]),
    ({"workdir": "runs/y"}, ["--workdir"]),
  ],
)
def test_other_settings(run, settings, names):
  assert refused(run(), run(**settings)) == names


@pytest.mark.parametrize(
  ("file", "text", "names"),
  [
    ("rows", lambda text: text.replace(" the ", " a ", 1), [ROWS]),
    ("more", lambda text: text.replace(" the ", " a ", 1), [SETS]),
  ],
)
def test_another_file_of_rows(run, file, text, names):
  one, file = run(data__split=0.0), getattr(run, file)
  before = changed(file, text)
  assert file.read_text() != before
  assert refused(one, run(data__split=0.0)) == names
  file.write_text(before)


def test_other_weights(run, tmp_path):
  one, file = run(), run.model / "model.safetensors"
  kept = shutil.copy(file, tmp_path)
  with file.open("r+b") as stream:
    stream.seek(-1, 2)
    last = stream.read()
    stream.seek(-1, 2)
    stream.write(bytes([last[0] ^ 1]))
  assert refused(one, run()) == ["the model's weights"]
  shutil.copy(kept, file)


@pytest.mark.parametrize("name", ["jax", "flax", "transformers", "tokenizers"])
def test_another_version(run, monkeypatch, name):
  one, known = run(), agreement.metadata.version
  later = lambda asked: known(asked) + (".1" if asked == name else "")
  monkeypatch.setattr(agreement.metadata, "version", later)
  # Stores are known by some of them; the rows in them are the same.
  assert refused(one, run()) == [f"the version of {name}"]


def test_other_code(tmp_path, monkeypatch):
  package = shutil.copytree(pathlib.Path(agreement.__file__).parent, tmp_path / "jaxsft")
  before = agreement.code_hash()
  monkeypatch.setattr(agreement, "__file__", str(package / "agreement.py"))
  assert agreement.code_hash() == before  # wherever it lies
  file = package / "tasks" / "classify.py"
  file.write_bytes(file.read_bytes() + b"#")
  assert agreement.code_hash() != before


def test_parts_that_only_some_processes_know():
  """Another version of jaxsft may compare more."""
  one, other = {"a": 1}, {"a": 1, "b": 2}
  gathered = np.stack([agreement.digests(x) for x in (one, other)])
  with pytest.raises(JaxsftError, match=r"a further part \(process 1\)"):
    agreement.refuse(list(one), gathered)


def test_one_process_computes_nothing_and_two_gather(monkeypatch):
  found = {"a": 1}
  agreement.check(None, None, None, None)  # nothing of it is looked at
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(agreement, "parts", lambda *_: found)
  other = agreement.digests({"a": 2})
  gather = lambda own: np.stack([own, other])
  monkeypatch.setattr(multihost_utils, "process_allgather", gather)
  with pytest.raises(JaxsftError, match=r"they differ in a \(process 1\)"):
    agreement.check(None, None, None, None)


def test_every_group_of_the_config_is_a_part(run):
  found, config = run(), tiny.config("bert", "classify", "m", "d")
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    group = dataclasses.is_dataclass(value)
    assert (f"config.{field.name}" if group else "the config") in found
    assert group or field.name in found["the config"]
  json.dumps(found)


def test_a_value_that_all_have_or_not(monkeypatch):
  one, other = [True, {"a": "b"}], [True, {"a": "c"}]
  assert agreement.same(one)  # of one process nothing is gathered
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  for there, expected in ((one, True), (other, False)):
    gather = lambda own, there=there: np.stack([own, agreement.digests({"": there})])
    monkeypatch.setattr(multihost_utils, "process_allgather", gather)
    assert agreement.same(one) is expected
