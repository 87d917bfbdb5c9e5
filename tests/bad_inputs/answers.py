"""Bad questions, contexts and answers, and settings that no windows can be made with."""

from tests.bad_inputs.cases import case, settings

GOOD = {"question": "the end was", "context": "it was a good film and the end was dull"}
LONG = {"question": "the end was " * 9, "context": "the plot was " * 20 + "good"}


def answers(name, row, code, *parts, **values):
  """A case of training with the second question bad, and settings."""

  def spoil(p):
    good = GOOD | {"answers": [{"text": "dull", "start": 35}]}
    rows = [good, row, good, good] if row else [good] * 4
    p.write("questions.jsonl", [{"name": f"q{i}", **one} for i, one in enumerate(rows)])
    for key, value in values.items():
      p.set(key.replace("__", "."), value)

  return case(name, "train", spoil, code, *parts, task="answer")


def wrong(name, *parts, **values):
  return settings(name, 2, *parts, task="answer", **values)


WHERE = "questions.jsonl:2"
ANSWERS = [
  answers(
    "an answer that stands elsewhere",
    GOOD | {"answers": [{"text": "dull", "start": 34}]},
    1,
    WHERE,
    "answers[0]",
    "'dull' at character 34",
    "it stands at 35",
    "correct answer_start",
  ),
  answers(
    "an answer that is nowhere",
    GOOD | {"answers": {"text": ["awful"], "answer_start": [3]}},
    1,
    WHERE,
    "'awful' at character 3",
    "nowhere",
  ),
  answers(
    "an answer without a place",
    GOOD | {"answers": [{"text": "dull"}]},
    1,
    WHERE,
    "answer_start",
  ),
  answers(
    "an empty answer",
    GOOD | {"answers": [{"text": "", "start": 3}]},
    1,
    WHERE,
    "leave the list",
  ),
  answers("answers that are a text", GOOD | {"answers": "dull"}, 1, WHERE, "'dull'", "a list"),
  answers("answers of null", GOOD | {"answers": None}, 1, WHERE, "answers is null"),
  answers("no answers at all", GOOD, 1, WHERE, "no field 'answers'", "data.columns"),
  answers(
    "impossible with an answer",
    GOOD | {"answers": [{"text": "dull", "start": 35}], "is_impossible": True},
    1,
    WHERE,
    "is_impossible",
    "1 answers",
  ),
  answers(
    "a question without answer where each must have one",
    GOOD | {"answers": []},
    1,
    WHERE,
    "has no answer",
    "config.evaluate.null_threshold",
    "config.data.keep",
  ),
  answers(
    "a context that is a number",
    GOOD | {"context": 5, "answers": []},
    1,
    WHERE,
    "'context' is 5",
    "data.columns",
  ),
  answers(
    "a question that fills the window",
    LONG | {"answers": [{"text": "good", "start": 260}]},
    1,
    WHERE,
    "room for 2 of 61 tokens of the context in a window of 32",
    "config.data.stride",
    "'drop'",
  ),
  answers(
    "too many questions that fill the window",
    LONG | {"answers": [{"text": "good", "start": 260}]},
    1,
    "1 of 4",
    "question too long",
    data__too_long="drop",
  ),
  wrong("windows that share all", "config.data.stride", "32", data__stride=32),
  wrong("a negative stride", "config.data.stride", "found -1", data__stride=-1),
  wrong("contexts cut", "config.data.too_long", "'drop'", data__too_long="truncate"),
  wrong("labels for answers", "config.data.labels", "task='answer'", data__labels=["a", "b"]),
  wrong(
    "the best threshold where each has an answer",
    "config.evaluate.metric",
    "config.evaluate.null_threshold",
    evaluate__metric="best_f1",
  ),
  wrong("no best at all", "config.evaluate.n_best", "found 0", evaluate__n_best=0),
  wrong("answers of no length", "max_answer_length", "found 0", evaluate__max_answer_length=0),
]
