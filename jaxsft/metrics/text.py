"""Metrics of generated text against one or more references a row.

BLEU, chrF and chrF++ are sacrebleu's, 0 to 100; ROUGE is rouge-score's, 0 to 1; exact matches
and matches of numbers are 1 or 0. `references` holds for each row a text or a list of texts,
not all lists of one length. `notes` in a result says what a reader of the number should know.
"""

import decimal
import functools
import re
import types
import unicodedata
from collections.abc import Sequence

import numpy as np

from jaxsft.data import scripts
from jaxsft.errors import JaxsftError

CHRF_WORDS = {"chrf": 0, "chrf++": 2}  # the longest n-grams of words that count too
ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
NUMBERS = ("answer_accuracy", "format_accuracy", "last_number_accuracy")
# Those of sacrebleu that download a model are left out.
TOKENIZERS = {"13a": "13a", "zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"} | {
  name: name for name in ("intl", "char", "none")
}
_FINAL = re.compile(r"#### (-?[0-9.,]+)")
_NUMBER = re.compile(r"(?<![0-9])-?(?:[0-9][0-9.,]*|\.[0-9]+)")
_LATIN = re.compile(r"[a-z0-9]+")


def bleu_rows(predicted: Sequence[str], references: Sequence, tokenizer: str = "13a"):
  """sacrebleu's sufficient statistics [n, 10] of each row, with the metric that made them.

  A row: length of the prediction and of the closest reference in tokens, then right and all
  n-grams of 1 to 4 tokens. Several references clip the n-gram counts together.
  """
  from sacrebleu.metrics import BLEU  # slow to import, needed only here

  if tokenizer not in TOKENIZERS:
    raise JaxsftError(f"BLEU tokenizer {tokenizer!r}, expected one of {', '.join(TOKENIZERS)}")
  try:
    metric = BLEU(tokenize=TOKENIZERS[tokenizer], force=True)
  except RuntimeError as error:
    raise JaxsftError(
      f"the BLEU tokenizer {tokenizer!r} needs packages that are missing; install "
      f"'sacrebleu[{tokenizer}]' or take the tokenizer 'char'"
    ) from error
  return _statistics(metric, predicted, references), metric


def chrf_rows(predicted: Sequence[str], references: Sequence, name: str = "chrf"):
  """sacrebleu's statistics [n, 3 * orders] of one of CHRF_WORDS, and the metric.

  For each order the n-grams of the prediction, of the reference, and of both. Of several
  references a row takes the one with the best chrF.
  """
  from sacrebleu.metrics import CHRF  # slow to import, needed only here

  metric = CHRF(word_order=CHRF_WORDS[name])
  return _statistics(metric, predicted, references), metric


def score_of(metric, sums) -> float:
  """BLEU or chrF, 0 to 100, of summed statistics [k] of rows."""
  score = metric._compute_score_from_stats(np.asarray(sums, np.float64).tolist()).score
  return min(100.0, score)  # exp(log(100)) is 100.00000000000004


def bleu(predicted: Sequence[str], references: Sequence, tokenizer: str = "13a") -> dict:
  """{"bleu", "bleu_signature", "notes", "undefined"}: corpus BLEU-4 as sacrebleu reports it.

  tokenizer: one of TOKENIZERS; Chinese, Japanese and Korean need theirs ("zh", "ja", "ko").
  Undefined where no reference has 4 tokens: even equal texts would score 0.
  """
  statistics, metric = bleu_rows(predicted, references, tokenizer)
  result = {"bleu_signature": str(metric.get_signature()), "notes": [], "undefined": {}}
  texts = [text for row in lists_of(predicted, references) for text in row]
  if tokenizer in ("13a", "intl", "none"):
    unspaced = sum(map(_has_unspaced, texts))
    if unspaced:
      result["notes"].append(
        f"{unspaced} of {len(texts)} references have Chinese, Japanese or another script "
        f"without spaces between words, which the BLEU tokenizer {tokenizer!r} leaves whole; "
        "take 'zh', 'ja' or 'char'"
      )
  if not any(bleu_is_defined(metric, references)):
    result["undefined"]["bleu"] = "no reference has 4 tokens"
    return result
  return {"bleu": score_of(metric, statistics.sum(0))} | result


