"""The mask over the chat templates that models ship: the answers, their ends, nothing else."""

import functools
import json
import os
import pathlib

import numpy as np
import pytest
import transformers

from jaxsft import tasks
from jaxsft import tokenizer as tokenizer_lib
from jaxsft.data import chat, feed, order, store
from jaxsft.data import messages as conversations
from jaxsft.data.read import Row
from jaxsft.errors import JaxsftError
from jaxsft.tasks import chat as task
from tests.templates import stock

ALIKE = [
  (name, which) for name, which in stock.CASES if which not in stock.STOCK[name].rewrites
]
REWRITTEN = [case for case in stock.CASES if case not in ALIKE]


@functools.cache
def tokenizer(name, pad=None):
  return stock.tokenizer(name, pad)


def answers(messages):
  return [i for i, m in enumerate(messages) if m["role"] == "assistant"]


def row(name, which):
  fields = {"messages": stock.conversation(name, which), "tools": stock.tools(name, which)}
  return Row(f"{name} {which}", f"rows.jsonl:{which}", fields)


def context(name, max_length=4000, **options):
  return tasks.Context(tokenizer(name), max_length, **options)


def hf_ids(name, messages, which, pad=None, **options):
  """What transformers itself makes of the messages, and the mark that ends GLM's answers."""
  words, tool = tokenizer(name, pad), stock.tools(name, which)
  ids = words.apply_chat_template(messages, tools=tool, **options)["input_ids"]
  if not stock.STOCK[name].mark or options or messages[-1]["role"] != "assistant":
    return ids
  mark = "<|observation|>" if messages[-1].get("tool_calls") else "<|user|>"
  return [*ids, words.convert_tokens_to_ids(mark)]


def check(name, which, messages, trained, ids, supervised, pad=None):
  """The comparison that every wrong mask has to fail; ids, supervised: [n]."""
  words = tokenizer(name, pad)
  said = [stock.answer(name, messages, i) for i in trained]
  assert words.decode(ids[supervised]) == "".join(said)
  assert ids.tolist() == hf_ids(name, messages, which, pad)
  runs = np.flatnonzero(np.diff(np.concatenate([supervised, [False]]).astype(int)) < 0)
  assert len(runs) == len(trained)
  for end, text in zip(ids[runs], said, strict=True):
    assert text.endswith(words.convert_ids_to_tokens(int(end)))
    assert int(end) in words.added_tokens_decoder
  assert (ids == words.bos_token_id).sum() <= 1 or words.bos_token in words.chat_template


def spans_of(name, which, train_on="all", **options):
  messages = stock.conversation(name, which)
  read = conversations.conversation({"messages": messages}, train_on)
  rendered = chat.render(read, tokenizer(name), tools=stock.tools(name, which), **options)
  return messages, chat.tokenize(rendered, tokenizer(name))


@pytest.mark.parametrize(("name", "which"), ALIKE)
def test_every_answer_and_its_end_is_supervised(name, which):
  messages, tokens = spans_of(name, which)
  check(name, which, messages, answers(messages), tokens.ids, tokens.supervised)
  for i in answers(messages):
    prompt = chat.prompt_ids(messages[:i], tokenizer(name), tools=stock.tools(name, which))
    told = hf_ids(name, messages[:i], which, add_generation_prompt=True)
    assert prompt.tolist() == told == tokens.ids[: len(told)].tolist()


@pytest.mark.parametrize("name", [name for name, which in ALIKE if which == "tools"])
def test_arguments_that_are_json_text_are_learnt_as_the_objects_they_are(name):
  """As OpenAI writes them; a template that writes JSON itself would quote them once more."""
  messages, tokens = spans_of(name, "tools")
  text = json.dumps(stock.CALL["arguments"])
  call = {"type": "function", "function": stock.CALL | {"arguments": text}}
  written = [m | {"tool_calls": [call]} if "tool_calls" in m else m for m in messages]
  read = conversations.conversation({"messages": written}, "all")
  rendered = chat.render(read, tokenizer(name), tools=stock.tools(name, "tools"))
  again = chat.tokenize(rendered, tokenizer(name))
  assert again.ids.tolist() == tokens.ids.tolist()
  assert again.supervised.tolist() == tokens.supervised.tolist()


