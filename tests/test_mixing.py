"""Several data sets in one run: read like each alone, drawn, weighed and measured apart."""

import csv
import dataclasses
import json

import numpy as np
import pytest

import jaxsft
from jaxsft import config as config_lib
from jaxsft import evaluate, preflight, sources, tasks, train, unlabelled
from jaxsft.config import Clean, Data, Part
from jaxsft.data import feed, store
from jaxsft.doctor import findings
from jaxsft.errors import JaxsftError, UsageError
from jaxsft.tuning import select
from tests import tiny
from tests.contract import build

CLASSIFY = tasks.TASKS["classify"]


def as_csv(path, found, names):
  with open(path, "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(names.values())
    writer.writerows([row[name] for name in names] for row in found)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """JSONL of 40 sentences, CSV of 24 others with columns of its own; conversations."""
  root = tmp_path_factory.mktemp("mixing")
  tiny.sentences(root / "a.jsonl", 40)
  tiny.sentences(root / "b.jsonl", 24, seed=1)
  found = [json.loads(line) for line in (root / "b.jsonl").read_text().splitlines()]
  as_csv(root / "b.csv", found, {"name": "name", "text": "review", "label": "stars"})
  tiny.chats(root / "chats.jsonl", 24)
  tiny.chats(root / "short.jsonl", 12, turns=False)
  return root


def checkpoint(place, name):
  """ "bert", "llama", or "judge", which has a head; made when first asked for."""
  family, labels = ("bert", ("neg", "pos")) if name == "judge" else (name, ())
  if not (place / name).exists():
    tiny.checkpoint(place / name, family, labels=labels)
  return family, place / name


COLUMNS = {"text": "review", "label": "stars"}


def parts(place, **changes):
  mix = {
    "a": {"path": str(place / "a.jsonl")},
    "b": {"path": str(place / "b.csv"), "columns": COLUMNS},
  }
  return {name: Part(**own | changes.get(name, {})) for name, own in mix.items()}


def data(place, **changes):
  mix = parts(place, **{k: changes.pop(k) for k in ("a", "b") if k in changes})
  return Data(**{"mix": mix, "id": "name", "split": 0.2} | changes)


def settings(place, task="classify", model="bert", **changes):
  mix = parts(place, **{k: changes.pop(k) for k in ("a", "b") if k in changes})
  if task == "chat":
    paths = {"a": place / "chats.jsonl", "b": place / "short.jsonl"}
    mix = {
      name: Part(str(path), weight=mix[name].weight, loss_weight=mix[name].loss_weight)
      for name, path in paths.items()
    }
  found = {"data__mix": mix, "data__path": "", **changes}
  family, path = checkpoint(place, model)
  return tiny.config(family, task, path, "", **found)


# --- rows --------------------------------------------------------------------------------


def test_each_set_is_read_and_split_as_alone(place):
  both = sources.read_data(data(place), CLASSIFY)
  alone = {
    "a": Data(path=str(place / "a.jsonl"), id="name", split=0.2),
    "b": Data(path=str(place / "b.csv"), columns=COLUMNS, id="name", split=0.2),
  }
  rows = {name: sources.read_data(one, CLASSIFY) for name, one in alone.items()}
  for side in ("train", "held_out"):
    found = [(r.id, r.part, r.where, r.fields) for r in getattr(both, side)]
    assert found == [
      (f"{name}/{r.id}", name, r.where, r.fields)
      for name, one in rows.items()
      for r in getattr(one, side)
    ]
  ids = [row.id for row in (*both.train, *both.held_out)]
  assert len(ids) == len(set(ids)) == both.read == 64  # both sets have an s0
  assert [(one.key, one.words) for one in both.sources] == [
    ("data.mix.a.path", "jsonl, 40 rows, text, label"),
    ("data.mix.b.path", "csv, 24 rows, text, label"),
  ]
  assert both.split == f"a: {rows['a'].split}; b: {rows['b'].split}"


def test_what_a_set_does_not_say_data_says(place):
  both = data(place, split=0.0, limit=10, keep="label == 'pos'", a={"limit": 3, "keep": "True"})
  found = sources.read_data(both, CLASSIFY)
  names = [row.part for row in found.train]
  assert names == ["a"] * 3 + ["b"] * 10
  assert {row.fields["label"] for row in found.train if row.part == "b"} == {"pos"}
  assert found.read == 3 + 10 + found.left_out["b: keep rule"]
  assert set(found.left_out) == {"b: keep rule"}


def test_rows_of_their_own_to_evaluate_on(place):
  both = data(place, split=0.0, limit=5, eval_path=str(place / "b.jsonl"))
  found = sources.read_data(both, CLASSIFY)
  assert [len(found.train), len(found.held_out), found.read] == [10, 24, 34]
  assert {row.part for row in found.held_out} == {""} and found.held_out[0].id == "s0"


def test_further_sets_are_read_as_one_data_set(place):
  config = settings(place, evaluate__sets={"more": str(place / "b.jsonl")})
  (rows,) = sources.further_sets(config).values()
  assert len(rows.train) == 24 and {row.part for row in rows.train} == {""}


def copied(place, path):
  """The rows of the first set under other ids, which split in another way."""
  lines = (place / "a.jsonl").read_text().splitlines()
  rows = [row | {"name": f"t{i}"} for i, row in enumerate(map(json.loads, lines))]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return {"path": str(path), "columns": None}


def test_rows_are_compared_with_those_of_all_sets(place, tmp_path):
  both = data(place, b=copied(place, tmp_path / "b.jsonl"))
  texts = lambda rows: {" ".join(row.fields["text"].split()) for row in rows}
  found = sources.read_data(both, CLASSIFY)
  assert texts(found.train) & texts(found.held_out)
  found = sources.read_data(both, CLASSIFY, cleaning=Clean(overlap="drop"))
  assert not texts(found.train) & texts(found.held_out)
  assert {row.part for row in found.train} == {row.part for row in found.held_out} == {"a", "b"}
  assert found.left_out["overlap with held-out rows"] + len(found.train) < found.read == 80
  whole = dataclasses.replace(both, split=0.0)
  found = sources.read_data(whole, CLASSIFY, cleaning=Clean(duplicates="drop"))
  assert {row.part for row in found.train} == {"a"} and len(texts(found.train)) == len(
    found.train
  )
  assert found.changes[0].samples[0]["row"].startswith(("a/", "b/"))
  assert found.left_out["duplicates"] == found.read - len(found.train) >= 40


def test_texts_of_a_set_are_made_by_its_prompt_to_the_end(place, tmp_path):
  """predict --part reads rows as training read those of the set."""
  prompt = {"text": "{{ review }} and so on"}
  both = data(place, b={"columns": {"label": "stars"}, "prompt": prompt}, split=0.0)
  found = sources.read_data(both, CLASSIFY).train
  plain = sources.read_data(data(place, split=0.0), CLASSIFY).train
  for row, other in zip(found, plain, strict=True):
    more = " and so on" if row.part == "b" else ""
    assert row.fields["text"] == other.fields["text"] + more
  config = config_lib.Config(data=both)
  flags = {"data": str(place / "b.csv"), "columns": None, "out": str(tmp_path / "out.jsonl")}
  rows, _, make = unlabelled.rows_of(flags | {"part": "b"}, config)
  made = [make(row) for row in rows]
  assert [row.fields["text"] for row in made] == [
    row.fields["text"] for row in found if row.part == "b"
  ]
  for name, sentence in (
    (None, "--part: missing; config.data.mix.b.prompt"),
    ("c", "--part=c:"),
  ):
    with pytest.raises(UsageError, match=sentence):
      unlabelled.rows_of(flags | {"part": name}, config)


@pytest.mark.parametrize(
  ("changes", "kind", "sentence"),
  [
    (
      {"b": {"columns": {"text": "reviews"}}},
      JaxsftError,
      "config.data.mix.b: .*no column 're",
    ),
    ({"b": {"keep": "False"}}, JaxsftError, "config.data.mix.b: no row is left of 24 read"),
    ({"b": {"limit": 0}}, UsageError, "config.data.mix.b: data.limit is 0"),
    ({"a": {"sha256": "0" * 64}}, JaxsftError, "config.data.mix.a: "),
    ({"a": {"sha256": "0"}}, UsageError, "config.data.mix.a: data.mix.a.sha256 is '0'"),
    ({"a": {"path": "no/such"}}, JaxsftError, "config.data.mix.a: .*no/such"),
    ({"a": {"limit": 1}}, JaxsftError, "config.data.mix.a: data.split=0.2 leaves no row"),
  ],
)
def test_what_is_wrong_with_a_set_names_it(place, changes, kind, sentence):
  with pytest.raises(kind, match=sentence) as error:
    sources.read_data(data(place, **changes), CLASSIFY)
  assert type(error.value) is kind


# --- how often, and how much --------------------------------------------------------------


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
  chosen = select.trainable_paths(shapes, "all", ())
  return preflight.report(job.data, job.config, shapes, chosen, job.schedule)


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
    (metrics,) = build.updates(job)[1]
    return float(metrics["loss"] * metrics["weight"]), float(metrics["weight"])

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


# --- evaluations ---------------------------------------------------------------------------


def test_numbers_of_a_set_are_those_of_an_evaluation_of_it_alone(place):
  model = jaxsft.load(checkpoint(place, "judge")[1])
  config = settings(place, model="judge")
  rows = sources.read_data(config.data, CLASSIFY)
  both, found, _ = evaluate.judge(model, config, rows.held_out)
  alone = {
    "a": {"data__path": str(place / "a.jsonl")},
    "b": {"data__path": str(place / "b.csv"), "data__columns": COLUMNS},
  }
  for name, changes in alone.items():
    one = settings(place, model="judge", data__mix=None, **changes)
    held = sources.read_data(one.data, CLASSIFY).held_out
    metrics, _, _ = evaluate.judge(model, one, held)
    assert sum(f.row.part == name for f in found) == len(held) > 2
    for key in ("loss", "accuracy"):
      assert both[f"{name}/{key}"] == pytest.approx(metrics[key], rel=1e-5)
    assert not any("/" in key for key in metrics)
  assert both["a/loss"] != both["b/loss"]


def test_a_run_tells_its_sets_apart_to_the_end(place, tmp_path, monkeypatch, capsys):
  tiny.on_devices(monkeypatch, 1)
  config = settings(place, a={"loss_weight": 2.0}, steps=3, evaluate__every=1)
  run = train.finetune(config, tmp_path / "run")
  lines = [json.loads(x) for x in (run.directory / "metrics.jsonl").read_text().splitlines()]
  evaluations = [line for line in lines if line["kind"] == "eval"]
  assert len(evaluations) == 3
  held = sources.read_data(config.data, CLASSIFY).held_out
  share = {name: sum(r.part == name for r in held) / len(held) for name in ("a", "b")}
  for line in evaluations:
    mean = sum(share[name] * line[f"eval_{name}/loss"] for name in share)
    assert mean == pytest.approx(line["eval_loss"], rel=1e-6)
  best = next(line for line in evaluations if line["step"] == run.result["best"]["step"])
  kept = json.loads((run.directory / "result.json").read_text())["sets"]
  assert kept["b/loss"] == best["eval_b/loss"] and kept["a/accuracy"] == best["eval_a/accuracy"]
  shown = capsys.readouterr().out
  assert f"of a: loss {kept['a/loss']:.4g}" in shown
  page = (run.directory / "report.html").read_text()
  assert "<h2>Data sets</h2>" in page and "<h3>a</h3>" in page
  found = json.loads((run.directory / "data.json").read_text())["plan"]["mixture"]
  assert [one["name"] for one in found] == ["a", "b"]
  stored = json.loads((run.directory / "config.json").read_text())
  assert config_lib.from_dict(stored) == config


def test_a_resumed_run_refuses_other_shares(place, tmp_path, monkeypatch):
  tiny.on_devices(monkeypatch, 1)
  job = lambda **changes: build.job(settings(place, **changes), tiny.devices(1))
  one, same = job(b={"epochs": 2.0}), job(b={"epochs": 2.0})
  other, weighed = job(b={"epochs": 3.0}), job(b={"epochs": 2.0, "loss_weight": 2.0})
  assert train.identity(one) == train.identity(same)
  assert train.identity(other)["data"] != train.identity(one)["data"]
  assert train.identity(weighed)["data"] == train.identity(one)["data"]  # the same order
  assert train.identity(weighed)["config"] != train.identity(one)["config"]
