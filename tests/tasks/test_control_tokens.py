"""What a user typed is text: no task obeys a control token in it."""

import pytest

from jaxsft import encoding, predict, tasks
from jaxsft.data import control, store
from jaxsft.data.read import Row
from jaxsft.errors import JaxsftError
from tests import tiny
from tests.tasks import questions

TYPED = "good [SEP] bad"
# task -> (fields, those that are typed by users)
FIELDS = {
  "classify": ({"text": "good", "text_pair": "bad", "label": "a"}, ("text", "text_pair")),
  "tag": ({"tokens": ["good", "film"], "tags": ["a", "a"]}, ("tokens",)),
  "answer": (
    {"question": "who was it", "context": "the red hill", "answers": []},
    ("question", "context"),
  ),
  "masked_lm": ({"text": "good film"}, ("text",)),
}
PLACES = [(task, name) for task, (_, names) in FIELDS.items() for name in names]


def context(words=None):
  words = words or tiny.word_tokenizer()
  return tasks.Context(words, 40, labels=("a", "b"), null_threshold=0.0)


def row(task, name, text):
  fields = dict(FIELDS[task][0])
  fields[name] = [text, "film"] if name == "tokens" else text
  return Row("r", "rows.jsonl:7", fields)


@pytest.mark.parametrize(("task", "name"), PLACES)
def test_it_is_refused_with_its_place(task, name):
  called = "text" if name == "tokens" else name
  said = rf"^rows\.jsonl:7: the {called} contains the control token '\[SEP\]', .* remove it"
  with pytest.raises(JaxsftError, match=said):
    encoding.examples([row(task, name, TYPED)], tasks.TASKS[task], context(), store.in_memory)
  fine = row(task, name, "good sep ] bad")
  found = encoding.examples([fine], tasks.TASKS[task], context(), store.in_memory)
  assert len(found.store) == 1


def test_texts_to_tag_are_refused_as_tokens_are():
  with pytest.raises(JaxsftError, match=r"rows\.jsonl:7: the text contains"):
    tasks.TASKS["tag"].encode(Row("r", "rows.jsonl:7", {"text": TYPED}), context())


@pytest.mark.parametrize("token", ["[CLS]", "[SEP]", "[PAD]", "[MASK]"])
def test_every_token_with_a_meaning_is_refused(token):
  with pytest.raises(JaxsftError, match="the text contains the control token"):
    tasks.TASKS["masked_lm"].encode(row("masked_lm", "text", f"the{token}film"), context())


def test_the_unknown_token_says_no_more_than_an_unknown_word():
  encode = tasks.TASKS["classify"].encode
  inputs = lambda text: encode(row("classify", "text", text), context()).examples[0]["inputs"]
  assert inputs("good [UNK] film").tolist() == inputs("good zzz film").tolist()
  with pytest.raises(JaxsftError, match=r"'\[SEP\]'"):  # it does not hide another
    inputs("[UNK] [SEP]")


def test_an_unknown_token_that_means_more_is_refused():
  """GPT-2 calls <|endoftext|> unknown, and ends texts with it."""
  words = questions.make("plain")
  words.unk_token = words.eos_token
  with pytest.raises(JaxsftError, match=f"'{words.eos_token}'"):
    control.refuse_in_read({"text": f"a{words.eos_token}"}, words)
  words.unk_token = "<unk>"
  control.refuse_in_read({"text": "a<unk>"}, words)


@pytest.mark.parametrize(("task", "name"), PLACES)
def test_a_row_to_predict_has_its_error(task, name):
  rows = [row(task, name, "good"), row(task, name, TYPED)]
  read = lambda one: predict._encoded(one, tasks.TASKS[task], context())
  found, said = predict._each(rows, read)
  assert list(found) == [0] and said[0] is None
  assert "rows.jsonl:7: the " in said[1]["error"] and "[SEP]" in said[1]["error"]
