"""Questions about a context as examples: windows, places of answers, and what does not fit."""

import numpy as np
import pytest

from jaxsft.data.read import Row
from jaxsft.errors import JaxsftError
from jaxsft.tasks import answer
from tests.tasks import questions
from tests.tasks.questions import ASKED, LONG, NAMES, PASSAGE, context, found, row

PIECES = {
  "the beginning": (PASSAGE, "In"),
  "the end": (PASSAGE, "Hastings"),
  "the whole context": (PASSAGE, PASSAGE),
  "case and spaces": (PASSAGE, "In  1066 the Normans"),
  "across a tab": (PASSAGE, "took\tHastings"),
  "punctuation": (PASSAGE, "Normans,"),
  "accents": ("Zoë Café and Müller", "Café and Müller"),
  "combining accents": ("a Cafe\u0301 here", "Cafe\u0301"),
  "Chinese": ("北京是中国的首都。", "中国"),
  "Chinese, whole": ("北京是中国的首都。", "北京是中国的首都。"),
  "emoji": ("I saw 🦜 and 👍🏽 there", "🦜"),
  "two emoji": ("I saw 🦜 and 👍🏽 there", "🦜 and 👍🏽"),
  "emoji at the end": ("it was 👍🏽", "👍🏽"),
  "twice, the second": ("red hill, red oak", ("red", 10)),
  "no-break space": ("a\u00a0red oak", "red"),
}


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("name", NAMES)
def test_a_sure_model_gives_the_answer_as_it_stands(name, piece):
  passage, gold = PIECES[piece]
  given, place = row(passage, gold), context(name, max_answer_length=99)
  text, start = (gold, passage.index(gold)) if isinstance(gold, str) else gold
  said = answer.decode(found(given, place), place)
  assert (said["answer"], said["start"], said["end"]) == (text, start, start + len(text))
  assert said["score"] > 0.99 and said["null_odds"] == -18


@pytest.mark.parametrize("name", NAMES)
def test_the_question_first_then_the_context(name):
  place = context(name)
  example = answer.encode(row(PASSAGE, "Normans"), place).examples[0]
  expected = place.tokenizer(ASKED, PASSAGE, return_token_type_ids=True)
  assert example["inputs"].tolist() == expected["input_ids"]
  assert example["token_types"].tolist() == expected["token_type_ids"]
  mine = np.array(expected.sequence_ids(0)) == 1
  assert (example["end_char"] != answer.OUTSIDE).tolist() == mine.tolist()
  assert ((example["start_char"] == -1) == ~mine).all() and not mine[0]
  types_of = {key: values.dtype for key, values in example.items()}
  assert types_of.pop("label_weight") == np.float32 and set(types_of.values()) == {
    np.dtype(np.int32)
  }


def test_a_tokenizer_that_pads_left_has_the_question_first_too():
  place = context("plain")
  place.tokenizer.padding_side = "left"
  example = answer.encode(row(PASSAGE, "Normans"), place).examples[0]
  assert place.tokenizer.decode(example["inputs"]).lower().startswith(ASKED)


@pytest.mark.parametrize("name", NAMES)
def test_places_are_those_of_the_tokenizers_library(name):
  """Its char_to_token, for every word and every pair of words."""
  place = context(name)
  words = PASSAGE.split()
  for i in range(len(words)):
    for j in range(i, len(words)):
      start = PASSAGE.index(words[i])
      end = PASSAGE.index(words[j]) + len(words[j])
      given = row(PASSAGE, (PASSAGE[start:end], start))
      example = answer.encode(given, place).examples[0]
      tokens = place.tokenizer(ASKED, PASSAGE)
      assert example["start"] == tokens.char_to_token(0, start, sequence_index=1)
      assert example["end"] == tokens.char_to_token(0, end - 1, sequence_index=1)


def test_an_answer_inside_a_token_takes_all_of_it():
  place = context()
  said = answer.decode(found(row("the kings came", "king"), place), place)
  assert said["answer"] == "kings"  # [UNK] is one token


def test_rows_without_answers_have_no_targets():
  given = Row("a", "rows.jsonl:1", {"question": ASKED, "context": PASSAGE})
  encoded = answer.encode(given, context())
  assert set(encoded.examples[0]) == {"inputs", "token_types", "start_char", "end_char"}
  assert encoded.spans == [] and encoded.note is None


def test_the_first_of_several_answers_is_learnt_and_shown():
  given = row(PASSAGE, "William", "the Normans")
  encoded = answer.encode(given, context())
  start, end = encoded.spans[0]
  assert encoded.text[start:end] == "William" and len(encoded.spans) == 1
  assert encoded.text == f"{ASKED} | {PASSAGE}"
  example = encoded.examples[0]
  assert example["start_char"][example["start"]] == PASSAGE.index("William")


# --- windows ---------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [12, 13, 17, 30, 45, 46, 47, 60])
@pytest.mark.parametrize("stride", [0, 1, 5])
@pytest.mark.parametrize("name", ["wordpiece", "bytes", "metaspace"])
def test_windows_are_those_of_the_tokenizers_library(name, stride, limit):
  if name != "wordpiece":
    limit *= 3
  place = context(name, limit, stride=stride)
  encoded = answer.encode(row(LONG, "w7"), place)
  theirs = questions.make(name)(
    ASKED,
    LONG,
    truncation="only_second",
    max_length=limit,
    stride=stride,
    return_overflowing_tokens=True,
    return_token_type_ids=True,
    return_offsets_mapping=True,
  )
  ours = encoded.examples
  assert [e["inputs"].tolist() for e in ours] == theirs["input_ids"]
  if name != "metaspace":  # where a template gives 0 to both texts, their overflow has 1
    assert [e["token_types"].tolist() for e in ours] == theirs["token_type_ids"]
  for i, example in enumerate(ours):
    mine = np.array(theirs.sequence_ids(i)) == 1
    offsets = np.array(theirs["offset_mapping"][i])[mine]
    assert example["start_char"][mine].tolist() == offsets[:, 0].tolist()
    assert example["end_char"][mine].tolist() == offsets[:, 1].tolist()


