"""Questions in SQuAD's form and in flat rows: the same fields, every answer in its place."""

import collections
import json
import os

import pytest

from jaxsft.data import read, squad
from jaxsft.errors import JaxsftError, UsageError
from tests.data.test_read import fields_of, refused, rows_of

CONTEXT = "🙂 In 1066 the Normans came. The Normans stayed."
TWO = [{"text": "1066", "answer_start": 5}, {"text": "The Normans", "answer_start": 28}]
CLEAN = [{"text": "1066", "start": 5}, {"text": "The Normans", "start": 28}]


def asked(id="q1", answers=TWO, **more):
  return {"id": id, "question": "When?", "answers": answers, **more}


def article(*questions, context=CONTEXT, **more):
  paragraph = {"context": context, "qas": list(questions)}
  return {"title": "Normandy", "paragraphs": [paragraph], **more}


def top(*questions, **more):
  return json.dumps({"version": "v2.0", "data": [article(*questions, **more)]})


def test_both_versions(write):
  plausible = [{"text": "Normans", "answer_start": 14}]
  questions = [
    asked(),
    asked("q2", [], is_impossible=True, plausible_answers=plausible),
    asked("q3", TWO[:1], is_impossible=False),
  ]
  file = write("dev.json.gz", top(*questions))
  first, second, third = rows_of(file)
  assert first == read.Row(
    "dev.json.gz:q1",
    "dev.json.gz:q1",
    {
      "id": "q1",
      "title": "Normandy",
      "context": CONTEXT,
      "question": "When?",
      "answers": CLEAN,
      "impossible": False,
    },
  )
  assert second.fields["answers"] == [] and second.fields["impossible"] is True
  assert second.fields["plausible_answers"] == plausible  # what else is said is kept
  assert third.fields["answers"] == CLEAN[:1] and third.fields["impossible"] is False
  assert rows_of(file, id="id")[1].id == "q2"
  other = write("dev.txt", top(*questions))
  assert fields_of(other, format="squad") == fields_of(file)


def test_an_article_by_itself_and_what_stands_around_a_question(write):
  file = write("a.json", json.dumps(article(asked(source="web"), source="book", year=1)))
  (found,) = fields_of(file)
  assert (found["source"], found["year"]) == ("web", 1)
  assert not {"paragraphs", "qas"} & found.keys()


def test_a_list_of_rows_stays_one(write):
  rows = [{"paragraphs": "x", "data": 1}]
  assert fields_of(write("a.json", json.dumps(rows))) == rows


def test_questions_without_answers_are_to_be_predicted(write):
  question = {key: value for key, value in asked().items() if key != "answers"}
  (found,) = fields_of(write("a.json", top(question)))
  assert not {"answers", "impossible"} & found.keys()


FLAT = {"id": "q1", "context": CONTEXT, "question": "When?"}


@pytest.mark.parametrize(
  ("row", "answers"),
  [
    ({"answers": {"text": ["1066", "The Normans"], "answer_start": [5, 28]}}, CLEAN),
    ({"answers": {"text": [], "answer_start": []}}, []),  # squad_v2 of `datasets`
    ({"answers": TWO}, CLEAN),
    ({"answers": [], "is_impossible": True}, []),
    ({"answers": TWO[:1], "is_impossible": False}, CLEAN[:1]),
    ({"answers": TWO[:1], "is_impossible": None}, CLEAN[:1]),  # a column of Parquet
  ],
)
def test_flat_rows(row, answers):
  found = squad.question(FLAT | row)
  assert found == FLAT | {"answers": answers, "impossible": not answers}
  assert squad.question(found) == found


def test_flat_rows_without_answers():
  assert squad.question(FLAT) == FLAT
  assert squad.question(FLAT | {"answers": None}) == FLAT | {"answers": None}


def one(text, start):
  return {"answers": [{"text": text, "answer_start": start}]}


