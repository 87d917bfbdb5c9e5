"""Rows become conversations, or a sentence that says what is wrong with them."""

import pytest

from jaxsft.data import messages as conversations
from jaxsft.errors import JaxsftError

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Yes"}
TEXT, IMAGE = {"type": "text", "text": "a"}, {"type": "image_url", "image_url": "a.png"}


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


def test_typed_parts_of_text_are_one_text():
  parts = [TEXT, {"type": "text", "value": " b", "text": None}]
  found = conversations.conversation({"messages": [USER | {"content": parts}, ANSWER]})
  assert found[0]["content"] == "a b"


def test_answers_that_only_call_tools_can_be_left_out():
  call = {"role": "assistant", "content": " ", "tool_calls": [{"name": "f"}]}
  says = call | {"content": "I look."}
  messages = [USER, call, says, call | {"train": True}, call | {"weight": 1}, ANSWER]
  assert trained(messages) == [1, 2, 3, 4, 5]
  found = conversations.conversation({"messages": messages}, on_tools=False)
  assert [i for i, message in enumerate(found) if message["train"]] == [2, 3, 4, 5]
  with pytest.raises(JaxsftError, match=r"calls tools, which config.data.train_on_tools"):
    conversations.conversation({"messages": [USER, call]}, on_tools=False)


@pytest.mark.parametrize("key", ["weight", "loss_weight"])
def test_weights_say_what_trains(key):
  off, on = ANSWER | {key: 0.0}, ANSWER | {key: 1}
  assert trained([USER | {key: 0}, off, USER, on, USER, ANSWER]) == [3, 5]
  found = conversations.conversation({"messages": [USER, on | {"train": True}]})
  assert key not in found[1]  # templates see what they know


