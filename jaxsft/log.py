"""What a run shows and keeps: progress, metrics.jsonl, TensorBoard events, throughput, result.

metrics.jsonl has one JSON object a line, `kind` "train" (every `log.every` updates, the first
and the last) or "eval" (names prefixed "eval_"), each step once also after a resume; the
numbers are those of that step's batch. `tokens` and `examples` are totals so far.
"""

import contextlib
import json
import math
import os
import pathlib
import re
import time
from typing import Any

import jax
import numpy as np

from jaxsft import report as report_lib
from jaxsft import screen
from jaxsft.errors import JaxsftError

# Dense bfloat16 peak of one device in FLOP/s by device kind; first match wins.
# TPUs: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}; GPUs: NVIDIA's data sheets, dense.
PEAKS = (
  (r"TPU v4", 275e12),
  (r"TPU v5 ?lite|TPU v5e", 197e12),
  (r"TPU v5", 459e12),
  (r"TPU v6", 918e12),
  (r"A100", 312e12),
  (r"H100 PCIe", 756e12),
  (r"H100|H200", 989e12),
)
# user:password@ in an address, tokens of well-known shape, ?token=…, what signs an address
SECRETS = re.compile(
  r"(?<=://)[^/\s@]+(?=@)|\bhf_[A-Za-z0-9]{8,}|\bgh[pousr]_[A-Za-z0-9]{16,}"
  r"|(?P<key>[?&](?i:[^=&\s]*(?:token|key|sig|signature|credential|password|secret))=)[^&\s]+"
)


def peak_flops(device_kind: str) -> float | None:
  """Dense bf16 FLOP/s of one device of a kind (`device.device_kind`); None: not known."""
  return next((peak for kind, peak in PEAKS if re.search(kind, device_kind)), None)


def flops_per_token(
  params: float, passed: float, trainable: float, attended: float, attended_passed: float
) -> float:
  """Floating-point operations of one training token.

  params: parameters that multiply it (without looked-up embeddings; what multiplies only
  some tokens counts by their share, layers too); passed: those through which the backward
  pass goes; trainable: those that get gradients; attended: L N H S, S the mean number of
  positions that a query attends to; attended_passed: of the layers through which the
  backward pass goes. 2 a parameter forward, 2 for the gradient of its input, 2 for its own:
  6N where all train, plus 12 L N H S of attention (PaLM, arXiv:2204.02311, appendix B).
  """
  products = 2.0 * params + 2.0 * passed + 2.0 * trainable
  return products + 4.0 * attended + 8.0 * attended_passed


