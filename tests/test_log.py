"""What is recorded: each step once, valid JSON, exact counts, honest rates, no secrets."""

import io
import json
import math
import os
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
from tensorboard.backend.event_processing import event_accumulator

from jaxsft import log, report
from jaxsft import screen as screen_lib

EVERY_STEP = types.SimpleNamespace(every=1, tensorboard=False)


class Clock:
  """Seconds that a test moves."""

  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


def screen(terminal=False, width=100):
  return rich.console.Console(file=io.StringIO(), force_terminal=terminal, width=width)


def make_log(directory, total=10, settings=EVERY_STEP, **kwargs):
  return log.Log(directory, settings, total, console=kwargs.pop("console", screen()), **kwargs)


def on_device(**numbers):
  return {name: jnp.asarray(value) for name, value in numbers.items()}


def lines_of(directory):
  text = (directory / "metrics.jsonl").read_text()
  refuse = lambda name: pytest.fail(f"{name} is not JSON")
  return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def train(directory, first, last, **kwargs):
  with make_log(directory, **kwargs) as logger:
    dropped = logger.start(first)
    for step in range(first + 1, last + 1):
      metrics = on_device(loss=1 / step, lr=0.5, bad=0)
      logger.step(step, metrics, tokens=7 * step, examples=2 * step)
  return dropped


def test_one_line_a_step_with_exact_numbers(tmp_path):
  train(tmp_path, 0, 3)
  lines = lines_of(tmp_path)
  assert [(line["kind"], line["step"]) for line in lines] == [("train", s) for s in (1, 2, 3)]
  assert lines[2]["tokens"] == 21 and lines[2]["examples"] == 6
  assert lines[1]["loss"] == 0.5 and lines[1]["lr"] == 0.5 and lines[1]["bad"] == 0


def test_every_keeps_the_first_the_due_and_the_last(tmp_path):
  train(tmp_path, 0, 10, settings=types.SimpleNamespace(every=4, tensorboard=False))
  assert [line["step"] for line in lines_of(tmp_path)] == [1, 4, 8, 10]


def test_a_resumed_run_has_each_step_once(tmp_path):
  whole = tmp_path / "whole"
  train(whole, 0, 8)
  cut = tmp_path / "cut"
  assert train(cut, 0, 6) == 0
  with (cut / "metrics.jsonl").open("a") as file:
    file.write('{"kind": "train", "step": 7, "lo')  # killed while writing
  assert train(cut, 4, 8) == 2
  time = {"train_seconds", "tokens_per_second", "examples_per_second"}
  same = lambda path: [{k: v for k, v in x.items() if k not in time} for x in lines_of(path)]
  assert same(cut) == same(whole)
  assert train(cut, 0, 1) == 8 and len(lines_of(cut)) == 1  # a fresh start keeps nothing


def test_metrics_are_read_after_the_next_update_was_dispatched(tmp_path):
  with make_log(tmp_path) as logger:
    logger.start(0)
    logger.step(1, on_device(loss=3.0), 1, 1)
    assert lines_of(tmp_path) == [] and logger.last == {}
    logger.step(2, on_device(loss=2.0), 2, 2)
    assert [line["loss"] for line in lines_of(tmp_path)] == [3.0]
    assert logger.last == {"loss": 3.0}
    with logger.pause():
      assert logger.last == {"loss": 2.0}  # a save or an evaluation finds all recorded
    logger.flush()
    logger.step(3, on_device(loss=1.0), 3, 3)
  assert [line["loss"] for line in lines_of(tmp_path)] == [3.0, 2.0, 1.0]


def test_stepping_moves_nothing_between_device_and_host_implicitly(tmp_path):
  metrics = [on_device(loss=1.0, lr=0.1) for _ in range(3)]
  with make_log(tmp_path) as logger, jax.transfer_guard("disallow"):
    logger.start(0)
    for step, one in enumerate(metrics, start=1):
      logger.step(step, one, step, step)


def test_what_is_not_finite_is_null_with_a_note(tmp_path):
  with make_log(tmp_path) as logger:
    logger.start(0)
    logger.step(1, on_device(loss=math.nan, grad_norm=math.inf, lr=0.1), 1, 1)
    logger.flush()
    logger.evaluation(1, {"loss": math.nan, "accuracy": 0.5})
  line, held_out = lines_of(tmp_path)
  assert line["loss"] is None and line["grad_norm"] is None and line["lr"] is not None
  assert line["note"] == "loss is nan, grad_norm is inf"
  assert held_out["eval_loss"] is None and held_out["eval_accuracy"] == 0.5


