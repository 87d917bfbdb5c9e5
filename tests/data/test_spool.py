"""Rows that are packed come back as they were, from memory and from a file."""

import datetime
import errno
import gc
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsft import sources, tasks
from jaxsft.config import Augment, Clean
from jaxsft.data import clean, spelling, split, spool
from jaxsft.data.cleaning import fields, kept, overlap, record
from jaxsft.data.read import Row
from jaxsft.errors import JaxsftError

CLASSIFY = tasks.TASKS["classify"]
DROP = Clean(duplicates="drop", overlap="drop", min_chars=1)

VALUES = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.binary()
  | st.text(st.characters(exclude_categories=())) | st.dates() | st.tuples(st.integers()),
  lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
  max_leaves=8,
)  # fmt: skip
TEXTS = st.text(st.characters(exclude_categories=()), max_size=8)
ROWS = st.lists(st.builds(Row, TEXTS, TEXTS, st.dictionaries(TEXTS, VALUES), TEXTS), max_size=9)


def row(n, **fields):
  return Row(f"f:{n}", f"/data/f:{n}", {"text": f"text {n}"} | fields, "")


def alike(found, expected):
  """Whether values and the types of all of them are the same."""
  assert type(found) is type(expected), (found, expected)
  if isinstance(found, dict):
    assert list(found) == list(expected)
    assert list(map(type, found)) == list(map(type, expected))
    return all(alike(found[key], expected[key]) for key in found)
  if isinstance(found, list | tuple):
    return len(found) == len(expected) and all(map(alike, found, expected))
  return found == expected


@pytest.mark.parametrize("memory", [0, 40, 1 << 25])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(rows=ROWS)
def test_every_row_comes_back_as_it_was(tmp_path_factory, memory, rows):
  directory = tmp_path_factory.getbasetemp() / "spool"
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("JAXSFT_CACHE", str(directory))
    patch.setattr(spool, "MEMORY", memory)
    kept = spool.Spool(rows)
  assert len(kept) == len(rows)
  assert alike(list(kept), rows)
  assert alike([kept[i] for i in range(len(rows))], rows)
  assert alike([kept[i - len(rows)] for i in range(len(rows))], rows)
  for at in (slice(1, 4), slice(None, None, 2), slice(-2, None), slice(5, 2), slice(None, -1)):
    assert alike(kept[at], rows[at])
  with pytest.raises(IndexError):
    kept[len(rows)]