def bleu_is_defined(metric, references: Sequence) -> list[bool]:
  """For each row whether a reference has the 4 tokens without which no text scores."""
  tokens = lambda text: metric._preprocess_segment(text).split()
  return [any(len(tokens(text)) >= 4 for text in row) for row in _as_lists(references)]


def chrf_is_defined(references: Sequence) -> list[bool]:
  """For each row whether a reference has a character."""
  return [any(text.strip() for text in row) for row in _as_lists(references)]


def chrf(predicted: Sequence[str], references: Sequence, name: str = "chrf") -> dict:
  """{name, "<name>_signature", "undefined"} of the corpus as sacrebleu reports it.

  name: one of CHRF_WORDS.
  """
  statistics, metric = chrf_rows(predicted, references, name)
  result = {f"{name}_signature": str(metric.get_signature()), "undefined": {}}
  if not any(chrf_is_defined(references)):
    result["undefined"][name] = "every reference is empty"
    return result
  return {name: score_of(metric, statistics.sum(0))} | result


def rouge_rows(
  predicted: Sequence[str], references: Sequence, stemmer: bool = False
) -> dict[str, np.ndarray]:
  """{name: [n]} ROUGE F1 of each row, for each kind the best over its references.

  rougeLsum takes each line of a text for a sentence; texts of one line have it equal to rougeL.
  Words are rouge-score's: runs of a to z and 0 to 9 after lowering, so that it splits at
  accented letters and drops other scripts. Hence rows whose references have more than a tenth
  of their letters in other scripts are counted otherwise: there a word is a run of letters and
  digits of any script, or one character of Chinese, kana, Thai, Lao, Khmer, Burmese or Tibetan.
  stemmer: Porter's, for words of more than 3 letters, in rows of the first kind.
  """
  from rouge_score import rouge_scorer, tokenizers  # slow to import, needed only here

  own = rouge_scorer.RougeScorer(ROUGE, tokenizer=tokenizers.DefaultTokenizer(stemmer))
  other = rouge_scorer.RougeScorer(ROUGE, tokenizer=types.SimpleNamespace(tokenize=words))
  pairs = zip(predicted, lists_of(predicted, references), strict=True)
  best = [(other if _other_script(row) else own).score_multi(row, text) for text, row in pairs]
  return {name: np.array([float(row[name].fmeasure) for row in best]) for name in ROUGE}


def rouge(predicted: Sequence[str], references: Sequence, stemmer: bool = False) -> dict:
  """{"rouge1", "rouge2", "rougeL", "rougeLsum", "notes"}: mean over rows of `rouge_rows`."""
  scores = rouge_rows(predicted, references, stemmer)
  lists = lists_of(predicted, references)
  others = [_other_script(row) for row in lists]
  count = lambda text, other: len(words(text) if other else _LATIN.findall(text.lower()))
  longest = [max(count(t, o) for t in row) for row, o in zip(lists, others, strict=True)]
  notes = []
  if any(others):
    notes.append(
      f"{sum(others)} of {len(lists)} rows are in another script than Latin, which rouge-score "
      "drops; their letters count here"
    )
  for name, least in (("rouge1", 1), ("rouge2", 2)):
    short = sum(length < least for length in longest)
    if short:
      notes.append(
        f"{short} of {len(lists)} rows have no reference of {least} or more words: {name} is 0 "
        "there, whatever the prediction"
      )
  return {name: float(np.mean(values)) for name, values in scores.items()} | {"notes": notes}


def words(text: str) -> list[str]:
  """Lower-case words of any script, see `rouge_rows`; marks stay with their letter."""
  found, before = [], "space"
  for character in text.lower():
    kind = _kind(character)
    if kind == "one" or (kind == "run" and before != "run"):
      found.append(character)
    elif kind == "run" or (kind == "mark" and before != "space"):
      found[-1] += character
      kind = before
    else:
      kind = "space"
    before = kind
  return found


