"""How an update is cut up changes nothing: micro-batches, packing, devices, order, padding."""

import dataclasses
import functools

import numpy as np
import pytest

from jaxsft.data import order
from tests import tiny
from tests.contract import build

# (accumulate, packing, devices, fsdp, tensor). 13 training rows in batches of 8 end in one of
# 5, so that accumulate=8 also has micro-batches without anything supervised.
REFERENCE = (1, "none", 1, 1, 1)
LAYOUTS = {
  "split": (2, "pack", 1, 1, 1),
  "every row alone": (8, "none", 1, 1, 1),
  "all axes": (2, "pack", 8, 2, 2),
}
PLAIN = [(pair, name) for pair in tiny.PAIRS[::2] for name in LAYOUTS]
MET = (*tiny.PAIRS[1::2], *tiny.MORE, tiny.SPANS[0], tiny.SEQ2SEQ[0], tiny.TAGS[0])
PLAIN += [(pair, "all axes") for pair in MET]
MORE = {
  "data": (1, "pack", 8, 1, 1),
  "fsdp, tensor": (1, "none", 8, 4, 2),
  "buckets of one length": (8, "pack", 8, 2, 2),
  "rows over devices": (2, "none", 8, 8, 1),
}


@pytest.fixture(scope="module")
def outcome(files, tmp_path_factory):
  """What the updates of a pair come to in a layout: each computed once."""
  directory = tmp_path_factory.mktemp("rows")

  def job(pair, layout, weighting="token"):
    family, task = pair
    accumulate, packing, devices, fsdp, tensor = layout
    data = directory / f"{task}.jsonl"
    if not data.exists():
      tiny.rows(data, task, count=13)
    config = tiny.config(
      family,
      task,
      files(family, task)[0],
      data,
      steps=3,
      accumulate=accumulate,
      data__packing=packing,
      data__split=0.0,
      loss__weighting=weighting,
      loss__label_smoothing=0.0 if task == "number" else 0.1,
      optim__name="sgd",  # an update is then the gradient, and Adam hides a wrong scale
      optim__peak_lr=0.05,
      optim__clip=0.0,
      optim__penalty_weight=0.1,
      mesh__fsdp=fsdp,
      mesh__tensor=tensor,
    )
    return build.job(config, tiny.devices(devices, fsdp, tensor))

  @functools.cache
  def compute(pair, layout, weighting="token", plan=None):
    made = job(pair, layout, weighting)
    if plan is not None:
      made = build.with_plan(made, plan(made.data.plan))
    before = build.host(build.state(made).trainable)
    after, metrics = build.updates(made)
    return {path: after[path] - before[path] for path in after}, metrics

  return compute


def equal(found, expected):
  """Sums of a few thousand float32 products, in another order: 2e-5 of a leaf's largest, and
  of the norm of all leaves' gradients, which is as exact as they are; sums that are one
  number, such as the loss, within 1e-5.
  """
  (moved, metrics), (wanted, known) = found, expected
  assert moved.keys() == wanted.keys() and len(metrics) == len(known) == 3
  for path, leaf in wanted.items():
    scale = np.abs(leaf).max()
    still = path.endswith("k/bias") or path == "lm_head/bias"  # softmax; BART's constant
    assert scale > 0 or still, path
    np.testing.assert_allclose(
      moved[path], leaf, rtol=0, atol=2e-5 * scale + 2e-7, err_msg=path
    )
  for one, other in zip(metrics, known, strict=True):
    assert one["weight"] == pytest.approx(other["weight"], rel=1e-6)
    for name, tolerance in {"loss": 1e-5, "grad_norm": 2e-5, "penalty": 1e-5, "lr": 0}.items():
      assert one[name] == pytest.approx(other[name], rel=tolerance, abs=0), name
    assert one["skipped"] == 0


@pytest.mark.parametrize(("pair", "layout"), PLAIN, ids=str)
def test_layouts_of_the_same_examples(outcome, pair, layout):
  equal(outcome(pair, LAYOUTS[layout]), outcome(pair, REFERENCE))


@pytest.mark.full
@pytest.mark.parametrize("layout", [*LAYOUTS, *MORE])
@pytest.mark.parametrize(
  "pair", (*tiny.PAIRS, *tiny.MORE, *tiny.SPANS, *tiny.SEQ2SEQ, *tiny.TAGS), ids=str
)
def test_all_layouts(outcome, pair, layout):
  equal(outcome(pair, (LAYOUTS | MORE)[layout]), outcome(pair, REFERENCE))


@pytest.mark.parametrize(
  "pair", [*tiny.PAIRS[::2], pytest.param(tiny.SEQ2SEQ[0], marks=pytest.mark.full)], ids=str
)
def test_order_within_an_update_and_padding(outcome, pair):
  equal(outcome(pair, REFERENCE, plan=Turned), outcome(pair, REFERENCE))


def test_weighting_by_example(outcome):
  pair = ("llama", "chat")
  alone = outcome(pair, REFERENCE, "example")
  equal(outcome(pair, LAYOUTS["all axes"], "example"), alone)
  assert [m["weight"] for m in alone[1]] == pytest.approx([8, 5, 8])
  tokens = outcome(pair, REFERENCE)[1]
  assert abs(tokens[0]["loss"] - alone[1][0]["loss"]) > 1e-4  # and it is not the same thing


def test_the_examples_of_an_update(outcome):
  """The last update of an epoch is smaller, and what it holds is not a matter of layout."""
  weights = [m["weight"] for m in outcome(("bert", "classify"), REFERENCE)[1]]
  assert weights == [8, 5, 8]


class Turned(order.Plan):
  """The same updates with the rows of a batch turned round, and in longer rows."""

  def __init__(self, plan):
    for field in dataclasses.fields(plan):
      object.__setattr__(self, field.name, getattr(plan, field.name))

  def batch(self, step):
    return super().batch(step)[::-1]

  def shape(self, step):
    rows, length, segments = super().shape(step)
    length = np.array(length) + 16  # a number, or one for the source and one for the target
    return rows, tuple(length.tolist()) if length.ndim else int(length), segments + 1
