"""Copies of training rows: a function of the row, the seed and the number; spans follow."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsft import sources, tasks
from jaxsft.config import Augment, Data
from jaxsft.data import augment, read, squad, words
from jaxsft.data.cleaning import record
from jaxsft.errors import JaxsftError, UsageError
from jaxsft.metrics import tagging

CLASSIFY, TAG, ANSWER = (tasks.TASKS[name] for name in ("classify", "tag", "answer"))
SYNONYMS = {"film": ["movie", "picture"], "good": ["very fine"], "the": ["this"]}


@pytest.fixture(scope="module")
def synonyms(tmp_path_factory):
  path = tmp_path_factory.mktemp("words") / "synonyms.json"
  path.write_text(json.dumps(SYNONYMS))
  return str(path)


def row(id="r", **found):
  return read.Row(id, f"rows:{id}", found)


def copies(task, *rows, seed=0, **changes):
  noted = record.Record()
  make = augment.copier(Augment(**({"copies": 1} | changes)), seed)
  taken = {one.id for one in rows}
  return list(augment.copies(rows, task, make, taken, noted)), noted.changes()


LONG = " ".join(f"w{i}" for i in range(1000))


def test_words_are_dropped_by_their_share():
  (one,), _ = copies(CLASSIFY, row(text=LONG, label="a"), drop=0.3)
  left = one.fields["text"].split()
  assert set(left) < set(LONG.split()) and left == sorted(left, key=lambda w: int(w[1:]))
  assert abs(len(left) - 700) < 4 * np.sqrt(1000 * 0.3 * 0.7)
  assert (one.id, one.where, one.fields["label"]) == ("r~1", "rows:r (copy 1)", "a")


def test_words_change_places_with_the_next():
  (one,), _ = copies(CLASSIFY, row(text=LONG), swap=0.2)
  found = [int(w[1:]) for w in one.fields["text"].split()]
  assert sorted(found) == list(range(1000))
  moved = [abs(at - i) for i, at in enumerate(found)]
  assert set(moved) == {0, 1}
  # Of each pair that is looked at one of five changes; one that does skips the next.
  assert abs(sum(moved) / 2 - 1000 * 0.2 / 1.2) < 50


def test_words_are_replaced_with_their_marks_and_capitals(synonyms):
  text = "The film: was (good), Film film"
  seen = set()
  for seed in range(30):
    (one,), _ = copies(CLASSIFY, row(text=text), seed=seed, synonyms=synonyms, replace=0.99)
    seen.add(one.fields["text"])
  assert {"This movie: was (very fine), Picture movie"} <= seen
  for found in seen:
    first, second, *_ = found.split()
    assert first in ("The", "This") and second in ("film:", "movie:", "picture:")


def test_both_texts_of_a_pair_and_only_a_source():
  (one,), _ = copies(CLASSIFY, row(text=LONG, text_pair=LONG, other=LONG), drop=0.5)
  assert one.fields["text"] != LONG != one.fields["text_pair"] != one.fields["text"]
  assert one.fields["other"] == LONG
  pair = row(source=["a b c", "d e f g h"], target=LONG)
  (one,), _ = copies(tasks.TASKS["seq2seq"], pair, drop=0.6)
  assert set(one.fields["source"].split()) < set("abcdefgh") and one.fields["target"] == LONG


def test_copies_are_a_function_of_seed_row_and_number():
  rows = [row(str(i), text=LONG) for i in range(3)]
  first, _ = copies(CLASSIFY, *rows, copies=2, drop=0.5)
  again, _ = copies(CLASSIFY, rows[2], rows[0], copies=3, drop=0.5)
  texts = {one.id: one.fields["text"] for one in first}
  assert len(set(texts.values())) == 6
  for one in again:
    assert texts.get(one.id, one.fields["text"]) == one.fields["text"]
  other, _ = copies(CLASSIFY, *rows, copies=2, drop=0.5, seed=1)
  assert not set(texts.values()) & {one.fields["text"] for one in other}


def test_a_copy_that_equals_another_is_left_out_and_counted():
  made, changes = copies(CLASSIFY, row(text="a"), copies=3, drop=0.5)
  assert made == []  # the last word stays
  assert [(c.what, c.rows) for c in changes] == [(augment.SAME, 3)]
  made, changes = copies(CLASSIFY, row(text="a b"), copies=20, drop=0.5)
  texts = [one.fields["text"] for one in made]
  assert len(texts) == len(set(texts)) <= 2 and sum(c.rows for c in changes) == 20
  assert changes[0].samples[0]["before"] == "a b" or changes[1].samples[0]["before"] == "a b"


def test_an_id_that_is_taken_is_an_error():
  with pytest.raises(JaxsftError, match=r"rows:r: .*the id 'r~1' of another row"):
    copies(CLASSIFY, row(text=LONG), row("r~1", text=LONG), drop=0.5)


def test_conversations_are_not_copied():
  turns = [{"role": "user", "content": LONG}]
  made, ((what, count, _),) = copies(CLASSIFY, row(messages=turns, label="a"), drop=0.5)
  assert made == [] and (what, count) == (augment.NONE, 1)


def test_sentences_that_are_only_joined_are_no_copy():
  task = tasks.TASKS["seq2seq"]
  same, other = row("s", source=["a"], target="x"), row("o", source=["a", "b"], target="x")
  made, changes = copies(task, same, other, drop=0.0, swap=0.99)
  assert [(one.id, one.fields["source"]) for one in made] == [("o~1", "b a")]
  assert [(c.what, c.rows) for c in changes] == [
    (augment.SAME, 1),
    ("copies made by augmentation", 1),
  ]


@pytest.mark.parametrize("kind", [list, tuple, np.array])
def test_words_in_any_kind_of_list_are_words(synonyms, kind):
  rules = dict(drop=0.4, synonyms=synonyms, replace=0.5)
  words, tags = ["the", "film", "Rome", "film"], ["O", "O", "B-X", "O"]
  (expected,), _ = copies(TAG, row(tokens=words, tags=tags), **rules)
  (one,), _ = copies(TAG, row(tokens=kind(words), tags=kind(tags)), **rules)
  assert one.fields == expected.fields and one.fields["tokens"] != words
  made, ((what, *_),) = copies(TAG, row(tokens=kind(["film"]), tags=kind(["O"])), drop=0.9)
  assert made == [] and what == augment.SAME
  for odd in (row(tokens=kind([1, 2]), tags=kind(["O", "O"])), row(tokens=kind(words))):
    made, ((what, *_),) = copies(TAG, odd, drop=0.9, synonyms=synonyms, replace=0.9)
    assert made == []  # what is wrong with such rows is said where they are read


def test_texts_of_numpy_are_texts():
  (expected,), _ = copies(CLASSIFY, row(text=LONG), drop=0.5)
  for text in (np.str_(LONG), np.array(LONG)):
    (one,), _ = copies(CLASSIFY, row(text=text), drop=0.5)
    assert one.fields == expected.fields and type(one.fields["text"]) is str
  task, source = tasks.TASKS["seq2seq"], np.array(["a b", "c"])
  (one,), _ = copies(task, row(source=source, target="x"), swap=0.99)
  assert one.fields["source"] == "b a c"
  assert augment.texts(row(source=source), task) == ["a b c"]


# --- templates and word lists ----------------------------------------------------------


def test_templates():
  frames = ("{{ text }}?", "{{ kind }}: {{ text | upper }}")
  rows = [row(str(i), text=f"t{i}", kind="k") for i in range(20)]
  made, _ = copies(CLASSIFY, *rows, templates=frames)
  found = Counter(one.fields["text"][:3] == "k: " for one in made)
  assert len(made) == 20 and set(found) == {True, False}
  assert all(one.fields["text"] in (f"t{i}?", f"k: T{i}") for i, one in enumerate(made))


def test_bad_templates_and_word_lists(tmp_path):
  with pytest.raises(JaxsftError, match=r"rows:r: no column 'txt', which config.augment.templ"):
    copies(CLASSIFY, row(text="a", label="b"), templates=("{{ txt }}",))
  with pytest.raises(UsageError, match=r"config.augment.templates\[0\], line 1: "):
    copies(CLASSIFY, templates=("{{ text",))
  with pytest.raises(UsageError, match="names no field"):
    copies(CLASSIFY, templates=("text",))
  for name, content, said in (
    ("none.json", None, "cannot be read"),
    ("a.json", "[1]", "has no words"),
    ("a.json", "{", "neither JSON nor TSV"),
    ("a.json", '{"a": "b"}', "has 'b' for 'a'"),
    ("a.json", '{"a": []}', r"has \[\] for 'a'"),
    ("a.tsv", "a\n", r"has \[\] for 'a'"),
    ("a.tsv", "", "has no words"),
  ):
    if content is not None:
      (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=said):
      augment.read_synonyms(str(tmp_path / name))
  (tmp_path / "a.tsv").write_text("Big\tlarge\thuge\nquick\tfast\n")
  expected = {"big": ["large", "huge"], "quick": ["fast"]}
  assert augment.read_synonyms(str(tmp_path / "a.tsv")) == expected


# --- spans follow ----------------------------------------------------------------------

TOKENS = st.lists(st.sampled_from(["the", "film", "(good)", "x", "yz."]), max_size=8)


@settings(max_examples=300, deadline=None)
@given(TOKENS, TOKENS, TOKENS, st.integers(0, 99), st.floats(0, 0.99), st.floats(0, 0.99))
def test_names_and_answers_stay_where_their_spans_are(
  synonyms, one, two, three, seed, drop, rate
):
  whole, spans = "", []
  for part, name in ((one, "Ada Love"), (two, "Rome"), (three, "")):
    whole += "".join(f"{word} " for word in part)
    spans += [(len(whole), len(whole) + len(name))] if name else []
    whole += f"{name}, " if name else ""
  entities = [[*span, "X"] for span in spans]
  rules = dict(seed=seed, drop=drop, swap=rate, synonyms=synonyms, replace=rate)
  made, _ = copies(TAG, row(text=whole, entities=entities), **rules)
  for copy in made:
    found = words.entities(copy.fields)
    assert [copy.fields["text"][e.start : e.end] for e in found] == ["Ada Love", "Rome"]
  answers = [{"text": whole[a:b], "start": a} for a, b in spans]
  made, _ = copies(ANSWER, row(question="who", context=whole, answers=answers), **rules)
  for copy in made:  # which checks every answer against its context
    found = squad.question(copy.fields)["answers"]
    assert [answer["text"] for answer in found] == ["Ada Love", "Rome"]
    assert copy.fields["question"] == "who"


@settings(max_examples=300, deadline=None)
@given(
  st.lists(st.sampled_from(["O", "O", "I-A", "I-B", "B-A"]), min_size=1, max_size=12),
  st.integers(0, 99),
  st.floats(0, 0.99),
  st.floats(0, 0.99),
)
def test_tagged_words_keep_their_tags_and_entities(synonyms, tags, seed, drop, rate):
  """Read by IOB1, where two entities with nothing between them may become one."""
  tokens = [f"{i}" if tag != "O" else "film" for i, tag in enumerate(tags)]
  rules = dict(seed=seed, drop=drop, swap=rate, synonyms=synonyms, replace=rate)
  made, _ = copies(TAG, row(tokens=tokens, tags=tags), **rules)
  before = [(s.type, tokens[s.start : s.end]) for s in tagging.spans(tags, "IOB1")]
  for copy in made:
    new, said = copy.fields["tokens"], copy.fields["tags"]
    assert len(new) == len(said)
    after = [(s.type, new[s.start : s.end]) for s in tagging.spans(said, "IOB1")]
    assert after == before


def test_words_of_which_all_have_a_tag_stay():
  made, ((what, *_),) = copies(TAG, row(tokens=["a", "b"], tags=["DET", "NOUN"]), drop=0.9)
  assert made == [] and what == augment.NONE


# --- in the pipeline -------------------------------------------------------------------


def test_only_training_rows_are_copied(tmp_path):
  path = tmp_path / "rows.jsonl"
  path.write_text(
    "".join(json.dumps({"text": f"{LONG} {i}", "label": "a"}) + "\n" for i in range(40))
  )
  found = sources.read_data(Data(path=str(path), split=0.3), CLASSIFY)
  more = sources.augmented(found, CLASSIFY, Augment(copies=2, drop=0.1), 0)
  assert more.held_out == found.held_out and more.train[: len(found.train)] == found.train
  assert more.copies == 2 * len(found.train) == len(more.train) - len(found.train)
  assert {one.id.split("~")[0] for one in more.train} == {one.id for one in found.train}
  (change,) = more.changes
  assert (change.what, change.rows) == ("copies made by augmentation", more.copies)
  assert change.samples[0]["row"].startswith("rows.jsonl:")
  assert sources.augmented(found, CLASSIFY, Augment(), 0) is found
