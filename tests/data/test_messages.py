"""Rows become conversations, or a sentence that says what is wrong with them."""

import pytest

from jaxsft.data import messages as conversations
from jaxsft.errors import JaxsftError

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Yes"}


def trained(messages, train_on="all"):
  found = conversations.conversation({"messages": messages}, train_on)
  return [index for index, message in enumerate(found) if message["train"]]


def test_every_answer_trains_or_the_last_one():
  messages = [USER, ANSWER, USER, ANSWER, USER]
  assert trained(messages) == [1, 3]
  assert trained(messages, "last") == [3]


def test_a_message_can_be_taken_out():
  off = ANSWER | {"train": False}
  assert trained([USER, off, USER, ANSWER | {"train": True}]) == [3]
  assert trained([USER, ANSWER, USER, off], "last") == [1]


def test_prompt_and_completion_are_two_messages():
  found = conversations.conversation({"prompt": "Hi", "completion": "Yes"})
  assert found == [USER | {"train": False}, ANSWER | {"train": True}]


def test_keys_of_templates_pass_and_empty_ones_go():
  call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}], "train": None}
  found = conversations.conversation({"messages": [USER | {"name": None}, call]})
  assert found[0] == USER | {"train": False}
  assert found[1] == {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"name": "f"}],
    "train": True,
  }


@pytest.mark.parametrize(
  "fields, sentence",
  [
    ({}, "the fields none; expected 'messages', or 'prompt' and 'completion'"),
    ({"text": "a", "id": 1}, r"the fields id, text;.*data.columns"),
    ({"prompt": "a", "completion": None}, "'prompt' and 'completion' as text"),
    ({"prompt": [USER], "completion": [ANSWER]}, "'prompt' and 'completion' as text"),
    ({"messages": "[]"}, r"messages is str '\[\]', expected a list"),
    ({"messages": []}, r"messages is list \[\], expected a list"),
    ({"messages": ["Hi"]}, r"messages\[0\] is str 'Hi'"),
    ({"messages": [USER, {"from": "gpt", "value": "a"}]}, r"\[1\].*keys from, value"),
    ({"messages": [{"role": "human", "content": "a"}]}, r"\[0\] has the role 'human'"),
    ({"messages": [{"role": "user"}, ANSWER]}, r"\[0\]: content is NoneType None"),
    ({"messages": [USER | {"content": [{}]}, ANSWER]}, r"\[0\]: content is list"),
    ({"messages": [USER]}, "no message has the role 'assistant'"),
    ({"messages": [USER, ANSWER | {"content": " \n"}]}, r"\[1\]: .*content is empty"),
    ({"messages": [USER, ANSWER | {"train": False}]}, "every assistant .* false"),
    ({"messages": [USER | {"train": True}, ANSWER]}, r"\[0\]: 'train' is True .*'user'"),
    ({"messages": [USER, ANSWER | {"train": 1}]}, r"\[1\]: 'train' is 1"),
  ],
)
def test_what_is_wrong_with_a_row(fields, sentence):
  with pytest.raises(JaxsftError, match=sentence):
    conversations.conversation(fields)


def test_shorter_conversations_keep_the_system_and_whole_exchanges():
  system = {"role": "system", "content": "s"}
  tool = {"role": "tool", "content": "t"}
  first, second, third = (USER | {"content": str(i)} for i in range(3))
  messages = [system, first, ANSWER, tool, ANSWER, second, ANSWER, third]
  messages = conversations.conversation({"messages": messages})
  assert list(conversations.shorter(messages)) == [[messages[0], *messages[5:]]]
  assert list(conversations.shorter(messages[:5])) == []
