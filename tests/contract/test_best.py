"""What is exported is the best of what was evaluated, whatever came after it."""

import jax
import numpy as np
import pytest

import jaxsft
from jaxsft import checkpoint, finish, train
from jaxsft.tasks import classify
from tests import tiny
from tests.contract import build

PAIR = ("bert", "classify")


@pytest.mark.parametrize(("mode", "best"), [("min", 2), ("max", 3)])
def test_the_best_is_exported(files, tmp_path, monkeypatch, mode, best):
  tiny.on_devices(monkeypatch, 1)
  values, metrics = iter((3.0, 1.0, 4.0, 2.0)), classify.metrics

  def measured(found, context):
    return metrics(found, context) | {"loss": next(values)}

  monkeypatch.setattr(classify, "metrics", measured)
  config = tiny.config(
    *PAIR,
    *files(*PAIR),
    steps=4,
    evaluate__every=1,
    evaluate__metric="loss",
    evaluate__mode=mode,
    checkpoint__every=1,
    checkpoint__keep=10,
  )
  run = train.finetune(config, tmp_path / "run")
  assert run.result["best"]["step"] == best
  assert run.result["metrics"]["loss"] == {"min": 1.0, "max": 4.0}[mode]
  state = build.state(build.job(config, tiny.devices(1)))
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )
  found = checkpoint.Checkpoints(run.directory, read_only=True)
  saved, _ = found.restore(best, finish.saved_part(abstract))
  expected, exported = (
    build.host(saved["trainable"]),
    build.host(jaxsft.load(run.export).params),
  )
  assert expected.keys() == exported.keys()
  for path, leaf in expected.items():
    np.testing.assert_array_equal(exported[path], leaf, err_msg=path)
