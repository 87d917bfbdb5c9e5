"""Chat examples: shifted once, never cut inside an answer, with an honest loss."""

import json
import math
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import processors

from jaxsft import tasks
from jaxsft.errors import JaxsftError
from jaxsft.tasks import chat
from tests.templates import tiny

SHAPES = [name for name, shape in tiny.SHAPES.items() if shape[3]]
OPTIONS = types.SimpleNamespace(label_smoothing=0.0, z_loss=0.0, chunk=4)


class Row(NamedTuple):
  id: str
  where: str
  fields: dict[str, Any]


def row(*contents, system=None, **fields):
  messages = [{"role": "system", "content": system}] if system else []
  for index, content in enumerate(contents):
    messages.append({"role": ("user", "assistant")[index % 2], "content": content})
  return Row("a", "rows.jsonl:7", {"messages": messages, **fields})


def context(shape="chatml", max_length=1000, **options):
  return tasks.Context(tiny.tokenizer(shape), max_length, **options)


def trained_text(encoded, context):
  example = encoded.examples[0]
  return context.tokenizer.decode(example["targets"][example["weights"] > 0])


@pytest.mark.parametrize("shape", SHAPES)
def test_inputs_targets_and_weights_are_the_ids_shifted_once(shape):
  place = context(shape)
  example_row = row("Hi", "Yes, the end", "And", "No")
  encoded = chat.encode(example_row, place)
  messages = example_row.fields["messages"]
  ids = place.tokenizer.apply_chat_template(messages)["input_ids"]
  example = encoded.examples[0]
  assert example["inputs"].tolist() == ids[:-1]
  assert example["targets"].tolist() == ids[1:]
  assert example["weights"].shape == example["targets"].shape
  assert [example[k].dtype for k in ("inputs", "targets", "weights")] == [
    np.int32,
    np.int32,
    np.float32,
  ]
  shown = "".join(encoded.text[start:end] for start, end in encoded.spans)
  assert trained_text(encoded, place) == shown
  assert shown.strip().startswith("Yes, the end") and shown.count("No") == 1
  last = example["targets"][example["weights"] > 0][-1]
  assert int(last) in encoded.stop_ids and encoded.note is None


def test_prompt_and_completion_rows():
  encoded = chat.encode(Row("a", "x:1", {"prompt": "Hi", "completion": "Yes"}), context())
  assert trained_text(encoded, context()) == "Yes<|im_end|>"


def test_only_the_last_answer():
  place = context(train_on="last")
  assert trained_text(chat.encode(row("a", "b", "c", "d"), place), place) == "d<|im_end|>"


def test_a_template_of_the_config_replaces_the_tokenizer_s():
  template = tiny.template("chatml").replace("<|im_end|>", "<|im_end|><|im_end|>")
  place = context(chat_template=template)
  encoded = chat.encode(row("a", "b"), place)
  assert trained_text(encoded, place) == "b<|im_end|><|im_end|>"


def test_tools_reach_the_template():
  template = "{{ tools[0]['name'] if tools else '' }}" + tiny.template("chatml")
  tools = [{"name": "search"}]
  encoded = chat.encode(row("a", "b", tools=tools), context(chat_template=template))
  assert encoded.text.startswith("search<|im_start|>")

  encoded = chat.encode(row("a", "b", tools=json.dumps(tools)), context(chat_template=template))
  assert encoded.text.startswith("search<|im_start|>")


def test_other_forms_than_messages():
  turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
  fields = {"conversations": turns, "system": "Be kind."}
  found = chat.encode(Row("a", "x:1", fields), context())
  expected = chat.encode(row("a", "b", system="Be kind."), context())
  assert found.text == expected.text and found.spans == expected.spans
  assert found.examples[0]["targets"].tolist() == expected.examples[0]["targets"].tolist()


def text_row(text):
  return Row("a", "rows.jsonl:7", {"text": text})


def add_around(tokenizer, front, end):
  """Makes the tokenizer write these control tokens before and after every text."""
  written = [(token, tokenizer.convert_tokens_to_ids(token)) for token in {*front, *end}]
  single = " ".join([*front, "$A", *end])
  own = processors.ByteLevel(trim_offsets=True)
  around = processors.TemplateProcessing(single=single, special_tokens=written)
  tokenizer.backend_tokenizer.post_processor = processors.Sequence([own, around])


PLAIN = "The end.\n\n The  end 🙂 of\nit "


