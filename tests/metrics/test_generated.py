"""Metrics by their names are those of `text`, for whole sets and for rows that have texts."""

import warnings

import pytest

from jaxsft.metrics import answers, generated, significance, text

PREDICTED = ["the cat sat on the mat", "no", "it is 3 #### 7", ""]
GOLD = [["the cat sat on a mat"], ["no", "nope"], ["#### 7"], ["#### 8", "eight 8 #### 8"]]


def test_each_is_what_text_says():
  found = generated.scores(PREDICTED, GOLD, ("bleu", "chrf", "rouge2", "exact_match"))
  assert found["bleu"] == text.bleu(PREDICTED, GOLD)["bleu"]
  assert found["chrf"] == text.chrf(PREDICTED, GOLD)["chrf"]
  assert found["rouge2"] == text.rouge(PREDICTED, GOLD)["rouge2"]
  assert found["exact_match"] == 0.25
  assert not {"rouge1", "rougeL", "answer_accuracy", "format_accuracy"} & set(found)
  assert {"bleu_signature", "chrf_signature"} <= set(found)


def test_answers_to_questions_are_scored_as_squad_does():
  """The script of version 1.1 on answers that a model has written."""
  predicted, gold = ["The cat.", "a big dog", "no"], [["cat"], ["dog", "dogs"], ["yes"]]
  found = generated.scores(predicted, gold, ("squad_exact_match", "squad_f1"))
  own = answers.scores(predicted, gold, version="1.1")
  assert found == {f"squad_{name}": own[name] for name in ("exact_match", "f1")}
  assert found["squad_exact_match"] == pytest.approx(100 / 3)
  assert found["squad_f1"] == pytest.approx(100 * (1 + 2 / 3) / 3)


def test_words_and_stems_count_where_they_are_asked_for():
  predicted, gold = ["he regulated the flow of it"], ["he regulates the flow of it"]
  found = generated.scores(predicted, gold, ("chrf", "chrf++", "rouge1"))
  assert found["chrf++"] == text.chrf(predicted, gold, "chrf++")["chrf++"] < found["chrf"]
  assert {"chrf_signature", "chrf++_signature"} <= set(found) and found["rouge1"] < 1
  assert generated.scores(predicted, gold, ("rouge1",), stemmer=True) == {"rouge1": 1.0}
  stemmed, _ = generated.measured(predicted, gold, ("rouge1", "chrf++"), stemmer=True)
  assert stemmed.score == 1.0


def test_numbers():
  numbers = generated.scores(PREDICTED[2:], GOLD[2:], ("answer_accuracy", "format_accuracy"))
  assert numbers == {"answer_accuracy": 0.5, "format_accuracy": 0.5}


def test_notes_are_of_what_was_asked_for():
  one = generated.scores(["你好世界"], ["你好世界"], ("bleu", "rouge1"), "char")
  assert one["bleu"] == 100 and len(one["notes"]) == 1 and "another script" in one["notes"][0]
  other = generated.scores(["你好世界"], ["你好世界"], ("bleu",))
  assert "bleu" not in other and "no reference has 4 tokens" in other["undefined"]["bleu"]
  assert "leaves whole" in other["notes"][0]
  short = generated.scores(["no"], ["no"], ("rouge1", "exact_match"))
  assert "notes" not in short  # rouge2 would have one
  assert len(generated.scores(["no"], ["no"], ("rouge2",))["notes"]) == 1


def test_every_name_has_a_direction_and_a_value():
  gold = [["#### 7"], ["#### 8"]]
  names = tuple(generated.DIRECTIONS)
  found = generated.scores(["#### 7", "#### 8"], gold, names)
  assert all(found[name] in (1, 100) for name in names if name != "rouge2")  # of one word
  measured = generated.measured(["#### 7", "#### 8"], gold, names)
  assert [one.name for one in measured] == list(names)
  assert {one.direction for one in measured} == {"max"}


NAMES = ("chrf", "bleu", "rougeL", "exact_match", "chrf++", "squad_f1")


def test_intervals_are_of_the_rows_that_have_an_answer():
  """Rows without one do not count, whatever is drawn."""
  some = [PREDICTED[0], None, PREDICTED[1], None]
  gold = [GOLD[0], GOLD[3], GOLD[1], ()]
  whole = generated.scores([PREDICTED[0], PREDICTED[1]], [GOLD[0], GOLD[1]], NAMES)
  for one in generated.measured(some, gold, NAMES):
    assert one.places.tolist() == [0, 2]
    assert one.score == pytest.approx(whole[one.name])
    with warnings.catch_warnings():
      warnings.simplefilter("error")
      interval = significance.interval(one, resamples=50)
    assert interval["low"] <= interval["value"] <= interval["high"]
    assert interval["n"] == 2
