"""Things break: the run says what, keeps what was good, and goes on from there when asked."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft import checkpoint, hf_directory, manifest, train
from jaxsft.errors import JaxsftError
from tests import tiny

BAD = 3  # the first update with a bad batch, from 0


@pytest.fixture
def one_device(monkeypatch):
  tiny.on_devices(monkeypatch, 1)


@pytest.fixture
def start(files, tmp_path, one_device):
  """Starts (or goes on with) the run in tmp_path / "run"."""

  def run(pair=("bert", "classify"), **settings):
    given = {"steps": 6, "checkpoint__every": 1, "checkpoint__keep": 10, **settings}
    config = tiny.config(*pair, *files(*pair), **given)
    return train.finetune(config, tmp_path / "run")

  return run


def poison(monkeypatch, updates):
  """Makes the batches of some updates weigh NaN."""
  deliver = train.batches

  def batches(job, first):
    name = "weights" if job.config.task == "chat" else "label_weights"
    for number, batch in enumerate(deliver(job, first), start=first):
      if number in updates:
        batch = batch | {name: batch[name] * jnp.nan}
      yield batch

  monkeypatch.setattr(train, "batches", batches)


def checkpoints(directory):
  return checkpoint.Checkpoints(directory, read_only=True)


def checksums(directory, step):
  """{leaf: shape, type, checksum} of a checkpoint."""
  return manifest.read(directory / "checkpoints" / str(step))


def moved(directory, one, other):
  a, b = checksums(directory, one), checksums(directory, other)
  return {name for name in a if a[name] != b[name]}


@pytest.mark.parametrize("pair", [("bert", "classify"), ("llama", "chat")], ids=str)
def test_one_bad_batch_is_skipped(start, monkeypatch, tmp_path, pair):
  poison(monkeypatch, {BAD})
  result = start(pair, optim__max_bad_steps=2).result
  assert result["skipped"] == 1 and result["steps"] == 6
  run = tmp_path / "run"
  # Data and schedule went on, weights and moments did not; the next batch is taken again.
  assert moved(run, BAD, BAD + 1) == {"step", "skipped", "bad"}
  assert any(name.startswith("trainable/") for name in moved(run, BAD + 1, BAD + 2))
  lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
  bad = [line for line in lines if line["kind"] == "train" and line["step"] == BAD + 1]
  assert bad[0]["loss"] is None and "loss is nan" in bad[0]["note"]


def test_too_many_bad_batches_stop_the_run(start, monkeypatch, tmp_path):
  poison(monkeypatch, range(BAD, 100))
  with pytest.raises(JaxsftError, match=r"not finite.*lower config.optim.peak_lr"):
    start(optim__max_bad_steps=2)
  found = checkpoints(tmp_path / "run")
  assert found.latest() >= BAD
  assert moved(tmp_path / "run", BAD, found.latest()) <= {"step", "skipped", "bad"}
  assert not (tmp_path / "run" / "export").exists()
  assert not (tmp_path / "run" / "result.json").exists()


def test_bad_batches_at_the_very_end_stop_it_too(start, monkeypatch, tmp_path):
  poison(monkeypatch, {4, 5})
  with pytest.raises(JaxsftError, match="not finite"):
    start(optim__max_bad_steps=2)
  assert not (tmp_path / "run" / "export").exists()


def test_a_failed_write_loses_nothing(start, monkeypatch, tmp_path):
  write, calls = manifest.write, []

  def full(directory, step, leaves):
    calls.append(step)
    if step == 3 and "checkpoints" in str(directory):
      raise OSError(28, "No space left on device")
    return write(directory, step, leaves)

  with monkeypatch.context() as patch:
    patch.setattr(manifest, "write", full)
    with pytest.raises(JaxsftError, match=r"step 3 .*was not saved.*No space left"):
      start()
  assert calls[-1] == 3
  run = tmp_path / "run"
  assert checkpoints(run).latest() == 2
  assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["1", "2"]
  assert start().result["steps"] == 6
  assert checkpoints(run).latest() == 6


def test_a_damaged_checkpoint_is_passed_over(start, tmp_path, capsys):
  whole = start()
  run = tmp_path / "run"
  weights = (whole.export / "model.safetensors").read_bytes()
  known = checksums(run, 6)
  data = max((run / "checkpoints" / "6").rglob("*"), key=lambda p: p.stat().st_size)
  content = bytearray(data.read_bytes())
  content[len(content) // 2] ^= 1
  data.write_bytes(content)
  capsys.readouterr()
  again = start()
  said = capsys.readouterr().out
  assert "step 6" in said and "damaged" in said and "going on after update 5" in said
  assert checksums(run, 6) == known
  assert (again.export / "model.safetensors").read_bytes() == weights


def test_an_export_that_differs_is_not_one(start, monkeypatch, tmp_path):
  """A wrong tensor on its way to the disk: read back, compared, refused, nothing left."""
  tensors = hf_directory.params_lib.export_tensors

  def wrong(*args, **kwargs):
    for name, tensor in tensors(*args, **kwargs):
      yield (
        name,
        np.ascontiguousarray(tensor[::-1]) if name.endswith("query.weight") else tensor,
      )

  monkeypatch.setattr(hf_directory.params_lib, "export_tensors", wrong)
  with pytest.raises(JaxsftError, match="differ after it was written"):
    start(steps=1)
  assert not (tmp_path / "run" / "export").exists()


def test_a_label_out_of_range_is_refused_before_any_update(start, monkeypatch):
  """By the feed's last look, whatever the reader let through."""
  gather = train.feed.batch

  def wrong(*args, **kwargs):
    batch = gather(*args, **kwargs)
    return batch | {"labels": batch["labels"] + 5}

  monkeypatch.setattr(train.feed, "batch", wrong)
  with pytest.raises(JaxsftError, match=r"labels [56] in example s\d+, expected 0 to 1"):
    start()
