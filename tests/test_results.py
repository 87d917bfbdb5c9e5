"""What an evaluation leaves for people, and models compared on the same rows."""

import json

import numpy as np
import pytest

import jaxsft
from jaxsft import compare, evaluate, prepare, report, results, tasks, train
from jaxsft.data.read import Row
from jaxsft.errors import JaxsftError, UsageError
from jaxsft.metrics import statistics
from jaxsft.tasks import classify
from tests import tiny

CONTEXT = tasks.Context(None, 64, labels=("neg", "pos"))


def found(margins, golds, fields=None, name="r"):
  """[tasks.Found]: the logit of "pos" less that of "neg", the gold id."""
  rows = []
  for i, (margin, gold) in enumerate(zip(margins, golds, strict=True)):
    more = {} if fields is None else fields[i]
    row = Row(
      f"{name}{i}", f"rows:{i + 1}", {"text": f"t{i}", "label": CONTEXT.labels[gold], **more}
    )
    example = {"inputs": np.zeros(3 + i % 5, np.int32), "label": np.int32(gold)}
    rows.append(tasks.Found(row, [example], [{"logits": np.float32([0, margin])}]))
  return rows


def test_the_files_say_what_was_found(tmp_path):
  rows = found([2.0, -1.0, -3.0], [1, 1, 0], [{"by": "a"}, {"by": "b"}, {"by": "a"}])
  metrics = {"accuracy": 2 / 3}
  said = results.write(tmp_path / "out", rows, classify, CONTEXT, metrics, ("by", "length"))
  lines = [json.loads(x) for x in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
  assert [x["id"] for x in lines] == ["r0", "r1", "r2"]
  assert [(x["gold"], x["label"]) for x in lines] == [
    ("pos", "pos"),
    ("pos", "neg"),
    ("neg", "neg"),
  ]
  assert lines[1]["text"] == "t1" and lines[1]["by"] == "b"
  assert lines[1]["loss"] == pytest.approx(np.log(1 + np.e))
  worst = [json.loads(x) for x in (tmp_path / "out/errors.jsonl").read_text().splitlines()]
  assert [x["id"] for x in worst] == ["r1", "r0", "r2"]
  assert json.loads((tmp_path / "out/metrics.json").read_text()) == json.loads(json.dumps(said))
  assert said["accuracy"] == 2 / 3 and said["intervals"]["accuracy"]["n"] == 3
  by = {part["slice"]: part for part in said["slices"]["by"]}
  assert (by["a"]["value"], by["a"]["n"]) == (1.0, 2) and (by["b"]["value"], by["b"]["n"]) == (
    0.0,
    1,
  )
  assert sum(part["n"] for part in said["slices"]["length"]) == 3
  shown = dict(report.parts(said))
  assert shown["accuracy by by"] == [("a", ("1", "1 to 1", "2")), ("b", ("0", "", "1"))]


def test_rows_are_written_as_the_user_wrote_them(tmp_path):
  """Offsets are of the text that stands there; a number that is none is null."""
  text = "see https://me:pass@host/?token=a1B2a1B2a1B2 and hf_a1B2a1B2a1B2a1B2a1B2a1B2"
  rows = found([1.0], [1], [{"text": text, "n": float("nan")}])
  results.write(tmp_path, rows, classify, CONTEXT, {})
  for name in ("predictions.jsonl", "errors.jsonl"):
    refuse = lambda constant: pytest.fail(f"{constant} is not JSON")
    (line,) = (tmp_path / name).read_text().splitlines()
    said = json.loads(line, parse_constant=refuse)
    assert said["text"] == text and said["n"] is None


def test_slices_of_numbers_are_quarters_and_rare_values_are_together():
  rows = found(
    [1.0] * 100, [1] * 100, [{"n": i, "name": f"n{i}", "few": i % 3} for i in range(100)]
  )
  quarters = results.groups(rows, "n")
  assert len(set(quarters)) == 4 and all(quarters.count(q) == 25 for q in set(quarters))
  assert quarters[0] == "0 to 24"
  names = results.groups(rows, "name")
  assert len(set(names)) == 21 and names.count("(other)") == 80
  assert sorted(set(results.groups(rows, "few"))) == ["0", "1", "2"]
  rows[3].row.fields.pop("few")
  assert results.groups(rows, "few")[3] == "(none)"
  with pytest.raises(UsageError, match=r"evaluate\.slices.*'nmae'.*name"):
    results.groups(rows, "nmae")


def test_rows_without_a_number_are_apart_from_its_quarters():
  """Large numbers that differ in their last digits are not one slice."""
  numbers = [1_700_000_000 + i for i in range(40)]
  gaps = [{"n": None}, {"n": float("nan")}, {}]
  rows = found([1.0] * 43, [1] * 43, [*({"n": n} for n in numbers), *gaps])
  said = results.groups(rows, "n")
  assert said[40:] == ["(none)"] * 3
  assert said[0] == "1700000000 to 1700000009" and said[39] == "1700000030 to 1700000039"
  assert [said.count(name) for name in dict.fromkeys(said)] == [10, 10, 10, 10, 3]
  parts = results.summary(rows, classify, CONTEXT, {}, ("n",))["slices"]["n"]
  assert {part["slice"]: part["n"] for part in parts}["(none)"] == 3
  lists = found([1.0] * 2, [1] * 2, [{"n": [1]}, {"n": [2]}])
  assert results.groups(lists, "n") == ["[1]", "[2]"]


def test_slices_by_length_are_of_the_source_where_there_is_one():
  make = lambda n: {"inputs": np.zeros(3, np.int32), "source": np.zeros(n, np.int32)}
  rows = [tasks.Found(Row(str(n), "", {}), [make(n)], []) for n in (10, 20, 30, 40)]
  assert results.groups(rows, "length") == [f"{n} to {n} tokens" for n in (10, 20, 30, 40)]


def test_a_better_model_is_told_from_chance():
  rng = np.random.default_rng(0)
  gold = rng.integers(0, 2, 400)
  right = lambda share: np.where(rng.random(400) < share, 1, -1) * (2.0 * gold - 1)
  good, bad, same = right(0.9), right(0.7), None
  same = bad.copy()
  same[:3] *= -1
  systems = {
    "bad": (found(bad, gold), CONTEXT),
    "good": (found(good, gold), CONTEXT),
    "same": (found(same, gold), CONTEXT),
  }
  said = compare.compare(systems, classify)
  pairs = {(*p["models"], p["metric"]): p for p in said["pairs"]}
  better = pairs["bad", "good", "accuracy"]
  assert better["better"] == "system" and better["p_randomisation"] < 0.01
  assert better["p_mcnemar"] < 0.01 and better["low"] > 0
  chance = pairs["bad", "same", "accuracy"]
  assert chance["p_randomisation"] > 0.05 and chance["p_mcnemar"] > 0.05
  shown = "\n".join(compare.table(said))
  assert "good - bad: accuracy" in shown and "good is better, beyond chance" in shown
  assert "which may be chance" in shown and "400 rows" in shown


def test_models_are_compared_on_the_rows_that_all_could_take():
  gold = [1, 0, 1, 0]
  whole, part = found([1.0, -1, 1, 1], gold), found([1.0, -1, 1, 1], gold)[1:]
  said = compare.compare({"a": (whole, CONTEXT), "b": (part, CONTEXT)}, classify)
  assert (said["rows"], said["left_out"]) == (3, 1)
  assert all(pair["difference"] == 0 and pair["better"] is None for pair in said["pairs"])
  other = found([1.0], [1], name="x")
  with pytest.raises(JaxsftError, match="no held-out row in common"):
    compare.compare({"a": (whole, CONTEXT), "b": (other, CONTEXT)}, classify)


def test_right_sentences_are_no_right_words():
  """The exact test is of rows that are right or wrong, not of shares within them."""
  shares = lambda hits: statistics.share("accuracy", hits, [10.0] * len(hits))
  assert compare._mcnemar(shares([9, 10]), shares([10, 9])) == {}
  assert compare._mcnemar(*[statistics.accuracy([1, 0], [1, 1])] * 2)["p_mcnemar"] == 1


def test_what_cannot_be_compared_is_said():
  rows = {"rows": 2, "left_out": 0, "metrics": {}}
  pair = {"models": ["a", "b"], "metric": "perplexity"}
  none = pair | {"difference": None, "better": None, "p_randomisation": None, "n": 2}
  shown = compare.table(rows | {"pairs": [pair | {"not_compared": "why"}, none]})
  assert shown[1:] == [
    "b - a: perplexity is not compared: why",
    "b - a: perplexity is undefined on these rows",
  ]


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
    jaxsft.load(run.export), config, prepare.further_sets(config)["more"].train
  )[0]
  assert kept["more/accuracy"] == again["accuracy"]
  assert kept["more/loss"] == pytest.approx(again["loss"], rel=1e-5)


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