WRONG = {
  "moved by one": (
    one("Normans", 13),
    "'Normans'",
    "at character 13",
    "' Norman'",
    "at 14, 32",
  ),
  "nowhere": (one("Saxons", 14), "'Saxons'", "found 'Norman'", "nowhere"),
  "bytes counted": (one("1066", 8), "expected '1066' at character 8", "it stands at 5"),
  "beyond the end": (one("stayed.", 400), "at character 400", "found ''", "it stands at 40"),
  "negative": (one("stayed.", -7), "answers[0]: answer_start is -7"),
  "no start": (one("1066", None), "answers[0]: answer_start is None"),
  "true": (one(" ", True), "answers[0]: the text is ' '"),
  "start that is true": (one("🙂", False), "answers[0]: answer_start is False"),
  "empty text": (one("", 0), "answers[0]: the text is ''", "leave the list of answers empty"),
  "second": ({"answers": [TWO[0], TWO[0] | {"answer_start": 6}]}, "answers[1]: expected"),
  "lists apart": ({"answers": {"text": ["a"], "answer_start": []}}, "same length"),
  "no lists": ({"answers": {"text": "1066", "answer_start": 5}}, "answers is {'text': '1066'"),
  "texts": ({"answers": ["1066"]}, "answers is ['1066']", "'answer_start'"),
  "impossible with": ({"answers": TWO, "is_impossible": True}, "is True", "there are 2"),
  "possible without": ({"answers": [], "impossible": False}, "impossible is False", "are 0"),
  "a number": ({"answers": [], "is_impossible": 1}, "is_impossible is 1", "expected true"),
  "no context": ({"context": None}, "context is None", "data.columns"),
  "no question": ({"question": 5}, "question is 5", "data.columns"),
}


@pytest.mark.parametrize("case", WRONG)
def test_rows_that_do_not_fit(case):
  row, *parts = WRONG[case]
  with pytest.raises(JaxsftError) as caught:
    squad.question(FLAT | row)
  assert not [part for part in parts if part not in str(caught.value)], str(caught.value)


BROKEN = {
  "answer": (
    top(asked(), asked("q2", [{"text": "1067", "answer_start": 5}])),
    "a.json: question 'q2' (data[0].paragraphs[0].qas[1]): answers[0]: expected '1067'",
    "found '1066'",
  ),
  "id twice": (top(asked(), asked()), "qas[1] has the id 'q1'", "qas[0]"),
  "no id": (top(asked(None)), "qas[0] has the id None"),
  "no context": (top(asked(), context=None), "question 'q1'", "context is None"),
  "question that is text": (top("When?"), "qas[0] is 'When?'", "an object"),
  "no qas": ('{"data": [{"paragraphs": [{"context": ""}]}]}', "[0]", "a list of qas"),
  "no paragraphs": ('{"data": [{"paragraphs": []}, {}]}', "data[1] is {}", "of paragraphs"),
  "cut off": (top(asked())[:-9], "a.json:1", "malformed JSON", "cut off"),
  "two objects": ('{"paragraphs": 1} {"paragraphs": 2}\n', "a.json:1", "'jsonl'"),
  "other keys": ('{"paragraphs": [], "paragraphs": []}', "'paragraphs' stands twice"),
  "half a character": (top(asked("q\ud83d")), "half a character", "question 'q"),
  "no question": ('{"data": [{"paragraphs": []}]}', "a.json holds no rows"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files(write, case):
  text, *parts = BROKEN[case]
  refused(write("a.json", text), *parts)


def test_files_that_are_not_in_squads_form(write):
  refused(write("a.json", '[{"a": 1}]'), "SQuAD's form", "'json'", "'jsonl'", format="squad")
  refused(write("b.json", '{"a": 1}'), "{'a': 1}", '"paragraphs"', format="squad")
  refused(write("c.json", " \n"), "c.json holds no rows", format="squad")
  file = write("d.json", top(asked()))
  refused(file, "position", error=UsageError, columns={"answers": 0})


@pytest.mark.full
@pytest.mark.skipif(not os.environ.get("JAXSFT_DATA"), reason="needs the data in JAXSFT_DATA")
@pytest.mark.parametrize(
  ("name", "counts"),
  [
    ("squad_v1_dev/dev-v1.1.json.gz", (48, 2067, 10570, 34726, 0)),
    ("squad_v2_cs224n/dev-v2.0.json", (16, 646, 6078, 10052, 3168)),
  ],
)
def test_official_counts(name, counts):
  found = fields_of(os.path.join(os.environ["JAXSFT_DATA"], name), id="id")
  said = collections.Counter(row["impossible"] for row in found)
  titles, contexts = ({row[key] for row in found} for key in ("title", "context"))
  answers = sum(len(row["answers"]) for row in found)
  assert len(titles) == counts[0] and len(contexts) == counts[1]
  assert (len(found), answers, said[True]) == counts[2:]
