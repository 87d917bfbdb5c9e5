"""Runs over several data sets: their numbers apart, and what a resumed run must share."""

import json

import pytest

import jaxsft
from jaxsft import config as config_lib
from jaxsft import evaluate, sources, train
from tests import tiny
from tests.contract import build
from tests.mixing.two_sets import CLASSIFY, COLUMNS, checkpoint, settings


def test_numbers_of_a_set_are_those_of_an_evaluation_of_it_alone(place):
  model = jaxsft.load(checkpoint(place, "judge")[1])
  config = settings(place, model="judge")
  rows = sources.read_data(config.data, CLASSIFY)
  both, found, _ = evaluate.judge(model, config, rows.held_out)
  alone = {
    "a": {"data__path": str(place / "a.jsonl")},
    "b": {"data__path": str(place / "b.csv"), "data__columns": COLUMNS},
  }
  for name, changes in alone.items():
    one = settings(place, model="judge", data__mix=None, **changes)
    held = sources.read_data(one.data, CLASSIFY).held_out
    metrics, _, _ = evaluate.judge(model, one, held)
    assert sum(f.row.part == name for f in found) == len(held) > 2
    for key in ("loss", "accuracy"):
      assert both[f"{name}/{key}"] == pytest.approx(metrics[key], rel=1e-5)
    assert not any("/" in key for key in metrics)
  assert both["a/loss"] != both["b/loss"]


def test_a_run_tells_its_sets_apart_to_the_end(place, tmp_path, monkeypatch, capsys):
  tiny.on_devices(monkeypatch, 1)
  config = settings(place, a={"loss_weight": 2.0}, steps=3, evaluate__every=1)
  run = train.finetune(config, tmp_path / "run")
  lines = [json.loads(x) for x in (run.directory / "metrics.jsonl").read_text().splitlines()]
  evaluations = [line for line in lines if line["kind"] == "eval"]
  assert len(evaluations) == 3
  held = sources.read_data(config.data, CLASSIFY).held_out
  share = {name: sum(r.part == name for r in held) / len(held) for name in ("a", "b")}
  for line in evaluations:
    mean = sum(share[name] * line[f"eval_{name}/loss"] for name in share)
    assert mean == pytest.approx(line["eval_loss"], rel=1e-6)
  best = next(line for line in evaluations if line["step"] == run.result["best"]["step"])
  kept = json.loads((run.directory / "result.json").read_text())["sets"]
  assert kept["b/loss"] == best["eval_b/loss"] and kept["a/accuracy"] == best["eval_a/accuracy"]
  shown = capsys.readouterr().out
  assert f"of a: loss {kept['a/loss']:.4g}" in shown
  page = (run.directory / "report.html").read_text()
  assert "<h2>Data sets</h2>" in page and "<h3>a</h3>" in page
  found = json.loads((run.directory / "data.json").read_text())["plan"]["mixture"]
  assert [one["name"] for one in found] == ["a", "b"]
  stored = json.loads((run.directory / "config.json").read_text())
  assert config_lib.from_dict(stored) == config


def test_a_resumed_run_refuses_other_shares(place, tmp_path, monkeypatch):
  tiny.on_devices(monkeypatch, 1)
  job = lambda **changes: build.job(settings(place, **changes), tiny.devices(1))
  one, same = job(b={"epochs": 2.0}), job(b={"epochs": 2.0})
  other, weighed = job(b={"epochs": 3.0}), job(b={"epochs": 2.0, "loss_weight": 2.0})
  assert train.identity(one) == train.identity(same)
  assert train.identity(other)["data"] != train.identity(one)["data"]
  assert train.identity(weighed)["data"] == train.identity(one)["data"]  # the same order
  assert train.identity(weighed)["config"] != train.identity(one)["config"]