def test_a_template_that_joins_texts_gets_arguments_as_json_text():
  """As DeepSeek's do, which fail for an object."""
  template = "{% for m in messages %}{{ '[' + m.tool_calls[0].function.arguments }}{% endfor %}"
  called = {"role": "assistant", "content": "", "tool_calls": [stock.TOOL_CALL]}
  text = json.dumps(stock.CALL["arguments"], ensure_ascii=False)
  assert chat._write(tokenizer("chatml"), template, None, [called]) == f"[{text}"
  with pytest.raises(JaxsftError, match="refuses these 1 messages"):
    chat._write(tokenizer("chatml"), "{{ 'a' + 1 }}", None, [called])


def test_a_template_that_writes_objects_as_python_gets_json_text():
  template = "{% for m in messages %}[{{ m.tool_calls[0].function.arguments }}]{% endfor %}"
  call = {"type": "function", "function": {"name": "f", "arguments": {"now": True}}}
  called = {"role": "assistant", "content": "", "tool_calls": [call]}
  assert chat._write(tokenizer("chatml"), template, None, [called]) == '[{"now": true}]'


DEFAULTS = {
  "qwen2_5": "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
  "smollm2": "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_the_system_prompt_that_a_template_has_by_itself_may_be_given(name):
  talk = stock.talk(("system", DEFAULTS[name]), ("user", "Hi"), ("assistant", "Yes."))
  words = tokenizer(name)
  assert DEFAULTS[name] in words.apply_chat_template(talk[1:], tokenize=False)
  rendered = chat.render(conversations.conversation({"messages": talk}, "all"), words)
  assert rendered.text.count(DEFAULTS[name]) == 1


def test_what_an_answer_says_beside_its_calls_must_be_written():
  beside = stock.CALLED | {"content": "Let me look."}
  for calls, name, words in (
    (beside, "llama3_1", "does not write what the answer says beside its calls"),
    (stock.CALLED | {"tool_calls": [stock.TOOL_CALL] * 2}, "gpt_oss", "the call of the tool"),
  ):
    talk = [*stock.talk(("user", "Rain?")), calls]
    read = conversations.conversation({"messages": talk}, "all")
    with pytest.raises(JaxsftError, match=words):
      chat.render(read, tokenizer(name), tools=stock.TOOLS)
  read = conversations.conversation(
    {"messages": [*stock.talk(("user", "Rain?")), beside]}, "all"
  )
  assert "Let me look." in chat.render(read, tokenizer("qwen3"), tools=stock.TOOLS).text


def test_what_a_user_says_must_be_written():
  template = stock.template("chatml").replace("m in messages", "m in messages[1:]")
  talk = stock.talk(("user", "Hi"), ("user", "Rain?"), ("assistant", "Yes."))
  read = conversations.conversation({"messages": talk}, "all")
  with pytest.raises(JaxsftError, match=r"messages\[0\].*leaves out what the user says"):
    chat.render(read, tokenizer("chatml"), template)


@pytest.mark.parametrize(("name", "which"), stock.CASES)
def test_the_last_answer_alone(name, which):
  messages, tokens = spans_of(name, which, "last")
  check(name, which, messages, answers(messages)[-1:], tokens.ids, tokens.supervised)


@pytest.mark.parametrize(("name", "which"), REWRITTEN)
def test_a_rewritten_history_is_refused_with_the_way_out(name, which):
  with pytest.raises(JaxsftError, match=r"messages\[1\].*train_on='each'.*'last'"):
    spans_of(name, which)


def test_what_no_mask_can_be_right_for_is_refused():
  """A prompt that opens a thought which no training text has; a role that is not known."""
  deep = stock.template("deepseek_r1_distill")
  read = conversations.conversation({"messages": stock.conversation("chatml", "one")})
  with pytest.raises(JaxsftError, match=r"messages\[1\].*when it asks for an answer.*<think>"):
    chat.render(read, tokenizer("deepseek_v3"), deep)
  read = conversations.conversation({"messages": stock.conversation("chatml", "system")})
  with pytest.raises(JaxsftError, match="System role not supported"):
    chat.render(read, tokenizer("gemma2"))


@pytest.mark.parametrize("name", [n for n, one in stock.STOCK.items() if not one.tools])
def test_calls_that_a_template_leaves_out_are_refused(name):
  messages = stock.talk(("user", "Rain?"), stock.CALLED | {"content": "I ask."})
  read = conversations.conversation({"messages": messages})
  with pytest.raises(JaxsftError, match=r"messages\[1\].*call of the tool 'weather'"):
    chat.render(read, tokenizer(name))


@pytest.mark.parametrize(("name", "which"), stock.CASES)
def test_each_answer_is_an_example_with_the_history_as_it_is_then(name, which):
  found = examples(name, which, context(name, train_on="each"))
  assert len(found) == len(answers(stock.conversation(name, which)))
  for shown, trained, ids, supervised, _ in found:
    check(name, which, shown, trained, ids, supervised)


@pytest.mark.parametrize("name", stock.STOCK)
def test_each_answer_loses_the_oldest_turns_before_it(name):
  """As few exchanges as have to go, counted by transformers itself."""
  messages = stock.conversation(name, "three")
  size = lambda a, b: len(hf_ids(name, messages[a:b], "three")) - 1
  limit = max(size(i - 1, i + 1) for i in answers(messages)) + 3
  place = context(name, limit, train_on="each", too_long="truncate")
  encoded = task.encode(row(name, "three"), place)
  assert encoded.note == "truncated" and len(encoded.examples) == 3
  for i, example in zip(answers(messages), encoded.examples, strict=True):
    start = next(a for a in range(0, i, 2) if size(a, i + 1) <= limit)
    ids = np.concatenate([example["inputs"][:1], example["targets"]])
    supervised = np.concatenate([[False], example["weights"] > 0])
    shown = messages[start : i + 1]
    check(name, "three", shown, answers(shown)[-1:], ids, supervised)
  place = context(name, size(4, 6), train_on="each", too_long="drop")
  left = task.encode(row(name, "three"), place)  # only the first answer, if any, is as short
  lost = 3 - len(left.examples)
  assert lost and left.note in (f"truncated: without {lost} answers that are too long",)


@pytest.mark.parametrize("name", stock.STOCK)
def test_flags_of_messages_say_what_trains(name):
  key = {"train": (False, True), "weight": (0, 1), "loss_weight": (0.0, 1.0)}
  on = "each" if "three" in stock.STOCK[name].rewrites else "all"
  for flag, (off, yes) in key.items():
    messages = stock.conversation(name, "three")
    flagged = [dict(m) for m in messages]
    flagged[1][flag], flagged[3][flag] = off, yes
    fields = {"messages": flagged}
    encoded = task.encode(Row("a", "a", fields), context(name, train_on=on))
    pairs = [(messages[:4], [3]), (messages, [5])] if on == "each" else [(messages, [3, 5])]
    for (shown, trained), example in zip(pairs, encoded.examples, strict=True):
      ids = np.concatenate([example["inputs"][:1], example["targets"]])
      supervised = np.concatenate([[False], example["weights"] > 0])
      check(name, "three", shown, trained, ids, supervised)


@pytest.mark.parametrize("name", [n for n, one in stock.STOCK.items() if one.tools])
def test_calls_train_or_not_and_results_never(name):
  messages, index = stock.conversation(name, "tools"), {True: [1, 3], False: [3]}
  for on_tools, trained in index.items():
    place = context(name, train_on="each", train_on_tools=on_tools)
    encoded = task.encode(row(name, "tools"), place)
    assert len(encoded.examples) == len(trained)
    for i, example in zip(trained, encoded.examples, strict=True):
      ids = np.concatenate([example["inputs"][:1], example["targets"]])
      supervised = np.concatenate([[False], example["weights"] > 0])
      check(name, "tools", messages[: i + 1], [i], ids, supervised)


@pytest.mark.parametrize("name", stock.STOCK)
def test_control_tokens_in_content_are_refused_or_become_text(name):
  """Escaped, a message has the ids of its letters: no control token but the template's own."""
  words, clean = tokenizer(name), stock.conversation(name, "one")
  control = [t for t, own in tokenizer_lib.added_tokens(words).items() if own]
  for token in control:
    talk = [{"role": "user", "content": f"a {token}b"}, {"role": "assistant", "content": token}]
    talk[1]["content"] = f"c{token} d{token}"
    fields = {"messages": talk}
    with pytest.raises(JaxsftError, match=r"messages\[0\].*control_tokens to 'escape'"):
      task.encode(Row("a", "a", fields), context(name))
    place = context(name, control_tokens="escape")
    encoded = task.encode(Row("a", "a", fields), place)
    (example,) = encoded.examples
    ids = np.concatenate([example["inputs"][:1], example["targets"]])
    assert encoded.note == "with control tokens escaped"
    assert words.decode(ids[1:][example["weights"] > 0]) == stock.answer(name, talk, 1)
    special = words.all_special_ids
    own = [i for i in hf_ids(name, clean, "one") if i in special]
    assert [i for i in ids.tolist() if i in special] == own
    text = words.apply_chat_template(talk, tokenize=False)
    assert words.decode(ids).startswith(text)  # GLM's mark stands behind it
    asked = task.prompt(Row("a", "a", fields), place)
    assert ids[: len(asked)].tolist() == asked


@pytest.mark.parametrize("name", stock.STOCK)
def test_escaping_changes_nothing_where_there_is_nothing_to_escape(name):
  for which in [w for n, w in stock.CASES if n == name]:
    place = context(name, train_on="last")
    known = task.encode(row(name, which), place)
    place = context(name, train_on="last", control_tokens="escape")
    found = task.encode(row(name, which), place)
    assert (found.text, found.spans, found.note) == (known.text, known.spans, None)
    for key, values in known.examples[0].items():
      assert found.examples[0][key].tolist() == values.tolist()


def test_messages_that_a_template_leaves_out_are_refused():
  """Phi-3 knows no tools; Mistral writes a system message only where it asks for an answer."""
  talk = stock.talk(("user", "a"), ("tool", "b"), ("assistant", "c"))
  with pytest.raises(JaxsftError, match=r"messages\[1\]: .*leaves out what the tool says"):
    chat.render(talk, tokenizer("phi3"))
  with pytest.raises(JaxsftError, match=r"messages\[1\]: .*leaves out what the tool says"):
    chat.prompt_ids(talk[:2], tokenizer("phi3"))
  talk = stock.conversation("mistral_v3", "system")
  with pytest.raises(JaxsftError, match=r"messages\[0\]: .*leaves out what the system says"):
    chat.render(talk, tokenizer("mistral_v3"))
  assert len(chat.prompt_ids(talk[:2], tokenizer("mistral_v3")))


def test_an_answer_after_an_answer_has_no_mark_to_end_it():
  talk = stock.talk(("user", "a"), ("assistant", "b"), ("assistant", "c"))
  with pytest.raises(JaxsftError, match=r"messages\[1\]: .*is an answer too"):
    chat.render(talk, tokenizer("glm4"))
  assert len(chat.render(talk, tokenizer("qwen2_5")).spans) == 2


MUTANTS = {
  "no terminator": lambda ids, on, first: on & np.roll(on, -1),
  "one early": lambda ids, on, first: np.roll(on, -1),
  "one late": lambda ids, on, first: np.roll(on, 1),
  "by the prompt's length": lambda ids, on, first: np.arange(len(ids)) >= first,
  "the user too": lambda ids, on, first: np.arange(len(ids)) > 0,
  "the user instead": lambda ids, on, first: ~on,
}


@pytest.mark.parametrize("mutant", MUTANTS)
@pytest.mark.parametrize("name", stock.STOCK)
def test_the_comparison_tells_every_wrong_mask(name, mutant):
  train_on = "last" if "three" in stock.STOCK[name].rewrites else "all"
  messages, tokens = spans_of(name, "three", train_on)
  trained = answers(messages)[-1:] if train_on == "last" else answers(messages)
  check(name, "three", messages, trained, tokens.ids, tokens.supervised)
  first = len(hf_ids(name, messages[:1], "three", add_generation_prompt=True))
  wrong = MUTANTS[mutant](tokens.ids, tokens.supervised, first)
  with pytest.raises(AssertionError):
    check(name, "three", messages, trained, tokens.ids, wrong)


def examples(name, which, place):
  """(messages, trained, ids, supervised) of every example of a row."""
  messages, found = stock.conversation(name, which), []
  encoded = task.encode(row(name, which), place)
  each = answers(messages) if place.train_on == "each" else answers(messages)[-1:]
  assert len(encoded.examples) == len(each)
  for last, example in zip(each, encoded.examples, strict=True):
    shown = messages[: last + 1]
    trained = answers(shown) if place.train_on == "all" else [last]
    ids = np.concatenate([example["inputs"][:1], example["targets"]])
    supervised = np.concatenate([[False], example["weights"] > 0])
    found.append((shown, trained, ids, supervised, example))
  return found


@pytest.mark.parametrize(("name", "which"), ALIKE)
def test_a_cut_conversation_is_masked_like_the_shorter_one(name, which):
  """Without its oldest exchanges, the conversation is what is left of it."""
  messages = stock.conversation(name, which)
  users = [i for i, m in enumerate(messages) if m["role"] == "user"]
  lead = [m for m in messages if m["role"] == "system"]
  for cut in users:
    rest = [*lead, *messages[cut:]]
    length = len(hf_ids(name, rest, which)) - 1
    encoded = task.encode(row(name, which), context(name, length, too_long="truncate"))
    assert encoded.note == ("truncated" if cut > users[0] else None)
    (example,) = encoded.examples
    ids = np.concatenate([example["inputs"][:1], example["targets"]])
    supervised = np.concatenate([[False], example["weights"] > 0])
    check(name, which, rest, answers(rest), ids, supervised)


@pytest.mark.parametrize("packing", ["pack", "none"])
@pytest.mark.parametrize("name", stock.STOCK)
def test_packed_and_padded_rows_hold_the_same(name, packing):
  """Every example of every conversation, as the device gets it."""
  known, parts = [], []
  for pad in (None, stock.STOCK[name].eos):
    place = tasks.Context(tokenizer(name, pad), 4000, train_on="last")
    for which in [w for n, w in stock.CASES if n == name]:
      for *found, example in examples(name, which, place):
        known.append((which, *found, pad))
        parts.append((f"{which} {pad} {len(known)}", example))
  kept = store.in_memory(parts)
  plan = order.plan_training(
    kept.lengths,
    seed=0,
    batch_size=4,
    batch_unit="examples",
    packing=packing,
    max_length=int(kept.lengths.max()),
  )
  seen = []
  for step in range(plan.num_steps):
    rows, (_, length, most) = plan.batch(step), plan.shape(step)
    batch = feed.batch(kept, rows, row_length=length, segments=most)
    for r, m in np.argwhere(batch["example_ids"] >= 0):
      inside = batch["segments"][r] == m + 1
      one = {k: batch[k][r][inside] for k in ("inputs", "targets", "weights", "positions")}
      which, shown, trained, ids, _, pad = known[batch["example_ids"][r, m]]
      assert one["inputs"].tolist() == ids[:-1].tolist()
      assert one["positions"].tolist() == list(range(len(ids) - 1))
      supervised = np.concatenate([[False], one["weights"] > 0])
      assert one["targets"][supervised[1:]].tolist() == ids[supervised].tolist()
      check(name, which, shown, trained, ids, supervised, pad)
      seen.append(int(batch["example_ids"][r, m]))
  assert sorted(seen) == list(range(len(known)))


REAL = {
  "smollm2-135m-instruct": "smollm2",
  "qwen2.5-coder-1.5b-instruct": "qwen2_5",
  "minimind2-small": "qwen2_5",
  "gemma3-270m": "gemma3",  # a base model, which has no template of its own
}


@pytest.mark.full
@pytest.mark.parametrize("directory", REAL)
def test_real_tokenizers_supervise_the_same(directory):
  name = REAL[directory]
  path = pathlib.Path(os.environ["JAXSFT_CHECKPOINTS"]) / directory
  words = transformers.AutoTokenizer.from_pretrained(path)
  template = None if words.chat_template else stock.template(name)
  for which in [w for n, w in stock.CASES if n == name]:
    messages, tools = stock.conversation(name, which), stock.tools(name, which)
    read = conversations.conversation({"messages": messages})
    tokens = chat.tokenize(chat.render(read, words, template, tools), words, template)
    told = words.apply_chat_template(messages, tools=tools, chat_template=template)
    assert tokens.ids.tolist() == told["input_ids"]
    said = "".join(stock.answer(name, messages, i) for i in answers(messages))
    found = words.decode(tokens.ids[tokens.supervised])
    assert found.removeprefix("\n") == said  # "\n " may be one token
