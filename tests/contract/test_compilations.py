"""One compilation a batch shape: ragged data, the last batch and evaluations add no other."""

import logging

import jax
import pytest

from jaxsft import prepare, train
from tests import tiny


@pytest.mark.parametrize("packing", ["pack", "buckets"])
def test_as_many_as_shapes(files, tmp_path, monkeypatch, caplog, packing):
  tiny.on_devices(monkeypatch, 1)
  plans, made = [], prepare.prepare

  def spy(*args):
    data = made(*args)
    plans.extend((data.plan, data.eval_plan))
    return data

  monkeypatch.setattr(prepare, "prepare", spy)
  data = tiny.sentences(tmp_path / "ragged.jsonl", count=150)
  config = tiny.config(
    "bert",
    "classify",
    files("bert", "classify")[0],
    data,
    steps=None,
    epochs=2.0,
    batch_size=4,
    data__packing=packing,
    evaluate__every=20,
    export__format="none",
  )
  with jax.log_compiles(True), caplog.at_level(logging.WARNING):
    run = train.finetune(config, tmp_path / "run")
  training, evaluation = (len(plan.shapes()) for plan in plans)
  assert training > 1 or packing == "pack"
  said = [record.getMessage() for record in caplog.records]
  count = lambda name: sum(f"Finished XLA compilation of jit({name})" in line for line in said)
  assert run.result["compilations"] == training + evaluation
  assert count("update") == training and count("eval_step") == evaluation
