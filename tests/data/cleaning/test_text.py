"""Steps over texts: beside the standard library and scikit-learn, and the spans that follow."""

import re
import string
import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from jaxsft.data.cleaning import edits, text
from jaxsft.errors import UsageError

NAMES = ("nfc", "nfkc", "control", "markup", "whitespace", "lower", "punctuation", "urls")
STEPS = (*NAMES, "stop_words:english", "mask:secrets", "mask:personal")
ANY = st.text(max_size=40)
MARKED = st.lists(
  st.one_of(
    st.sampled_from(
      "<b> </b> <br> <p> <a href='x>y'> <!-- c --> &amp; &lt; &lt &#65; &#x41; &amp;lt; < > & "
      "<script> </script> <![CDATA[ ]]> <?x > http://a.de/x?y=1. www.x.y the The of İ Σ ΑΣ ﬁ ½ "
      "a@b.de +49 30 1234567 . ' - ( ) \u0301 \u1100 \u1161 \u11a8 \ufeff \u200b \r \r\n".split(
        " "
      )
    ),
    st.text(max_size=4),
  ),
  max_size=12,
).map(" ".join)


def clean(step, value):
  return text.changed(step, value)[0]


@settings(max_examples=400, deadline=None)
@given(st.one_of(ANY, MARKED))
def test_normal_forms_are_unicodes(value):
  for name in ("NFC", "NFKC"):
    assert clean(name.lower(), value) == unicodedata.normalize(name, value)


def test_normal_forms_of_every_character_after_every_kind():
  """Beside a starter, a mark, and Hangul, whatever may melt into them."""
  characters = [chr(c) for c in range(sys.maxunicode + 1) if not 0xD800 <= c < 0xE000]
  for first in ("e", "\u0301", "\u1100", "가"):
    for k in range(0, len(characters), 4096):
      value = first.join(characters[k : k + 4096])
      for name in ("NFC", "NFKC"):
        assert clean(name.lower(), value) == unicodedata.normalize(name, value)


@settings(max_examples=300, deadline=None)
@given(st.one_of(ANY, MARKED))
def test_lower_and_whitespace_are_pythons(value):
  assert clean("lower", value) == value.lower()
  assert clean("whitespace", value) == " ".join(value.split())


def test_control_keeps_tabs_newlines_and_joiners():
  assert clean("control", "\ufeffa\x00b\x7f\tc\r\nd\re\u200bf\u00ad") == "ab\tc\nd\nef"
  assert clean("control", "می\u200cخواهم 👩\u200d🚀") == "می\u200cخواهم 👩\u200d🚀"
  left = clean("control", "".join(chr(c) for c in range(sys.maxunicode) if c >> 11 != 27))
  assert [c for c in left if unicodedata.category(c) == "Cc"] == ["\t", "\n", "\n"]


def test_punctuation():
  assert clean("punctuation", "Don't stop, e.g. 3.14 ($5)!") == "Dont stop e g 3 14 5"
  assert not set(clean("punctuation", string.printable)) & set(string.punctuation)
  assert clean("punctuation", "你好，世界。") == "你好 世界"


def test_addresses():
  before = "see (https://a.de/x?y=1), www.b.org. or me@www.c"
  assert clean("urls", before) == "see (), . or me@www.c"
  assert clean("urls", "看http://a.de/x，www.b.org。好") == "看，。好"


def test_stop_words_are_scikit_learns():
  value = "The cat is not on the mat and I am"
  words = [w for w in value.split() if w.lower() not in ENGLISH_STOP_WORDS]
  assert clean("stop_words:english", value).split() == words
  assert clean('stop_words:["don\'t", "CAT"]', "Don’t cat cats") == "cats"


def test_stop_words_of_a_file(tmp_path):
  file = tmp_path / "stop.txt"
  file.write_text("Und\n\ndie\n", encoding="utf-8")
  steps = text.program((f"stop_words:{file}", "nfc"))
  file.unlink()  # an exported model has the words themselves
  assert steps == ('stop_words:["die", "und"]', "nfc")
  assert clean(steps[0], "Die Katze und der Hund") == "Katze der Hund"
  with pytest.raises(UsageError, match=r"stop.txt.*cannot be read.*one word a line"):
    text.program((f"stop_words:{file}",))
  file.write_bytes(b"\xff")
  with pytest.raises(UsageError, match="not UTF-8"):
    text.program((f"stop_words:{file}",))
  file.write_text("\n")
  with pytest.raises(UsageError, match="holds no word"):
    text.program((f"stop_words:{file}",))


def test_what_is_private_is_told_before_a_step_hides_it():
  masks = ("secrets", "personal")
  told = ("mask:secrets", "mask:personal")
  assert text.program(("nfkc", "markup", "lower", "nfc"), masks=masks) == (
    "nfkc", "markup", *told, "lower", "nfc",
  )  # fmt: skip
  assert text.program(("nfc",), masks=masks) == ("nfc", *told)
  for step in ("whitespace", "lower", "punctuation", "urls", "stop_words:english"):
    assert text.program((step,), masks=masks) == (*told, step)


@pytest.mark.parametrize("step", [step for step in STEPS if step not in text.ONCE])
@settings(max_examples=200, deadline=None)
@given(st.one_of(ANY, MARKED))
def test_a_second_time_nothing_changes(step, value):
  once = clean(step, value)
  assert clean(step, once) == once


@pytest.mark.parametrize("step", STEPS)
@settings(max_examples=200, deadline=None)
@given(st.lists(MARKED, min_size=3, max_size=3), st.sampled_from(["cat", "Über 7", "日本"]))
def test_spans_follow(step, parts, name):
  """What no step touches stands where its span says, whatever becomes of what is around it."""
  before = f"{parts[0]} {name} {parts[1]} {name} {parts[2]}"
  first = len(parts[0]) + 1
  second = first + len(name) + len(parts[1]) + 2
  spans = [(first, first + len(name)), (second, second + len(name))]
  after, moved = text.changed(step, before, spans)
  assert len(moved) == 2 and all(0 <= a <= b <= len(after) for a, b in moved)
  assert moved == sorted(moved)
  wanted = clean(step, name)
  for a, b in moved:
    inside = after[a:b].strip()
    assert inside in (wanted, "") or step in ("markup", "mask:personal", "mask:secrets")
    # Between tags of a script, or in a number, a name may go with what it is part of.
    if inside == "" and step not in ("markup",):
      assert wanted == "" or step.startswith(("mask", "urls"))


@settings(max_examples=300, deadline=None)
@given(ANY, st.data())
def test_places_move_as_pieces_do(value, data):
  """Against a text in which every character knows where it came from."""
  cuts = sorted(data.draw(st.lists(st.integers(0, len(value)), unique=True, max_size=6)))
  pairs = list(zip(cuts[::2], cuts[1::2], strict=False))
  found = [(a, b, data.draw(st.sampled_from(["", "x", "long one"]))) for a, b in pairs]
  after = edits.apply(value, found)
  touched = {i for a, b, _ in found for i in range(a, b)}
  for start in range(len(value)):
    ((a, b),) = edits.moved([(start, start + 1)], found)
    if start not in touched:
      assert after[a:b] == value[start]
    else:
      new = next(n for x, y, n in found if x <= start < y)
      assert after[a:b] == new


def test_every_step_of_the_settings_is_built():
  from jaxsft.config import cleaning_rules

  assert cleaning_rules.STEPS == NAMES
  assert re.match(cleaning_rules.LISTED, text.STOP_WORDS)