def test_evaluations_keep_numbers_and_leave_tables_out(tmp_path):
  numbers = {"accuracy": np.float32(0.25), "n": 8, "confusion": [[1, 2]], "labels": ["a"]}
  with make_log(tmp_path) as logger:
    logger.start(0)
    logger.evaluation(5, numbers)
  expected = {"kind": "eval", "step": 5, "eval_accuracy": 0.25, "eval_n": 8.0}
  assert lines_of(tmp_path) == [expected]


def test_counts_past_thirty_two_bits_are_exact(tmp_path):
  with make_log(tmp_path) as logger:
    logger.start(0)
    logger.step(1, on_device(loss=1.0), 2**53 + 1, 2**31 + 1)
  line = lines_of(tmp_path)[0]
  assert line["tokens"] == 2**53 + 1 and line["examples"] == 2**31 + 1


def test_rates_leave_out_compiling_and_pauses(tmp_path, monkeypatch):
  monkeypatch.setattr(log, "peak_flops", lambda kind: 1e6)
  clock, compiled = Clock(), types.SimpleNamespace(seconds=0.0)
  with make_log(tmp_path, clock=clock, flops_per_token=1000.0) as logger:
    logger.start(0, [compiled])

    def update(step, seconds):
      clock.now += seconds
      logger.step(step, on_device(loss=1.0), 600 * step, 6 * step)
      logger.flush()

    clock.now, compiled.seconds = 150.0, 50.0  # the first update compiles
    update(1, 9.0)
    assert logger.rates() == {}
    update(2, 2.0)
    with logger.pause():
      clock.now += 1000.0
      compiled.seconds += 400.0  # of these: the first evaluation
    clock.now += 30.0  # another batch shape compiles
    compiled.seconds += 30.0
    update(3, 4.0)
    rates = logger.rates()
  assert rates["tokens_per_second"] == pytest.approx(1200 / 6)
  assert rates["examples_per_second"] == pytest.approx(12 / 6)
  mfu = 1000.0 * 200 / (1e6 * jax.device_count())
  assert rates["mfu"] == pytest.approx(mfu)
  lines = lines_of(tmp_path)
  assert "tokens_per_second" not in lines[0]
  assert [line["tokens_per_second"] for line in lines[1:]] == pytest.approx([300, 150])
  assert [line["train_seconds"] for line in lines] == pytest.approx([0, 2, 6])


def test_a_resumed_run_counts_only_its_own_tokens(tmp_path):
  clock = Clock()
  with make_log(tmp_path, clock=clock) as logger:
    logger.start(1000)
    for step in (1001, 1002):
      clock.now += 1.0
      logger.step(step, on_device(loss=1.0), 10 * step, step)
      logger.flush()
    assert logger.rates()["tokens_per_second"] == pytest.approx(10)


@pytest.mark.parametrize(
  ("kind", "peak"),
  [
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5", 459e12),
    ("TPU v5p", 459e12),
    ("TPU v6 lite", 918e12),
    ("NVIDIA A100-SXM4-40GB", 312e12),
    ("NVIDIA H100 80GB HBM3", 989e12),
    ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA H200", 989e12),
    ("cpu", None),
  ],
)
def test_peaks(kind, peak):
  assert log.peak_flops(kind) == peak


def test_flops_of_a_token():
  attended = 2 * 8 * 4.0
  assert log.flops_per_token(100, 100, 100, attended, attended) == 6 * 100 + 12 * 2 * 8 * 4
  assert log.flops_per_token(100, 50, 10, 0, 0) == 2 * 100 + 2 * 50 + 2 * 10
  assert log.flops_per_token(100, 10, 10, attended, 0.0) == 2 * 100 + 4 * 10 + 4 * 2 * 8 * 4


def test_tensorboard_gets_each_step_once_without_tensorflow(tmp_path):
  settings = types.SimpleNamespace(every=1, tensorboard=True)
  train(tmp_path, 0, 5, settings=settings)
  train(tmp_path, 3, 6, settings=settings)
  assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 2
  events = event_accumulator.EventAccumulator(str(tmp_path)).Reload()
  points = events.Scalars("train/loss")
  assert [point.step for point in points] == [1, 2, 3, 4, 5, 6]
  assert points[3].value == 0.25
  code = (
    "import sys, types; from jaxsft import log;"
    "s = types.SimpleNamespace(every=1, tensorboard=True);"
    f"l = log.Log({str(tmp_path / 'other')!r}, s, 1); l.start(0); l.evaluation(1, dict(a=1));"
    "sys.exit(any(name.split('.')[0] == 'tensorflow' for name in sys.modules))"
  )
  root = os.path.dirname(os.path.dirname(__file__))
  assert subprocess.run([sys.executable, "-c", code], cwd=root, timeout=120).returncode == 0


