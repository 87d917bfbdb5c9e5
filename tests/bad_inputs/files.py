"""Bad files of the formats that hold tagged sentences, questions, and parallel text."""

import json

from tests.bad_inputs.cases import case, settings

CONTEXT = "In 1066 the Normans came."


def file(name, at, text, code, *parts, **values):
  """A case of training on one file that cannot be read, and settings."""

  def spoil(p):
    p.table(at, text)
    for key, value in values.items():
      p.set(key.replace("__", "."), value)

  return case(name, "train", spoil, code, *parts)


def squad(name, *parts, **changes):
  """A case of training on SQuAD's form with one bad question."""
  answers = [{"text": "1066", "answer_start": 3}]
  asked = {"id": "q7", "question": "When?", "answers": answers} | changes
  paragraph = {"context": CONTEXT, "qas": [asked]}
  text = json.dumps({"data": [{"title": "Normandy", "paragraphs": [paragraph]}]})
  return file(name, "dev.json", text, 1, "dev.json", *parts)


def parallel(name, code, *parts, **values):
  """A case of training on two files of lines, the second one short."""

  def spoil(p):
    p.write("rows.en", "a\nb\nc\n")
    p.write("rows.de", "a\nb\n")
    p.set("data.id", None)
    for key, value in ({"data__path": "rows.{en,de}"} | values).items():
      p.set(key.replace("__", "."), value)

  return case(name, "train", spoil, code, *parts)


def saved_splits(p):
  (p.root / "saved").mkdir()
  p.write("saved/dataset_dict.json", '{"splits": ["train", "test"]}')
  p.set("data.path", "saved")


FILES = [
  file(
    "conll with a column too few",
    "rows.conll",
    "EU NNP B-ORG\nrejects VBZ\n",
    1,
    "rows.conll:2",
    "found 2 columns",
    "expected 3 as in line 1",
    "correct the line",
  ),
  file(
    "conll with a tag alone",
    "rows.iob2",
    "EU\tB-ORG\n\tO\n",
    1,
    "rows.iob2:2",
    "the tokens, is empty",
    "data.columns",
  ),
  file(
    "conll with a column that is not there",
    "rows.bio",
    "EU\tB-ORG\n",
    1,
    "rows.bio:1",
    "no column 3",
    "'tags'",
    "there are 2",
    data__columns={"tags": 3},
  ),
  file(
    "conll with named columns",
    "rows.conll",
    "EU\tB-ORG\n",
    2,
    "'ner'",
    "'tags'",
    "position",
    data__columns={"tags": "ner"},
  ),
  file("conll without tokens", "rows.conll", "\n\t\n", 1, "rows.conll", "no rows"),
  squad(
    "answer that is not there",
    "question 'q7'",
    "expected 'Normans' at character 11",
    "found ' Norman'",
    "it stands at 12",
    answers=[{"text": "Normans", "answer_start": 11}],
  ),
  squad(
    "answer to an impossible question",
    "question 'q7'",
    "is_impossible is True",
    "there are 1 answers",
    is_impossible=True,
  ),
  squad("question without an id", "qas[0] has the id None", "give it one", id=None),
  file(
    "squad cut off",
    "dev.json",
    '{"data": [{"paragraphs": [',
    1,
    "dev.json:1",
    "malformed JSON",
    "cut off",
  ),
  file(
    "squad that is a list",
    "rows.json",
    '[{"text": "a", "label": "b"}]',
    1,
    "rows.json",
    "SQuAD's form",
    "data.format to 'json'",
    data__format="squad",
  ),
  file("arrow that is none", "rows.arrow", "text", 1, "rows.arrow:1", "as Arrow", "write"),
  case(
    "a saved data set of two splits",
    "train",
    saved_splits,
    1,
    "data.path",
    "the splits train, test",
    "saved/train",
  ),
  file(
    "tfrecord cut off",
    "rows.tfrecord",
    "text",
    1,
    "rows.tfrecord:1",
    "damaged or cut off (4 bytes",
    "fetch or write the file again",
  ),
  file("bzip2 that is none", "rows.csv.bz2", "a", 1, "rows.csv.bz2:1", "bzip2", "cut off"),
  file("zstd that is none", "rows.tsv.zst", "a", 1, "rows.tsv.zst:1", "zstd", "again"),
  parallel(
    "sides of different length",
    1,
    "rows.en has 3 lines",
    "rows.de has 2 lines",
    "data.path",
    data__columns={"text": "en", "label": "de"},
  ),
  parallel(
    "a side that is missing",
    1,
    "data.path",
    "rows.fr",
    "did you mean",
    data__path="rows.{en,fr}",
  ),
  parallel("a glob of sides", 2, "data.path", "a glob", "{en,de}", data__path="r*.{en,de}"),
  parallel(
    "sides of another format", 2, "data.path", "'csv'", "'parallel'", data__format="csv"
  ),
  settings("a URL of nowhere", 2, "data.path", "nosuch://", "gs://", data__path="nosuch://a"),
  settings(
    "a remote file that is not there",
    1,
    "data.path",
    "found no file memory://no/rows.jsonl",
    data__path="memory://no/rows.jsonl",
  ),
  settings(
    "a name of the hub without a split",
    2,
    "data.path",
    "expected hf:OWNER/NAME/SPLIT",
    data__path="hf:owner/name",
  ),
  settings("no sides", 2, "data.path", "in braces", data__format="parallel"),
]
