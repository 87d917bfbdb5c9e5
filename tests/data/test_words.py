"""Words and their first tokens: as the tokenizers library finds them, and never shifted."""

import itertools
import json

import numpy as np
import pytest
import transformers
from tokenizers import Tokenizer, pre_tokenizers

from jaxsft.data import words
from jaxsft.errors import JaxsftError
from tests.tasks import questions as made

SOME = (
  *("the", "normans", "William", "hastings", "muller", "Müller", "don't", "'s", "U.S.", "w7"),
  *(
    "20°C",
    "red,oak",
    "北京",
    "京",
    "ab北c",
    "。",
    "🤗",
    "👩\u200d👧",
    "e\u0301",
    "A\u0308pfel",
  ),
)
UNSEEN = ("\u200b", "\u200d\u200b", "\u00ad")  # nothing is left of them in BERT


def sentences(count, extra=(), seed=0):
  rng = np.random.default_rng(seed)
  for _ in range(count):
    yield [str(w) for w in rng.choice(SOME + extra, int(rng.integers(1, 9)))]


def by_library(tokenizer, tokens):
  """(ids, [T] the word whose first token this is) of tokens given one by one."""
  found = tokenizer(tokens, is_split_into_words=True)
  own, seen = found.word_ids(0), set()
  word = [-1 if w is None or w in seen else (seen.add(w) or w) for w in own]
  return found["input_ids"], word


@pytest.mark.parametrize("name", ["wordpiece", "bytes", "metaspace"])
def test_first_tokens_are_those_of_the_library(name):
  tokenizer = made.make(name)
  for tokens in sentences(60, UNSEEN if name == "wordpiece" else ()):
    read = words.read({"tokens": tokens}, tokenizer)
    ids, word = by_library(tokenizer, tokens)
    assert read.inputs.tolist() == ids, tokens
    assert read.word.tolist() == word, (tokens, tokenizer.convert_ids_to_tokens(ids))
    assert [read.text[a:b] for a, b in read.words] == tokens
    assert read.lost == len(tokens) - len(set(word) - {-1})


def test_without_a_space_before_the_first_word_the_others_have_theirs():
  """GPT-2's tokenizer glues words that are given one by one; as text they have their spaces."""
  tokenizer = made.make("plain")
  state = json.loads(tokenizer.backend_tokenizer.to_str())
  state["pre_tokenizer"]["add_prefix_space"] = True
  spaced = transformers.PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer.from_str(json.dumps(state))
  )
  for tokens in sentences(40):
    read = words.read({"tokens": tokens}, tokenizer)
    ids, word = by_library(spaced, tokens)
    behind = lambda x, found: [i for i, w in zip(x, found, strict=True) if w > 0]
    assert behind(read.inputs.tolist(), read.word.tolist()) == behind(ids, word)
    assert read.inputs.tolist() != by_library(tokenizer, tokens)[0] or len(tokens) == 1
    assert read.lost == 0 and read.word[0] == 0


def test_what_the_tokenizer_drops_shifts_nothing():
  tokenizer = made.make("wordpiece")
  read = words.read(
    {"tokens": ["\u200b", "red", "\u200b", "\u200d", "William", " "]}, tokenizer
  )
  said = tokenizer.convert_ids_to_tokens(read.inputs.tolist())
  assert said == ["[CLS]", "red", "will", "##iam", "[SEP]"]
  assert read.word.tolist() == [-1, 1, 4, -1, -1] and read.lost == 4


def test_a_token_of_two_words_is_the_first_ones():
  """Such as a tokenizer over more than words would make."""
  places, own = [(0, 3), (3, 9), (9, 12)], [0, 1, 2]
  assert words.first_tokens([(0, 4), (5, 8), (9, 12)], places, own).tolist() == [0, -1, 2]
  assert words.first_tokens([(0, 4), (6, 8)], [(0, 8)], [0]).tolist() == [0]
  assert words.first_tokens([], places, own).tolist() == [-1, -1, -1]
  assert words.first_tokens([(0, 1)], [], []).tolist() == []


