"""What a run holds out, it holds out when it goes on: another split is another run."""

import dataclasses
import json
import re

import numpy as np
import pytest

from jaxsft import checkpoint, preflight, train
from jaxsft.data import feed
from jaxsft.errors import JaxsftError
from tests import tiny
from tests.contract import build

PAIR = ("bert", "classify")


def identity(config):
  return train.identity(build.job(config, tiny.devices(1)))


def test_going_on_with_another_split_is_refused(files, tmp_path):
  model, data = files(*PAIR)
  rows = [json.loads(line) for line in data.read_text().splitlines()]

  def write(groups):
    lines = [json.dumps(row | {"group": i % groups}) for i, row in enumerate(rows)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))

  write(7)
  config = tiny.config(*PAIR, model, tmp_path / "rows.jsonl", data__split=0.5)
  changed = lambda **keys: dataclasses.replace(
    config, data=dataclasses.replace(config.data, **keys)
  )
  by_group = changed(split_by="group")
  job = build.job(by_group, tiny.devices(1))
  report = preflight.report(job.data, by_group, job.network.shapes(), job.chosen, job.rule)
  held_out = len(job.data.rows.held_out)
  said = rf"held out by group of 'group': \d of 7 groups, {held_out} of {len(rows)} rows"
  assert [line for line in report.lines() if re.match(rf"split      {said}", line)]
  assert re.match(said, report.as_dict()["rows"]["split"])
  first = train.identity(job)
  saved = {"hashes": json.loads(json.dumps(first))}
  checkpoint.check_loop(saved, identity(by_group))
  for other, said in (
    (changed(), "data.split_by: 'group' then, None now"),
    (changed(stratify=True), "data.stratify: False then, True now"),
    (changed(split_by="group", split=0.0, folds=3), "data.folds: None then, 3 now"),
  ):
    now = identity(other)
    assert now["data"] != first["data"]
    with pytest.raises(JaxsftError, match=said):
      checkpoint.check_loop(saved, now)
  write(9)  # the same settings, texts and labels, but other groups
  with pytest.raises(JaxsftError, match="another run: the data differ"):
    checkpoint.check_loop(saved, identity(by_group))


@pytest.mark.parametrize("packing", ["pack", "buckets", "none"])
@pytest.mark.parametrize("split", ["split", "folds", "eval_path"])
def test_no_held_out_row_is_trained_on_in_three_epochs(
  files, tmp_path, monkeypatch, split, packing
):
  """By the ids and by the tokens of the batches that the device would get."""
  model, data = files(*PAIR)
  texts = [json.loads(line)["text"] for line in data.read_text().splitlines()]
  texts = list(dict.fromkeys(texts))  # each stands for its row
  write = lambda name, texts: (tmp_path / name).write_text(
    "".join(
      json.dumps({"name": f"{name}{i}", "text": text, "label": ("neg", "pos")[i % 2]}) + "\n"
      for i, text in enumerate(texts)
    )
  )
  settings = {"data__split": 0.25}
  if split == "folds":
    settings = {"data__split": 0.0, "data__folds": 4, "data__fold": 1}
  if split == "eval_path":
    write("held.jsonl", texts[::4])
    settings = {"data__split": 0.0, "data__eval_path": str(tmp_path / "held.jsonl")}
    texts = [text for text in texts if text not in texts[::4]]
  write("rows.jsonl", texts)
  config = tiny.config(
    *PAIR, model, tmp_path / "rows.jsonl", steps=None, epochs=3.0, data__packing=packing,
    **settings,
  )  # fmt: skip
  job = build.job(config, tiny.devices(1))
  store, held_out = job.data.train.store, job.data.held_out.store
  met, check = [], feed.validate

  def validate(batch, *rest):
    met.append(
      {name: np.asarray(batch[name]) for name in ("example_ids", "inputs", "segments")}
    )
    check(batch, *rest)

  monkeypatch.setattr(feed, "validate", validate)
  assert len(list(train.batches(job, 0))) == len(met) == job.data.plan.num_steps
  ids, said = [], set()
  for batch in met:
    chosen = batch["example_ids"].ravel()
    ids += [store.ids[i] for i in chosen[chosen >= 0]]
    rows, segments = (
      batch[name].reshape(-1, batch[name].shape[-1]) for name in ("inputs", "segments")
    )
    for row, of in zip(rows, segments, strict=True):
      said |= {tuple(row[of == k].tolist()) for k in range(1, of.max() + 1)}
  assert {ids.count(id) for id in store.ids} == {3}  # each in every epoch
  tokens = lambda store: {tuple(store.example(i)["inputs"].tolist()) for i in range(len(store))}
  assert said == tokens(store)
  assert len(held_out) > 5 and not {*ids} & {*held_out.ids}
  assert not said & tokens(held_out)
