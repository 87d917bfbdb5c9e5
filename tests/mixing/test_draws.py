"""Several data sets in one run: how often each is drawn, and what it counts."""

import dataclasses
import json

import numpy as np
import pytest

from jaxsft import evaluate, preflight
from jaxsft.data import feed, store
from jaxsft.doctor import findings
from jaxsft.tuning import select
from tests import tiny
from tests.contract import build
from tests.mixing.two_sets import checkpoint, settings


def drawn(job):
  """How many examples of each set the updates of a run hold."""
  ids, plan = job.data.train.store.ids, job.data.plan
  met = [ids[i][0] for k in range(plan.num_steps) for i in plan.examples(k)]
  return {name: met.count(name) for name in ("a", "b")}


def sizes(job):
  names = [id[0] for id in job.data.train.store.ids]
  return {name: names.count(name) for name in ("a", "b")}


@pytest.mark.parametrize(
  ("changes", "expected"),
  [
    ({}, lambda a, b: (a, b)),
    ({"a": {"epochs": 0.5}, "b": {"epochs": 3}}, lambda a, b: (round(a / 2), 3 * b)),
    ({"b": {"epochs": 2}}, lambda a, b: (a, 2 * b)),
    (
      {"a": {"weight": 1}, "b": {"weight": 4.0}},
      lambda a, b: (round((a + b) / 5), a + b - round((a + b) / 5)),
    ),
    (
      {"data__mix_temperature": 2.0},
      lambda a, b: (
        n := round((a + b) * np.sqrt(a) / (np.sqrt(a) + np.sqrt(b))),
        a + b - n,
      ),
    ),
  ],
)
def test_an_epoch_has_what_the_settings_say(place, changes, expected):
  job = build.job(settings(place, steps=None, epochs=1, **changes), tiny.devices(1))
  a, b = expected(**sizes(job))
  assert drawn(job) == {"a": a, "b": b}
  found = {one["name"]: one["an_epoch"] for one in job.data.plan.summary()["mixture"]}
  assert found == {"a": a, "b": b}


