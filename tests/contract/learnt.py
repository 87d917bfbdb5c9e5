"""A tiny model that has seen a few rows so often that it knows them by heart."""

import pytest

import jaxsft
from jaxsft import train
from jaxsft.doctor import findings
from tests import tiny
from tests.contract import build


def by_heart(pair, model, data, workdir, steps):
  """(run, config) of a (family, task) pair trained on rows that it is also asked for."""
  config = tiny.config(
    *pair,
    model,
    data,
    steps=steps,
    batch_size=32,
    data__split=0.0,
    data__packing="none",
    data__eval_path=str(data),
    optim__schedule="linear",
    optim__warmup=5.0,
    optim__penalty="none",
    log__every=50,
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(findings, "overlap", lambda *_: ())  # by heart, and asked so
    tiny.on_devices(patch, 1)
    return train.finetune(config, workdir), config


def check_every_leaf_moved(run, config):
  before = build.host(build.params(build.job(config, tiny.devices(1))))
  after = build.host(jaxsft.load(run.export).params)
  assert before.keys() == after.keys()
  for path, leaf in after.items():
    assert (leaf != before[path]).any(), path