def test_plain_lines_where_there_is_no_terminal(tmp_path):
  console = screen(width=40)
  train(tmp_path, 0, 2, console=console)
  text = console.file.getvalue()
  assert "update 2/10  loss 0.5" in text and "tokens/s" in text and "left" in text
  assert "\x1b" not in text and text.count("\n") == 2  # long lines are not folded


def test_a_bar_where_there_is_one(tmp_path):
  console = screen(terminal=True)
  with make_log(tmp_path, total=4, console=console) as logger:
    logger.start(0)
    for step in (1, 2, 3):
      metrics = on_device(loss=0.25, accuracy=0.75)
      logger.step(step, metrics, step, step)
    logger.say("a line [above] it")
  text = console.file.getvalue()
  assert "3/4" in text and "loss 0.25" in text and "accuracy 0.75" in text
  assert "a line [above] it" in text


def test_json_is_written_whole_and_plain(tmp_path):
  path = tmp_path / "x.json"
  log.write_json(path, {"a": np.float32(0.5), "b": math.nan, "c": np.arange(2), "d": (1, "é")})
  assert json.loads(path.read_text()) == {"a": 0.5, "b": None, "c": [0, 1], "d": [1, "é"]}
  with pytest.raises(TypeError):
    log.write_json(path, {"a": object()})
  assert json.loads(path.read_text())["a"] == 0.5
  assert os.listdir(tmp_path) == ["x.json"]


def test_secrets_stay_out(tmp_path):
  token = "hf_" + "a1B2" * 6
  config = {
    "data": {"path": "https://me:pass@host/rows.jsonl"},
    "model": {"path": f"https://host/x?a=1&token={token}&b=2", "tokens": 3},
    "list": [token],
  }
  log.write_json(tmp_path / "config.json", config)
  text = (tmp_path / "config.json").read_text()
  assert "pass" not in text and token not in text
  found = json.loads(text)
  assert found["data"]["path"] == "https://***@host/rows.jsonl"
  assert found["model"] == {"path": "https://host/x?a=1&token=***&b=2", "tokens": 3}
  console = screen()
  make_log(tmp_path, console=console).say(f"loading {token}")
  assert console.file.getvalue() == "loading ***\n"
  signed = "s3://b/x?X-Amz-Credential=AK&X-Amz-Signature=ab&sig=c&Access_Token=d&n=1 ends"
  assert log.scrub(signed) == (
    "s3://b/x?X-Amz-Credential=***&X-Amz-Signature=***&sig=***&Access_Token=***&n=1 ends"
  )
  assert log.scrub("a mail to me@x.org about https://host/@me") == (
    "a mail to me@x.org about https://host/@me"
  )


def test_preflight_keeps_the_config_and_the_report(tmp_path):
  audit = types.SimpleNamespace(
    lines=lambda: ["rows 3 read, [2] kept"],
    as_dict=lambda: {"rows": {"read": np.int64(3)}},
    parameters=lambda: {"total": 3},
  )
  console = screen()
  make_log(tmp_path, console=console).preflight({"seed": 1}, audit)
  assert console.file.getvalue() == "rows 3 read, [2] kept\n"
  data = json.loads((tmp_path / "data.json").read_text())
  assert data == {"rows": {"read": 3}, "report": ["rows 3 read, [2] kept"]}
  assert json.loads((tmp_path / "config.json").read_text()) == {"seed": 1}
  assert json.loads((tmp_path / "parameters.json").read_text()) == {"total": 3}


RESULT = {
  "task": "classify",
  "metrics": {
    "accuracy": 0.87654,
    "confusion": [[40, 7], [3, 1050]],
    "labels": ["[neg]", "pos"],
  },
  "best": {"step": 200, "metric": "accuracy", "value": 0.87654},
  "examples": [
    {"text": "a [bold]film[/bold]", "gold": "pos", "label": "pos", "score": 0.98765}
  ],
  "steps": 300,
  "tokens": 1234567,
  "compile_seconds": 4.5,
  "export": "runs/x/export",
}


