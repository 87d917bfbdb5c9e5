"""What trains moves, what does not stays to the bit, however it is chosen and computed."""

import dataclasses

import jax
import numpy as np
import pytest

import jaxsft
from jaxsft import job as jobs
from jaxsft import stack, step, train
from jaxsft.tuning import select
from tests import tiny
from tests.contract import build

METHODS = {
  "all": {},
  "head": {},
  "last:1": {},
  "bias": {},
  "norms": {},
  "regex": {"tune__train": (r"layers\.0/.*(scale|kernel)$",)},
}
PAIRS = (("bert", "classify"), ("llama", "chat"), ("t5", "seq2seq"), ("bart", "seq2seq"))
CASES = [(pair, method) for pair in PAIRS for method in METHODS]
NONE = {("llama", "bias"), ("t5", "bias"), ("llama", "head"), ("t5", "head"), ("bart", "head")}


def prepared(files, pair, method="last:1", mesh=(1, 1, 1), **changes):
  """A job of three updates, dropout included."""
  settings = {"steps": 3, "model__dropout": 0.1, "optim__penalty_weight": 0.01}
  settings |= {"tune__method": method, "mesh__fsdp": mesh[1], "mesh__tensor": mesh[2]}
  config = tiny.config(*pair, *files(*pair), **(settings | changes))
  return build.job(config, tiny.devices(*mesh))


def trained(job):
  """(parameters before, and after all updates) by path."""
  before = build.host(build.params(job))
  with jax.set_mesh(job.mesh):
    now = build.state(job)
    for batch in train.batches(job, 0):
      now, _ = job.train_step(now, batch)
    after = build.host(stack.whole(step.merge(now.trainable, now.frozen)))
  return before, after


def masked(job):
  """The same choice as masks over whole leaves and a full gradient."""
  shapes = dict(select.paths(job.network.shapes()))
  rows = lambda path, n: tuple(row >= n for row in range(shapes[path].shape[0]))
  masks = {path: rows(path, n) for path, n in job.chosen.first.items()}
  chosen = select.Choice(job.chosen.paths, masks=masks)
  total = job.data.plan.num_steps
  rule = jobs.make_rule(job.config, job.network, chosen, total)
  parts = (job.config, job.data.task, job.data.options, job.network, rule)
  update = jobs.make_train_step(*parts)
  return dataclasses.replace(job, chosen=chosen, rule=rule, train_step=update)


@pytest.mark.full
def test_last_layers_train_as_with_a_masked_gradient(files):
  """On eight devices, layers computed again, beside one device and a whole stack."""
  pair, sgd = PAIRS[0], {"optim__name": "sgd", "optim__peak_lr": 0.05}
  cut = prepared(files, pair, mesh=(8, 2, 2), model__remat="full", **sgd)
  before, after = trained(cut)
  _, expected = trained(masked(prepared(files, pair, **sgd)))
  assert cut.chosen.first and before.keys() == after.keys()
  for path, leaf in expected.items():
    np.testing.assert_allclose(after[path], leaf, rtol=1e-5, atol=1e-6, err_msg=path)
    lower, upper = (after[path][:1], after[path][1:]) if "layers/" in path else (None, leaf)
    if lower is not None:
      np.testing.assert_array_equal(lower, before[path][:1])
    if "attn/k/bias" not in path:  # to which softmax is blind
      assert np.array_equal(upper, before[path][-len(upper) :]) != (path in cut.chosen), path


@pytest.mark.full
@pytest.mark.parametrize(("pair", "method"), CASES, ids=str)
def test_frozen_leaves_stay_and_others_move(files, pair, method):
  if (pair[0], method) in NONE:
    with pytest.raises(jaxsft.errors.JaxsftError, match=r"config\.tune\.method"):
      prepared(files, pair, method)
    return
  job = prepared(files, pair, method, **METHODS[method])
  before, after = trained(job)
  for path, leaf in before.items():
    rows = len(leaf) if leaf.ndim else 1
    mask = np.zeros(rows, bool)
    if path in job.chosen:
      mask = np.array(job.chosen.masks.get(path, (True,) * rows))
      mask[: job.chosen.first.get(path, 0)] = False
    np.testing.assert_array_equal(after[path][~mask], leaf[~mask], err_msg=path)
    if path == "lm_head/bias" and job.network.head.logits_bias:
      continue  # a constant
    if mask.any() and "embed" not in path and "relative" not in path:
      moved = (after[path] != leaf).reshape(rows, -1).any(1)
      if "layers/" in path and "attn/k/bias" not in path:
        assert (moved == mask).all(), path
      else:
        assert moved.any(), path


@pytest.mark.full
def test_a_run_of_the_last_layers_is_exported_whole(files, tmp_path, monkeypatch):
  """With generated answers between, a stop, and a checkpoint of the upper part alone."""
  tiny.on_devices(monkeypatch, 1)
  pair = PAIRS[1]
  settings = {"steps": 3, "tune__method": "last:1", "checkpoint__every": 2}
  settings |= {"evaluate__generate": 1, "evaluate__max_new_tokens": 2}
  config = tiny.config(*pair, *files(*pair), **settings)
  monkeypatch.setattr(train.start.Preemption, "asked", lambda self, done: done == 2)
  with pytest.raises(jaxsft.errors.JaxsftError, match="stopped after update 2"):
    train.finetune(config, tmp_path / "run")
  monkeypatch.undo()
  tiny.on_devices(monkeypatch, 1)
  run = train.finetune(config, tmp_path / "run")
  job = build.job(config, tiny.devices(1))
  before, after = trained(job)
  exported = build.host(jaxsft.load(run.export).params)
  for path, leaf in after.items():
    np.testing.assert_allclose(exported[path], leaf, rtol=1e-5, atol=1e-6, err_msg=path)
  np.testing.assert_array_equal(
    exported["layers/mlp/up/kernel"][0], before["layers/mlp/up/kernel"][0]
  )


@pytest.mark.full
@pytest.mark.parametrize("average", [{"optim__ema": 0.9}, {"optim__swa": 0.7}])
def test_the_average_survives_a_stop_and_is_exported(files, tmp_path, monkeypatch, average):
  tiny.on_devices(monkeypatch, 1)
  pair = PAIRS[0]
  settings = {"steps": 3, "checkpoint__every": 2, "optim__name": "muon", **average}
  config = tiny.config(*pair, *files(*pair), **settings)
  with monkeypatch.context() as patch:
    patch.setattr(train.start.Preemption, "asked", lambda self, done: done == 2)
    with pytest.raises(jaxsft.errors.JaxsftError, match="stopped after update 2"):
      train.finetune(config, tmp_path / "run")
  run = train.finetune(config, tmp_path / "run")
  job = build.job(config, tiny.devices(1))
  seen = []
  with jax.set_mesh(job.mesh):
    now = build.state(job)
    average = build.host(now.trainable)
    for number, batch in enumerate(train.batches(job, 0)):
      now, _ = job.train_step(now, batch)
      seen.append(build.host(now.trainable))
      decay = min(0.9, (1 + number) / (10 + number))
      average = {path: decay * x + (1 - decay) * seen[-1][path] for path, x in average.items()}
  if config.optim.swa:  # of three, the last two
    average = {path: (seen[1][path] + seen[2][path]) / 2 for path in average}
  exported = build.host(jaxsft.load(run.export).params)
  for path, leaf in average.items():
    np.testing.assert_allclose(exported[path], leaf, rtol=1e-5, atol=1e-6, err_msg=path)
  assert max(np.abs(exported[path] - seen[-1][path]).max() for path in average) > 1e-3
