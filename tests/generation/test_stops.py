"""Where answers end: stop ids, stop strings, and what is certain of a text on the way."""

import dataclasses
import itertools
import json

import pytest

import jaxsft
from jaxsft import tokenizer as tokenizer_lib
from jaxsft.errors import UsageError
from jaxsft.generation import batches, growth, stops
from jaxsft.generation import prompts as reading
from tests import tiny as checkpoints
from tests.generation import continued
from tests.templates import tiny as templates

PROMPT = "2 plus 2"
DRAWN = {"temperature": 1.5, "seed": 3, "min_new_tokens": 24}  # stop ids end none


def test_every_stop_id_that_a_checkpoint_names(tmp_path):
  checkpoints.checkpoint(tmp_path / "model", "llama")
  for name, ids in (("generation_config.json", [5, 7]), ("config.json", 9)):
    path = tmp_path / "model" / name
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": ids}))
  base = jaxsft.load(str(tmp_path / "model")).base
  assert stops.stop_ids(base) == sorted({5, 7, 9, base.tokenizer.eos_token_id})
  assert 4 not in stops.stop_ids(base) and 4 in stops.stop_ids(base, supervised={4})


@pytest.mark.parametrize("shape", templates.SHAPES)
def test_what_ends_a_turn_in_the_chat_template(shape):
  """Where it is another token than the end of text; nothing where there is no template."""
  tokenizer, end = templates.tokenizer(shape), templates.SHAPES[shape][3]
  # One closes whole conversations too; one leaves it to the next turn.
  end = {"tail": tokenizer.eos_token, "unclosed": "<|user|>"}.get(shape, end)
  expected = {tokenizer.convert_tokens_to_ids(end)}
  assert stops.ends_of_turn(tokenizer) == expected
  own, tokenizer.chat_template = tokenizer.chat_template, None
  assert stops.ends_of_turn(tokenizer) == set()
  assert stops.ends_of_turn(tokenizer, own) == expected


def test_an_answer_ends_with_its_turn(tmp_path):
  """eos_token is that of texts, as Llama 3's is; the template closes answers with another."""
  path = checkpoints.checkpoint(tmp_path / "model", "llama")
  tokenizer = templates.tokenizer("headers")
  base = dataclasses.replace(jaxsft.load(str(path)).base, tokenizer=tokenizer)
  end = tokenizer.convert_tokens_to_ids("<|eot_id|>")
  assert tokenizer.eos_token == "<|end_of_text|>" and end in stops.stop_ids(base)


# --- stop strings ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(chatty):
  """A text that the model writes; its tokens are of one to several letters."""
  text = chatty.generate(PROMPT, 24, **DRAWN)
  assert len(set(text)) > 8
  return text


def test_a_text_ends_before_a_stop_string(chatty, written):
  """Wherever it stands: inside of a token, over several, at the beginning."""
  for start in range(len(written)):
    for size in (1, 2, 5):
      stop = written[start : start + size]
      found = chatty.generate(PROMPT, 24, stop=stop, **DRAWN)
      assert found == written[: written.index(stop)]
  assert chatty.generate(PROMPT, 24, stop=("no such text",), **DRAWN) == written


def test_the_first_of_several_stop_strings(chatty, written):
  stops = (written[9:11], "nowhere", written[5:8])
  expected = min((written.split(stop)[0] for stop in stops), key=len)
  assert chatty.generate(PROMPT, 24, stop=stops, **DRAWN) == expected != written


@pytest.mark.parametrize("looks", [1, 3, 4, 7])
def test_when_the_host_looks_changes_nothing(chatty, written, monkeypatch, looks):
  """Not the text, nor the score, which is that of the tokens up to the stop string."""
  stop = written[8:10]
  ask = lambda: chatty.n_best(PROMPT, 1, 24, stop=stop, **DRAWN)[0]
  expected = ask()
  assert expected.text == written.split(stop)[0]
  whole = chatty.n_best(PROMPT, 1, 24, **DRAWN)[0]
  assert expected.score != whole.score and whole.full and not expected.full
  monkeypatch.setattr(batches, "STREAMED", looks)
  assert ask() == expected


def test_a_stop_string_at_the_limit_is_no_cut(chatty, written):
  size = next(n for n in range(1, 24) if written.index(written[-n:]) == len(written) - n)
  (one,) = chatty.n_best(PROMPT, 1, 24, stop=written[-size:], **DRAWN)
  assert one.text == written[:-size] and not one.full


