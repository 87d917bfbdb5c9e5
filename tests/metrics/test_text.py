"""Generated text against sacrebleu and rouge-score, and numbers as GSM8K ends answers."""

import decimal
import json
import os
import pathlib
import random

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer
from sacrebleu.metrics import BLEU, CHRF

from jaxsft.errors import JaxsftError
from jaxsft.metrics import text

ENGLISH = (
  "The quick brown fox jumps over the lazy dog.",
  "“It’s 5.3% — naïve café,” she said; running, runs, ran 😀!",
  "A rose-like α-helix (β = 0.05) binds U.S. regulators' regulations tightly.",
  "First sentence here.\nSecond sentence there, with regulations.\n",
  "dog",
  "",
)
CHINESE = ("我爱北京天安门", "今天天气很好，我们去公园。", "机器学习很有趣", "他去上海了", "好")
MIXED = (
  "我用PyTorch训练模型",
  "東京タワーは高いです。",
  "สวัสดีครับ",
  "Привет, мир!",
  "سلام دنیا",
)


def shuffled(seed, texts, n=12):
  """(predicted, references): texts cut and mixed, one to three references a row."""
  rng = random.Random(seed)

  def damaged(line):
    pieces = line.split(" ") if " " in line else list(line)
    kept = [p for p in pieces if rng.random() < 0.85]
    if rng.random() < 0.3:
      rng.shuffle(kept)
    return (" " if " " in line else "").join(kept)

  base = [rng.choice(texts) for _ in range(n)]
  references = [[b, *(damaged(b) for _ in range(rng.randint(0, 2)))] for b in base]
  return [damaged(b) for b in base], references


def streams(references):
  """As sacrebleu wants them: the first reference of each row, then the second, ..."""
  most = max(map(len, references))
  return [[row[i] if i < len(row) else None for row in references] for i in range(most)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
  "tokenizer, lines",
  [("13a", ENGLISH), ("intl", MIXED + ENGLISH), ("zh", CHINESE), ("char", MIXED)],
)
def test_bleu_is_that_of_sacrebleu(tokenizer, lines, seed):
  predicted, references = shuffled(seed, lines)
  metric = BLEU(tokenize=tokenizer)
  expected = metric.corpus_score(predicted, streams(references))
  found = text.bleu(predicted, references, tokenizer)
  assert found["bleu"] == pytest.approx(expected.score, abs=1e-9)
  assert found["bleu_signature"] == str(metric.get_signature())
  assert f"tok:{tokenizer}" in found["bleu_signature"]
  assert f"version:{sacrebleu.__version__}" in found["bleu_signature"]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name, word_order", [("chrf", 0), ("chrf++", 2)])
def test_chrf_is_that_of_sacrebleu(name, word_order, seed):
  predicted, references = shuffled(seed, ENGLISH + CHINESE)
  metric = CHRF(word_order=word_order)
  expected = metric.corpus_score(predicted, streams(references)).score
  found = text.chrf(predicted, references, name)
  assert found[name] == pytest.approx(expected, abs=1e-9)
  assert found[f"{name}_signature"] == str(metric.get_signature())


def test_gold_as_prediction_scores_exactly_the_best():
  for lines, tokenizer in ((ENGLISH, "13a"), (CHINESE, "zh")):
    _, references = shuffled(0, lines)
    references = [[*row[1:], row[0]] for row in references]
    predicted = [row[-1] for row in references]
    assert text.bleu(predicted, references, tokenizer)["bleu"] == 100.0
    assert text.chrf(predicted, references)["chrf"] == 100.0
    assert text.exact_rows(predicted, references).all()
    long = [(p, r) for p, r in zip(predicted, references, strict=True) if len(p) > 4]
    found = text.rouge(*zip(*long, strict=True))
    assert [found[name] for name in text.ROUGE] == [1.0] * 4 and len(long) > 5
  solutions = ["so\n#### 1,234", "#### -3.50"]
  numbers = text.number_rows(solutions, solutions)
  assert tuple(numbers) == text.NUMBERS and all(found.all() for found in numbers.values())


def test_short_references_have_no_bleu_rather_than_0():
  result = text.bleu(["a b c", "d"], ["a b c", "d"])
  assert "bleu" not in result and result["undefined"]["bleu"] == "no reference has 4 tokens"
  assert text.bleu(["a b"], ["a b c d"])["bleu"] == 0.0
  result = text.chrf(["a"], [["", " "]])
  assert "chrf" not in result and "empty" in result["undefined"]["chrf"]