def test_rows_are_read_over_blocks_and_where_memory_ends(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXSFT_CACHE", str(tmp_path))
  monkeypatch.setattr(spool, "MEMORY", 5000)
  rows = [row(n) for n in range(3 * spool.BLOCK + 5)]
  kept = spool.Spool(rows)
  assert kept._data._written > 5000 and kept._data._memory  # on both sides
  assert kept == rows and kept == spool.Spool(rows) and kept != rows[:-1]
  assert kept[200:700] == rows[200:700]
  assert [one.id for one in reversed(kept)] == [one.id for one in reversed(rows)]


def test_what_cannot_be_packed_stays_an_object():
  tokens = np.arange(3000)
  day, deep = datetime.date(2026, 1, 2), {"a": 1}
  for _ in range(1100):
    deep = {"a": deep}
  rows = [row(1), row(2, tokens=tokens, day=day), row(3, pair=(1, 2)), row(4, big=2**70)]
  rows += [row(5, deep=deep), row(6)]
  kept = spool.Spool(rows)
  assert kept[1].fields["tokens"] is tokens and kept[1].fields["day"] is day
  assert kept[2].fields["pair"] == (1, 2) and kept[3].fields["big"] == 2**70
  assert kept[4].fields["deep"] is deep
  assert [one.id for one in kept] == [one.id for one in rows]


def test_a_change_of_what_was_read_changes_no_row():
  kept = spool.Spool([row(1, tags=["O"])])
  kept[0].fields["tags"].append("B-X")
  next(iter(kept)).fields["text"] = ""
  assert kept == [row(1, tags=["O"])]


def test_many_threads_read_the_same_file(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXSFT_CACHE", str(tmp_path))
  monkeypatch.setattr(spool, "MEMORY", 1000)
  rows = [row(n) for n in range(2000)]
  kept, right = spool.Spool(rows), []
  threads = [threading.Thread(target=lambda: right.append(list(kept) == rows)) for _ in "abcd"]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert right == [True] * 4


def test_the_file_has_no_name_and_ends_with_the_rows(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXSFT_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(spool, "MEMORY", 0)
  kept = spool.Spool([row(1)])
  assert kept[0] == row(1) and not list((tmp_path / "cache").iterdir())


def test_a_full_disk_is_said(tmp_path, monkeypatch):
  class Full:
    close = lambda self: None

    def write(self, data):
      raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setenv("JAXSFT_CACHE", str(tmp_path))
  monkeypatch.setattr(spool, "MEMORY", 0)
  monkeypatch.setattr(spool.tempfile, "TemporaryFile", lambda **_: Full())
  with pytest.raises(JaxsftError, match=r"cannot keep rows .*: the disk is full; free some"):
    spool.Spool([row(1)])


def objects():
  """How many rows lie in memory as objects, those of other tests too."""
  return sum(type(one) is Row for one in gc.get_objects())


class Watched(spool.Spool):
  """Rows that count, while they are read, how many rows lie in memory as objects."""

  most = 0

  def __iter__(self):
    for n, one in enumerate(super().__iter__()):
      if n % 400 == 399:
        Watched.most = max(Watched.most, objects())
      yield one


def labelled(count, task):
  tagged = {"tokens": ["a", "b"], "tags": ["O", "B-X"]}
  for n in range(count):
    more = {"label": f"l{n % 3}"} if task == "classify" else tagged
    yield row(n, text=f"text {n} of many words, all of them in a row", **more)


READ = {"keep": None, "labels": None, "label_type": "single", "separator": ",", "limit": None}
READ["task_fields"] = ("text", "label")
STAGES = {
  "labels": lambda rows, _: clean.label_names(rows),
  "cleaned": lambda rows, _: clean.clean(rows, **READ).rows,
  "split": lambda rows, _: split.split(rows, share=0.3, stratify=True),
  "kept": lambda rows, _: kept.kept(rows, CLASSIFY, DROP, record.Record()),
  "apart": lambda rows, others: overlap.apart(rows, others, CLASSIFY, DROP, record.Record()),
  "private": lambda rows, _: spool.Spool(
    fields.without_private(rows, CLASSIFY, (), {"secrets": "drop"}, record.Record())
  ),
  "augmented": lambda rows, others: sources.augmented(
    sources.Rows(rows, others, 0, {}),
    CLASSIFY,
    Augment(copies=1, templates=("{{ text }}!",)),
    0,
  ),
  "tags": lambda rows, _: spelling.label_names(rows, ("B-X", "I-X", "O")),
  "respelt": lambda rows, _: spelling.settled(rows, ("U-X", "B-X", "I-X", "L-X", "O")),
}


@pytest.mark.parametrize("what", STAGES)
def test_no_stage_holds_rows_as_objects(tmp_path, monkeypatch, what):
  monkeypatch.setenv("JAXSFT_CACHE", str(tmp_path))
  task = "tag" if what in ("tags", "respelt") else "classify"
  rows, others = Watched(labelled(1000, task)), Watched(labelled(1000, task))
  gc.collect()
  before = objects()
  monkeypatch.setattr(Watched, "most", 0)
  found = STAGES[what](rows, others)
  assert found is not None
  assert before < Watched.most < before + 2.5 * spool.BLOCK  # those that are read at once
  assert objects() < before + 2.5 * spool.BLOCK