def test_labels_are_drawn_equally_often(place, tmp_path):
  rows = [json.loads(line) for line in (place / "a.jsonl").read_text().splitlines()]
  few = [row for row in rows if row["label"] == "neg"][:5]
  rows = [*few, *(row for row in rows if row["label"] == "pos")]
  (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  config = tiny.config(
    "bert", "classify", checkpoint(place, "bert")[1], tmp_path / "rows.jsonl",
    steps=None, epochs=2, data__split=0.0, data__balance="classes",
  )  # fmt: skip
  job = build.job(config, tiny.devices(1))
  labels, plan = job.data.train.store.values["label"], job.data.plan
  most = len(rows) - 5
  for epoch in range(2):
    steps = [k for k in range(plan.num_steps) if plan.epoch(k) == epoch]
    met = np.concatenate([plan.examples(k) for k in steps])
    assert np.bincount(labels[met]).tolist() == [most, most]
  met = np.concatenate([plan.examples(k) for k in range(plan.num_steps)])
  assert np.ptp(np.bincount(met)[labels == 0]) <= 1
  lines = report(job).lines()
  times = 2 * most // 5, -(-2 * most // 5)
  assert any(
    line.startswith(
      f"drawn      neg: {most} of 5 examples an epoch (50.0%); in all {2 * most},"
    )
    and line.endswith(f"each example {times[0]} or {times[1]} times")
    for line in lines
  )


def report(job):
  shapes = job.network.shapes()
  chosen = select.choose(shapes, "all", stacks={})
  return preflight.report(job.data, job.config, shapes, chosen, job.rule)


def test_the_report_counts_rows_and_draws_of_each_set(place):
  job = build.job(settings(place, b={"epochs": 2.0}, steps=None, epochs=2), tiny.devices(1))
  lines, (a, b) = report(job).lines(), sizes(job).values()
  assert f"           rows: {a} of a, {b} of b" in lines
  held = [row.part for row in job.data.held_out.rows]
  assert f"           rows: {held.count('a')} of a, {held.count('b')} of b" in lines
  lengths = job.data.train.store.lengths
  assert (
    f"drawn      a: {a} of {a} examples an epoch ({a / (a + 2 * b):.1%}); in all {2 * a}, "
    f"{2 * lengths[:a].sum()} tokens, each example 2 times"
  ) in lines
  assert any(line.startswith(f"drawn      b: {2 * b} of {b} ex") for line in lines)
  config = settings(place, data__mix=None, data__path=str(place / "a.jsonl"))
  assert not any("drawn" in line or "rows: " in line for line in report_lines(config))


def report_lines(config):
  return report(build.job(config, tiny.devices(1))).lines()


def found_in(job):
  return {one.code: one for one in findings.findings(job.data, job.config)}


def test_findings_know_ids_and_fields_of_a_set(place, tmp_path):
  lines = (place / "b.csv").read_text().splitlines()
  (tmp_path / "b.csv").write_text("\n".join([*lines, "s90, ,pos", "s91,,pos"]) + "\n")
  (tmp_path / "more.jsonl").write_text('{"name": "s3", "text": "a cat", "label": "pos"}\n')
  more = {"evaluate__sets": {"more": str(tmp_path / "more.jsonl")}}
  config = settings(place, b={"path": str(tmp_path / "b.csv")}, data__split=0.0, **more)
  found = found_in(build.job(config, tiny.devices(1)))
  assert "2 of 26 rows read of b (7.7%) are left out for an empty text" in (
    found["many-left-out"].text
  )
  assert found["ids-in-a-set"].rows == ("s3",)
  assert "repeated-ids" not in found and "overlapping-ids" not in found
  config = settings(place, data__split=0.0, data__eval_path=str(tmp_path / "more.jsonl"))
  found = found_in(build.job(config, tiny.devices(1)))
  assert found["overlapping-ids"].rows == ("s3",)
  found = found_in(build.job(settings(place), tiny.devices(1)))  # a/s3 is another than b/s3
  assert "overlapping-ids" not in found


def test_balanced_labels_are_no_imbalance(place, tmp_path):
  rows = [{"name": f"r{i}", "text": f"w{i % 40} the", "label": "neg"} for i in range(90)]
  rows += [{"name": f"r{90 + i}", "text": "a film", "label": "pos"} for i in range(4)]
  (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  for balance in ("none", "classes"):
    config = tiny.config(
      "bert", "classify", checkpoint(place, "bert")[1], tmp_path / "rows.jsonl",
      data__split=0.0, data__balance=balance,
    )  # fmt: skip
    found = found_in(build.job(config, tiny.devices(1)))
    assert ("imbalance" in found) == (balance == "none")


def test_weights_of_examples_and_of_tokens():
  """feed.batch: `scale` times the weight, whatever the weighting; nothing else changes."""
  example = lambda n, one: {
    "inputs": np.arange(1, n + 1),
    "targets": np.arange(n) + 1,
    "weights": np.r_[np.zeros(1), np.ones(n - 1)].astype(np.float32),
    "label": np.int32(one),
    "label_weight": np.float32(1),
  }
  built = store.in_memory([("x", example(3, 0)), ("y", example(2, 1)), ("z", example(4, 0))])
  scale, rows = np.array([2, 0.5, 1], np.float32), [[1, 0], [2]]
  for weighting, second in (("token", [0, 2, 2]), ("example", [0, 1, 1])):
    how = {"row_length": 8, "segments": 2, "weighting": weighting}
    plain, made = (feed.batch(built, rows, **how, scale=x) for x in (None, scale))
    assert made["weights"][0].tolist() == [0, 0.5, *second, 0, 0, 0]
    assert (made["weights"][1] == plain["weights"][1]).all()
    assert made["label_weights"].tolist() == [[0.5, 2], [1, 0]]
    for key in set(plain) - {"weights", "label_weights"}:
      assert (made[key] == plain[key]).all()
    feed.validate(made, 9, None, 2)


@pytest.mark.parametrize(
  ("task", "model", "weighting"),
  [("classify", "bert", "token"), ("chat", "llama", "token"), ("chat", "llama", "example")],
)
def test_a_weighted_loss_by_hand(place, task, model, weighting):
  """The first update over all rows, from the unweighted loss of each row."""
  config = settings(
    place, task, model, a={"loss_weight": 3.0}, b={"loss_weight": 0.5},
    steps=1, batch_size=200, data__split=0.0, loss__weighting=weighting,
  )  # fmt: skip
  job = build.job(config, tiny.devices(1))
  examples, limit = job.data.train, job.data.plan.row_length
  plan = evaluate.prepare.evaluation_plan(config, examples.store, limit, job.mesh)
  found = evaluate.measure(job.eval_step, build.params(job), examples, plan, job.mesh)
  (metrics,) = build.updates(job)[1]
  weights = np.array([{"a": 3.0, "b": 0.5}[one.row.part] for one in found])
  losses = np.array([job.data.task.row_loss(one, job.data.context) for one in found])
  counts = np.ones(len(found))
  if (task, weighting) == ("chat", "token"):
    counts = np.array([job.data.task.row_sums(one)[1] for one in found])
  expected = np.sum(weights * counts * losses) / np.sum(weights * counts)
  assert metrics["loss"] == pytest.approx(expected, rel=1e-5)
  plain = np.sum(counts * losses) / np.sum(counts)
  assert abs(plain - expected) > 1e-4 * plain  # else nothing would be seen


@pytest.mark.parametrize("weighting", ["token", "example"])
def test_hidden_words_are_weighed_too(place, weighting):
  """What a set adds to sum and weight, from two ratios, gives the loss of a third."""

  def update(a, b):
    config = settings(
      place, "masked_lm", a={"loss_weight": a}, b={"loss_weight": b},
      steps=1, batch_size=200, data__split=0.0, loss__weighting=weighting,
    )  # fmt: skip
    job = build.job(config, tiny.devices(1))
    steps.append(job.train_step)
    (metrics,) = build.updates(dataclasses.replace(job, train_step=steps[0]))[1]
    return float(metrics["loss"] * metrics["weight"]), float(metrics["weight"])

  steps = []  # the first run's program is that of the others
  one, two, three = (np.array(update(*pair)) for pair in ((1, 1), (2, 1), (0.5, 3)))
  of_a = two - one
  np.testing.assert_allclose(three, 0.5 * of_a + 3 * (one - of_a), rtol=1e-4)
  if weighting == "example":
    assert [of_a[1], one[1] - of_a[1]] == pytest.approx([40, 24], rel=1e-4)


@pytest.mark.parametrize("task", ["classify", "chat"])
def test_the_layout_of_an_update_does_not_change_it(place, task):
  changes = {
    "a": {"loss_weight": 3.0, "weight": 1.0},
    "b": {"weight": 2.0},
    "steps": 2,
    "batch_size": 12,
    "optim__name": "sgd",
    "optim__penalty_weight": 0.0,
  }
  model = {"classify": "bert", "chat": "llama"}[task]
  plain = settings(place, task, model, **changes, data__packing="none")
  split = settings(place, task, model, **changes, accumulate=2)
  before, after = (
    build.updates(build.job(config, mesh))
    for config, mesh in ((plain, tiny.devices(1)), (split, tiny.devices(4, fsdp=2)))
  )
  for path, leaf in before[0].items():
    np.testing.assert_allclose(after[0][path], leaf, atol=2e-5 * np.abs(leaf).max())
  for one, other in zip(before[1], after[1], strict=True):
    assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert other["weight"] == pytest.approx(one["weight"], rel=1e-6)
