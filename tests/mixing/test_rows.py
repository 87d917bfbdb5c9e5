"""Rows of several data sets: read and split like each alone, compared with those of all."""

import dataclasses
import json

import pytest

from jaxsft import config as config_lib
from jaxsft import sources, unlabelled
from jaxsft.config import Clean, Data
from jaxsft.errors import JaxsftError, UsageError
from tests.mixing.two_sets import CLASSIFY, COLUMNS, data, settings


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
  ("own", "shared"),
  [({"format": "csv", "columns": None}, {"format": "csv"}), ({}, {"columns": COLUMNS})],
)
def test_rows_without_a_part_are_not_read_in_another_way(place, tmp_path, own, shared):
  flags = {"data": str(place / "b.csv"), "out": str(tmp_path / "o.jsonl")}
  flags |= {"part": None, "columns": None}
  found = data(place, b=own | {"keep": "label == 'pos'"})
  (key,) = shared
  with pytest.raises(UsageError, match=rf"--part: missing; config.data.mix.b.{key} says how"):
    unlabelled.rows_of(flags, config_lib.Config(data=found))
  said = dataclasses.replace(found, **shared)
  rows, _, _ = unlabelled.rows_of(flags, config_lib.Config(data=said))
  assert len(list(rows)) == 24  # `keep` is for training: every row is answered
  if key == "columns":
    flags["columns"] = json.dumps({"text": "review"})
    rows, _, _ = unlabelled.rows_of(flags, config_lib.Config(data=found))
    assert next(rows).fields["text"]


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
