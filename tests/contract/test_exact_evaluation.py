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
PLAIN = [(pair, layout) for pair in tiny.PAIRS[::2] for layout in LAYOUTS]
PLAIN += [(pair, LAYOUTS[0]) for pair in tiny.MORE]
PLAIN += [(tiny.SPANS[0], LAYOUTS[0]), (tiny.SPANS[1], LAYOUTS[3]), (tiny.TAGS[0], LAYOUTS[0])]
EVERY = [(b, p, n) for b in (1, 4, 8, 13, 16) for p in ("none", "pack") for n in (1, 2, 8)]


@pytest.fixture(scope="module")
def measured(files, tmp_path_factory):
  """([tasks.Found], metrics, whether every example came once) of a pair in a layout."""
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
    assert len(job.data.held_out.rows) == COUNT
    assert len(store) == COUNT or pair[1] in ("answer", "tag")  # windows
    held_out, params = job.data.held_out, build.params(job)
    found = evaluate.measure(job.eval_step, params, held_out, plan, job.mesh)
    metrics = job.data.task.metrics(found, job.data.context)
    seen = [i for k in range(plan.num_steps) for row in plan.batch(k) for i in row]
    return found, metrics, sorted(seen) == list(range(len(store)))

  return measure


def equal(found, expected):
  """Every row once, in the order of the file, and the same said of it."""
  ours, metrics, once = found
  wanted, numbers, _ = expected
  assert once
  assert [one.row.where.rsplit(":")[-1] for one in ours] == [str(n + 1) for n in range(COUNT)]
  for one, other in zip(ours, wanted, strict=True):
    assert one.row == other.row and len(one.outputs) == len(other.outputs)
    for mine, theirs in zip(one.outputs, other.outputs, strict=True):
      assert mine.keys() == theirs.keys()
      for name in mine:
        np.testing.assert_allclose(mine[name], theirs[name], atol=3e-6, rtol=1e-6)
  slack = 1e-6
  if "pearson" in numbers:  # of numbers that are nearly alike, whose rounding it enlarges
    slack = 3e-6 / float(np.std([one.outputs[0]["logits"] for one in wanted]))
  assert same_numbers(metrics, numbers, slack)


def same_numbers(found, expected, slack):
  """Whether two values of a result are the same, numbers up to rounding."""
  if isinstance(expected, dict):
    assert found.keys() == expected.keys()
    return all(same_numbers(found[name], value, slack) for name, value in expected.items())
  if isinstance(expected, float):
    assert found == pytest.approx(expected, rel=1e-5, abs=slack)
  return isinstance(expected, float) or found == expected


@pytest.mark.parametrize(("pair", "layout"), PLAIN, ids=str)
def test_no_layout_changes_it(measured, pair, layout):
  equal(measured(pair, layout), measured(pair, REFERENCE))


def test_no_layout_changes_a_source_and_its_target(measured):
  pair = tiny.SEQ2SEQ[0]
  equal(measured(pair, LAYOUTS[1]), measured(pair, LAYOUTS[2]))


@pytest.mark.full
@pytest.mark.parametrize("layout", EVERY, ids=str)
@pytest.mark.parametrize(
  "pair", (*tiny.PAIRS, *tiny.MORE, *tiny.SPANS, *tiny.SEQ2SEQ, *tiny.TAGS), ids=str
)
def test_no_layout_of_any_changes_it(measured, pair, layout):
  equal(measured(pair, layout), measured(pair, REFERENCE))


@pytest.mark.parametrize("pair", [("bert", "classify"), ("bert", "number")], ids=str)
def test_numbers_are_those_of_the_rows(measured, pair):
  """By hand, from each row's own output and its own label."""
  layout = (4, "pack", 2) if pair[1] == "classify" else REFERENCE
  found, metrics, _ = measured(pair, layout)
  logits = np.stack([one.outputs[0]["logits"] for one in found]).astype(np.float64)
  said = [one.row.fields["label"] for one in found]
  if pair[1] == "number":
    mse = np.mean((logits[:, 0] - np.array(said, np.float64)) ** 2)
    assert metrics["mse"] == metrics["loss"] == pytest.approx(mse, rel=1e-6)
    return
  gold = np.array([metrics["labels"].index(name) for name in said])
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  nll = -np.mean(log_p[np.arange(COUNT), gold])
  assert metrics["loss"] == pytest.approx(nll, rel=1e-9)
  assert metrics["accuracy"] == np.mean(logits.argmax(-1) == gold)


def test_the_perplexity_is_that_of_all_tokens(measured):
  found, metrics, _ = measured(("llama", "chat"), (4, "pack", 2))
  tokens = sum(float(o["tokens"]) for one in found for o in one.outputs)
  assert tokens == sum(e["weights"].sum() for one in found for e in one.examples)
  assert metrics["perplexity"] == pytest.approx(np.exp(metrics["loss"]))
