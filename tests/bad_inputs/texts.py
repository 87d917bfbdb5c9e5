"""Bad sources, targets and generated answers."""

from tests.bad_inputs.cases import case, settings
from tests.bad_inputs.cases import settings as plain

PAIR = {"source": "a cat", "target": "die katze"}


def pair(name, row, code, *parts, **values):
  """A case of training with the second pair bad, and settings."""

  def spoil(p):
    good = [{"name": f"p{i}", **PAIR} for i in range(12)]
    good[1] |= row
    p.write("pairs.jsonl", [{k: v for k, v in one.items() if v is not ...} for one in good])
    for key, value in values.items():
      p.set(key.replace("__", "."), value)

  return case(name, "train", spoil, code, *parts, task="seq2seq")


def texts(name, *parts, **values):
  return settings(name, 2, *parts, task="seq2seq", **values)


def predict(name, rows, *parts, **flags):
  """A case of answering rows with the untrained model."""

  def spoil(p):
    p.write("new.jsonl", rows)
    p.flags.update(model="t5", **flags)

  return case(name, "predict", spoil, 1, *parts, task="seq2seq")


def _ask_further_rows(p):
  """Answers are asked for, and rows of another set have no question."""
  p.write("more.jsonl", [{"name": "m", "text": "a cat"}])
  p.set("evaluate.sets", {"more": "more.jsonl"})
  p.set("evaluate.generate", 1)
  p.set("evaluate.max_new_tokens", 4)


TEXTS = [
  pair("a pair without a target", {"target": ...}, 1, "pairs.jsonl:2", "no field 'target'"),
  pair("a pair without a source", {"source": ...}, 1, "pairs.jsonl:2", "no field 'source'"),
  pair("a target that is a number", {"target": 3}, 1, "pairs.jsonl:2", "'target' is 3", "text"),
  pair(
    "a target in a list",
    {"target": ["die katze"]},
    1,
    "pairs.jsonl:2",
    "'target'",
    "expected text",
    "data.columns",
  ),
  pair(
    "references that are no texts",
    {"target": ..., "targets": ["die katze", 3]},
    1,
    "pairs.jsonl:2",
    "'targets'",
    "list of at least one text",
  ),
  pair("no references", {"target": ..., "targets": []}, 1, "pairs.jsonl:2", "'targets'"),
  pair(
    "a stop token in the target",
    {"target": "die</s> katze"},
    1,
    "pairs.jsonl:2",
    "control token '</s>'",
    "remove it",
  ),
  pair(
    "a source that is too long",
    {"source": "one two three " * 30},
    1,
    "pairs.jsonl:2",
    "the source has",
    "limit is 40",
    "config.data.too_long",
    data__max_length=40,
  ),
  pair(
    "a target that is too long",
    {"target": "eins zwei drei " * 3},
    1,
    "pairs.jsonl:2",
    "the target has",
    "limit is 12",
    "config.data.max_target_length",
    data__max_target_length=12,
  ),
  pair(
    "too many targets left out",
    {"target": "eins zwei drei " * 3},
    1,
    "1 of",
    "would be dropped: 1 dropped: target too long",
    data__max_target_length=12,
    data__too_long="truncate",
    data__split=0,
  ),
  texts(
    "languages of a tokenizer without any",
    "config.data.languages",
    "'</s>'",
    "remove the setting",
    data__languages='["en_XX", "de_DE"]',
  ),
  texts("one language", "config.data.languages", "target's", data__languages='["en_XX"]'),
  texts(
    "answers without rows",
    "config.evaluate.generate",
    "config.data.split",
    evaluate__generate=3,
    evaluate__max_new_tokens=4,
    data__split=0,
  ),
  texts(
    "answers of no tokens",
    "config.evaluate.max_new_tokens",
    "found 0",
    "config.evaluate.generate",
    evaluate__generate=3,
  ),
  texts(
    "a metric of answers that nobody generates",
    "config.evaluate.metric",
    "'bleu'",
    "config.evaluate.generate",
    evaluate__metric="bleu",
  ),
  texts(
    "a best by answers that are not always there",
    "config.evaluate.generate_every",
    "'bleu'",
    "remove it",
    evaluate__metric="bleu",
    evaluate__generate=2,
    evaluate__generate_every=2,
    evaluate__every=1,
    evaluate__max_new_tokens=4,
  ),
  texts(
    "a best that is not computed",
    "config.evaluate.text_metrics",
    "'bleu'",
    evaluate__metric="bleu",
    evaluate__generate=2,
    evaluate__text_metrics='["chrf"]',
    evaluate__max_new_tokens=4,
  ),
  texts(
    "answers between evaluations",
    "config.evaluate.generate_every",
    "multiple of",
    "every=2",
    evaluate__generate=2,
    evaluate__generate_every=3,
    evaluate__every=2,
    evaluate__max_new_tokens=4,
  ),
  texts(
    "an unknown metric of answers",
    "config.evaluate.text_metrics",
    "'blue'",
    "bleu, chrf",
    evaluate__generate=2,
    evaluate__text_metrics='["blue"]',
    evaluate__max_new_tokens=4,
  ),
  texts(
    "metrics of no answers",
    "config.evaluate.text_metrics",
    "no answers are generated",
    evaluate__text_metrics='["bleu"]',
  ),
  pair(
    "a best by answers too short for it",
    {},
    2,
    "config.evaluate.metric",
    "'bleu'",
    "2 held-out rows",
    "no reference has 4 tokens",
    data__split=0.4,
    evaluate__metric="bleu",
    evaluate__generate=2,
    evaluate__max_new_tokens=4,
  ),
  case(
    "further chats without a question",
    "train",
    _ask_further_rows,
    1,
    "none of 1 rows of config.evaluate.sets['more']",
    "config.evaluate.generate",
    task="chat",
  ),
  texts("no beams", "config.evaluate.num_beams", "found 0", evaluate__num_beams=0),
  texts(
    "a penalty without beams",
    "config.evaluate.length_penalty",
    "num_beams above 1",
    evaluate__length_penalty=2.0,
  ),
  plain(
    "answers of a classifier",
    2,
    "config.evaluate.generate",
    "'classify'",
    evaluate__generate=3,
  ),
  plain(
    "an instruction to a classifier",
    2,
    "config.data.instruction",
    "task='classify'",
    data__instruction="say: ",
  ),
  settings(
    "a number that a row does not have",
    1,
    "row 0",
    "no number",
    task="chat",
    evaluate__generate=3,
    evaluate__max_new_tokens=4,
    evaluate__text_metrics='["answer_accuracy"]',
  ),
  case(
    "a length of texts that nobody writes",
    "predict",
    lambda p: p.flags.update(max_new_tokens=8),
    2,
    "--max_new_tokens=8",
    "writes no text",
  ),
  predict("nothing to translate", [{"text": "a cat"}], "new.jsonl:1", "source is None"),
  predict("a blank to translate", [{"source": " "}], "new.jsonl:1", "source is ' '"),
]