@pytest.mark.parametrize(
  "fields, sentence",
  [
    ({"text": "a"}, "plain text, expected a conversation.*data.columns"),
    ({"messages": "[]"}, r"messages is str '\[\]', expected a list"),
    ({"messages": []}, r"messages is list \[\], expected a list"),
    ({"messages": ["Hi"]}, r"messages\[0\] is str 'Hi'"),
    ({"messages": [{"from": "gpt", "value": "a"}]}, r"\[0\].*keys from.*'conversations'"),
    ({"messages": [{"role": "human", "content": "a"}]}, r"\[0\] has the role 'human'"),
    ({"messages": [{"role": "user"}, ANSWER]}, r"\[0\]: content is NoneType None"),
    ({"messages": [USER | {"content": []}, ANSWER]}, r"\[0\]: content is list \[\]"),
    ({"messages": [USER | {"content": [{}]}, ANSWER]}, r"\[0\]: content\[0\] is dict {}"),
    ({"messages": [USER | {"content": ["a"]}, ANSWER]}, r"\[0\]: content\[0\] is str 'a'"),
    ({"messages": [USER | {"content": [TEXT, IMAGE]}]}, r"content\[1\] is dict.*only text"),
    ({"messages": [USER | {"content": [TEXT | {"text": None}]}]}, r"content\[0\] is dict"),
    (
      {"messages": [USER | {"content": [TEXT | {"type": "thinking"}]}]},
      r"content\[0\] is dict",
    ),
    ({"messages": [USER]}, "no message has the role 'assistant'"),
    ({"messages": [USER, ANSWER | {"content": " \n"}]}, r"\[1\]: .*content is empty"),
    ({"messages": [USER, ANSWER | {"train": False}]}, "every assistant .* false"),
    ({"messages": [USER | {"train": True}, ANSWER]}, r"\[0\]: 'train' is True .*'user'"),
    ({"messages": [USER, ANSWER | {"train": 1}]}, r"\[1\]: 'train' is 1"),
    (
      {"messages": [USER, ANSWER | {"weight": 0.5}]},
      r"\[1\]: 'weight' is 0.5, expected 0 or 1",
    ),
    ({"messages": [USER, ANSWER | {"loss_weight": "1"}]}, r"'loss_weight' is '1', expected 0"),
    ({"messages": [USER | {"weight": 1}, ANSWER]}, r"\[0\]: 'weight' is True .*'user'"),
    ({"messages": [USER, ANSWER | {"train": True, "weight": 0}]}, "'train' is True but weight"),
    ({"messages": [USER, ANSWER | {"loss_weight": 1, "weight": 0}]}, "say otherwise"),
    ({"messages": [USER, ANSWER | {"weight": 0}]}, "every assistant .* false"),
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


def test_the_question_of_a_row():
  asked, answered = USER | {"train": False}, ANSWER["content"]
  question = conversations.question
  assert question({"messages": [USER, ANSWER]}) == ([asked], answered)
  more = [USER, ANSWER, USER | {"content": "and?"}]
  messages, answer = question({"messages": more})
  assert [m["content"] for m in messages] == [m["content"] for m in more] and answer is None
  assert question({"prompt": "a", "completion": "b"})[1] == "b"
  for fields in ({"prompt": "a"}, {"prompt": "a", "completion": None}, {"instruction": "a"}):
    messages, answer = question(fields)
    assert [m["content"] for m in messages] == ["a"] and answer is None
  assert question({"text": "once upon a time"}) == (None, None)
  called = ANSWER | {"content": "", "tool_calls": [{"function": {"name": "f"}}]}
  assert question({"messages": [USER, called]}) == ([asked], None)  # nothing to compare with
  assert question({"messages": [USER]}) == ([asked], None)
  with pytest.raises(JaxsftError, match="'messages'"):
    question({"question": "a"})


def test_arguments_of_calls_are_objects_however_they_are_written():
  call = lambda arguments: {"role": "assistant", "tool_calls": [
    {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}},
    {"name": "g", "arguments": arguments},
  ]}  # fmt: skip
  for written, read in (('{"x": [1, "ü"]}', {"x": [1, "ü"]}), ({"x": 1}, {"x": 1}), (" ", {})):
    _, found = conversations.conversation({"messages": [USER, call(written)]})
    one, other = found["tool_calls"]
    assert one["function"] == {"name": "f", "arguments": read} and one["id"] == "1"
    assert other == {"name": "g", "arguments": read}
  for written, words in (
    ("{x}", r"tool_calls\[0\].arguments: str '{x}' is no JSON"),
    ("[1]", "object"),
  ):
    with pytest.raises(JaxsftError, match=words):
      conversations.conversation({"messages": [USER, call(written)]})
  with pytest.raises(JaxsftError, match="expected a list of"):
    conversations.conversation({"messages": [USER, {"role": "assistant", "tool_calls": "f()"}]})


def test_what_no_template_writes_is_refused():
  with pytest.raises(JaxsftError, match=r"messages\[1\] has the key 'refusal'"):
    conversations.conversation({"messages": [USER, ANSWER | {"refusal": "No."}]})
  assert trained([USER, ANSWER | {"refusal": None}]) == [1]


def test_settings_of_the_template_in_a_row_are_refused():
  row = {"messages": [USER, ANSWER]}
  with pytest.raises(JaxsftError, match=r"'chat_template_kwargs' .*thinking.*'unused'"):
    conversations.conversation(row | {"chat_template_kwargs": {"enable_thinking": False}})
  assert conversations.conversation(row | {"chat_template_kwargs": None})


def test_calls_of_functions_are_calls_of_tools():
  """OpenAI's form before tools."""
  call = {"name": "f", "arguments": '{"x": 1}'}
  asks = {"role": "assistant", "content": None, "function_call": call}
  result = {"role": "function", "name": "f", "content": "3"}
  newer = {"role": "assistant", "tool_calls": [{"type": "function", "function": call}]}
  found = conversations.conversation({"messages": [USER, asks, result, ANSWER]})
  as_tools = [USER, newer, result | {"role": "tool"}, ANSWER]
  assert found == conversations.conversation({"messages": as_tools})
  assert [m["role"] for m in found] == ["user", "assistant", "tool", "assistant"]
  assert result["role"] == "function"  # rows stay as they are
  found = conversations.conversation({"messages": [USER, asks, result, ANSWER]}, on_tools=False)
  assert [m["train"] for m in found] == [False, False, False, True]
  for wrong, words in (
    (asks | {"tool_calls": newer["tool_calls"]}, r"\[1\] has both 'function_call' and 'tool"),
    (asks | {"function_call": "f"}, r"\[1\]: tool_calls\[0\] is dict"),
  ):
    with pytest.raises(JaxsftError, match=words):
      conversations.conversation({"messages": [USER, wrong]})


def test_a_developer_leads_as_the_system_does():
  developer = {"role": "developer", "content": "s"}
  messages = [developer, USER, ANSWER, USER, ANSWER]
  messages = conversations.conversation({"messages": messages})
  assert [m["role"] for m in messages][:2] == ["developer", "user"]
  assert list(conversations.shorter(messages)) == [[messages[0], *messages[3:]]]
  assert conversations.exchanges(messages)[0] == messages[:1]
  turns = [{"from": "developer", "value": "s"}, {"from": "human", "value": "a"}]
  turns += [{"from": "gpt", "value": "b"}]
  found = conversations.conversation({"conversations": turns, "system": "s"})
  assert [m["role"] for m in found] == ["developer", "user", "assistant"]


@pytest.mark.parametrize(
  "call", [{"function": "weather"}, {"function": {"arguments": "{}"}}, {}]
)
def test_a_call_without_a_tool_is_refused(call):
  with pytest.raises(JaxsftError, match=r"tool_calls\[0\] is dict .*expected .*'name'"):
    conversations.conversation({"messages": [USER, ANSWER | {"tool_calls": [call]}]})