@pytest.mark.parametrize("shape", ["tail", "chatml", "headers", "brackets"])
@pytest.mark.parametrize("adds", ["", "bos", "eos", "bos and eos"])
def test_plain_text_is_learnt_from_the_first_to_the_last_token(shape, adds):
  place = context(shape)
  tokenizer = place.tokenizer
  bos, eos = tokenizer.bos_token, tokenizer.eos_token
  front = [bos] if bos and "bos" in adds else []
  add_around(tokenizer, front, [eos] if "eos" in adds else [])
  encoded = chat.encode(text_row(PLAIN), place)
  ids = tokenizer(PLAIN)["input_ids"]
  ids = ids if "eos" in adds else [*ids, tokenizer.eos_token_id]
  assert encoded.examples[0]["inputs"].tolist() == ids[:-1]
  assert encoded.examples[0]["targets"].tolist() == ids[1:]
  assert set(encoded.examples[0]["weights"]) == {1.0}
  assert ids.count(tokenizer.bos_token_id) == len(front)
  assert ids.count(tokenizer.eos_token_id) == 1
  assert encoded.stop_ids == {tokenizer.eos_token_id} and encoded.note is None
  learnt = PLAIN if front else PLAIN.removeprefix(tokenizer.decode(ids[:1]))
  assert trained_text(encoded, place) == learnt + eos
  assert [encoded.text[a:b] for a, b in encoded.spans] == [learnt + eos]


def test_plain_text_that_is_too_long():
  whole = chat.encode(text_row(PLAIN), context()).examples[0]
  length = len(whole["inputs"])
  assert chat.encode(text_row(PLAIN), context(max_length=length)).note is None
  with pytest.raises(JaxsftError, match=rf"rows\.jsonl:7: {length} tokens, the limit"):
    chat.encode(text_row(PLAIN), context(max_length=length - 1))
  dropped = chat.encode(text_row(PLAIN), context(max_length=length - 1, too_long="drop"))
  assert dropped.examples == () and dropped.note == "dropped: too long"
  for limit in (length - 1, 3, 1):
    place = context(max_length=limit, too_long="truncate")
    cut = chat.encode(text_row(PLAIN), place)
    assert cut.note == "truncated" and cut.stop_ids == frozenset()  # it does not end there
    for key, values in cut.examples[0].items():
      assert values.tolist() == whole[key][:limit].tolist()
    assert cut.text == place.tokenizer.decode(
      cut.examples[0]["inputs"]
    ) + place.tokenizer.decode(cut.examples[0]["targets"][-1:])


def test_plain_text_that_cannot_be_learnt():
  with pytest.raises(JaxsftError, match=r"rows\.jsonl:7: .*control token '<\|im_end\|>'"):
    chat.encode(text_row("a<|im_end|>"), context())
  with pytest.raises(JaxsftError, match=r"rows\.jsonl:7: text is str ' '"):
    chat.encode(text_row(" "), context())
  place = context("headers")
  add_around(place.tokenizer, ["<|begin_of_text|>"] * 2, [])
  with pytest.raises(JaxsftError, match="at most one beginning-of-text token"):
    chat.encode(text_row("a"), place)
  place = context()
  place.tokenizer.eos_token = None
  with pytest.raises(JaxsftError, match="no end-of-text token"):
    chat.encode(text_row("a"), place)


def test_every_error_names_the_place_of_the_row():
  for bad in (row("a"), row("a", " "), row("a <|im_end|>", "b"), Row("a", "rows.jsonl:7", {})):
    with pytest.raises(JaxsftError, match=r"^rows\.jsonl:7: "):
      chat.encode(bad, context())


def length_of(*contents, system=None):
  return len(chat.encode(row(*contents, system=system), context()).examples[0]["inputs"])


def test_the_longest_example_fits_and_one_token_more_does_not():
  length = length_of("Hi", "Yes")
  assert chat.encode(row("Hi", "Yes"), context(max_length=length)).note is None
  with pytest.raises(JaxsftError) as error:
    chat.encode(row("Hi", "Yes"), context(max_length=length - 1))
  sentence = str(error.value)
  for part in ("rows.jsonl:7", f"{length} tokens", f"{length - 1};", "data.max_length"):
    assert part in sentence


def test_drop_leaves_the_row_out_with_its_reason():
  encoded = chat.encode(row("Hi", "Yes"), context(max_length=5, too_long="drop"))
  assert encoded.examples == () and encoded.note == "dropped: too long"


def test_truncate_removes_whole_exchanges_from_the_start():
  talk = ("one", "first answer", "two", "second answer", "three", "last")
  for kept in (2, 4):
    length = length_of(*talk[-kept:], system="Be kind.")
    place = context(max_length=length, too_long="truncate")
    encoded = chat.encode(row(*talk, system="Be kind."), place)
    assert encoded.note == "truncated" and len(encoded.examples[0]["inputs"]) == length
    answers = talk[-kept:][1::2]
    assert trained_text(encoded, place) == "".join(a + "<|im_end|>" for a in answers)
    assert encoded.text.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>u")
  place = context(max_length=length_of("three", "last") - 1, too_long="truncate")
  encoded = chat.encode(row(*talk), place)
  assert encoded.examples == () and encoded.note == "dropped: too long"