@pytest.mark.parametrize("over", [-1, 0, 1])
def test_a_context_at_the_limit_is_one_window(over):
  """[CLS] who was it [SEP] and [SEP] are six tokens beside the forty of the context."""
  encoded = answer.encode(row(LONG, "w39"), context(max_length=46 - over, stride=4))
  assert [len(e["inputs"]) for e in encoded.examples] == ([46] if over < 1 else [45, 11])
  assert encoded.note is None  # nothing is cut


@pytest.mark.parametrize("words", [1, 2, 4, 5])
def test_targets_are_where_the_answer_is_whole(words):
  """Every place of it: among 10 tokens of context, of which neighbours share 4."""
  place, pieces = context(max_length=16, stride=4), LONG.split()
  for first in range(len(pieces) - words + 1):
    gold = " ".join(pieces[first : first + words])
    start = len(" ".join([*pieces[:first], ""]))
    encoded = answer.encode(row(LONG, (gold, start)), place)
    ids = place.tokenizer(gold, add_special_tokens=False)["input_ids"]
    whole = 0
    for example in encoded.examples:
      a, b = int(example["start"]), int(example["end"])
      seen = " ".join(LONG[a:b] for a, b in spans_of(example))
      if f"{gold} " in f"{seen} ":
        whole += 1
        assert example["inputs"][a : b + 1].tolist() == ids
      else:
        assert (a, b) == (0, 0)
      assert example["label_weight"] == 1
    assert whole >= 1


def spans_of(example):
  inside = example["end_char"] >= 0
  columns = (example[name][inside].tolist() for name in ("start_char", "end_char"))
  return list(zip(*columns, strict=True))


def test_an_answer_that_no_window_holds_is_counted():
  pieces = LONG.split()
  gold = " ".join(pieces[5:11])  # windows hold words 0 to 9, 6 to 15 …
  encoded = answer.encode(row(LONG, gold), context(max_length=16, stride=4))
  assert encoded.note == "with an answer longer than what windows share, whole in none of them"
  assert {int(e["start"]) for e in encoded.examples} == {0}
  assert answer.encode(row(LONG, gold), context(max_length=16, stride=6)).note is None


def test_only_the_context_is_ever_cut():
  place = context(max_length=16, stride=4)
  for example in answer.encode(row(LONG, "w3"), place).examples:
    assert example["inputs"][:5].tolist() == place.tokenizer(ASKED)["input_ids"]
    assert example["inputs"][-1] == place.tokenizer.sep_token_id


def test_the_likelier_window_answers():
  place = context(max_length=16, stride=4)
  given = row(LONG, "w7")  # in the first two
  one = found(given, place)
  assert [e["start"] > 0 for e in one.examples][:3] == [True, True, False]
  for output in one.outputs[2:]:
    output["logits"][0] = 5.0
  start = int(one.examples[1]["start"])
  one.outputs[1]["logits"][start + 1, 1] = 30.0
  said = answer.decode(one, place)
  assert said["answer"] == "w7 w8" and said["null_odds"] == 0 - 39  # first token: 0 there


# --- what does not fit ------------------------------------------------------------------


def refused(given, place, *parts):
  with pytest.raises(JaxsftError) as error:
    answer.encode(given, place)
  assert str(error.value).startswith("squad.json:a: ")
  for part in parts:
    assert part in str(error.value)


@pytest.mark.parametrize(("limit", "room"), [(10, 4), (6, 0), (3, 0)])
def test_a_question_without_room_for_a_context(limit, room):
  given = row(LONG, "w7")
  said = (f"room for {room} of 40 tokens", "config.data.stride", "config.data.max_length")
  refused(given, context(max_length=limit, stride=4), *said)
  refused(given, context(max_length=limit, stride=4, too_long="truncate"), *said)
  encoded = answer.encode(given, context(max_length=limit, stride=4, too_long="drop"))
  assert encoded.examples == () and encoded.note == "dropped: question too long"
  assert len(answer.encode(given, context(max_length=11, stride=4)).examples) == 36


@pytest.mark.parametrize("stride", [0, 1, 4])
def test_a_short_context_needs_no_stride(stride):
  assert len(answer.encode(row("w1", "w1"), context(max_length=7, stride=stride)).examples) == 1


def test_no_answer_must_be_allowed():
  refused(row(PASSAGE), context(), "config.evaluate.null_threshold", "config.data.keep")
  (example,) = answer.encode(row(PASSAGE), context(null_threshold=0.0)).examples
  assert (example["start"], example["end"], example["label_weight"]) == (0, 0, 1)


def test_an_answer_that_is_not_there():
  refused(row(PASSAGE, ("Normans", 12)), context(), "'Normans' at character 12", "at 13")


def test_texts_without_tokens():
  refused(row("the \u200b\u200b king", "\u200b\u200b"), context(), "characters 4 to 6")
  refused(row("\u200b", "\u200b"), context(), "no token of the context")
  refused(row(PASSAGE, "took", question=""), context("plain"), "no token of the question")
