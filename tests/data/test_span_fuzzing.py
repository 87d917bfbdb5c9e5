"""Whatever a conversation says: the ids of transformers and exact spans, or a sentence."""

import functools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxsft import tasks
from jaxsft import tokenizer as tokenizer_lib
from jaxsft.data.read import Row
from jaxsft.errors import JaxsftError
from jaxsft.tasks import chat as task
from tests.templates import stock

WORDS = (
  "the ",
  "Ok",
  "\n",
  " ",
  "\t",
  "  ",
  "\r\n",
  "🙂",
  "日本",
  "é\u0301",
  "\u200d",
  "</s>",
  "<|im_end|>",
)
WORDS += (
  "<|",
  "|>",
  "<tool_call>",
  "</tool_call>",
  "user",
  "assistant",
  "[INST]",
  "<|user|>",
  "{{ x }}",
)
SETTINGS = {"deadline": None, "suppress_health_check": list(HealthCheck)}

contents = st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=3)), max_size=4).map(
  "".join
)


@st.composite
def cases(draw, name):
  """(messages, tools, settings of the context) for a stock template."""
  one, found = stock.STOCK[name], []
  if draw(st.booleans()):
    lead = draw(st.sampled_from(["system", "system", "developer"]))
    found.append({"role": lead, "content": draw(contents)})
  called = False
  for _ in range(draw(st.integers(1, 4))):
    found.append({"role": "user", "content": draw(contents)})
    if one.tools and draw(st.integers(0, 3)) == 0:
      result = draw(st.sampled_from(["tool", "tool", "function"]))
      found += [dict(stock.CALLED), {"role": result, "content": draw(contents)}]
      called = True
    answer = {"role": "assistant", "content": draw(contents)}
    if one.thinking and draw(st.booleans()):
      answer[one.thinking] = draw(contents)
    flag = draw(st.sampled_from([None, None, None, ("train", False), ("weight", 1)]))
    found.append(answer | ({flag[0]: flag[1]} if flag else {}))
  if draw(st.integers(0, 5)) == 0:
    found.append(
      {"role": draw(st.sampled_from(["user", "assistant", "tool"])), "content": "so"}
    )
  options = {
    "train_on": draw(st.sampled_from(["all", "last", "each"])),
    "train_on_tools": draw(st.booleans()),
    "control_tokens": draw(st.sampled_from(["refuse", "escape"])),
    "too_long": draw(st.sampled_from(["drop", "truncate", "error"])),
    "max_length": draw(st.sampled_from([40, 90, 4000])),
  }
  return found, stock.tools(name, "tools") if called else None, options


@functools.cache
def tokenizer(name):
  return stock.tokenizer(name)


def encoded_or_sentence(name, case):
  messages, tools, options = case
  row = Row("a", "rows.jsonl:7", {"messages": messages, "tools": tools})
  try:
    return task.encode(row, tasks.Context(tokenizer(name), **options))
  except JaxsftError as error:
    sentence = str(error)
    assert sentence.startswith("rows.jsonl:7: ") and len(sentence.split()) > 8
    return None


def trained(messages, options):
  """Indices of the answers that train, by hand."""
  found = []
  for i, m in enumerate(messages):
    if m["role"] != "assistant":
      continue
    calls = bool(m.get("tool_calls")) and not m["content"].strip()
    if m.get("train", m.get("weight", not calls or options["train_on_tools"])):
      found.append(i)
  return found if options["train_on"] != "last" else found[-1:]


def plain(messages):
  """The messages as transformers gets them, with roles that templates know."""
  names = {"developer": "system", "function": "tool"}
  found = [{k: v for k, v in m.items() if k not in ("train", "weight")} for m in messages]
  return [m | {"role": names.get(m["role"], m["role"])} for m in found]