def scrub(value: Any) -> Any:
  """A JSON value without secrets: passwords in addresses and access tokens become ***."""
  if isinstance(value, str):
    return SECRETS.sub(lambda found: (found["key"] or "") + "***", value)
  if isinstance(value, dict):
    return {key: scrub(part) for key, part in value.items()}
  return [scrub(part) for part in value] if isinstance(value, list | tuple) else value


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Writes JSON whole or not at all: NumPy numbers as numbers, NaN as null, no secrets."""
  path = pathlib.Path(path)
  temporary = path.with_name(f".{path.name}.tmp")
  text = json.dumps(plain(scrub(value)), indent=2, ensure_ascii=False, allow_nan=False)
  try:
    temporary.write_text(text + "\n", encoding="utf-8")
    os.replace(temporary, path)
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)


class Log:
  """Owns the files and the progress bar of a run; only process 0 writes and shows.

  settings: `every` and `tensorboard` of the config's `log`. total: planned updates.
  flops_per_token: of a training token, for MFU (None: not shown). The metrics of an update
  are converted when the next one was dispatched, so the device never waits for the host.
  """

  def __init__(
    self, directory, settings, total, flops_per_token=None, console=None, clock=None
  ):
    self.directory = pathlib.Path(directory)
    try:
      self.directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise JaxsftError(
        f"--workdir={directory}: this run directory cannot be made ({error.strerror}); choose "
        "another one, or move away what is there"
      ) from error
    self.last = {}  # metrics of the last update that was converted
    self._every, self._total = settings.every, total
    self._tensorboard = settings.tensorboard
    self._flops = flops_per_token
    self._console = console or screen.console()
    self._clock = clock or time.perf_counter
    self._active = jax.process_index() == 0
    self._first, self._compiled = 0, ()
    self._pending = None  # step, metrics on the device, tokens, examples
    self._mark = self._begin = None  # (seconds, tokens, examples): last line, first update
    self._paused = 0.0
    self._events = self._file = self._bar = None

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    try:
      if kind is None:
        self.flush()
    finally:
      if self._bar:
        self._bar.stop()
      for file in (self._file, self._events):
        if file:
          file.close()

  def say(self, line: str) -> None:
    """One line for people, above the progress bar."""
    if self._active:
      where = self._bar.console if self._bar else self._console
      where.print(scrub(line), markup=False, highlight=False, soft_wrap=True)

  def preflight(self, config: dict, audit: Any) -> None:
    """Keeps config.json, data.json (an audit.Audit and its lines) and parameters.json, and
    shows the lines."""
    if self._active:
      lines = list(audit.lines())
      write_json(self.directory / "config.json", config)
      write_json(self.directory / "data.json", {**audit.as_dict(), "report": lines})
      write_json(self.directory / "parameters.json", audit.parameters())
      for line in lines:
        self.say(line)

  def start(self, first: int, compiled: Any = ()) -> int:
    """Opens the files at update `first`, dropping lines of later steps; returns how many.

    compiled: objects whose `.seconds` is compile time spent so far, kept out of the rates.
    """
    self._first, self._compiled = first, tuple(compiled)
    if not self._active:
      return 0
    path = self.directory / "metrics.jsonl"
    lines = report_lib.read_metrics(path)
    kept = [line for line in lines if first and line["step"] <= first]
    temporary = path.with_name(".metrics.jsonl.tmp")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
    os.replace(temporary, path)
    self._file = path.open("a", encoding="utf-8")
    if self._tensorboard:
      self._events = _Events(self.directory, first)
    if self._console.is_terminal:
      self._bar = screen.training_bar(self._console, self._total, first)
    return len(lines) - len(kept)

  def step(self, step: int, metrics: dict, tokens: int, examples: int) -> None:
    """Takes the metrics of update `step` (from 1) as arrays still on the device.

    tokens, examples: processed in the whole run until now, Python ints.
    """
    earlier, self._pending = self._pending, (step, metrics, tokens, examples)
    if self._begin is None:  # may have compiled: rates count from the end of this update
      jax.block_until_ready(metrics)
      self._begin = (self._now(), tokens, examples)
    self._convert(earlier)

  def flush(self) -> None:
    """Waits for the last update and records it; before a save, so that no line is lost."""
    earlier, self._pending = self._pending, None
    self._convert(earlier)

  @contextlib.contextmanager
  def pause(self):
    """Time that is no training: evaluations, saves, samples."""
    self.flush()
    begin = self._now()  # compiling inside is left out already
    try:
      yield
    finally:
      self._paused += self._now() - begin

  def evaluation(self, step: int, metrics: dict) -> None:
    """Records the numbers of an evaluation; tables stay in result.json."""
    numbers = {k: v for k, v in metrics.items() if isinstance(v, int | float | np.number)}
    self._write("eval", step, {f"eval_{k}": float(v) for k, v in numbers.items()})
    shown = ", ".join(f"{name} {report_lib.shorten(value)}" for name, value in numbers.items())
    self.say(f"evaluation after update {step}: {shown}")

  def samples(self, when: str, shown: list[dict]) -> None:
    """Shows prompts and answers of a model that writes, and the right ones where known."""
    self.say(f"answers {when}:")
    for sample in shown:
      gold = f"\n  (gold: {sample['gold']})" if "gold" in sample else ""
      self.say(f"  > {sample['prompt']}\n  {sample['answer']}{gold}")

  def rates(self) -> dict:
    """Throughput after the first update, without compiling and pauses; {} before the second."""
    return {} if self._mark is None else self._rates(self._begin, self._mark)

  def close_with(self, result: dict, seconds: float) -> dict:
    """Completes `result`, writes result.json and report.html, shows the last page.

    seconds: of the whole run, from its start.
    """
    self.flush()
    result = {**result, "seconds": round(seconds, 2), **self.rates()}
    if self._active:
      if self._bar:
        self._bar.stop()
      result["report"] = str(self.directory / "report.html")
      write_json(self.directory / "result.json", result)
      report_lib.write(self.directory)
      screen.closing(self._console, scrub(result))
    return result

  def _convert(self, pending):
    if pending is None or not self._active:
      return
    step, metrics, tokens, examples = pending
    names = sorted(metrics, key=lambda name: name != "loss")
    values = jax.device_get([metrics[name] for name in names])
    self.last = {name: value.item() for name, value in zip(names, values, strict=True)}
    mark = (self._now(), tokens, examples)
    if self._mark is None:
      mark = self._mark = self._begin
    due = step % self._every == 0 or step in (1, self._total)
    rates = self._rates(self._mark, mark) if due or self._bar else {}
    if due:
      epoch = {"epoch": self.last["epoch"]} if "epoch" in self.last else {}
      counts = {"tokens": tokens, "examples": examples}
      line = {**epoch, **self.last, **counts, "train_seconds": mark[0] - self._begin[0]}
      self._write("train", step, line | rates)
      self._mark = mark
    self._show(step, rates, mark, due)

  def _now(self):
    return self._clock() - self._paused - sum(c.seconds for c in self._compiled)

  def _rates(self, begin, end):
    seconds = end[0] - begin[0]
    if seconds <= 0 or end[2] <= begin[2]:
      return {}
    tokens, examples = ((end[i] - begin[i]) / seconds for i in (1, 2))
    rates = {"tokens_per_second": tokens, "examples_per_second": examples}
    peak = peak_flops(jax.devices()[0].device_kind)
    if peak and self._flops:
      rates["mfu"] = self._flops * tokens / (peak * jax.device_count())
    return rates

  def _write(self, kind, step, numbers):
    if not self._active or self._file is None:
      return
    line = {"kind": kind, "step": step, **numbers}
    odd = [k for k, v in line.items() if isinstance(v, float) and not math.isfinite(v)]
    if odd:
      line["note"] = ", ".join(f"{name} is {line[name]}" for name in odd)
    self._file.write(json.dumps(plain(line), allow_nan=False) + "\n")
    self._file.flush()
    if self._events:
      self._events.write(step, {f"{kind}/{k}": v for k, v in numbers.items()})

  def _show(self, step, rates, mark, due):
    parts = [
      f"{k} {report_lib.shorten(self.last[k])}" for k in ("loss", "accuracy") if k in self.last
    ]
    if "tokens_per_second" in rates:
      parts.append(f"{rates['tokens_per_second']:,.0f} tokens/s")
    if "mfu" in rates:
      parts.append(f"MFU {rates['mfu']:.1%}")
    done = step - self._first - 1
    if done > 0:
      left = (mark[0] - self._begin[0]) / done * (self._total - step)
      parts.append(f"{int(left) // 60}:{int(left) % 60:02d} left")
    if self._bar:
      self._bar.update(self._bar.task_ids[0], completed=step, status="  ".join(parts))
    elif due:
      self.say(f"update {step}/{self._total}  {'  '.join(parts)}")


class _Events:
  """A TensorBoard event file, through the `tensorboard` package alone.

  Its own EventFileWriter would import TensorFlow where that is installed.
  """

  def __init__(self, directory, first):
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.summary.writer import record_writer

    self._event, self._summary = event_pb2, summary_pb2
    seconds, rest = divmod(time.time_ns(), 10**9)
    path = directory / f"events.out.tfevents.{seconds:010d}.{rest:09d}"
    self._file = path.open("xb")
    self._records = record_writer.RecordWriter(self._file)
    self._add(file_version="brain.Event:2")
    if first:  # TensorBoard then forgets what an interrupted run wrote from this step on
      start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
      self._add(session_log=start, step=first + 1)

  def _add(self, **fields):
    event = self._event.Event(wall_time=time.time(), **fields)
    self._records.write(event.SerializeToString())
    self._file.flush()

  def write(self, step, numbers):
    value = self._summary.Summary.Value
    values = [value(tag=tag, simple_value=number) for tag, number in numbers.items()]
    self._add(step=step, summary=self._summary.Summary(value=values))

  def close(self):
    self._file.close()


def plain(value):
  """A value as JSON has it: NumPy numbers and arrays unpacked, what is not finite as null."""
  if isinstance(value, np.ndarray | np.generic):
    value = value.tolist()
  if isinstance(value, dict):
    return {key: plain(part) for key, part in value.items()}
  if isinstance(value, list | tuple):
    return [plain(part) for part in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value
