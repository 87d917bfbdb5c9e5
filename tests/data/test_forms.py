"""Every form of a chat becomes the messages that it stands for; mixed forms are refused."""

import collections
import json
import os

import pytest

from jaxsft.data import forms
from jaxsft.data import messages as conversations
from jaxsft.errors import JaxsftError
from tests.data.test_read import fields_of


def user(content):
  return {"role": "user", "content": content, "train": False}


def assistant(content, train=True, **more):
  return {"role": "assistant", "content": content, "train": train, **more}


def calls(name, arguments):
  function = {"name": name, "arguments": arguments}
  return assistant("", tool_calls=[{"type": "function", "function": function}])


def system(content):
  return {"role": "system", "content": content, "train": False}


ALPACA = {"instruction": "Add.", "input": "2 and 2", "output": "4"}
HUMAN, GPT = {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes"}
SAYS_SYSTEM = {"from": "system", "value": "Be kind."}

CHATS = {
  "alpaca": (ALPACA, [user("Add.\n2 and 2"), assistant("4")]),
  "alpaca without input": (ALPACA | {"input": " \n"}, [user("Add."), assistant("4")]),
  "alpaca, input that is null": (ALPACA | {"input": None}, [user("Add."), assistant("4")]),
  "alpaca, input alone": (ALPACA | {"instruction": ""}, [user("2 and 2"), assistant("4")]),
  "alpaca with its rendering": (
    ALPACA | {"text": "### …"},
    [user("Add.\n2 and 2"), assistant("4")],
  ),
  "alpaca with history and system": (
    ALPACA | {"history": [["q", "a"], ["", "b"]], "system": "Be kind."},
    [
      system("Be kind."),
      user("q"),
      assistant("a"),
      user(""),
      assistant("b"),
      user("Add.\n2 and 2"),
      assistant("4"),
    ],
  ),
  "alpaca, all empty": (
    ALPACA | {"history": [], "system": " ", "tools": ""},
    [user("Add.\n2 and 2"), assistant("4")],
  ),
  "sharegpt": ({"conversations": [HUMAN, GPT]}, [user("Hi"), assistant("Yes")]),
  "sharegpt as roles": (
    {"conversations": [{"role": role, "content": "Hi"} for role in ("user", "assistant")]},
    [user("Hi"), assistant("Hi")],
  ),
  "sharegpt with a system field": (
    {"conversations": [HUMAN, GPT], "system": "Be kind."},
    [system("Be kind."), user("Hi"), assistant("Yes")],
  ),
  "messages with a system field": (
    {"messages": [{"role": role, "content": "Hi"} for role in ("user", "assistant")]}
    | {"system": "Be kind."},
    [system("Be kind."), user("Hi"), assistant("Hi")],
  ),
  "prompt and completion with a system field": (
    {"prompt": "Hi", "completion": "Yes", "system": "Be kind."},
    [system("Be kind."), user("Hi"), assistant("Yes")],
  ),
  "prompt and completion as conversations with a system field": (
    {
      "prompt": [{"role": "user", "content": "Hi"}],
      "completion": [{"role": "assistant", "content": "Yes"}],
      "system": "Be kind.",
    },
    [system("Be kind."), user("Hi"), assistant("Yes")],
  ),
  "sharegpt that says its system": (
    {"conversations": [SAYS_SYSTEM, HUMAN, GPT], "system": None},
    [system("Be kind."), user("Hi"), assistant("Yes")],
  ),
  "sharegpt that says it twice": (
    {"conversations": [SAYS_SYSTEM, HUMAN, GPT], "system": "Be kind."},
    [system("Be kind."), user("Hi"), assistant("Yes")],
  ),
  "sharegpt with a turn taken out": (
    {"conversations": [HUMAN, GPT | {"weight": 0}, HUMAN | {"name": "Ann"}, GPT]},
    [user("Hi"), assistant("Yes", False), user("Hi") | {"name": "Ann"}, assistant("Yes")],
  ),
  "sharegpt with tools": (
    {
      "conversations": [
        HUMAN,
        {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
        {"from": "observation", "value": '{"y": 2}'},
        {"from": "function_call", "value": '[{"name": "g", "arguments": {}}]'},
        {"from": "tool", "value": "3"},
        GPT,
      ]
    },
    [
      user("Hi"),
      calls("f", {"x": 1}),
      {"role": "tool", "content": '{"y": 2}', "train": False},
      calls("g", {}),
      {"role": "tool", "content": "3", "train": False},
      assistant("Yes"),
    ],
  ),
  "prompt and completion": (
    {"prompt": "Hi", "completion": "Yes", "systems": "a column"},
    [user("Hi"), assistant("Yes")],
  ),
  "messages beside their prompt": (
    {"prompt": "Hi", "messages": [{"role": "user", "content": "Hi"}, assistant("Yes")]},
    [user("Hi"), assistant("Yes")],
  ),
}


@pytest.mark.parametrize("case", CHATS)
def test_chats(case):
  fields, messages = CHATS[case]
  assert conversations.conversation(fields) == messages
  last = conversations.conversation(fields, "last")
  assert [m["train"] for m in last] == [False] * (len(last) - 1) + [True]


def test_forms_are_told_apart_and_counted():
  rows = [fields for fields, _ in CHATS.values()]
  rows += [
    {"text": "a", "id": 1},
    {"text": "b", "messages": None, "output": "x", "prompt": "y"},
  ]
  counted = collections.Counter(forms.form(row) for row in rows)
  assert counted == {
    "alpaca": 7,
    "sharegpt": 7,
    "prompt and completion": 2,
    "conversational prompt and completion": 1,
    "messages": 2,
    "text": 2,
  }


def test_plain_text():
  assert forms.text({"text": " a\n"}) == " a\n"
  assert forms.plain({"text": ""}) and forms.plain({"text": None, "messages": None})
  assert not forms.plain({"text": "a", "instruction": "b"}) and not forms.plain({"txt": "a"})
  for wrong in ("", " \n", 5):
    with pytest.raises(JaxsftError, match=r"text is .*expected text.*data\.columns"):
      forms.text({"text": wrong})


FUNCTION = {"name": "f", "parameters": {}}
WRAPPED = {"type": "function", "function": FUNCTION}


@pytest.mark.parametrize(
  ("found", "tools"),
  [
    (None, None),
    ("", None),
    (" ", None),
    ("[]", None),
    ([], None),
    ([FUNCTION, WRAPPED], [WRAPPED, WRAPPED]),
    (json.dumps([FUNCTION]), [WRAPPED]),
  ],
)
def test_tools(found, tools):
  assert forms.tools(ALPACA | {"tools": found}) == tools
  assert forms.tools({}) is None
  as_written = json.loads(found) if isinstance(found, str) and found.strip() else found
  assert forms.tools({"messages": [], "tools": found}) == (as_written if tools else None)


@pytest.mark.parametrize(
  ("found", "said"),
  [
    ("[{", r"tools: str '\[{' is no JSON"),
    (FUNCTION, "tools is dict .*expected a list"),
    (["f"], "tools is list .*expected a list of objects"),
    ([FUNCTION, {"type": "function"}], r"tools\[1\] is dict .*'name'"),
    ([{"type": "function", "function": "f"}], r"tools\[0\] is dict .*'name'"),
  ],
)
def test_tools_that_are_none(found, said):
  with pytest.raises(JaxsftError, match=said):
    forms.tools(ALPACA | {"tools": found})


def says(*turns, **more):
  return {"conversations": list(turns), **more}


@pytest.mark.parametrize(
  ("fields", "said"),
  [
    ({}, "the fields none; expected 'messages', 'conversations', 'instruction' and"),
    ({"txt": "a", "id": 1, "x": None}, r"the fields id, txt;.*data\.columns"),
    ({"prompt": "a", "completion": None}, "the fields prompt; .*'prompt' and 'completion'"),
    ({"output": "a", "input": "b"}, "the fields input, output"),
    (ALPACA | says(HUMAN, GPT), "sharegpt by its field 'conversations' and alpaca by 'instr"),
    ({"messages": [], "instruction": "a"}, r"messages by .*columns={'unused': 'instruction'}"),
    (
      {"messages": [], "prompt": "a", "completion": "b"},
      "messages by .*completion by 'prompt'",
    ),
    (
      {"prompt": 1, "completion": "b"},
      "prompt is int 1 and completion is str 'b', expected two texts or two lists",
    ),
    (ALPACA | {"output": None}, "output is NoneType None, expected 'instruction' and 'output'"),
    (ALPACA | {"output": " "}, "output: the assistant's content is empty"),
    (ALPACA | {"input": 5}, "input is int 5, expected 'input' as text"),
    (ALPACA | {"input": "", "instruction": " "}, "instruction and input are empty.*data.keep"),
    (ALPACA | {"history": "q"}, "history is str 'q', expected pairs"),
    (ALPACA | {"history": ["qa"]}, "history is list .*, expected pairs"),
    (ALPACA | {"history": [["q"]]}, "history is list .*, expected pairs"),
    (ALPACA | {"history": [["q", None]]}, "history is list .*, expected pairs"),
    (ALPACA | {"history": [["q", "a", None]]}, "history is list .*, expected pairs"),
    (ALPACA | {"history": [["q", "a", "b"]]}, "history is list .*, expected pairs"),
    (ALPACA | {"history": [["q", "a"], ["q", ""]]}, r"history\[1\]\[1\]: the assistant's"),
    (ALPACA | {"system": ["a"]}, r"system is list \['a'\], expected text"),
    (says(), r"conversations is list \[\], expected a list of {'from', 'value'}"),
    ({"conversations": "Hi"}, "conversations is str 'Hi', expected a list"),
    (says("Hi"), r"conversations\[0\] is str 'Hi', expected {'from', 'value'}"),
    (says(HUMAN, {"from": "bot", "value": "a"}), r"\[1\] is from 'bot' .*human, user, gpt"),
    (says({"from": ["gpt"], "value": "a"}), r"\[0\] is from \['gpt'\]"),
    (says({"text": "a"}), r"\[0\] is from None and has the keys text"),
    (says(HUMAN, {"from": "gpt"}), r"conversations\[1\]: content is NoneType None"),
    (says(HUMAN, {"from": "gpt", "value": ""}), r"conversations\[1\]: the assistant's content"),
    (says(HUMAN), "no message has the role 'assistant'"),
    (says(SAYS_SYSTEM, HUMAN, GPT, system="Be brief."), "'system' is str 'Be brief.*'Be kind"),
    (
      says(HUMAN, {"from": "function_call", "value": "f(1)"}),
      r"\[1\]: str 'f\(1\)' is no JSON",
    ),
    (
      says(HUMAN, {"from": "function_call", "value": '{"name": "f"}'}),
      r"\[1\]: the function_c",
    ),
    (
      says(HUMAN, {"from": "function_call", "value": "3"}),
      r"\[1\]: the function_call is str '3'",
    ),
    (says(HUMAN, {"from": "function_call"}), r"\[1\]: the function_call is NoneType"),
    (
      says(HUMAN, {"from": "function_call", "value": '{"name": "f", "arguments": "{}"}'}),
      r"\[1\]: the function_call is str",
    ),
  ],
)
def test_what_is_wrong_with_a_row(fields, said):
  with pytest.raises(JaxsftError, match=said):
    conversations.conversation(fields)


SETS = {
  "llamafactory_demo/alpaca_en_demo.json": ("alpaca", 999, 999),
  "llamafactory_demo/alpaca_zh_demo.json": ("alpaca", 1000, 1000),
  "llamafactory_demo/identity.json": ("alpaca", 91, 91),
  "llamafactory_demo/glaive_toolcall_en_demo.json": ("sharegpt", 300, None),
  "llamafactory_demo/glaive_toolcall_zh_demo.json": ("sharegpt", 300, None),
  "llamafactory_demo/v1_sft_demo.jsonl": ("messages", 500, 500),
  "fastchat_sharegpt/dummy_conversation.json": ("sharegpt", 500, 1000),
  "torchtune_tiny/alpaca_tiny.json": ("alpaca", 100, 100),
  "torchtune_tiny/chat_tiny.json": ("sharegpt", 1, 2),
  "gsm8k/train.jsonl": ("prompt and completion", 7473, 7473),
  "gsm8k/test.jsonl": ("prompt and completion", 1319, 1319),
}


@pytest.mark.full
@pytest.mark.skipif(not os.environ.get("JAXSFT_DATA"), reason="needs the data in JAXSFT_DATA")
@pytest.mark.parametrize("name", SETS)
def test_real_sets(name):
  columns = {"prompt": "question", "completion": "answer"} if "gsm8k" in name else None
  rows = fields_of(os.path.join(os.environ["JAXSFT_DATA"], name), columns=columns)
  kind, count, answers = SETS[name]
  assert collections.Counter(forms.form(row) for row in rows) == {kind: count}
  found = [conversations.conversation(row) for row in rows]
  trained = [m for messages in found for m in messages if m["train"]]
  if answers is not None:
    assert len(trained) == answers
  if "glaive" in name:
    calls = [m for m in trained if "tool_calls" in m]
    turns = [turn["from"] for row in rows for turn in row["conversations"]]
    assert len(calls) == turns.count("function_call") > 100
    assert len(trained) == len(calls) + turns.count("gpt")
    described = [row for row in rows if row["tools"] not in ("", "[]")]
    assert described and all(forms.tools(row)[0]["function"]["name"] for row in described)
