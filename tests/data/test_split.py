"""What is held out is a function of ids, groups and labels: complete, disjoint, and stable."""

import dataclasses
import itertools
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsft import sources, tasks
from jaxsft.config import Config, Data, Evaluate, Model, check
from jaxsft.data import split as splits
from jaxsft.data.read import Row
from jaxsft.errors import JaxsftError, UsageError


def row(number, **fields):
  return Row(f"r{number}", f"f.csv:{number}", fields)


def held(rows, share=0, **how):
  """Ids of the rows that are held out; all are on one side, in their order."""
  found = splits.split(rows, share=share, **how)
  assert sorted([*found.train, *found.held_out]) == sorted(rows)  # complete, and none twice
  for side in found[:2]:
    ids = {r.id for r in side}
    assert side == [r for r in rows if r.id in ids]
  return {r.id for r in found.held_out}


MODEL = Model(path="model")
PLAIN = [row(i, text=f"t{i}") for i in range(2000)]
GROUPED = [row(i, doc=f"d{i * 7 % 130}", label="ab"[i % 2]) for i in range(1000)]
LABELS = "a" * 600 + "b" * 155 + "c" * 20 + "d" * 2 + "e"
LABELLED = [row(i, label=name) for i, name in enumerate(LABELS)]
random.Random(0).shuffle(LABELLED)
HOW = {
  "id": (PLAIN, dict(share=0.1)),
  "group": (GROUPED, dict(share=0.1, by="doc")),
  "label": (LABELLED, dict(share=0.1, stratify=True)),
  "fold": (PLAIN, dict(folds=5, fold=2)),
  "fold of groups": (GROUPED, dict(folds=5, fold=2, by="doc")),
  "fold of labels": (LABELLED, dict(folds=5, fold=2, stratify=True)),
}


@pytest.mark.parametrize("name", HOW)
def test_the_order_of_rows_changes_nothing(name):
  rows, how = HOW[name]
  shuffled = random.Random(1).sample(rows, len(rows))
  assert held(shuffled, **how) == held(rows, **how)


