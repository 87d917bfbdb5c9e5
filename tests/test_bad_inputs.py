"""Bad inputs of every kind: each ends in a sentence to act on, and nothing is lost.

Every case breaks a copy of a good setup in one way and runs a verb in it. It names the exit
code (1: an error, 2: wrong usage) and what the sentence must say: what was found, where, and
what to change. Afterwards no input has changed and nothing half-written is left.
"""

import gc
import json
import os
import pathlib
import shutil
import subprocess
import sys
import warnings

import pytest

from jaxsft import train
from tests import bad_inputs, tiny
from tests.bad_inputs import (
  answers,
  chats,
  checkpoints,
  cleaning,
  configs,
  files,
  made,
  rows,
  tags,
  texts,
  verbs,
)
from tests.bad_inputs.cases import LONG

CASES = rows.ROWS + files.FILES + chats.CHATS + answers.ANSWERS + tags.TAGS + texts.TEXTS
CASES += cleaning.CLEANING
CASES += made.MADE + checkpoints.MODELS + configs.CONFIGS + verbs.RUNS + verbs.VERBS


@pytest.fixture(scope="session")
def good(tmp_path_factory):
  """The good setup and a run that trained in it: what every case starts from."""
  root = tmp_path_factory.mktemp("good")
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(root)
    patch.setenv("JAXSFT_CACHE", "cache")
    patch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    tiny.on_devices(patch, 1)
    bad_inputs.build(root)
    train.main(["--config=config.py", "--workdir=run"])
    shutil.rmtree(root / "cache")
  return root


def place_of(good, root, patch, verb, task):
  shutil.copytree(good, root)
  patch.chdir(root)
  patch.setenv("JAXSFT_CACHE", "cache")
  patch.setenv("JAX_COMPILATION_CACHE_DIR", "")
  bad_inputs.send_temporaries_to(root.parent / "temporary", patch)
  tiny.on_devices(patch, 1)  # the few that compile do it for one device
  return bad_inputs.Place(root, patch, verb, task)


@pytest.mark.parametrize(("verb", "task", "spoil", "code", "parts"), CASES)
def test_bad_input(
  request, good, tmp_path, monkeypatch, capsys, verb, task, spoil, code, parts
):
  place = place_of(good, tmp_path / "place", monkeypatch, verb, task)
  spoil(place)
  before = bad_inputs.hashes(place.root)
  found, out, err = place.run(capsys)
  after = bad_inputs.hashes(place.root)
  lines = err.splitlines()
  assert lines and lines[-1].startswith("error: "), f"no sentence in {err!r} after {out!r}"
  sentence = lines[-1]
  print(sentence)
  assert "Traceback" not in out + err
  assert len(lines) == 1, err
  assert found == code, sentence
  missing = [part for part in parts if part not in sentence]
  assert not missing, f"{missing} not in {sentence!r}"
  assert {name: after.get(name) for name in before} == before, "an input was changed"
  bad_inputs.check_whole(place.root, before)
  bad_inputs.no_temporaries(place.root.parent / "temporary")
  if "at a checkpoint" in request.node.callspec.id:
    with warnings.catch_warnings():  # Orbax never awaits what a full disk kept it from
      warnings.simplefilter("ignore", RuntimeWarning)
      gc.collect()


def test_what_is_odd_but_right(good, tmp_path, monkeypatch, capsys):
  """A byte order mark, a glob, a text to cut and a batch of all rows: trained, and said."""
  place = place_of(good, tmp_path / "place", monkeypatch, "train", "classify")
  lines = place.path("rows.jsonl").read_text().splitlines(keepends=True)
  place.write("part-0.jsonl", ("\ufeff" + "".join(lines[:15])).encode())
  place.write("part-1.jsonl", "".join(lines[15:]) + json.dumps(LONG) + "\n")
  for key, value in {
    "data.path": "part-*.jsonl",
    "data.too_long": "truncate",
    "data.split": 0,
    "batch_size": 99,
    "steps": 1,
  }.items():
    place.set(key, value)
  code, out, err = place.run(capsys)
  assert (code, err) == (0, "")
  assert "31 read, 31 kept" in out and "1 truncated" in out
  assert "batch_size 99 is larger than the data (31 examples)" in out
  assert json.loads(place.path("out/result.json").read_text())["steps"] == 1


@pytest.mark.parametrize(
  ("argv", "code", "part"),
  [
    (["jaxsft.train"], 2, "--config: missing"),
    (["jaxsft.predict", "--model=.", "--data=none.jsonl", "--out=o"], 1, "none.jsonl"),
  ],
)
def test_a_process_ends_in_its_exit_code(tmp_path, argv, code, part):
  root = str(pathlib.Path(train.__file__).parents[1])
  done = subprocess.run(
    [sys.executable, "-m", *argv],
    cwd=tmp_path,
    env=os.environ | {"PYTHONPATH": root},
    capture_output=True,
    text=True,
  )
  assert done.returncode == code and part in done.stderr and "Traceback" not in done.stderr
  assert not list(tmp_path.iterdir())
