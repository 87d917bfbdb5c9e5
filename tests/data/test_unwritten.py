"""What a template leaves out of a row is refused, or said; and roles that it does not know."""

import functools

import numpy as np
import pytest

from jaxsft import tasks
from jaxsft.data import chat
from jaxsft.data.read import Row
from jaxsft.errors import JaxsftError
from jaxsft.tasks import chat as task
from tests.templates import stock

ASKED = stock.conversation("chatml", "one")
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
NO_TOOLS = "with tools that the chat template does not write"
NO_THOUGHTS = "with thoughts that the chat template does not write"


@functools.cache
def tokenizer(name):
  return stock.tokenizer(name)


def encoded(name, messages, tools=None, **options):
  row = Row("a", "rows.jsonl:7", {"messages": messages, "tools": tools})
  return task.encode(row, tasks.Context(tokenizer(name), 4000, **options))


def ids_of(example):
  return np.concatenate([example["inputs"][:1], example["targets"]]).tolist()


def written(name, messages, **how):
  """What transformers itself makes of the messages."""
  return tokenizer(name).apply_chat_template(messages, tokenize=False, **how)


# --- tools -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", stock.STOCK)
def test_tools_are_written_or_refused_or_left_out_and_counted(name):
  told = written(name, ASKED, tools=stock.TOOLS)
  if told != written(name, ASKED):
    found = encoded(name, ASKED, stock.TOOLS)
    assert found.note is None and found.text.startswith(told)
    return
  with pytest.raises(JaxsftError, match=r":7: .*not write the tool dict .*unwritten='leave_o"):
    encoded(name, ASKED, stock.TOOLS)
  found = encoded(name, ASKED, stock.TOOLS, unwritten="leave_out")
  assert found.note == NO_TOOLS and found.text == encoded(name, ASKED).text


def test_prompts_are_refused_as_training_is():
  row, place = Row("a", "b:3", {"messages": ASKED, "tools": stock.TOOLS}), {}
  ask = lambda: task.prompt(row, tasks.Context(tokenizer("chatml"), 99, **place))
  with pytest.raises(JaxsftError, match="b:3: the chat template does not write the tool"):
    ask()
  place = {"unwritten": "leave_out"}
  assert ask() == chat.prompt_ids(ASKED[:1], tokenizer("chatml")).tolist()


@pytest.mark.parametrize("lost", [0, 1])
def test_one_tool_of_two(lost):
  other = {"type": "function", "function": {"name": "time", "description": "Now."}}
  kept = ("weather", "time")[1 - lost]
  template = f"{{% for tool in tools or [] if tool.function.name == '{kept}' %}}"
  template += "{{ tool | tojson }}{% endfor %}" + stock.template("chatml")
  tools = [stock.TOOLS[0], other]
  with pytest.raises(JaxsftError, match=f"tool .*{tools[lost]['function']['name']}"):
    encoded("chatml", ASKED, tools, chat_template=template)
  found = encoded("chatml", ASKED, [tools[1 - lost]] * 2, chat_template=template)
  assert found.note is None  # said twice, written once


def test_a_tool_that_a_message_names_is_not_written_by_that():
  talk = stock.talk(("user", "the weather?"), ("assistant", "Fine."))
  with pytest.raises(JaxsftError, match="does not write the tool"):
    encoded("chatml", talk, stock.TOOLS)


def test_a_template_that_fails_without_tools_reads_them():
  template = "{{ tools[0].type }}{% if not tools %}{{ raise_exception('none') }}{% endif %}"
  template = template.replace("tools[0].type", "'' if not tools else tools[0].type")
  found = encoded(
    "chatml", ASKED, stock.TOOLS, chat_template=template + stock.template("chatml")
  )
  assert found.note is None


# --- thoughts --------------------------------------------------------------------------


@pytest.mark.parametrize("name", stock.STOCK)
@pytest.mark.parametrize("key", THOUGHTS)
def test_thoughts_are_written_or_refused_or_left_out_and_counted(name, key):
  talk = [{k if k != "why" else key: v for k, v in m.items()} for m in stock.THOUGHT]
  check(name, talk)
  assert "Two\nand." in written(name, talk) or key != stock.STOCK[name].thinking


@pytest.mark.parametrize("name", stock.STOCK)
@pytest.mark.parametrize("answer", ["4", "and."])
def test_thoughts_in_the_content_too(name, answer):
  said = f"<think>\nTwo\nand.\n</think>\n\n{answer}"
  check(name, stock.talk(("user", "2+2"), ("assistant", said)))


