"""Exact match and F1 of answers as the official SQuAD scripts count them, scale 0 to 100.

Version 2.0 (evaluate-v2.0.py, arXiv:1806.03822) knows questions without an answer: no gold
answer, and "" as the prediction. Version 1.1 (evaluate-v1.1.py, arXiv:1606.05250) does not.
They also differ for answers in which normalisation leaves nothing, such as "The": 2.0 takes
them for "no answer", 1.1 gives them an F1 of 0 even where they match.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

from jaxsft.errors import JaxsftError

DIRECTIONS = {
  f"{part}{name}": "max"
  for part in ("", "best_", "has_answer_", "no_answer_")
  for name in ("exact_match", "f1")
}
VERSIONS = ("1.1", "2.0")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalise(text: str) -> str:
  """Lower case, no ASCII punctuation, no a, an, the, single spaces; in this order."""
  return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def rows(
  predicted: Sequence[str], gold: Sequence[Sequence[str]], version: str = "2.0"
) -> dict[str, np.ndarray]:
  """{"exact_match", "f1"} of each row, [n] from 0 to 1: the best over its gold answers.

  predicted: "" is no answer; gold: the answers of each row, none where the question has none
  (version 2.0). F1 is that of the words, counted, that two normalised answers share.
  """
  if version not in VERSIONS:
    raise JaxsftError(f"SQuAD version {version!r}, expected one of {', '.join(VERSIONS)}")
  if len(predicted) != len(gold):
    raise JaxsftError(f"{len(predicted)} answers for {len(gold)} questions, expected as many")
  if not len(gold):
    raise JaxsftError("there is no question to score; give a held-out set that has rows")
  exact, f1 = [], []
  for index, (answer, accepted) in enumerate(zip(predicted, gold, strict=True)):
    _check_answers(index, answer, accepted, version)
    words = normalise(answer).split()
    wanted = [normalise(text).split() for text in accepted]
    if version == "2.0":
      wanted = [w for w in wanted if w] or [[]]
    exact.append(float(words in wanted))
    f1.append(max(_f1(words, w, version) for w in wanted))
  return {"exact_match": np.array(exact), "f1": np.array(f1)}


def scores(
  predicted: Sequence[str],
  gold: Sequence[Sequence[str]],
  no_answer: Sequence[float] | None = None,
  threshold: float = 1.0,
  version: str = "2.0",
) -> dict:
  """The numbers of the official script; predicted, gold and version as in `rows`.

  no_answer: for each row the probability that the question has no answer (`na_prob`); above
  `threshold` the prediction counts as "". With it come `best_exact_match` and `best_f1`, the
  highest that any threshold reaches, with `best_exact_match_threshold` and `best_f1_threshold`:
  chosen on these same rows. `has_answer_...` and `no_answer_...` are over the questions with
  and without an answer, where there are any; `total` counts them.
  """
  numbers = rows(predicted, gold, version)
  answerable = np.array([len(accepted) > 0 for accepted in gold])
  result = {"total": len(gold)}
  final = numbers
  if no_answer is not None:
    no_answer = np.asarray(no_answer, np.float64)
    if no_answer.shape != (len(gold),) or not np.all((no_answer >= 0) & (no_answer <= 1)):
      raise JaxsftError(
        f"no_answer of shape {no_answer.shape}, expected a probability for each of the "
        f"{len(gold)} questions"
      )
    silent = no_answer > threshold
    final = {k: np.where(silent, ~answerable, v) for k, v in numbers.items()}
  for name, values in final.items():
    result[name] = 100 * float(np.mean(values))
  if version == "2.0":
    for part, here in (("has_answer", answerable), ("no_answer", ~answerable)):
      if here.any():
        result[f"{part}_total"] = int(here.sum())
        result |= {f"{part}_{k}": 100 * float(np.mean(v[here])) for k, v in final.items()}
  if no_answer is not None:
    given = np.array([bool(text) for text in predicted])
    for name, values in numbers.items():
      best, at = best_threshold(values, given, answerable, no_answer)
      result |= {f"best_{name}": best, f"best_{name}_threshold": at}
  return result


def best_threshold(values, given, answerable, no_answer) -> tuple[float, float]:
  """(best score from 0 to 100, threshold) over all thresholds of `no_answer` [n].

  values: [n] score of each prediction; given: it is not ""; answerable: the question has an
  answer. Answering nothing scores the unanswerable ones; then predictions are let in from the
  lowest no_answer up: each gains its value, or loses 1 where it answers the unanswerable. As in
  the official script (find_best_thresh) rows of equal no_answer are let in one by one, in their
  order, and the threshold is 0 where answering nothing is best.
  """
  order = np.argsort(no_answer, kind="stable")
  gains = np.where(answerable, values, np.where(given, -1.0, 0.0))[order]
  running = np.cumsum([np.sum(~answerable), *gains])
  at = int(np.argmax(running))
  threshold = float(no_answer[order[at - 1]]) if at else 0.0
  return 100 * float(running[at]) / len(gains), threshold


def _f1(words, wanted, version):
  if version == "2.0" and not (words and wanted):
    return float(words == wanted)
  shared = (Counter(words) & Counter(wanted)).total()
  if not shared:
    return 0.0
  precision, recall = shared / len(words), shared / len(wanted)
  return 2 * precision * recall / (precision + recall)


def _check_answers(index, answer, accepted, version):
  if not isinstance(answer, str) or isinstance(accepted, str):
    raise JaxsftError(
      f"question {index}: answer {answer!r} for gold {accepted!r}, expected a text and a list"
    )
  if version == "1.1" and not len(accepted):
    raise JaxsftError(f"question {index} has no gold answer, which only version 2.0 knows")
