"""TRL's prompts and completions that are lists of messages, as its documentation has them."""

import numpy as np
import pytest

from jaxsft import tasks
from jaxsft.data import forms
from jaxsft.data import messages as conversations
from jaxsft.data.read import Row
from jaxsft.errors import JaxsftError
from jaxsft.tasks import chat as task
from tests.templates import stock

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}
SYSTEM = {"role": "system", "content": "Be kind."}


def pair(prompt, completion, **more):
  return {"prompt": prompt, "completion": completion, **more}


def tokens(fields, name, **options):
  """(ids, which are supervised) of a row's one example."""
  place = tasks.Context(stock.tokenizer(name), 4000, **options)
  (example,) = task.encode(Row("a", "rows.jsonl:7", fields), place).examples
  ids = np.concatenate([example["inputs"][:1], example["targets"]])
  return ids, np.concatenate([[False], example["weights"] > 0])


@pytest.mark.parametrize("name", stock.STOCK)
@pytest.mark.parametrize("asked", [1, 3])
def test_the_completion_trains_as_in_trl(name, asked):
  """completion_only_loss: ids are the template's of both lists, and what trains are those
  behind the prompt's, which ends with the generation prompt; but no white space behind the
  stop token.
  """
  talk, words = stock.conversation(name, "three")[: asked + 1], stock.tokenizer(name)
  ids, supervised = tokens(pair(talk[:asked], talk[asked:]), name)
  told = lambda messages, **how: words.apply_chat_template(messages, **how)["input_ids"]
  both, prompt = told(talk), told(talk[:asked], add_generation_prompt=True)
  assert ids[: len(both)].tolist() == both
  mark = ["<|user|>"] * stock.STOCK[name].mark
  assert ids[len(both) :].tolist() == words.convert_tokens_to_ids(mark)
  mask = np.arange(len(ids)) >= len(prompt)
  end = np.flatnonzero(supervised)[-1] + 1
  assert supervised[:end].tolist() == mask[:end].tolist()
  assert words.decode(ids[end:]).strip() == ""
  assert words.decode(ids[supervised]) == stock.answer(name, talk, asked)


def test_all_answers_of_the_completion_train_and_none_of_the_prompt():
  prompt, completion = [SYSTEM, USER, ANSWER, USER], [ANSWER, USER, ANSWER]
  trained = lambda *how, **more: [
    m["train"] for m in conversations.conversation(pair(prompt, completion, **more), *how)
  ]
  assert trained() == [False] * 4 + [True, False, True]
  assert trained("last") == [False] * 6 + [True]
  completion[0] = ANSWER | {"weight": 0}
  assert trained() == [False] * 6 + [True]
  prompt[2] = ANSWER | {"weight": 0, "train": None}
  assert trained() == [False] * 6 + [True]


def test_it_is_named_and_asks_as_it_trains():
  fields = pair([USER], [ANSWER])
  assert forms.form(fields) == forms.named(fields) == "conversational prompt and completion"
  assert forms.form(pair("a", "b")) == forms.named(pair("a", "b")) == "prompt and completion"
  asked = [USER | {"train": False}]
  assert conversations.question(fields) == (asked, "Yes")
  for unanswered in ({"prompt": [USER]}, pair([USER], None)):
    assert conversations.question(unanswered) == (asked, None)
  place = tasks.Context(stock.tokenizer("qwen2_5"), 99)
  ids, supervised = tokens(fields, "qwen2_5")
  for row in (fields, {"prompt": [USER]}):
    prompt = task.prompt(Row("a", "a", row), place)
    assert prompt == ids[: np.flatnonzero(supervised)[0]].tolist()


def test_tools_are_those_of_the_row():
  ids, _ = tokens(pair([USER], [ANSWER], tools=stock.TOOLS), "qwen2_5")
  talk = [USER, ANSWER]
  words = stock.tokenizer("qwen2_5")
  assert ids.tolist() == words.apply_chat_template(talk, tools=stock.TOOLS)["input_ids"]


@pytest.mark.parametrize(
  ("fields", "said"),
  [
    (pair("Hi", [ANSWER]), r"prompt is str 'Hi' and completion is list .*expected two texts"),
    (pair([USER], "Yes"), r"prompt is list .*and completion is str 'Yes', expected two texts"),
    (pair([], [ANSWER]), r"prompt is list \[\], expected a list of {'role', 'content'}"),
    (pair([USER], []), r"completion is list \[\], expected a list of {'role', 'content'}"),
    (pair(["Hi"], [ANSWER]), r"prompt\[0\] is str 'Hi'"),
    (pair([USER], [USER, "Hi", ANSWER]), r"completion\[1\] is str 'Hi'"),
    (pair([USER, ANSWER], [ANSWER]), r"prompt\[1\] is an answer, expected a prompt that ends"),
    (pair([USER], [USER]), "no message of the completion has the role 'assistant'"),
    (pair([USER, ANSWER | {"train": True}, USER], [ANSWER]), r"prompt\[1\]: 'train' is True"),
    (pair([USER, ANSWER | {"weight": 1}, USER], [ANSWER]), r"prompt\[1\]: 'weight' is 1"),
    (pair([USER], [ANSWER | {"train": False}]), "every assistant message has 'train': false"),
    (pair([USER], [ANSWER], messages=[USER]), "messages by its field 'messages' and prompt"),
  ],
)
def test_what_is_wrong_with_a_pair(fields, said):
  place = tasks.Context(stock.tokenizer("chatml"), 99)
  with pytest.raises(JaxsftError, match=rf"^rows\.jsonl:7: .*{said}"):
    task.encode(Row("a", "rows.jsonl:7", fields), place)


@pytest.mark.parametrize(
  ("fields", "field"),
  [
    ({"prompt": "a"}, "completion"),
    ({"prompt": [USER], "chosen": [ANSWER], "rejected": [ANSWER]}, "completion"),
    ({"prompt": "a", "chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, "messages"),
    ({"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, "messages"),
    ({}, "text"),
  ],
)
def test_preferences_are_refused_with_the_columns_to_map(fields, field):
  fields = {"chosen": "b", "rejected": "c"} | fields
  with pytest.raises(JaxsftError, match=rf"a preference.*columns={{'{field}': 'chosen'}}"):
    forms.form(fields)
  mapped = {field if k == "chosen" else k: v for k, v in fields.items()}
  if field == "messages":
    mapped.pop("prompt", None)
  assert forms.form(mapped) in (field, forms.PAIR, forms.CONVERSATIONAL)
  if field != "text":
    assert conversations.conversation(mapped)[-1]["train"]


@pytest.mark.parametrize("both", [("a", "b"), ([USER], [ANSWER])])
def test_a_completion_that_is_marked_as_bad_is_none_to_learn(both):
  with pytest.raises(JaxsftError, match=r"label is false.*config\.data\.keep='label'"):
    conversations.conversation(pair(*both, label=False))
  for label in (True, None, 0, "no"):
    assert conversations.conversation(pair(*both, label=label))[-1]["train"]
