"""The learning rate finder: its rules on curves that are known, and a run of it."""

import json

import numpy as np
import pytest

from jaxsft import find_lr
from jaxsft.errors import JaxsftError, UsageError
from tests import tiny


def rows(losses, low=1e-6, high=1.0):
  rates = np.geomspace(low, high, len(losses))
  pairs = zip(rates, losses, strict=True)
  return [{"step": i, "lr": lr, "loss": x, "smooth": x} for i, (lr, x) in enumerate(pairs)]


def test_the_rules_are_fastais():
  """A valley in log lr: least at 1e-2, steepest where its side is, at 1e-3."""
  x = np.linspace(-6, 0, 121)
  losses = 2 - np.tanh(2 * (x + 3)) + np.maximum(0, x + 2) ** 2
  found = find_lr.suggestion(rows(losses))
  least = 10 ** x[losses.argmin()]
  np.testing.assert_allclose(found["least"], least, rtol=1e-6)
  np.testing.assert_allclose(found["suggestion"], least / 10, rtol=1e-6)
  np.testing.assert_allclose(np.log10(found["steepest"]), -3, atol=0.06)
  assert found["note"] is None
  text = find_lr.page(rows(losses), found)
  assert "<svg" in text and "suggestion" in text and 'r="6"' in text


def test_curves_without_an_answer_say_so():
  assert "still falls" in find_lr.suggestion(rows(np.linspace(3, 1, 50)))["note"]
  rising = find_lr.suggestion(rows(np.linspace(1, 3, 50)))
  assert rising["suggestion"] is None and "no rate lowered the loss" in rising["note"]
  with pytest.raises(JaxsftError, match="diverged before a curve"):
    find_lr.suggestion(rows(np.ones(7)))


def test_flags_that_mean_nothing(tmp_path):
  file = tmp_path / "x.py"
  tiny.write_config(file, tiny.config("bert", "classify", "m", "d"))
  for flag, said in (("--low=2", "expected 0 < low < high"), ("--steps=3", "at least 20")):
    with pytest.raises(UsageError, match=said):
      find_lr.main([f"--config={file}", f"--out={tmp_path}", flag])


def test_what_was_found_is_kept_and_said(tmp_path, monkeypatch, capsys):
  seen, curve = [], rows(np.linspace(3, 1, 50))
  monkeypatch.setattr(find_lr, "measured", lambda *given: seen.append(given) or curve)
  file = tiny.write_config(tmp_path / "x.py", tiny.config("bert", "classify", "m", "d"))
  find_lr.main([f"--config={file}", f"--out={tmp_path / 'found'}", "--high=3"])
  assert [given[1:] for given in seen] == [(1e-7, 3.0, 100)]
  lines = (tmp_path / "found/lr.jsonl").read_text().splitlines()
  assert [json.loads(line) for line in lines] == curve
  found = json.loads((tmp_path / "found/lr.json").read_text())
  assert json.loads(capsys.readouterr().out) == found == find_lr.suggestion(curve)
  assert (tmp_path / "found/lr.html").read_text().startswith("<!doctype html>")


@pytest.mark.full
def test_a_run_leaves_its_curve(tmp_path, monkeypatch):
  tiny.on_devices(monkeypatch, 1)
  model = tiny.checkpoint(tmp_path / "bert", "bert")
  data = tiny.rows(tmp_path / "rows.jsonl", "classify")
  settings = {"batch_size": 1, "data__packing": "none", "data__split": 0.1, "steps": None}
  config = tiny.config("bert", "classify", model, data, **settings)
  file = tiny.write_config(tmp_path / "x.py", config)
  out = tmp_path / "found"
  flags = ["--low=1e-5", "--high=1e4", "--steps=24"]
  find_lr.main([f"--config={file}", f"--out={out}", *flags])
  lines = [json.loads(line) for line in (out / "lr.jsonl").read_text().splitlines()]
  ends = [1e-5 * 1e9 ** (line["step"] / 23) for line in lines]
  np.testing.assert_allclose([line["lr"] for line in lines], ends, rtol=1e-4)
  assert len(lines) < 24  # a rate of thousands is too much for anything
  assert json.loads((out / "lr.json").read_text()).keys() >= {"suggestion", "steepest"}
  assert (out / "lr.html").read_text().startswith("<!doctype html>")