@pytest.mark.parametrize("name", [name for name in HOW if "label" not in name])
def test_other_rows_change_nothing(name):
  rows, how = HOW[name]
  some = random.Random(2).sample(rows, len(rows) // 2)
  assert held(some, **how) == held(rows, **how) & {r.id for r in some}


def test_the_default_never_moves():
  """Runs of earlier versions go on: sha256("r0") begins with 0xdd19, 0.863664 of the range."""
  assert splits.place("r0") / 2**64 == pytest.approx(0.863664, abs=1e-6)
  few = [row(i) for i in range(8)]
  assert held(few, share=0.863666) - held(few, share=0.863663) == {"r0"}
  ids = held(PLAIN, share=0.1)
  assert 150 < len(ids) < 250 and ids < held(PLAIN, share=0.2)  # a larger share adds rows


def test_both_sides_are_needed():
  rows = [row(i, doc="one") for i in range(3)]
  assert splits.split(rows, share=0) == (rows, [], "")
  for how, said in (
    (
      dict(share=1e-9),
      r"data\.split=1e-09 leaves no row for evaluation \(held out by id: 0 of 3",
    ),
    (dict(share=1 - 1e-9), r"leaves no row for training.*use more rows.*data\.eval_path"),
    (
      dict(share=0.5, by="doc"),
      r"of 1 groups, .*use more groups of 'doc' or another data.split,",
    ),
    (
      dict(share=0, folds=2, by="doc"),
      r"data\.folds=2 leaves no row for .*another data.folds,",
    ),
  ):
    with pytest.raises(JaxsftError, match=said):
      splits.split(rows, **how)
  for share in (1, -0.1, 1.5):
    with pytest.raises(UsageError, match=r"data\.split is"):
      splits.split(rows, share=share)


@pytest.mark.parametrize("how", [dict(share=0.1), dict(folds=3, fold=1)])
def test_a_group_is_on_one_side(how):
  found = splits.split(GROUPED, **({"share": 0} | how), by="doc")
  sides = [{r.fields["doc"] for r in side} for side in found[:2]]
  assert all(sides) and not sides[0] & sides[1]
  groups, rows = len(sides[1]), len(found.held_out)
  assert (
    f"held out by group of 'doc': {groups} of 130 groups, {rows} of 1,000 rows" in found.said
  )


def test_groups_that_are_ids_are_split_as_ids():
  named = [r._replace(fields={"key": r.id}) for r in PLAIN]
  assert held(named, share=0.1, by="key") == held(PLAIN, share=0.1)


def test_a_number_is_one_group_however_it_is_written():
  written = [3, 3.0, "3", 4.0, 4, "4", 0, 0.0, False, *"abcdefgh"]
  rows = [row(i, doc=doc) for i, doc in enumerate(written)]
  found = splits.split(rows, share=0.5, by="doc")
  assert "of 12 groups" in found.said  # 3, 4, 0, False and the letters


@pytest.mark.parametrize("value", [None, "", " ", float("nan"), [1], {"a": 1}, "MISSING"])
def test_a_row_needs_a_group(value):
  rows = [row(1, doc="a"), row(2, doc=value)]
  said = r"f\.csv:2: the group \(field 'doc', data\.split_by\) is .*data\.keep"
  if value == "MISSING":
    rows[1] = row(2, dok="a")
    said = r"f\.csv:2: no field 'doc', which data\.split_by names; did you mean 'dok'\?"
  with pytest.raises(JaxsftError, match=said):
    splits.split(rows, share=0.1, by="doc")


def shares(rows, ids):
  return Counter(r.fields["label"] for r in rows if r.id in ids)


def test_labels_keep_their_shares():
  ids = held(LABELLED, share=0.1, stratify=True)
  # 155 * 0.1 is 15.5: half a row is one; of 2 rows one is held out, of 1 none.
  assert shares(LABELLED, ids) == {"a": 60, "b": 16, "c": 2, "d": 1}
  most = held(LABELLED, share=0.9, stratify=True)
  assert shares(LABELLED, most) == {"a": 540, "b": 140, "c": 18, "d": 1}
  assert ids < most
  ranks = {r.id: splits.place(r.id) for r in LABELLED if r.fields["label"] == "b"}
  assert max(ranks[i] for i in ids & ranks.keys()) < min(ranks[i] for i in ranks.keys() - ids)
  said = splits.split(LABELLED, share=0.1, stratify=True).said
  assert said == "held out by id within each label: 79 of 778 rows (10.2%)"


def test_half_a_row_is_one_as_it_is_written():
  """0.145 * 100 is 14.499999999999998 in floats; the setting says 14.5."""
  rows = [row(i, label="a") for i in range(100)]
  assert len(held(rows, share=0.145, stratify=True)) == 15
  assert len(held(rows, share=0.144, stratify=True)) == 14


def test_rows_of_other_labels_change_nothing():
  ids = held(LABELLED, share=0.1, stratify=True)
  some = [r for r in LABELLED if r.fields["label"] != "a"]
  assert held(some, share=0.1, stratify=True) == ids & {r.id for r in some}


@pytest.mark.parametrize("how", [{}, {"by": "doc"}, {"stratify": True}])
def test_folds_part_the_rows(how):
  parts = [held(GROUPED, folds=5, fold=i, **how) for i in range(5)]
  assert sorted(itertools.chain(*parts)) == sorted(r.id for r in GROUPED)
  assert all(120 < len(part) < 280 for part in parts)
  if how == {"stratify": True}:
    assert [shares(GROUPED, part) for part in parts] == [{"a": 100, "b": 100}] * 5


def test_folds_of_rare_labels_differ():
  """One row a label must not make the first fold of all of them."""
  rows = [row(i, label=f"l{i}") for i in range(200)]
  parts = [held(rows, folds=4, fold=i, stratify=True) for i in range(4)]
  assert sum(map(len, parts)) == 200 and all(30 < len(part) < 70 for part in parts)


def test_a_fold_of_two_is_half_of_the_hashes():
  assert held(PLAIN, folds=2, fold=0) == held(PLAIN, share=0.5)
  said = splits.split(PLAIN, share=0, folds=2, fold=1).said
  assert said.startswith("fold 1 (of 0 … 1) held out by id: ") and "of 2,000 rows" in said


@settings(max_examples=200, deadline=None)
@given(
  st.lists(st.sampled_from("abc"), min_size=2, max_size=40),
  st.floats(0.01, 0.99),
  st.integers(2, 6),
)
def test_any_labels(labels, share, folds):
  rows = [row(i, label=name) for i, name in enumerate(labels)]
  counts = Counter(labels)
  if max(counts.values()) > 1:
    found = shares(rows, held(rows, share=share, stratify=True))
    for name, count in counts.items():
      assert abs(found[name] - share * count) <= 1
      assert count < 2 or 0 < found[name] < count
  met = Counter()
  for fold in range(folds):
    try:
      part = held(rows, folds=folds, fold=fold, stratify=True)
    except JaxsftError as error:
      assert "leaves no row" in str(error)
      part = {r.id for r in rows} if "for training" in str(error) else set()
    for name, count in shares(rows, part).items():
      assert count <= -(-counts[name] // folds)
    met.update(part)
  assert met == Counter(r.id for r in rows)


def test_the_config_says_how(write):
  lines = [f"text{i},{'ab'[i % 2]},d{i % 40}" for i in range(200)]
  write("rows.csv", "\n".join(["text,label,doc", *lines]))
  data = Data(path="rows.csv", split=0.0, folds=4, fold=3, split_by="doc")
  config = Config(model=MODEL, data=data, evaluate=Evaluate(sets={"more": "rows.csv"}))
  rows = sources.read_data(check(config).data, tasks.TASKS["classify"])
  docs = [{r.fields["doc"] for r in side} for side in rows[:2]]
  assert docs[1] == {f"d{i}" for i in range(40) if splits.place(f"d{i}") // 2**62 == 3}
  assert not docs[0] & docs[1] and len(rows.train) + len(rows.held_out) == 200
  assert rows.split.startswith("fold 3 (of 0 … 3) held out by group of 'doc'")
  more = sources.further_sets(config)["more"]  # measured whole
  assert len(more.train) == 200 and more.held_out == [] and more.split == ""
  stratified = dataclasses.replace(data, split=0.1, folds=None, fold=0, split_by=None)
  stratified = dataclasses.replace(stratified, stratify=True)
  rows = sources.read_data(stratified, tasks.TASKS["classify"])
  assert Counter(r.fields["label"] for r in rows.held_out) == {"a": 10, "b": 10}


@pytest.mark.parametrize(
  ("keys", "said"),
  [
    (dict(folds=1, split=0), "config.data.folds: found 1"),
    (dict(fold=1), "config.data.fold: is 1, which has no effect without data.folds"),
    (dict(folds=5, fold=5, split=0), "config.data.fold: found 5, expected 0 … 4"),
    (dict(folds=5, fold=-1, split=0), "config.data.fold: found -1, expected 0 … 4"),
    (dict(folds=5), "config.data.split: is 0.1 although data.folds=5"),
    (dict(folds=5, split=0, eval_path="x"), "config.data.folds: data.eval_path"),
    (dict(split_by="doc", split=0), "config.data.split_by: has no effect"),
    (dict(stratify=True, split=0), "config.data.stratify: has no effect"),
    (dict(stratify=True, split_by="doc"), "config.data.stratify: groups of data.split_by"),
    (dict(stratify=True, label_type="multi"), "config.data.stratify: is for rows with one"),
  ],
)
def test_what_cannot_be_is_refused(keys, said):
  with pytest.raises(UsageError) as error:
    check(Config(model=MODEL, data=Data(path="rows.csv", **keys)))
  assert str(error.value).startswith(said)
  check(
    Config(model=MODEL, data=Data(path="rows.csv", folds=5, fold=4, split=0.0, stratify=True))
  )
  with pytest.raises(UsageError, match=r"data\.stratify: has no effect with task='tag'"):
    check(Config(task="tag", model=MODEL, data=Data(path="rows.csv", stratify=True)))