def test_nothing_is_written_long_after_a_stop_string(chatty, written, monkeypatch):
  extend, asked = growth.extend, []

  def counting(network, params, state, steps, numbers, **how):
    asked.append(steps)
    return extend(network, params, state, steps, numbers, **how)

  monkeypatch.setattr(growth, "extend", counting)
  chatty.generate(PROMPT, 24, **DRAWN)
  assert asked == [23]  # one call, which the host waits for once
  asked.clear()
  chatty.generate(PROMPT, 400, stop=written[4:6], **DRAWN)
  assert sum(asked) <= 12 + batches.STREAMED


def test_what_is_shown_stays(chatty, written):
  """Texts that are told only grow, never beyond the stop string, and end as the answer."""
  for stop in ((), written[10:13], (written[7:9], "zz"), written[20:22]):
    told = []
    on_text = lambda i, text, told=told: told.append((i, text))
    found = chatty.generate(PROMPT, 24, stop=stop, on_text=on_text, **DRAWN)
    texts = [text for _, text in told]
    assert {i for i, _ in told} == {0} and texts[-1] == found and len(texts) > 2
    assert all(after.startswith(text) for text, after in itertools.pairwise(texts))


@pytest.mark.parametrize(
  ("text", "ends", "shown"),
  [
    ("abc", (), "abc"),
    ("abc\n", ("\n\n",), "abc"),
    ("abc\n\nd", ("\n\n",), "abc"),
    ("abc\nd", ("\n\n",), "abc\nd"),
    ("..xa", ("ab", "xaby"), ".."),
    ("..xab", ("ab", "xaby"), "..x"),
    ("..xaby", ("ab", "xaby"), ".."),
    ("aaa", ("aab",), "a"),
    ("n\ufffd", (), "n"),
    ("stop", ("stop",), ""),
    ("", ("stop",), ""),
  ],
)
def test_what_is_certain(text, ends, shown):
  assert stops.certain(text, ends) == shown


def test_a_control_token_that_only_tokenizer_json_knows(tmp_path):
  """As Llama 3's <|eot_id|>: decoded text lacks it, so it must be known by its id."""
  path = checkpoints.checkpoint(tmp_path / "model", "llama")
  file = path / "tokenizer_config.json"
  kept = {k: v for k, v in json.loads(file.read_text()).items() if "additional" not in k}
  file.write_text(json.dumps(kept))
  tokenizer = tokenizer_lib.load_tokenizer(path)
  end = tokenizer.convert_tokens_to_ids("<|im_start|>")
  assert "<|im_start|>" not in tokenizer.all_special_tokens
  assert tokenizer.decode([end], skip_special_tokens=True) == ""
  assert stops.split("<|im_start|>", tokenizer) == ((), [end])


def test_a_special_token_as_a_stop_string(chatty):
  assert stops.split(["Q:", "<|im_end|>"], chatty.tokenizer) == (
    ("Q:",),
    [chatty.tokenizer.convert_tokens_to_ids("<|im_end|>")],
  )
  first = continued.best_ids(
    chatty.network,
    chatty.params,
    [reading.encode(PROMPT, chatty.tokenizer)],
    max_new_tokens=24,
    stop_ids=(),
    vocab_limit=len(chatty.tokenizer),
    **DRAWN,
  )[0]
  special = set(chatty.tokenizer.all_special_ids) & set(first)
  for token in special - set(stops.stop_ids(chatty.base)):
    name = chatty.tokenizer.convert_ids_to_tokens(token)
    expected = chatty.tokenizer.decode(first[: first.index(token)], skip_special_tokens=True)
    assert chatty.generate(PROMPT, 24, stop=name, **DRAWN) == expected


@pytest.mark.parametrize(
  ("stop", "sentence"),
  [
    ("", "expected texts of at least one character"),
    (["a", 7], "stop has 7, expected texts"),
    ("a<|im_end|>", "contains the special token '<|im_end|>'"),
  ],
)
def test_stop_strings_that_are_never_found(chatty, stop, sentence):
  with pytest.raises(UsageError, match=sentence.replace("|", r"\|")):
    chatty.generate(PROMPT, 4, stop=stop)