@pytest.mark.parametrize(
  ("own", "expected"),
  [
    ([0, 1, 1, 2], [0, 1, -1, 2]),  # SentencePiece's, with the space before it
    ([0, 1, 2, 3], [0, -1, 1, 2]),  # the space is a word of its own
    ([0, 0, 0, 0], [0, -1, 1, 2]),  # there are no words: the space says nothing of the next
  ],
)
def test_space_belongs_to_the_word_that_it_begins(own, expected):
  """The text "red a,", its tokens with the space apart."""
  places = [(0, 3), (3, 4), (4, 5), (5, 6)]
  found = words.first_tokens([(0, 3), (4, 5), (5, 6)], places, own)
  assert found.tolist() == expected


@pytest.mark.parametrize(
  ("text", "places", "own", "expected"),
  [
    ("a b", [(0, 1), (2, 3)], [0, 0], ["a", "b"]),  # no words but the text
    ("a b", [(0, 1), (1, 3)], [0, 0], ["a", "b"]),
    ("a b", [(0, 3)], [0], ["a b"]),  # a token is never divided
    ("abc", [(0, 3), (1, 2)], [0, 0], ["abc"]),  # bytes of a character in another's token
    ("abc", [(0, 1), (1, 3)], [0, 1], ["a", "bc"]),
    ("a+c", [(0, 1), (1, 2), (2, 3)], [0, 0, 0], ["a", "+", "c"]),
    ("a_c", [(0, 1), (1, 3)], [0, 0], ["a", "_c"]),
    ("a\u200bc", [(0, 1), (2, 3)], [0, 0], ["a\u200bc"]),
  ],
)
def test_own_words_of_places(text, places, own, expected):
  assert [text[a:b] for a, b in words.own_words(text, places, own)] == expected


@pytest.mark.parametrize("name", list(made.MAKE))
def test_own_words_divide_the_text(name):
  """In order, no white space at their ends, all that is seen is in one, each has a token."""
  tokenizer = made.make(name)
  for tokens in sentences(40, UNSEEN, seed=1):
    text = "  ".join(tokens) + " "
    read = words.read({"text": text}, tokenizer)
    assert read.lost == 0
    before = 0
    for start, end in read.words:
      piece = text[start:end]
      assert before <= start < end and piece == piece.strip() and " " not in piece
      skipped = text[before:start]
      assert all(words._unseen(c) for c in skipped), (text, skipped)
      before = end
    assert all(words._unseen(c) for c in text[before:])


def test_words_of_wordpiece_are_those_of_its_pre_tokenizer():
  tokenizer = made.make("wordpiece")
  bert = pre_tokenizers.BertPreTokenizer()
  for tokens in sentences(40, seed=2):
    text = " ".join(token for token in tokens if "北" not in token and "京" not in token) + "a"
    expected = [place for _, place in bert.pre_tokenize_str(text)]
    assert words.read({"text": text}, tokenizer).words == expected


@pytest.mark.parametrize(
  ("name", "text", "expected"),
  [
    ("metaspace", "red, oak (hill)", ["red", ",", "oak", "(", "hill", ")"]),
    ("metaspace", "the 北京 oak", ["the", "北", "京", "oak"]),
    ("plain", "北京 is", ["北", "京", "is"]),
    ("bytes", "the 🤗 e\u0301a", ["the", "🤗", "e\u0301", "a"]),
    ("wordpiece", "a\u200bred  W", ["a\u200bred", "W"]),
    ("plain", "\u200bred\n hill ", ["red", "hill"]),
  ],
)
def test_own_words(name, text, expected):
  read = words.read({"text": text}, made.make(name))
  assert [text[a:b] for a, b in read.words] == expected


def test_windows_and_who_reads_what():
  for count in range(1, 40):
    for room in range(2, 12):
      for stride in range(room):
        parts = words.windows(count, room, stride)
        assert parts[0][0] == 0 and parts[-1][1] == count
        for (a, b), (c, d) in itertools.pairwise(parts):
          assert b - a == room and b - c == stride and d > b
        owner = words.shared_out(count, parts)
        for t in range(count):
          inside = {n: min(t - a, b - 1 - t) for n, (a, b) in enumerate(parts) if a <= t < b}
          assert inside[owner[t]] == max(inside.values())
          assert owner[t] == min(n for n, m in inside.items() if m == max(inside.values()))
  assert words.shared_out(4, [(1, 3)]).tolist() == [-1, 0, 0, -1]


