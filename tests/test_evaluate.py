"""The verb `evaluate`: what it measures, what it prints and what it leaves."""

import hashlib
import json

import numpy as np
import pytest

import jaxsft
from jaxsft import evaluate, sources, train
from jaxsft.errors import UsageError
from tests import tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """Two heads on the same body, rows, and a config."""
  root = tmp_path_factory.mktemp("evaluated")
  for name in ("a", "b"):
    tiny.checkpoint(root / name, "bert", labels=("neg", "pos"))
  tiny.sentences(root / "rows.jsonl", 24)
  tiny.sentences(root / "more.jsonl", 10)
  (root / "c.py").write_text(
    "from jaxsft.config import Config, Data, Evaluate, Model\n"
    "def get_config(arg=''):\n"
    f"  return Config(model=Model(path={str(root / 'a')!r}), data=Data(\n"
    f"    path={str(root / 'rows.jsonl')!r}, split=0.5),\n"
    "    evaluate=Evaluate(slices=('length',)))\n"
  )
  return root


def sha(text):
  return hashlib.sha256(text.encode()).hexdigest()


def test_the_verb_measures_compares_and_writes(place, capsys):
  config, out = f"--config={place / 'c.py'}", place / "out"
  evaluate.main([f"--model={place / 'a'}", config, f"--out={out / 'one'}"])
  said = json.loads(capsys.readouterr().out)
  rows = [json.loads(x) for x in (out / "one/predictions.jsonl").read_text().splitlines()]
  assert len(rows) == said["rows"] == said["examples"] == said["intervals"]["accuracy"]["n"]
  assert said["accuracy"] == np.mean([row["label"] == row["gold"] for row in rows])
  assert said["slices"]["length"]
  sets = f'--config.evaluate.sets={{"more": {json.dumps(str(place / "more.jsonl"))}}}'
  evaluate.main(
    ["--runs", str(place / "a"), str(place / "b"), config, sets, f"--out={out / 'two'}"]
  )
  shown, told = capsys.readouterr()
  both = json.loads(shown)
  assert set(both) == {"held out", "more"} and both["more"]["comparison"]["rows"] == 10
  assert both["held out"][str(place / "a")]["accuracy"] == said["accuracy"]
  assert "more:\n10 rows" in told and "accuracy +0" in told and "no difference" in told
  assert len(list((out / "two").rglob("predictions.jsonl"))) == 4
  for name, one in both.items():
    written = json.loads((out / "two" / name / "comparison.json").read_text())
    assert written == one["comparison"]


def test_what_was_measured_is_called_what_it_is(place, capsys):
  """Nothing is held out: all rows of data.path are measured."""
  sets = f'--config.evaluate.sets={{"more": {json.dumps(str(place / "more.jsonl"))}}}'
  more = ["--config.data.split=0", sets]
  evaluate.main([f"--model={place / 'a'}", f"--config={place / 'c.py'}", *more])
  said = json.loads(capsys.readouterr().out)
  assert {name: one[str(place / "a")]["rows"] for name, one in said.items()} == {
    "all rows": 24,
    "more": 10,
  }


def test_folds_are_measured_one_by_one(place, capsys):
  """Every row is held out once, and its text is what the template makes of it."""
  rows = [json.loads(line) for line in (place / "rows.jsonl").read_text().splitlines()]
  keys = ["--config.data.split=0", "--config.data.folds=2", "--config.data.id=name"]
  keys.append('--config.data.prompt={"text": "the film: {{ text }}"}')
  texts = []
  for fold in range(2):
    out = place / f"fold{fold}"
    more = [*keys, f"--config.data.fold={fold}", f"--out={out}"]
    evaluate.main([f"--model={place / 'a'}", f"--config={place / 'c.py'}", *more])
    said = json.loads(capsys.readouterr().out)
    found = [json.loads(x) for x in (out / "predictions.jsonl").read_text().splitlines()]
    assert said["rows"] == len(found)
    assert [int(sha(row["id"])[0] > "7") for row in found] == [fold] * len(found)
    texts += [row["text"] for row in found]
  assert sorted(texts) == sorted(f"the film: {row['text']}" for row in rows)


def test_what_was_not_scored_is_counted(place, tmp_path, capsys):
  """Two texts of 14 tokens are too long for 12; an empty text is no row."""
  texts = ["the film " * 6, "the film", "the " * 9, " ", "the film " * 6]
  rows = tmp_path / "rows.jsonl"
  rows.write_text("".join(json.dumps({"text": t, "label": "pos"}) + "\n" for t in texts))
  path, more = f"--config.data.path={rows}", ["--config.data.split=0"]
  for too_long, counts in (
    ("drop", {"scored": 2, "examples": 2, "dropped": {"dropped: too long": 2}}),
    ("truncate", {"scored": 4, "examples": 4, "truncated": {"truncated": 2}}),
  ):
    cut = [f"--config.data.too_long={too_long}", "--config.data.max_length=12"]
    evaluate.main([f"--model={place / 'a'}", f"--config={place / 'c.py'}", path, *more, *cut])
    said = json.loads(capsys.readouterr().out)
    names = ("scored", "examples", "dropped", "truncated", "noted")
    assert {name: said[name] for name in names if name in said} == counts
    assert said["rows"] == 4 and said["left_out"] == {"empty text": 1}


def test_a_run_keeps_the_numbers_of_further_sets(place, tmp_path, monkeypatch):
  """Those of the best parameters, which the export has."""
  tiny.on_devices(monkeypatch, 1)
  settings = {"steps": 2, "evaluate__sets": {"more": str(place / "more.jsonl")}}
  config = tiny.config("bert", "classify", place / "a", place / "rows.jsonl", **settings)
  run = train.finetune(config, tmp_path / "run")
  kept = json.loads((run.directory / "result.json").read_text())["sets"]
  again = evaluate.judge(
    jaxsft.load(run.export), config, sources.further_sets(config)["more"].train
  )[0]
  assert kept["more/accuracy"] == again["accuracy"]
  assert kept["more/loss"] == pytest.approx(again["loss"], rel=1e-5)
  read = json.loads((run.directory / "data.json").read_text())["rows"]["sources"]
  assert [one["key"] for one in read] == ["data.path", "evaluate.sets['more']"]
  assert {one["format"] for one in read} == {"jsonl"} and read[1]["rows"] == 10


def test_every_model_has_a_directory_of_its_own():
  found = evaluate._directories("out", ("held out", "more"), ["r/a", "r_a", "r:a", "b"])
  names = {name: str(path) for (place, name), path in found.items() if place == "more"}
  assert names == {
    "r/a": "out/more/r_a",
    "r_a": "out/more/r_a~2",
    "r:a": "out/more/r_a~3",
    "b": "out/more/b",
  }
  assert len(set(found.values())) == 8
  assert str(evaluate._directories("out", ("more",), ["r/a"])["more", "r/a"]) == "out"


def test_the_verb_needs_models(place):
  config = f"--config={place / 'c.py'}"
  twice = [str(place / "a"), f"{place / 'a'}/"]
  for argv in ([config], [config, "--runs", "a", "a"], [config, "--runs", *twice]):
    with pytest.raises(UsageError, match=r"expected --model=DIR_OR_NAME, or several"):
      evaluate.main(argv)
