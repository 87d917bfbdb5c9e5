"""Rules say what they seem to say, and reach nothing but the row."""

import pytest

from jaxsft.data import read, rules
from jaxsft.errors import JaxsftError, UsageError

FIELDS = {
  "rating": "-0.5",
  "n": 10,
  "m": "9",
  "text": " Good film ",
  "lang": "en",
  "flag": True,
  "gone": None,
  "tags": ["a", "b"],
  "word": "bad",
  "nan": "nan",
}


def holds(rule, **fields):
  return rules.compile_rule(rule, "data.keep")(read.Row("i", "f.csv:3", FIELDS | fields))


TRUE = [
  "abs(rating) >= 0.5",
  "rating < 0",
  "-rating == 0.5",
  "-1 < rating < 0 and not (1 < n < 5)",
  "rating == -0.50",
  "rating != 1",
  "m < 10",
  "n > m + 0",
  "float(m) < float('10')",
  "int(rating) == 0",
  "m * 2 - 1 == 17 and n // 3 == 3 and n % 3 == 1 and n / 4 == 2.5",
  "m + m == 18",
  "lang == 'en'",
  "lang in ('en', 'de') and lang not in ('fr',)",
  "m in (8, 9) and n in [10]",
  "'film' in text and 'x' not in text",
  "'a' in tags",
  "len(text) == 11 and len(tags) == 2",
  "lower(strip(text)) == 'good film'",
  "startswith(strip(text), 'Good') and endswith(lang, 'n')",
  "lang >= 'de'",
  "str(m) > str(n)",
  "flag and not (n < 3 or lang == 'de')",
  "flag == True",
  "gone == None",
  "word != 1 and not (word in (0, 1))",
  "flag != 1",
]


@pytest.mark.parametrize("rule", TRUE)
def test_true(rule):
  assert holds(rule) is True
  assert holds(f"not ({rule})") is False


def test_rest_is_not_evaluated():
  assert holds("n > 3 or missing == 1") is True
  assert holds("n < 3 and missing == 1") is False
  assert holds("1 > n > missing") is False


UNFIT = {
  "ratng < 0": "no field 'ratng'; did you mean 'rating'?",
  "word < 3": "'bad' is not a number",
  "abs(word) > 3": "'bad' is not a number",
  "rating < m": "both text",
  "nan > 0": "not a finite number",
  "gone > 0": "None is not a number",
  "flag > 0": "True is not a number",
  "rating": "neither true nor false",
  "not rating": "neither true nor false",
  "flag and n": "neither true nor false",
  "len(n) > 2": "has no length",
  "lower(n) == 'x'": "not text",
  "n in 3": "neither text nor a list",
  "n in text": "not text",
  "n / (n - 10) > 0": "divides by zero",
  "word * 3 == 'badbadbad'": "not a number",
}


@pytest.mark.parametrize("rule", UNFIT)
def test_values_that_do_not_fit(rule):
  with pytest.raises(JaxsftError) as caught:
    holds(rule)
  text = str(caught.value)
  assert text.startswith("f.csv:3: data.keep ") and rule in text and UNFIT[rule] in text


NOT_RULES = {
  "": "expected a rule",
  "rating >": "not a rule",
  "rating >= 0.5)": "not a rule",
  "rating = 1": "not a rule",
  "class == 1": "data.columns",
  "rating is None": "write ==",
  "a.b": "not allowed",
  "text.upper() == 'X'": "not allowed",
  "tags[0] == 'a'": "not allowed",
  "().__class__": "not allowed",
  "__import__('os')": "no function __import__",
  "eval('1')": "no function eval",
  "abss(n) > 1": "did you mean 'abs'",
  "abs(n, n) > 1": "takes 1 values, found 2",
  "float(n, x=1) > 1": "no function float",
  "lambda: 1": "not allowed",
  "[x for x in tags]": "not allowed",
  "n ** n ** n": "not allowed",
  "1 if n else 0": "not allowed",
  "{1, 2}": "not allowed",
  "f'{n}' == '1'": "not allowed",
  "(x := 1) == 1": "not allowed",
  "b'x' == 1": "not allowed",
  "1j == 1": "not allowed",
  "~n == 1": "not allowed",
  "import os": "not a rule",
  "not " * 240 + "flag" + " " * 9 + "x" * 200: "expected a rule",
}


@pytest.mark.parametrize("rule", NOT_RULES)
def test_what_is_no_rule(rule):
  with pytest.raises(UsageError) as caught:
    rules.compile_rule(rule, "data.labels['neg']")
  text = str(caught.value)
  assert text.startswith("data.labels['neg']") and NOT_RULES[rule] in text


def test_nothing_outside_the_row():
  with pytest.raises(JaxsftError, match="no field '__builtins__'"):
    holds("__builtins__ == 1")
  with pytest.raises(JaxsftError, match="no field 'rules'"):
    holds("rules == 1")
