"""A measurement is of the examples: batches, packing and devices leave it as it is."""

import functools

import numpy as np
import pytest

from jaxsft import evaluate
from tests import tiny
from tests.contract import build

COUNT = 13
REFERENCE = (1, "none", 1)
LAYOUTS = ((4, "pack", 2), (8, "none", 8), (13, "buckets", 1), (16, "pack", 8))
EVERY = [(b, p, n) for b in (1, 4, 8, 13, 16) for p in ("none", "pack") for n in (1, 2, 8)]


@pytest.fixture(scope="module")
def measured(files, tmp_path_factory):
  """(means, outputs, metrics, ids in the batches) of a pair in a layout."""
  root = tmp_path_factory.mktemp("thirteen")

  @functools.cache
  def measure(pair, layout):
    batch_size, packing, devices = layout
    data = root / f"{pair[1]}.jsonl"
    if not data.exists():
      tiny.rows(data, pair[1], count=COUNT)
    config = tiny.config(
      *pair,
      files(*pair)[0],
      files(*pair)[1],
      data__split=0.0,
      data__eval_path=str(data),
      data__packing=packing,
      evaluate__batch_size=batch_size,
    )
    job = build.job(config, tiny.devices(devices))
    store, plan = job.data.held_out.store, job.data.eval_plan
    assert len(store) == COUNT
    means, outputs = evaluate.measure(job.eval_step, build.params(job), store, plan, job.mesh)
    gold = store.values.get("label")
    metrics = job.data.task.metrics(means, outputs, gold, job.data.context)
    seen = [i for k in range(plan.num_steps) for row in plan.batch(k) for i in row]
    return means, outputs, metrics, seen, gold

  return measure


def equal(found, expected):
  """Sums of 13 float32 losses in another order."""
  means, outputs, metrics, seen, _ = found
  known, wanted, numbers, _, _ = expected
  assert sorted(seen) == list(range(COUNT))
  assert means.keys() == known.keys()
  for name in means:
    assert means[name] == pytest.approx(known[name], rel=1e-6, abs=1e-7), name
  for name in outputs:
    np.testing.assert_allclose(outputs[name], wanted[name], atol=3e-6)
  for name, value in numbers.items():
    if name in ("confusion", "labels"):
      assert metrics[name] == value
    else:
      assert metrics[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("pair", tiny.PAIRS[::2], ids=str)
def test_no_layout_changes_it(measured, pair, layout):
  equal(measured(pair, layout), measured(pair, REFERENCE))


@pytest.mark.full
@pytest.mark.parametrize("layout", EVERY, ids=str)
@pytest.mark.parametrize("pair", tiny.PAIRS, ids=str)
def test_no_layout_of_any_changes_it(measured, pair, layout):
  equal(measured(pair, layout), measured(pair, REFERENCE))


@pytest.mark.parametrize("pair", [("bert", "classify"), ("bert", "number")], ids=str)
def test_means_are_those_of_the_outputs(measured, pair):
  """By hand, from each example's own output: padding and empty places count nothing."""
  layout = (4, "pack", 2) if pair[1] == "classify" else REFERENCE
  means, outputs, metrics, _, gold = measured(pair, layout)
  logits = outputs["logits"].astype(np.float64)
  if pair[1] == "number":
    assert means["loss"] == pytest.approx(np.mean((logits[:, 0] - gold) ** 2), rel=1e-5)
    assert metrics["mse"] == pytest.approx(means["loss"], rel=1e-5)
    return
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  assert means["loss"] == pytest.approx(-np.mean(log_p[np.arange(COUNT), gold]), rel=1e-5)
  assert metrics["accuracy"] == np.mean(logits.argmax(-1) == gold) == means["accuracy"]
