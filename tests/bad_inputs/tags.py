"""Tags that are no tags, spans that no words have, settings that a tagger cannot have."""

import json

from tests.bad_inputs.cases import case

TEXT = {"name": "x", "text": "the film was good"}
WORDS = {"name": "x", "tokens": ["the", "film", "was", "good"]}
GOLD = ["O", "O", "O", "B-GOOD"]


def tags(name, row, *parts, code=1, count=12, **settings):
  """A case of training with one bad row, the twelfth, and settings."""

  def spoil(p):
    if row is not None:
      good = p.path("tags.jsonl").read_text().splitlines()[: count - 1]
      p.write("tags.jsonl", [*map(json.loads, good), row])
    for key, value in {"data__split": 0, **settings}.items():
      p.set(key.replace("__", "."), value)

  return case(name, "train", spoil, code, *parts, task="tag")


def entities(*spans):
  names = ("start", "end", "label")
  return TEXT | {"entities": [dict(zip(names, span, strict=False)) for span in spans]}


TAGS = [
  tags("row without tags", WORDS, "tags.jsonl:12", "no field 'tags' or 'entities'", "columns"),
  tags("row without words", {"tags": GOLD, "name": "x"}, "tags.jsonl:12", "no field 'tokens'"),
  tags("a tag too few", WORDS | {"tags": GOLD[1:]}, "tags.jsonl:12", "3 tags for 4 tokens"),
  tags("tags in one text", WORDS | {"tags": "O O O O"}, "tags.jsonl:12", "'O O O O'", "a list"),
  tags("a tag that is null", WORDS | {"tags": [*GOLD[1:], None]}, "tags.jsonl:12", "None"),
  tags("tags of a text", TEXT | {"tags": GOLD}, "tags.jsonl:12", "tags but no tokens"),
  tags(
    "a tag without its prefix",
    WORDS | {"tags": [*GOLD[:3], "GOOD"]},
    "tags.jsonl:12",
    "'GOOD' has no prefix",
  ),
  tags(
    "a tag that the labels lack",
    None,
    "tags.jsonl:",
    "'B-BAD'",
    "expected one of O, B-GOOD, I-GOOD",
    "config.data.labels",
    data__labels='["O", "B-GOOD", "I-GOOD"]',
  ),
  tags("ids without names", WORDS | {"tags": [0, 0, 0, 1]}, "0 to 1", "config.data.labels"),
  tags(
    "an id that has no name",
    WORDS | {"tags": [0, 0, 0, 9]},
    "tags.jsonl:12",
    "the tag 9",
    "0 to 4",
    data__labels='["O", "B-BAD", "B-GOOD", "I-BAD", "I-GOOD"]',
  ),
  tags("a token that is a number", WORDS | {"tokens": [1, 2, 3, 4], "tags": GOLD}, "1 among"),
  tags(
    "a span in a word",
    entities((13, 16, "GOOD")),
    "tags.jsonl:12",
    "'goo' (GOOD, characters 13 to 16)",
    "part of the word 'good', characters 13 to 17",
    "data.keep",
  ),
  tags(
    "spans that overlap",
    entities((9, 17, "GOOD"), (13, 17, "BAD")),
    "tags.jsonl:12",
    "'good' (BAD",
    "'was good' (GOOD",
    "share a word",
  ),
  tags("a span behind the text", entities((13, 18, "GOOD")), "tags.jsonl:12", "17 characters"),
  tags("a span of nothing", entities((12, 13, "GOOD")), "tags.jsonl:12", "holds no word"),
  tags("a span without label", entities((0, 3)), "tags.jsonl:12", "'start': 0", '"label"'),
  tags(
    "a span that says another text",
    TEXT | {"entities": [{"start": 13, "end": 17, "label": "GOOD", "text": "goods"}]},
    "tags.jsonl:12",
    "'goods'",
    "the text has 'good'",
  ),
  tags(
    "words that are too many",
    WORDS | {"tokens": ["good"] * 70, "tags": ["B-GOOD"] * 70},
    "tags.jsonl:12",
    "72 tokens, the limit is 64",
    "'windows'",
    "config.data.max_length",
  ),
  tags(
    "windows that only share",
    None,
    "config.data.stride",
    "128",
    "config.data.max_length=32",
    code=2,
    data__max_length=32,
    data__too_long="windows",
  ),
  tags(
    "windows without room",
    WORDS | {"tokens": ["good"] * 70, "tags": ["B-GOOD"] * 70},
    "tags.jsonl:12",
    "2 stand around the text and 62 are what windows share",
    data__too_long="windows",
    data__stride=62,
  ),
  tags(
    "one kind of tag", {**WORDS, "tags": ["O"] * 4}, "the label O only", count=1, data__split=0
  ),
  tags(
    "rules for tags",
    None,
    "config.data.labels",
    "no rules",
    code=2,
    data__labels={"a": "1 == 1"},
  ),
  tags("numbers for tags", None, "data.label_type", "'tag'", code=2, data__label_type="number"),
  tags(
    "weights of a tag that is none",
    None,
    "config.loss.class_weights",
    "'GOOD'",
    "B-GOOD",
    code=2,
    loss__class_weights={"GOOD": 2.0},
  ),
  tags(
    "F1 of tags without entities",
    WORDS | {"tags": ["DT", "NN", "VB", "JJ"]},
    "config.evaluate.metric",
    "'f1'",
    "'plain'",
    "accuracy",
    code=2,
    count=1,
    evaluate__metric="f1",
  ),
  case(
    "windows for a classifier",
    "train",
    lambda p: p.set("data.too_long", "windows"),
    2,
    "config.data.too_long",
    "task='tag'",
    "'classify'",
  ),
]