def test_the_last_page(tmp_path):
  console, clock = screen(), Clock()
  with make_log(tmp_path, total=3, console=console, clock=clock) as logger:
    logger.start(0)
    for step in (1, 2, 3):
      clock.now += 2.0
      logger.step(step, on_device(loss=1.0), 100 * step, step)
    result = logger.close_with(RESULT, seconds=12.345)
  text = console.file.getvalue()
  assert "final metrics (best, after update 200): accuracy 0.8765" in text
  head, _, first, second = [x.split() for x in text.split("true \\ ")[1].splitlines()[:4]]
  assert head == ["predicted", "[neg]", "pos"]
  assert first == ["[neg]", "40", "7"] and second == ["pos", "3", "1,050"]
  assert "a [bold]film[/bold]" in text and "score  0.9877" in text
  assert "300 updates" in text and "1,234,567 tokens" in text and "4.5 seconds of them" in text
  assert "export  runs/x/export" in text and str(tmp_path / "report.html") in text
  assert result["seconds"] == 12.35 and result["tokens_per_second"] == pytest.approx(50)
  assert json.loads((tmp_path / "result.json").read_text()) == result
  assert (tmp_path / "report.html").exists()


def test_the_last_page_of_many_labels_and_of_none():
  console = screen()
  counts = np.diag([5] * 12)
  counts[2, 7] = 4
  labels = [f"l{i}" for i in range(12)]
  screen_lib.closing(console, {"metrics": {"confusion": counts.tolist(), "labels": labels}})
  assert "4  l2 → l7" in console.file.getvalue() and "l3 → " not in console.file.getvalue()
  console = screen()
  screen_lib.closing(console, {"task": "chat", "metrics": {}, "examples": [], "steps": 1})
  assert "final metrics: none" in console.file.getvalue()


def test_the_last_page_of_types():
  one = lambda n: {"precision": 0.5, "recall": 0.25, "f1": 1 / 3, "support": n, "right": 1}
  console = screen()
  per_type = {"PER": one(3), "[LOC]": one(1200), "ORG": one(3)}
  screen_lib.closing(console, {"metrics": {"f1": 0.4, "per_type": per_type}})
  head, _, *rows = [
    x.split() for x in console.file.getvalue().split("type ")[1].splitlines()[:5]
  ]
  assert head == ["precision", "recall", "f1", "support"]
  assert rows[0] == ["[LOC]", "0.5", "0.25", "0.3333", "1,200"]
  assert [row[0] for row in rows] == ["[LOC]", "ORG", "PER"]
  many = {f"T{n}": one(n) for n in range(23)}
  console = screen()
  screen_lib.closing(console, {"metrics": {"per_type": many}})
  said = console.file.getvalue()
  assert "and 3 more types" in said and "T3 " in said and "T2 " not in said


def test_the_last_page_of_slices():
  console = screen()
  whole = {"value": 0.75, "low": 0.625, "high": 0.875, "n": 1600}
  result = {"metrics": {}, "intervals": {"accuracy": whole}}
  screen_lib.closing(console, result)  # metrics.json and report.html have them
  assert "0.625" not in console.file.getvalue()
  screen_lib.closing(console, result | {"slices": {"by": [{"slice": "[b]a[/b]", **whole}]}})
  text = console.file.getvalue()
  assert "accuracy by by" in text
  (line,) = [line.split() for line in text.splitlines() if "[b]a[/b]" in line]
  assert line == ["[b]a[/b]", "0.75", "0.625", "to", "0.875", "1,600"]


def test_an_error_in_the_loop_is_not_replaced(tmp_path):
  with pytest.raises(ZeroDivisionError), make_log(tmp_path) as logger:
    logger.start(0)
    logger.step(1, on_device(loss=1.0), 1, 1)
    raise ZeroDivisionError
  assert report.read_metrics(tmp_path / "metrics.jsonl") == []


def test_samples_and_what_would_be_right(tmp_path):
  console = screen()
  shown = [
    {"prompt": "a cat", "answer": "eine"},
    {"prompt": "no", "answer": "ja", "gold": "nein"},
  ]
  make_log(tmp_path, console=console).samples("before", shown)
  text = console.file.getvalue()
  assert text.count("gold") == 1
  assert "answers before:\n  > a cat\n  eine\n  > no\n  ja\n  (gold: nein)\n" in text