def candidates(messages, options):
  """[(messages, trained)] that an example may be of, in their order, cut or whole."""
  on = trained(messages, options)
  lead = messages[: messages[0]["role"] in ("system", "developer")]
  ends = [i + 1 for i in on] if options["train_on"] == "each" else [len(messages)]
  groups = []
  for end in ends:
    starts = [0]
    if options["too_long"] == "truncate":
      users = [i for i in range(end) if messages[i]["role"] == "user"]
      starts += [i for i in users if i > len(lead)]
    group = []
    for start in starts:
      shown = messages[:end] if start == 0 else [*lead, *messages[start:end]]
      moved = len(shown) - end
      want = [i + moved for i in on if i < end and i + moved >= len(lead)]
      group.append((shown, want[-1:] if options["train_on"] == "each" else want))
    groups.append(group)
  return groups


def matches(name, shown, want, tools, example, escape):
  """Whether an example is that conversation with exactly those answers supervised."""
  words, shown = tokenizer(name), plain(shown)
  ids = np.concatenate([example["inputs"][:1], example["targets"]])
  on = np.concatenate([[False], example["weights"] > 0])
  try:
    text = words.apply_chat_template(shown, tools=tools, tokenize=False)
  except Exception:
    return False
  ending = words.decode(ids)[len(text) :]  # the next turn's mark, of GLM's
  mark = stock.STOCK[name].mark and ending in ("<|user|>", "<|observation|>")
  if words.decode(ids) != text + ending * bool(mark):
    return False
  if not escape:
    told = words.apply_chat_template(shown, tools=tools)["input_ids"]
    assert ids[: len(told)].tolist() == told and len(ids) - len(told) == bool(mark)
  said = [stock.answer(name, shown, i) for i in want]
  edges = np.diff(np.concatenate([[0], on.astype(int), [0]]))
  runs = zip(np.flatnonzero(edges > 0), np.flatnonzero(edges < 0), strict=True)
  found = [words.decode(ids[a:b]) for a, b in runs]
  exact = lambda have, expected: (
    have.endswith(expected) and have.removesuffix(expected) in ("", "\n", " ")
  )
  for have in found:  # a token may cross the border in front: a line end, a space
    expected, *said = said
    while said and not exact(have, expected):
      expected, said = expected + said[0], said[1:]  # answers without a question between them
    assert exact(have, expected), (have, expected)
  assert not said
  ends = [int(ids[edge - 1]) for edge in np.flatnonzero(edges < 0)]
  assert all(end in words.added_tokens_decoder for end in ends)
  if escape:  # as many control tokens as where nothing is said
    own = [t for t, control in tokenizer_lib.added_tokens(words).items() if control]
    count = lambda found: np.isin(found, words.convert_tokens_to_ids(own)).sum()
    keys = ("content", stock.STOCK[name].thinking)
    silent = [{k: "x" if k in keys and v.strip() else v for k, v in m.items()} for m in shown]
    told = words.apply_chat_template(silent, tools=tools)["input_ids"]
    assert count(ids) - bool(mark) == count(told)
  return True


def check(name, case):
  messages, tools, options = case
  encoded = encoded_or_sentence(name, case)
  if encoded is None:
    return
  escape = options["control_tokens"] == "escape" and "escaped" in (encoded.note or "")
  groups = candidates(messages, options)
  assert len(encoded.examples) <= len(groups)
  if not encoded.note:
    assert len(encoded.examples) == len(groups)
  left = list(groups)
  for example in encoded.examples:
    assert len(example["inputs"]) <= options["max_length"]
    while left:
      group = left.pop(0)
      if any(matches(name, *one, tools, example, escape) for one in group):
        break
      assert encoded.note  # passed over: left out, and said so
    else:
      raise AssertionError("an example of no part of the row")


@pytest.mark.parametrize("name", stock.STOCK)
def test_random_conversations(name):
  @settings(max_examples=10, **SETTINGS)
  @given(cases(name))
  def run(case):
    check(name, case)

  run()


@pytest.mark.full
@pytest.mark.parametrize("name", stock.STOCK)
def test_many_random_conversations(name):
  @settings(max_examples=600, **SETTINGS)  # x 18 templates
  @given(cases(name))
  def run(case):
    check(name, case)

  run()