def check(name, talk):
  if "Two\nand." in written(name, talk):
    found = encoded(name, talk)
    assert found.note is None
    assert "Two\nand." in "".join(found.text[a:b] for a, b in found.spans)
    return
  with pytest.raises(JaxsftError, match=r"messages\[1\]: .*thoughts.*Two.*unwritten='leave_o"):
    encoded(name, talk)
  assert encoded(name, talk, unwritten="leave_out").note == NO_THOUGHTS
  silent = [talk[0], talk[1] | {"train": False}, talk[0], {"role": "assistant", "content": "5"}]
  assert encoded(name, silent).note is None


STRIPS = stock.template("chatml").replace("m.content", "m.content.split('</think>')[-1]")


@pytest.mark.parametrize(
  ("said", "lost"),
  [
    ("<think>4</think>4", "4"),
    ("[x] a <think>b</think> c", "a"),
    ("<think> </think> c", None),
    ("c", None),
  ],
)
def test_a_template_that_cuts_off_what_stands_before(said, lost):
  talk = stock.talk(("user", "2+2"), ("assistant", said))
  make = lambda **how: encoded("chatml", talk, chat_template=STRIPS, **how)
  if lost is None:
    assert make().note is None
    return
  with pytest.raises(JaxsftError, match=rf"thoughts \(str '{lost}'\)"):
    make()
  assert make(unwritten="leave_out").note == NO_THOUGHTS


def test_qwen_3_loses_what_stands_before_a_thought():
  talk = stock.talk(("user", "2+2"), ("assistant", "Well. <think>a</think>b<think>c</think>d"))
  with pytest.raises(JaxsftError, match=r"thoughts \(str 'Well\.'\)"):
    encoded("qwen3", talk)


def test_a_thought_that_says_what_the_answer_says():
  talk = [stock.THOUGHT[0], {"role": "assistant", "content": "4", "reasoning_content": "4"}]
  with pytest.raises(JaxsftError, match=r"thoughts \(str '4'\)"):
    encoded("chatml", talk)
  assert encoded("qwen3", talk).note is None


def test_an_answer_that_is_written_otherwise_is_written():
  template = stock.template("chatml").replace("m.content", "m.content | upper")
  found = encoded("chatml", ASKED, chat_template=template)
  assert found.note is None and "YES, THE END." in found.text


def test_tools_and_thoughts_are_both_said():
  talk = [stock.THOUGHT[0], {"role": "assistant", "content": "4", "thinking": "Two"}]
  found = encoded("phi4", talk, stock.TOOLS, unwritten="leave_out")
  assert found.note == f"{NO_TOOLS}, {NO_THOUGHTS}"


# --- roles -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", stock.STOCK)
def test_a_developer_is_the_system_where_the_template_does_not_know_it(name):
  talk = stock.talk(("developer", "Be kind."), *stock.THREE[:2])
  same = [talk[0] | {"role": "system"}, *talk[1:]]
  if name == "gpt_oss":
    found = encoded(name, talk)
    assert found.note is None and found.text == written(name, talk) == written(name, same)
  elif not stock.STOCK[name].system:
    with pytest.raises(JaxsftError):
      encoded(name, talk)
    return
  else:
    found = encoded(name, talk)
    assert found.note == "with a developer's messages written as the system's"
    assert found.text == encoded(name, same).text and encoded(name, same).note is None
    assert found.text.startswith(written(name, same)) and "developer" not in found.text
  (example,) = found.examples
  prompt = task.prompt(Row("a", "a", {"messages": talk}), tasks.Context(tokenizer(name), 999))
  assert ids_of(example)[: len(prompt)] == prompt


def test_a_template_that_names_the_developer_gets_it():
  template = stock.template("chatml") + "{% if messages[0].role == 'developer' %}{% endif %}"
  talk = stock.talk(("developer", "Be kind."), *stock.THREE[:2])
  found = encoded("chatml", talk, chat_template=template)
  assert found.note is None and "<|im_start|>developer\nBe kind." in found.text


@pytest.mark.parametrize("name", [n for n, one in stock.STOCK.items() if one.tools])
def test_calls_of_functions_are_written_as_those_of_tools(name):
  call = {"role": "assistant", "content": None, "function_call": stock.CALL}
  older = {"role": "function", "name": "weather", "content": '{"rain": 1}'}
  talk, end = stock.conversation(name, "tools"), {"train_on": "last"}
  tools = stock.tools(name, "tools")
  found = encoded(name, [talk[0], call, older, talk[3]], tools, **end)
  assert found.text == encoded(name, talk, tools, **end).text
  assert found.note is None


def test_results_of_functions_that_a_template_leaves_out_are_refused():
  talk = stock.talk(("user", "a"), ("function", "b"), ("assistant", "c"))
  with pytest.raises(JaxsftError, match=r"messages\[1\]: .*leaves out what the tool says"):
    encoded("phi3", talk)
