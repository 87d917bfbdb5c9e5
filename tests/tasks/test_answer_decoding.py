"""From logits to answers, as SQuAD's reference decodes them, and the numbers made of these."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import special

from jaxsft import tasks
from jaxsft.data.read import Row
from jaxsft.tasks import answer
from tests.golden import make_answers
from tests.tasks.questions import ASKED, LONG, NAMES, PASSAGE, context, found, row

GOLDEN = json.loads(make_answers.FILE.read_text("utf-8"))


def golden(one):
  """(Found, Context) of a recorded case."""
  size, _, n_best, longest, threshold = make_answers.CASES[one["case"]]
  words = make_answers.WORDS[:size]
  starts = np.cumsum([0, *(len(word) + 1 for word in words)])
  examples, outputs = [], []
  for _, mine, logits in make_answers.draw(one["case"], one["seed"]):
    places = [(int(starts[w]), int(starts[w + 1]) - 1) if w >= 0 else (-1, -1) for w in mine]
    columns = np.array(places, np.int32).T
    examples.append(dict(zip(("start_char", "end_char"), columns, strict=True)))
    outputs.append({"logits": logits.astype(np.float32)})
  given = Row("q", "squad.json:q", {"question": ASKED, "context": " ".join(words)})
  settings = {"n_best": n_best, "max_answer_length": longest, "null_threshold": threshold}
  return tasks.Found(given, examples, outputs), tasks.Context(None, 0, **settings)


@pytest.mark.parametrize("one", GOLDEN, ids=lambda one: f"{one['case']}-{one['seed']}")
def test_decoding_is_that_of_the_squad_reference(one):
  given, place = golden(one)
  ranked, odds = answer.n_best(given, place)
  said = answer.decode(given, place)
  if one["answer"] == "empty":  # what it says where no start and end go together
    assert said["answer"] and said["start"] is not None
    return
  assert said["answer"] == one["answer"]
  assert [text.text for text, _ in ranked] == [text for text, _ in one["n_best"]]
  expected = [score for _, score in one["n_best"]]
  np.testing.assert_allclose([score for _, score in ranked], expected, rtol=1e-9)
  assert said["score"] == pytest.approx(dict(one["n_best"])[one["answer"]])
  if one["null_odds"] is not None:
    assert odds == said["null_odds"] == one["null_odds"]
  silent = one["answer"] == ""
  assert (said["start"] is None) == (said["end"] is None) == silent
  if not silent:
    assert given.row.fields["context"][said["start"] : said["end"]] == one["answer"]


def test_the_golden_cases_have_everything():
  answers = [one["answer"] for one in GOLDEN]
  assert {"", "empty"} <= set(answers) and len(set(answers)) > 15
  odds = [o for one in GOLDEN if (o := one["null_odds"]) is not None]
  assert min(odds) < 0 < max(odds)


@pytest.mark.full
def test_the_golden_cases_are_current():
  pytest.importorskip("transformers.data.metrics.squad_metrics")  # of transformers 4
  assert GOLDEN == [make_answers.reference(one["case"], one["seed"]) for one in GOLDEN]


@pytest.mark.parametrize("name", NAMES)
def test_only_the_context_answers(name):
  """Whatever the question and the special tokens are thought to be."""
  place = context(name, n_best=2)
  one = found(row(PASSAGE, "William"), place)
  one.outputs[0]["logits"][one.examples[0]["end_char"] < 0] = 40.0
  assert answer.decode(one, place)["answer"] == "William"


def test_spaces_are_no_answer():
  place, passage = context("plain", max_answer_length=1), "x    y"
  one = found(row(passage, "y"), place)
  example, blank = one.examples[0], 0
  for i, (a, b) in enumerate(zip(example["start_char"], example["end_char"], strict=True)):
    if a >= 0 and not passage[a:b].strip():
      one.outputs[0]["logits"][i], blank = 30.0, blank + 1
  assert blank >= 2
  said = answer.decode(one, place)
  assert (said["answer"], said["start"]) == ("y", 5)


def test_answers_of_at_most_so_many_tokens():
  given = row(LONG, "w3 w4 w5")
  for longest, expected in ((3, "w3 w4 w5"), (2, "w3")):
    place = context(max_answer_length=longest)
    one = found(given, place)
    one.outputs[0]["logits"][one.examples[0]["start"], 1] = 1.0
    assert answer.decode(one, place)["answer"] == expected


# --- numbers ----------------------------------------------------------------------------


def measured(count, place, height, wrong=()):
  """Rows, each fourth without answer, of a model that is wrong at some."""
  rng, many = np.random.default_rng(1), []
  for i in range(count):
    words = LONG.split()
    at = int(rng.integers(0, 38))
    gold = " ".join(words[at : at + 2])
    start = len(" ".join([*words[:at], ""]))
    given = row(LONG, *([] if i % 4 == 3 else [(gold, start), ("w0", 0)]))
    one = found(given, place)
    for example, output in zip(one.examples, one.outputs, strict=True):
      output["logits"] += rng.normal(size=output["logits"].shape).astype(np.float32)
      if i in wrong:
        output["logits"][[example["start"], example["end"]], [0, 1]] -= height
    many.append(one)
  return many


def test_gold_answers_score_100():
  place = context(max_length=24, stride=8, null_threshold=0.0)
  numbers = answer.metrics(measured(20, place, 30.0), place)
  names = [f"{part}{name}" for part in ("", "has_answer_", "no_answer_", "best_")
           for name in ("f1", "exact_match")]  # fmt: skip
  assert {name: numbers[name] for name in names} == dict.fromkeys(names, 100.0)
  assert (numbers["total"], numbers["has_answer_total"], numbers["no_answer_total"]) == (
    20,
    15,
    5,
  )


def test_the_numbers_are_of_what_is_decoded():
  """Counted by hand, from the decoded answers; the threshold found is one to set."""
  place = context(max_length=24, stride=8, null_threshold=-2.0)
  many = measured(40, place, 8.0, wrong=range(0, 40, 3))
  numbers = answer.metrics(many, place)
  assert 30 < numbers["f1"] < 90 and numbers["best_f1"] > numbers["f1"]

  def exact(place):
    said = [answer.decode(one, place)["answer"] for one in many]
    gold = [[a["text"] for a in one.row.fields["answers"]] or [""] for one in many]
    return 100 * np.mean([text in texts for text, texts in zip(said, gold, strict=True)])

  assert numbers["exact_match"] == pytest.approx(exact(place))
  for name in ("f1", "exact_match"):
    at = dataclasses.replace(place, null_threshold=numbers[f"best_{name}_threshold"])
    again = answer.metrics(many, at)
    assert again[name] == pytest.approx(numbers[f"best_{name}"])
  assert numbers["best_exact_match"] == pytest.approx(exact(at))


def test_where_silence_is_best_the_threshold_is_below_all_odds():
  place = context(null_threshold=0.0)
  many = [found(row(LONG), place, [{"logits": np.random.default_rng(i).normal(size=(46, 2))}])
          for i in range(5)]  # fmt: skip
  numbers = answer.metrics(many, place)
  odds = [answer.decode(one, place)["null_odds"] for one in many]
  assert numbers["best_f1"] == 100 and numbers["best_f1_threshold"] < min(odds) < 0


def test_the_best_threshold_is_the_odds_of_the_last_that_is_let_in():
  """An answer at odds of -3, then a question without one at -1, then an answer at 2."""
  place, many = context(null_threshold=0.0), []
  for odds, gold in ((-1, ()), (-3, ("w3",)), (2, ("w4",))):
    given = row(LONG, *gold)
    one = found(given, place)
    logits = one.outputs[0]["logits"]
    logits[:] = -20
    logits[0] = odds / 2
    place_of = int(one.examples[0]["start"]) or 20
    logits[place_of] = 0
    many.append(one)
  numbers = answer.metrics(many, place)
  assert [answer.decode(one, place)["null_odds"] for one in many] == [-1, -3, 2]
  assert numbers["best_f1_threshold"] == numbers["best_exact_match_threshold"] == -3
  assert numbers["best_f1"] == pytest.approx(200 / 3)


def test_version_1_1_where_normalisation_leaves_nothing():
  """The official scripts of 1.1 and 2.0 differ on an answer that is an article."""
  place = context()
  one = found(row("the king", "the"), place)
  numbers = answer.metrics([one], place)
  assert (numbers["exact_match"], numbers["f1"]) == (100, 0)
  assert [made.score for made in answer.measured([one], place)] == [0, 100]


def test_without_threshold_every_question_is_answered():
  place = context()
  one = found(row(LONG, "w3", "w4"), place)
  one.outputs[0]["logits"][0] = 99.0
  numbers = answer.metrics([one], place)
  assert numbers["exact_match"] == 100 and "best_f1" not in numbers
  assert "no_answer_f1" not in numbers and answer.decode(one, place)["null_odds"] > 150


def test_the_loss_is_the_mean_over_windows():
  place = context(max_length=24, stride=8, null_threshold=0.0)
  many = [*measured(6, place, 3.0), found(row(PASSAGE, "took"), place)]
  assert [len(one.examples) for one in many[-2:]] == [4, 1]
  losses = []
  for one in many:
    mine = []
    for example, output in zip(one.examples, one.outputs, strict=True):
      log_p = special.log_softmax(output["logits"].astype(np.float64), 0)
      mine.append(-(log_p[example["start"], 0] + log_p[example["end"], 1]) / 2)
    assert answer.row_loss(one, place) == pytest.approx(np.mean(mine))
    losses += mine
  assert answer.metrics(many, place)["loss"] == pytest.approx(np.mean(losses))


@pytest.mark.parametrize("threshold", [None, -2.0])
def test_what_intervals_are_made_of(threshold):
  place = context(max_length=24, stride=8, null_threshold=-2.0)
  many = measured(20, place, 8.0, wrong=range(0, 20, 3))
  if threshold is None:
    many = [one for one in many if one.row.fields["answers"]]
    place = dataclasses.replace(place, null_threshold=None)
  numbers, found = answer.metrics(many, place), answer.measured(many, place)
  assert [one.name for one in found] == ["f1", "exact_match"]
  for one in found:
    assert one.score == pytest.approx(numbers[one.name]) and 0 < one.score < 100
