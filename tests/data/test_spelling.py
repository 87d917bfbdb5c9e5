"""Tags as labels spell them: schemes, ids, and which labels there are."""

import numpy as np
import pytest

from jaxsft.data import spelling
from jaxsft.data.read import Row
from jaxsft.errors import JaxsftError


def rows(*tags, **more):
  made = [{"tokens": ["a"] * len(x), "tags": x} for x in tags]
  made += more.get("texts", [])
  return [Row(str(n), f"rows.jsonl:{n}", fields) for n, fields in enumerate(made)]


def text(*labels):
  entities = [{"start": 2 * n, "end": 2 * n + 1, "label": x} for n, x in enumerate(labels)]
  return {"text": "a " * 9, "entities": entities}


IOB1 = ["I-PER", "I-PER", "B-PER", "O", "I-LOC"]
IOB2 = ["B-PER", "I-PER", "B-PER", "O", "B-LOC"]
IOBES = ["B-PER", "E-PER", "S-PER", "O", "S-LOC"]
NAMES = ("O", "B-LOC", "B-PER", "I-LOC", "I-PER")


@pytest.mark.parametrize("tags", [IOB1, IOB2])
def test_labels_of_entities_are_whole_and_begin_with_o(tags):
  assert spelling.label_names(rows(tags)) == NAMES  # I-LOC never occurs
  assert spelling.label_names(rows(["O"], ["B-PER"], texts=[text("LOC")])) == NAMES


def test_labels_of_other_kinds():
  wide = ("O", "B-LOC", "B-PER", "E-LOC", "E-PER", "I-LOC", "I-PER", "S-LOC", "S-PER")
  assert spelling.label_names(rows(IOBES)) == wide
  assert spelling.label_names(rows(["VB", "NN"], ["NN"])) == ("NN", "VB")
  assert spelling.label_names(rows(texts=[text("PER"), text()])) == ("O", "B-PER", "I-PER")
  assert spelling.label_names(rows(["B", "I", "O"])) == ("O", "B", "I")


def test_labels_of_a_trained_head_suffice_or_do_not():
  names = lambda *made, **more: spelling.label_names(rows(*made, **more), NAMES)
  assert names(["O", "I-PER"]) == names([0, 4]) == names(["S-PER", "O"]) == NAMES
  assert names(texts=[text("PER")]) == names(["O"], texts=[text("LOC")]) == NAMES
  assert names(["O", "B-ORG"]) == ("O", "B-ORG", "I-ORG")
  assert names(["B-PER"], texts=[text("ORG")]) == ("O", "B-ORG", "B-PER", "I-ORG", "I-PER")
  assert names(["NN", "VB"]) == ("NN", "VB")
  short = ("O", "B-LOC")  # a head of others that cannot go on
  assert spelling.label_names(rows(["O", "B-LOC"]), short) == short
  assert spelling.label_names(rows(["B-LOC", "I-LOC"]), short) == ("O", "B-LOC", "I-LOC")
  assert spelling.label_names(rows(["NN"]), ("NN", "VB")) == ("NN", "VB")
  assert spelling.types(NAMES) == {"LOC", "PER"} and spelling.types(("NN", "VB")) == set()


@pytest.mark.parametrize(
  ("labels", "scheme"),
  [
    (NAMES, "IOB2"),
    (("O", "I-LOC", "I-PER"), "IOB2"),
    (("O", "B-LOC"), "IOB2"),
    (("O", "B-LOC", "E-LOC", "I-LOC", "S-LOC"), "IOBES"),
    (("O", "B-LOC", "I-LOC", "L-LOC", "U-LOC"), "BILOU"),
    (("NN", "VB"), "plain"),
    (("$KEEP", "$REPLACE_B-52"), "plain"),
    (("O", "B-LOC", "[PAD]"), "plain"),  # a head of others; tags are all that it can say
  ],
)
def test_the_scheme_of_labels(labels, scheme):
  assert spelling.scheme(labels) == scheme


@pytest.mark.parametrize("found", [IOB1, IOB2, IOBES])
@pytest.mark.parametrize("wanted", [IOB2, IOBES])
def test_rows_are_spelt_as_the_labels(found, wanted):
  labels = spelling.label_names(rows(wanted))
  settled = spelling.settled(rows(found, ["O"]), labels)
  assert [row.fields["tags"] for row in settled] == [wanted, ["O"]]
  assert [row.fields["tokens"] for row in settled] == [["a"] * 5, ["a"]]


def test_the_scheme_is_that_of_all_rows():
  """Alone, the first would be IOB1 and the second either."""
  made = rows(["O", "I-PER"], ["O", "O"], IOB2, IOB2)
  assert [r.fields["tags"] for r in spelling.settled(made, NAMES)] == [
    ["O", "I-PER"], ["O", "O"], IOB2, IOB2,
  ]  # fmt: skip
  assert spelling.settled(made[:1], NAMES)[0].fields["tags"] == ["O", "B-PER"]


def test_ids_become_names_and_others_stay():
  made = rows([0, 2, 4], np.array([1, 0]), ["O", 1])
  assert [r.fields["tags"] for r in spelling.settled(made, NAMES)] == [
    ["O", "B-PER", "I-PER"], ["B-LOC", "O"], ["O", "B-LOC"],
  ]  # fmt: skip
  assert made[0].fields["tags"] == [0, 2, 4]
  plain = rows(["NN", "VB"], ["I-X"])
  assert spelling.settled(plain, ("NN", "VB")) == plain
  assert spelling.settled(rows(["NN"]), NAMES) == rows(["NN"])  # which encode refuses
  both = rows(texts=[text("PER")])
  assert spelling.settled(both, NAMES) == both


@pytest.mark.parametrize(
  ("row", "parts"),
  [
    ({"tags": "O O"}, ["'O O' for the tags"]),
    ({"tags": ["O", None]}, ["None among the tags"]),
    ({"tags": ["O", True]}, ["True among the tags"]),
    ({"tags": ["O", ""]}, ["'' among the tags"]),
    ({"tags": [0, 5]}, ["the tag 5", "0 to 4", "data.labels"]),
    ({"tags": [-1]}, ["the tag -1"]),
    ({"label": ["O"]}, ["no field 'tags' or 'entities'", "data.columns"]),
  ],
)
def test_tags_that_are_none(row, parts):
  with pytest.raises(JaxsftError) as error:
    spelling.settled([Row("a", "rows.jsonl:7", {"tokens": ["a"], **row})], NAMES)
  assert str(error.value).startswith("rows.jsonl:7: ")
  assert all(part in str(error.value) for part in parts), str(error.value)


def test_labels_that_rows_do_not_name():
  with pytest.raises(JaxsftError, match=r"numbers 0 to 7 for tags.*data\.labels"):
    spelling.label_names(rows([0, 7]))
  for judge in (spelling.label_names, lambda made: spelling.settled(made, NAMES)):
    with pytest.raises(JaxsftError, match=r"^rows.jsonl:1: the tag 'PER' has no prefix"):
      judge(rows(["B-PER"], ["B-PER", "PER"]))
    with pytest.raises(JaxsftError, match=r"^the prefixes B, L, M belong to no known scheme"):
      judge(rows(["B-PER", "M-PER"], ["B-PER", "L-PER"]))
  with pytest.raises(JaxsftError, match="some training rows have entities"):
    spelling.label_names(rows(["NN"], texts=[text("PER")]))
  with pytest.raises(JaxsftError, match=r"rows.jsonl:0: found an entity"):
    spelling.label_names(rows(texts=[{"text": "a", "entities": [[0, 2, "X"]]}]))