def test_truncate_leaves_what_fits_alone():
  place = context(max_length=length_of("a", "b"), too_long="truncate")
  assert chat.encode(row("a", "b"), place).note is None


V = 7


class Copying:
  """A network whose logits name the token at `offset` from each input position."""

  def __init__(self, sequence, offset):
    self.sequence, self.offset = sequence, offset

  def hidden(self, params, batch, key=None):
    T = batch["inputs"].shape[1]
    wanted = self.sequence[self.offset : self.offset + T]
    return 30.0 * jax.nn.one_hot(jnp.asarray(wanted), V)[None]

  def hidden_and_auxiliary(self, params, batch, key=None):
    return self.hidden(params, batch), None

  def to_vocabulary(self, params, x, key=None):
    return x, params["lm_head"]["kernel"], None, None


def test_oracle_logits_for_the_next_token_alone_have_no_loss():
  sequence = np.array([1, 2, 3, 4, 5, 6, 1, 2, 3], np.int32)
  batch = {
    "inputs": sequence[None, :6],
    "targets": sequence[None, 1:7],
    "weights": np.array([[0, 0, 1, 1, 0, 1]], np.float32),
  }
  params = {"lm_head": {"kernel": jnp.eye(V)}}
  for offset in (0, 1, 2):
    sums = chat.loss(Copying(sequence, offset), params, batch, OPTIONS)
    total, weight = (float(x) for x in sums["loss"])
    assert weight == 3 and sums["loss"][0].dtype == jnp.float32
    hits, tokens = (float(x) for x in sums["token_accuracy"])
    assert (hits, tokens) == (3 if offset == 1 else 0, 3)
    assert (total < 1e-6) == (offset == 1) and (total > 80) == (offset != 1)
  assert next(iter(sums)) == "loss" and set(sums) <= set(chat.METRICS)


def test_smoothing_and_z_loss_train_but_do_not_measure():
  sequence = np.array([1, 2, 3, 4], np.int32)
  batch = {
    "inputs": sequence[None, :3],
    "targets": sequence[None, 1:],
    "weights": np.ones((1, 3), np.float32),
  }
  params = {"lm_head": {"kernel": jnp.eye(V)}}
  network, key = Copying(sequence, 1), jax.random.key(0)
  plain = float(chat.loss(network, params, batch, OPTIONS, key)["loss"][0])
  for change in ({"label_smoothing": 0.1}, {"z_loss": 1e-2}):
    options = types.SimpleNamespace(**vars(OPTIONS) | change)
    assert float(chat.loss(network, params, batch, options, key)["loss"][0]) > plain + 1
    assert float(chat.loss(network, params, batch, options)["loss"][0]) == plain


def found(*examples):
  """tasks.Found of rows with one example each: (nll, tokens, right)."""
  names = ("nll", "tokens", "right")
  return [tasks.Found(None, [], [dict(zip(names, one, strict=True))]) for one in examples]


def test_metrics_are_means_over_all_tokens_and_their_perplexity():
  metrics = chat.metrics(found((math.log(8.0) * 3, 3.0, 1.0), (math.log(8.0), 1.0, 0.0)), None)
  assert metrics == pytest.approx(
    {"loss": math.log(8.0), "perplexity": 8.0, "token_accuracy": 0.25}
  )
  assert set(metrics) == set(chat.TOKEN_METRICS) and chat.DEFAULT_METRIC in chat.METRICS
  huge = chat.metrics(found((1e4, 1.0, 0.0)), None)
  assert math.isfinite(huge["perplexity"]) and json.dumps(huge)


def test_predict_finds_what_the_loss_sums():
  """Two segments of a row: each its own nll, tokens and hits."""
  sequence = np.array([1, 2, 3, 4, 0], np.int32)
  batch = {
    "inputs": sequence[None, :4],
    "targets": np.array([[2, 3, 1, 0]], np.int32),
    "weights": np.array([[1, 1, 1, 0]], np.float32),
    "segments": np.array([[1, 1, 2, 0]], np.int32),
    "example_ids": np.array([[0, 1, -1]], np.int32),
  }
  params, network = {"lm_head": {"kernel": jnp.eye(V)}}, Copying(sequence, 1)
  outputs = chat.predict(network, params, batch, OPTIONS)
  assert outputs["tokens"].tolist() == [[2, 1, 0]] and outputs["right"].tolist() == [[2, 0, 0]]
  loss, weight = chat.loss(network, params, batch, OPTIONS)["loss"]
  assert float(outputs["nll"].sum()) == pytest.approx(float(loss)) and weight == 3
  assert float(outputs["nll"][0, 0]) < 1e-6 < 29 < float(outputs["nll"][0, 1])
