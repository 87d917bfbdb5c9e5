"""Columns become fields, nested ones too, and what is not there is said with what is."""

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsft.data import mapping, read
from jaxsft.errors import JaxsftError

RECORD = {
  "id": "a1",
  "translation": {"en": "the house", "de": "das Haus", "none": None},
  "answers": {"text": ["Paris", "in Paris"], "answer_start": [3, 0]},
  "choices": [{"text": "x", "scores": [[1, 2]]}, {"text": "y", "scores": []}],
  "translation.fr": "la maison",
  "gone": None,
}


def fields(**names):
  return mapping.fields(RECORD, names, "f.jsonl:3")


@pytest.mark.parametrize(
  ("path", "value"),
  [
    ("translation.en", "the house"),
    ("answers.text", ["Paris", "in Paris"]),
    ("answers.text[0]", "Paris"),
    ("answers.text[-1]", "in Paris"),
    ("choices[1].text", "y"),
    ("choices[0].scores[0][1]", 2),
    ("translation.fr", "la maison"),  # a column of this very name comes first
    ("translation.none", None),
    ("gone.a[0].b", None),  # nothing inside null is null: cleaning counts it as empty
  ],
)
def test_a_place_inside_a_column(path, value):
  assert fields(text=path)["text"] == value


def test_columns_keep_their_names_unless_they_are_mapped_as_a_whole():
  found = fields(source="translation.en", key="id", choices="choices[0].text")
  assert found["source"] == "the house" and found["key"] == "a1" and "id" not in found
  assert found["translation"] == RECORD["translation"]  # only a part of it was taken
  assert found["choices"] == "x"  # the field hides the column of its name
  assert mapping.fields(RECORD, {}, "") is RECORD


@pytest.mark.parametrize(
  ("path", "said"),
  [
    ("translations.en", "no column 'translations' (of 'translations.en'), which data.columns "
     "gives for 'text'; did you mean 'translation'?"),
    ("texts", "no column 'texts', which data.columns gives for 'text' (there is id, trans"),
    ("translation.dee", "'translation' is an object without the key 'dee' of "
     "'translation.dee', which data.columns gives for 'text'; did you mean 'de'?"),
    ("choices[2].text", "'choices' is a list of 2 and has no item [2] of 'choices[2].text'"),
    ("choices[-3]", "'choices' is a list of 2 and has no item [-3]"),
    ("choices.text", "'choices' is a list, in which there is not the key 'text' of "
     "'choices.text', which data.columns gives for 'text'; an item is written [0]"),
    ("translation[0]", "'translation' is an object, in which there is not the item [0] of "
     "'translation[0]', which data.columns gives for 'text'; a key is written .name"),
    ("id.x", "'id' is a text, in which there is not the key 'x'"),
    ("answers.answer_start[0].x", "'answers.answer_start[0]' is a number, in which"),
    ("answers..text", "no column 'answers..text', which"),
    ("answers.text[x]", "no column 'answers.text[x]', which"),
  ],
)  # fmt: skip
def test_what_is_not_there_is_said_with_what_is(path, said):
  with pytest.raises(JaxsftError) as error:
    fields(text=path)
  assert str(error.value).startswith("f.jsonl:3: ") and said in str(error.value)


def test_a_translation_as_the_hub_writes_it(write):
  rows = [{"translation": {"en": f"house {i}", "de": f"Haus {i}"}} for i in range(3)]
  rows.append({"translation": {"en": "x", "fr": "y"}})
  write("t.jsonl", "\n".join(map(json.dumps, rows)))
  settings = dict(format="auto", encoding="utf-8", header=None, quoting=True, id=None)
  columns = {"source": "translation.en", "target": "translation.de"}
  found = read.read_rows("t.jsonl", columns=columns, **settings)
  texts = [(row.fields["source"], row.fields["target"]) for row in itertools.islice(found, 3)]
  assert texts == [(f"house {i}", f"Haus {i}") for i in range(3)]
  with pytest.raises(
    JaxsftError, match=r"t.jsonl:4: 'translation' .*key 'de'.*there is en, fr"
  ):
    next(found)


def test_a_nested_column_of_parquet(write, tmp_path):
  import pyarrow
  import pyarrow.parquet

  table = pyarrow.Table.from_pylist([{"translation": {"en": "a", "de": "b"}, "n": [[1], [2]]}])
  pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
  settings = dict(format="auto", encoding="utf-8", header=None, quoting=True, id=None)
  columns = {"source": "translation.en", "target": "n[1][0]"}
  (row,) = read.read_rows(tmp_path / "t.parquet", columns=columns, **settings)
  assert row.fields["source"] == "a" and row.fields["target"] == 2


NAMES = st.sampled_from(["a", "b", "a.b", "a[0]", ""])
VALUES = st.recursive(
  st.none() | st.integers() | st.text(max_size=3),
  lambda some: st.lists(some, max_size=3) | st.dictionaries(NAMES, some, max_size=3),
  max_leaves=10,
)


def followed(value, steps):
  """What plain Python finds at a path; raises for what is not there."""
  for step in steps:
    if value is None:
      return None
    if isinstance(value, dict) != isinstance(step, str) or isinstance(value, str | int):
      raise LookupError
    value = value[step]
  return value


@settings(max_examples=2000, deadline=None)
@given(VALUES, st.lists(st.sampled_from(["a", "b", 0, 1, -1]), min_size=1, max_size=4))
def test_any_path_into_any_column(value, steps):
  path = "x" + "".join(f".{s}" if isinstance(s, str) else f"[{s}]" for s in steps)
  try:
    expected = followed(value, steps)
  except LookupError:
    with pytest.raises(JaxsftError, match=r"^f:1: 'x"):
      mapping.fields({"x": value}, {"text": path}, "f:1")
    return
  assert mapping.fields({"x": value}, {"text": path}, "f:1")["text"] == expected
