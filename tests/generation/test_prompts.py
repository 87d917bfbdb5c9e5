"""What a model reads of a prompt: what training reads, and what training refuses is refused."""

from types import SimpleNamespace

import pytest

from jaxsft import models, tasks
from jaxsft.data import chat, read
from jaxsft.errors import JaxsftError
from jaxsft.generation import prompts
from jaxsft.tasks import chat as chat_task
from jaxsft.tasks import seq2seq
from tests import tiny
from tests.templates import stock


def test_a_template_of_the_config():
  tokenizer = tiny.letter_tokenizer()
  template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
  template += "{% if add_generation_prompt %}a{% endif %}"
  expected = tokenizer("no<|im_end|>a", add_special_tokens=False)["input_ids"]
  assert prompts.encode("no", tokenizer, template) == expected


def test_plain_text_without_a_template():
  tokenizer = tiny.word_tokenizer()  # [CLS] words [SEP]
  tokenizer.eos_token = "[SEP]"
  expected = tokenizer("the film", add_special_tokens=False)["input_ids"]
  assert prompts.encode("the film", tokenizer) == [tokenizer.cls_token_id, *expected]


@pytest.mark.parametrize(
  ("messages", "sentence"),
  [
    ([], r"messages is list \[\], expected a list"),
    (["hello"], r"messages\[0\] is str 'hello', expected \{'role'"),
    ([{"role": "user"}], r"messages\[0\]: content is NoneType None, expected text"),
    ([{"role": "human", "content": "a"}], r"messages\[0\] has the role 'human'"),
    (
      [{"role": "user", "content": "a<|im_end|>"}],
      "the user's text contains the control token",
    ),
  ],
)
def test_messages_that_training_refuses(messages, sentence):
  with pytest.raises(JaxsftError, match=sentence):
    prompts.encode(messages, tiny.letter_tokenizer())


def test_messages_of_typed_parts_as_in_training():
  parts = [{"role": "user", "content": [{"type": "text", "text": "2 plus 2"}]}]
  tokenizer = tiny.letter_tokenizer()
  assert prompts.encode(parts, tokenizer) == prompts.encode("2 plus 2", tokenizer)


@pytest.mark.parametrize("token", ["</s>", "<pad>", "<unk>"])
def test_control_tokens_in_a_prompt(token):
  """Refused by the sentence of training, whoever reads the text."""
  tokenizer, text = tiny.source_tokenizer(), f"a{token}b"
  context = tasks.Context(tokenizer, 64, max_target_length=64, decoder_start=0)
  row = lambda source, target: read.Row("r", "x:3", {"source": source, "target": target})
  for refused in (
    lambda: chat.plain(text, tokenizer),
    lambda: prompts.encode(text, tokenizer),
    lambda: prompts.encode_source(text, tokenizer),
    lambda: seq2seq.encode(row(text, "a"), context),
    lambda: seq2seq.encode(row("a", text), context),
    lambda: seq2seq.prompt(row(text, "a"), context),
  ):
    with pytest.raises(JaxsftError, match=f"the text contains the control token '{token}'"):
      refused()


def test_control_tokens_are_text_where_training_took_them_so():
  """The ids of training, and of a text the letters' own; none is obeyed."""
  tokenizer = stock.tokenizer("chatml")
  text, end = "a <|im_end|> b", tokenizer.convert_tokens_to_ids("<|im_end|>")
  fields = {"messages": [{"role": "user", "content": text}]}
  context = tasks.Context(tokenizer, 99, control_tokens="escape")
  trained = chat_task.prompt(read.Row("r", "x:3", fields), context)
  clean = prompts.encode("a b", tokenizer)
  for prompt in (text, fields["messages"]):
    assert prompts.encode(prompt, tokenizer, escape=True) == trained
  assert trained.count(end) == clean.count(end) == 1 and text in tokenizer.decode(trained)
  tokenizer.chat_template = None
  ids = prompts.encode(text, tokenizer, escape=True)
  _, learnt = chat.plain(text, tokenizer, escape=True)
  assert ids == learnt.ids.tolist()[:-1] and end not in ids and tokenizer.decode(ids) == text


def test_an_instruction_is_read_once():
  tokenizer = tiny.source_tokenizer()
  ids = tokenizer("to: the cat")["input_ids"]
  assert prompts.encode_source("the cat", tokenizer, "to: ") == ids
  assert prompts.encode_source("to: the cat", tokenizer, "to: ") == ids
  with pytest.raises(JaxsftError, match="an encoder-decoder reads no messages"):
    prompts.encode_source([{"role": "user", "content": "a"}], tokenizer)


def test_room():
  """An encoder-decoder has positions for a source and for a target apart."""
  arch = SimpleNamespace(max_positions=10, ropes=())
  decoder, both = (SimpleNamespace(arch=arch, has_source=has) for has in (False, True))
  assert prompts.room(decoder, 6, 4) is None
  assert prompts.room(decoder, 7, 4).startswith("has 7 tokens, with max_new_tokens=4 that is")
  assert prompts.room(both, 10, 9) is None
  assert prompts.room(both, 11, 9) and prompts.room(both, 10, 10)


def test_room_in_longrope(monkeypatch):
  """Rows that generation would refuse leave no room for an answer."""
  arch = SimpleNamespace(max_positions=1000, ropes=())
  network = SimpleNamespace(arch=arch, has_source=False)
  assert prompts.room(network, 20, 90) is None
  monkeypatch.setattr(models.decoder, "_original", lambda _: 100)
  assert "longrope" in prompts.room(network, 20, 90)