TEXT = "the normans took red hill"


@pytest.mark.parametrize(
  ("given", "part"),
  [
    ({"start": 4, "end": 99, "label": "X"}, "from 4 to 99 in a text of 25 characters"),
    ({"start": 5, "end": 5, "label": "X"}, "from 5 to 5"),
    ({"start": -3, "end": 5, "label": "X"}, "from -3 to 5"),
    ({"start": 0.0, "end": 3, "label": "X"}, "from 0.0 to 3"),
    ({"start": True, "end": 3, "label": "X"}, "from True to 3"),
    ({"start": 0, "end": 3, "label": ""}, "label ''"),
    ({"start": 0, "end": 3, "label": 7}, "label 7"),
    ({"start": 0, "end": 3}, "{'start': 0, 'end': 3}"),
    ([0, 3], "[0, 3]"),
    ({"start": 4, "end": 10, "label": "X", "text": "normans"}, "where the text has 'norman'"),
  ],
)
def test_entities_that_are_none(given, part):
  with pytest.raises(JaxsftError) as error:
    words.entities({"text": TEXT, "entities": [given]})
  assert part in str(error.value) and "correct the row" in str(error.value)


@pytest.mark.parametrize(
  ("entities", "parts"),
  [
    ([[4, 10, "X"]], ["'norman'", "part of the word 'normans', characters 4 to 11"]),
    ([[5, 16, "X"]], ["part of the word 'normans'"]),
    ([[4, 14, "X"]], ["part of the word 'took', characters 12 to 16"]),
    ([[3, 4, "X"]], ["holds no word"]),
    ([[12, 20, "B"], [4, 16, "A"]], ["'took red' (B, ", "'normans took' (A, ", "share a word"]),
    ([[0, 3, "A"], [0, 3, "A"]], ["share a word"]),
  ],
)
def test_entities_that_no_tags_can_say(entities, parts):
  fields = {"text": TEXT, "entities": entities}
  read = words.read(fields, made.make("wordpiece"))
  with pytest.raises(JaxsftError) as error:
    words.words_of(words.entities(fields), read.words, read.text)
  assert all(part in str(error.value) for part in parts), str(error.value)


def test_entities_of_whole_words():
  fields = {"text": TEXT, "entities": [(17, 25, "P"), {"start": 3, "end": 12, "label": "O"}]}
  read = words.read(fields, made.make("wordpiece"))
  found = words.words_of(words.entities(fields), read.words, read.text)
  assert found == [("O", 1, 2), ("P", 3, 5)]  # the spaces around them are of no word
  assert words.entities({"text": TEXT}) is None
  with pytest.raises(JaxsftError, match="expected a text and no tokens"):
    words.entities(fields | {"tokens": TEXT.split()})


@pytest.mark.parametrize(
  ("fields", "part"),
  [
    ({"words": ["a"]}, "no field 'tokens' or 'text'"),
    ({"text": " "}, "the text is ' '"),
    ({"text": 5}, "the text is 5"),
    ({"tokens": []}, "[] for the tokens"),
    ({"tokens": "red hill"}, "'red hill' for the tokens"),
    ({"tokens": ["a", ""]}, "'' among the tokens"),
    ({"tokens": ["a", 5]}, "5 among the tokens"),
  ],
)
def test_rows_without_words(fields, part):
  with pytest.raises(JaxsftError) as error:
    words.read(fields, made.make("wordpiece"))
  assert part in str(error.value)


def test_a_text_without_any_token():
  with pytest.raises(JaxsftError, match="makes no token of"):
    words.read({"tokens": ["\u200b"]}, _bare())
  read = words.read({"tokens": ["\u200b"]}, made.make("wordpiece"))
  assert len(read.inputs) == 2 and read.inside == (0, 0) and read.lost == 1


def _bare():
  state = json.loads(made.make("wordpiece").backend_tokenizer.to_str())
  state["post_processor"] = None
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer.from_str(json.dumps(state))
  )