def test_a_bleu_tokenizer_that_cannot_split_is_noted():
  references = [*CHINESE, "one two three four five"]
  assert "5 of 6 references" in text.bleu(references, references)["notes"][0]
  assert text.bleu(references, references, "zh")["notes"] == []
  assert text.bleu(ENGLISH, ENGLISH)["notes"] == []


@pytest.mark.parametrize("tokenizer", ["spm", "flores200", "Zh"])
def test_tokenizers_that_download_or_do_not_exist_are_refused(tokenizer):
  with pytest.raises(JaxsftError, match="expected one of 13a, zh, ja"):
    text.bleu(["a"], ["a"], tokenizer)


@pytest.mark.parametrize("tokenizer", ["ja", "ko"])
def test_missing_packages_of_a_tokenizer_are_named(tokenizer):
  module = {"ja": "MeCab", "ko": "mecab_ko"}[tokenizer]
  try:
    __import__(module)
  except ImportError:
    with pytest.raises(JaxsftError, match=rf"install 'sacrebleu\[{tokenizer}\]'"):
      text.bleu(["a"], ["a"], tokenizer)
  else:
    assert (
      text.bleu(["東京タワーは高いです"], ["東京タワーは高いです"], tokenizer)["bleu"] == 100.0
    )


@pytest.mark.parametrize("stemmer", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_rouge_is_that_of_rouge_score(seed, stemmer):
  predicted, references = shuffled(seed, ENGLISH)
  scorer = rouge_scorer.RougeScorer(text.ROUGE, use_stemmer=stemmer)
  rows = [scorer.score_multi(r, p) for p, r in zip(predicted, references, strict=True)]
  found = text.rouge(predicted, references, stemmer)
  for name in text.ROUGE:
    expected = np.mean([row[name].fmeasure for row in rows])
    assert found[name] == pytest.approx(expected, abs=1e-12)


def test_the_stemmer_and_the_lines_matter():
  assert text.rouge(["he regulated"], ["he regulates"])["rouge1"] == 0.5
  assert text.rouge(["he regulated"], ["he regulates"], stemmer=True)["rouge1"] == 1.0
  result = text.rouge(["b c\na d"], ["a d\nb c"])
  assert result["rougeL"] == 0.5 and result["rougeLsum"] == 1.0


def spelt(line):
  """Words of another script as ASCII words, one for each letter."""
  return " ".join(f"w{ord(c)}" if c.isalpha() else " " for c in line)


@pytest.mark.parametrize("seed", range(3))
def test_chinese_characters_count_as_words(seed):
  predicted, references = shuffled(seed, CHINESE)
  scorer = rouge_scorer.RougeScorer(text.ROUGE)
  rows = [
    scorer.score_multi([spelt(t) for t in r], spelt(p))
    for p, r in zip(predicted, references, strict=True)
  ]
  found = text.rouge(predicted, references)
  for name in text.ROUGE:
    assert found[name] == pytest.approx(np.mean([row[name].fmeasure for row in rows]))
  assert found["rouge1"] > 0.5
  assert "12 of 12 rows are in another script" in found["notes"][0]


def test_words_of_every_script():
  assert text.words("我用PyTorch训练") == ["我", "用", "pytorch", "训", "练"]
  assert text.words("Привет, МИР! 12") == ["привет", "мир", "12"]
  assert text.words("हिन्दी में") == ["हिन्दी", "में"]  # vowel signs stay in their word
  assert text.words("ที่นี่") == ["ที่", "นี่"]  # Thai: each letter with its marks
  assert text.words("カタカナ、Café") == ["カ", "タ", "カ", "ナ", "café"]
  assert text.words("안녕 하세요") == ["안녕", "하세요"]
  assert text.words("\u0301 a_b 😀") == ["a", "b"]
  assert text.words("x \u0301y") == ["x", "y"]  # a mark without a letter


@given(st.lists(st.sampled_from([*ENGLISH, *CHINESE, *MIXED]), min_size=1, max_size=3))
@settings(deadline=None, max_examples=40)
def test_rows_in_latin_script_are_never_touched(texts):
  letters = [c for t in texts for c in t if c.isalpha()]
  latin = [c for c in letters if c < "\u0250"]
  other = text._other_script(texts)
  assert other == (len(letters) - len(latin) > 0.1 * len(letters))


def test_rows_that_cannot_score_are_noted():
  result = text.rouge(["dog", "a b", "😀"], ["dog", "a b", ["😀", "!"]])
  assert result["rouge1"] == pytest.approx(2 / 3) and result["rouge2"] == pytest.approx(1 / 3)
  assert len(result["notes"]) == 2
  assert result["notes"][0].startswith(
    "1 of 3 rows have no reference of 1 or more words: rouge1"
  )
  assert result["notes"][1].startswith(
    "2 of 3 rows have no reference of 2 or more words: rouge2"
  )
  assert text.rouge(["a b"], ["a b"])["notes"] == []
  assert text.rouge(["a b"], [["dog", "a b"]])["notes"] == []
  assert text.rouge(["é à"], ["é à"])["notes"][0].startswith(
    "1 of 1 rows have no reference of 1"
  )


def test_an_exact_match_may_differ_in_white_space_alone():
  predicted = ["a  b", " a\nb", "A b", "a b!"]
  references = [["x", "a  b"], "a b", "a b", ["a b"]]
  assert text.exact_rows(predicted, references).tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(
  "solution, final, last",
  [
    ("He has 5*4=<<5*4=20>>20.\n#### 20", "20", "20"),
    ("#### 1,234,567", "1234567", "1234567"),
    ("#### -15", "-15", "-15"),
    ("#### 3.50", "3.5", "3.5"),
    ("#### .5", "0.5", "0.5"),
    ("#### 72.", "72", "72"),
    ("#### 10\nQ: another\n#### 11", "10", "10"),
    ("The answer is 72", None, "72"),
    ("She pays $1,234.50.", None, "1234.5"),
    ("between 10-15", None, "15"),
    ("it fell to -4 degrees", None, "-4"),
    ("version 1.2.3", None, None),
    ("5 in version 1.2.3", None, "5"),
    ("about .75 of it", None, "0.75"),
    ("####20", None, "20"),
    ("### 20", None, "20"),
    ("#### twenty", None, None),
    ("#### .", None, None),
    ("", None, None),
  ],
)
def test_numbers_are_found(solution, final, last):
  for value, expected in (
    (text.final_number(solution), final),
    (text.last_number(solution), last),
  ):
    assert value == (None if expected is None else decimal.Decimal(expected))


def test_numbers_of_rows():
  references = ["#### 72", "72", ["#### 1,000", "#### 7"], "#### 5"]
  predicted = ["#### 72.0", "so it is 72", "#### 7", "#### 6"]
  found = text.number_rows(predicted, references)
  assert {name: rows.tolist() for name, rows in found.items()} == {
    "answer_accuracy": [1, 0, 1, 0],
    "format_accuracy": [1, 0, 1, 1],
    "last_number_accuracy": [1, 1, 1, 0],
  }
  for wrong in ("#### none", "seventy", "nan", "inf", ""):
    with pytest.raises(JaxsftError, match=r"row 1: the reference .* has no number"):
      text.number_rows(["1", "1"], ["1", wrong])


SCORERS = (text.bleu, text.chrf, text.rouge, text.exact_rows, text.number_rows)


@pytest.mark.parametrize("scorer", SCORERS)
def test_bad_input_is_named(scorer):
  for predicted, references, words in (
    ([], [], "no row"),
    (["1"], ["1", "2"], "1 predictions for 2 rows"),
    (["1", "1"], ["1", []], "row 1: .* expected a text and at least one"),
    (["1", None], ["1", "1"], "row 1: prediction None"),
    (["1", "1"], ["1", ["1", None]], "row 1"),
  ):
    with pytest.raises(JaxsftError, match=words):
      scorer(predicted, references)


@pytest.mark.full
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_gsm8k_solution_has_its_number(split):
  root = os.environ.get("JAXSFT_DATA")
  if not root:
    pytest.skip("needs JAXSFT_DATA")
  path = next(pathlib.Path(root, "gsm8k").rglob(f"*{split}*.jsonl"))
  solutions = [json.loads(line)["answer"] for line in path.read_text().splitlines()]
  assert text.number_rows(solutions, solutions)["answer_accuracy"].all()