def exact_rows(predicted: Sequence[str], references: Sequence) -> np.ndarray:
  """[n] 1.0 where a row equals one of its references, 0.0 where not.

  Runs of white space count as one space, those at the ends not at all.
  """
  same = lambda text: " ".join(text.split())
  pairs = zip(predicted, lists_of(predicted, references), strict=True)
  return np.array([float(same(text) in {same(t) for t in row}) for text, row in pairs])


def final_number(text: str) -> decimal.Decimal | None:
  """The number after the first "#### ", where GSM8K ends its answers; None without one.

  Commas are dropped, a sign and decimals are kept, a point at the end is not part of it.
  """
  match = _FINAL.search(text)
  return _decimal(match[1]) if match else None


def last_number(text: str) -> decimal.Decimal | None:
  """`final_number`, or without one the last number anywhere in the text."""
  final = final_number(text)
  if final is not None:
    return final
  found = [value for value in map(_decimal, _NUMBER.findall(text)) if value is not None]
  return found[-1] if found else None


def number_rows(predicted: Sequence[str], references: Sequence) -> dict[str, np.ndarray]:
  """{name: [n]} of NUMBERS, 1.0 or 0.0: answers as in GSM8K.

  answer_accuracy: whether `final_number` equals that of a reference, as numbers (72.0 is 72);
  format_accuracy: whether there is one; last_number_accuracy: whether `last_number` equals it,
  for answers in another format. A reference is a solution with "#### N", or N.
  """
  rows = []
  for index, (text, row) in enumerate(
    zip(predicted, lists_of(predicted, references), strict=True)
  ):
    wanted = [final_number(t) if "####" in t else _decimal(t.strip()) for t in row]
    if None in wanted:
      raise JaxsftError(
        f"row {index}: the reference {row[wanted.index(None)]!r} has no number, expected one "
        "after '#### ' or a number alone"
      )
    final = final_number(text)
    rows.append((final in wanted, final is not None, last_number(text) in wanted))
  columns = np.array(rows, np.float64).T
  return dict(zip(NUMBERS, columns, strict=True))


def _as_lists(references):
  return [[row] if isinstance(row, str) else list(row) for row in references]


def lists_of(predicted, references):
  """The references as one list a row, checked against the predictions.

  Raises JaxsftError where they are not as many, none, or no texts.
  """
  if len(predicted) != len(references):
    raise JaxsftError(
      f"{len(predicted)} predictions for {len(references)} rows of references, expected as many"
    )
  if not len(predicted):
    raise JaxsftError("there is no row to score; give a held-out set that has rows")
  lists = _as_lists(references)
  for index, (text, row) in enumerate(zip(predicted, lists, strict=True)):
    if not row or not all(isinstance(t, str) for t in (text, *row)):
      raise JaxsftError(
        f"row {index}: prediction {text!r} for references {row!r}, expected a text and at "
        "least one"
      )
  return lists


def _statistics(metric, predicted, references):
  lists = lists_of(predicted, references)
  most = max(map(len, lists))
  columns = [[row[i] if i < len(row) else None for row in lists] for i in range(most)]
  rows = metric._extract_corpus_statistics(list(predicted), columns)
  return np.array(rows, np.float64)


def _decimal(text):
  try:
    value = decimal.Decimal(text.replace(",", "").rstrip("."))
  except decimal.InvalidOperation:
    return None
  return value if value.is_finite() else None


def _other_script(texts):
  """More than a tenth of the letters are not Latin ones."""
  letters = [c for text in texts if not text.isascii() for c in text if c.isalpha()]
  latin = sum(map(_is_latin, letters))
  ascii_letters = sum(c.isalpha() for text in texts if text.isascii() for c in text)
  return len(letters) - latin > 0.1 * (len(letters) + ascii_letters)


@functools.cache
def _is_latin(character):
  return character.isascii() or unicodedata.name(character, "").startswith("LATIN")


@functools.cache
def _kind(character):
  """ "one" (a word by itself), "run" (of a word), "mark" (on the one before) or "space"."""
  category = unicodedata.category(character)
  if category[0] == "M":
    return "mark"
  if category[0] != "L" and category != "Nd":
    return "space"
  return "one" if scripts.unspaced(character) else "run"


def _has_unspaced(text):
  return not text.isascii() and any(_kind(c) == "one" for c in text)
