"""What a run holds out, it holds out when it goes on: another split is another run."""

import dataclasses
import json

import pytest

from jaxsft import checkpoint, train
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
  first = identity(by_group)
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
