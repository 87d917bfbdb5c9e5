"""Control tokens in texts: refused wherever they stand, or made of their letters."""

import os
import pathlib

import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from jaxsft.data import chat, control
from jaxsft.errors import JaxsftError
from tests.templates import stock, tiny

LETTERS = [*"abcdefghijklmnopqrstuvwxyz<>/[]|_", "▁"]


def unigram():
  """SentencePiece's way: control tokens are pieces like any other, one is for the unknown."""
  pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((x, -3.0) for x in LETTERS)]
  backend = tokenizers.Tokenizer(models.Unigram([*pieces, ("▁the", -1.0)], 0, True))
  backend.normalizer = normalizers.Replace(" ", "▁")
  backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first")
  backend.decoder = decoders.Metaspace("▁", "first")
  return wrapped(backend, "<s>", "</s>", "<unk>")


def wordpiece():
  """BERT's way."""
  pieces = ["[UNK]", "[CLS]", "[SEP]", *LETTERS, *(f"##{x}" for x in LETTERS)]
  model = models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]")
  backend = tokenizers.Tokenizer(model)
  backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  return wrapped(backend, "[CLS]", "[SEP]", "[UNK]")


def byte_level():
  """GPT-2's way, with one token that is the beginning of another's end."""
  made = tiny.built("<s>", "</s>", ("<|a|>", "|>b<|"), stock.template("chatml"))
  return wrapped(made.backend_tokenizer, "<s>", "</s>", None)


def wrapped(backend, bos, eos, unknown):
  special = [t for t in (bos, eos, unknown) if t]
  backend.add_special_tokens(special)
  ids = [(t, backend.token_to_id(t)) for t in (bos, eos)]
  backend.post_processor = processors.TemplateProcessing(
    single=f"{bos} $A {eos}", special_tokens=ids
  )
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, bos_token=bos, eos_token=eos, unk_token=unknown
  )


KINDS = {"unigram": unigram, "wordpiece": wordpiece, "byte level": byte_level}
TEXTS = ["a <s>b</s>", "[CLS]", "<unk> the", "<|a|>b<|", "[SEP][SEP]x[UNK]", "the</s></s> <s>"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_text_has_the_ids_of_its_letters(kind, text):
  """As the tokenizers library gives them when it is told to split special tokens, which does
  not help with those that are pieces of SentencePiece's vocabulary."""
  tokenizer, oracle = KINDS[kind](), KINDS[kind]()
  rendered, tokens = chat.plain(text, tokenizer, escape=True)
  assert rendered.text == text + tokenizer.eos_token
  ids = tokens.ids.tolist()
  assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
  if kind != "unigram":
    oracle.backend_tokenizer.encode_special_tokens = True
    assert ids == oracle.backend_tokenizer.encode(text).ids
  if kind == "byte level" or (kind == "unigram" and {*text} <= {*LETTERS, " "}):
    assert not {*ids[1:-1]} & {*tokenizer.all_special_ids}
    assert tokenizer.decode(ids[1:-1]) == text


@settings(deadline=None, max_examples=60)
@given(
  st.lists(
    st.sampled_from(["<|a", "|>b<|", "a", "|>", "<s>", "</s", ">", " ", "b"]), max_size=8
  )
)
def test_no_text_whatever_becomes_a_control_token(parts):
  tokenizer, text = BYTES, "".join(parts)
  hidden = control.hide(text, tokenizer)
  assert len(hidden) == len(text) and control.show(hidden, tokenizer) == text
  encoding = control.encode(hidden, tokenizer)
  assert not {*encoding.ids} & {*tokenizer.convert_tokens_to_ids(CONTROL)}
  assert tokenizer.decode(encoding.ids) == text
  assert "".join(text[a:b] for a, b in encoding.offsets) == text


BYTES, CONTROL = byte_level(), ["<s>", "</s>", "<|a|>", "|>b<|", "<|pad|>"]


def test_an_end_that_also_stands_for_unknown_letters():
  """As in GPT-2's and SmolLM2's tokenizers."""
  tokenizer = stock.tokenizer("phi3")
  tokenizer.unk_token = tokenizer.eos_token
  talk = [{"role": "user", "content": "a<|endoftext|>"}, {"role": "assistant", "content": "b"}]
  tokens = chat.tokenize(chat.render(talk, tokenizer, escape=True), tokenizer)
  assert tokens.ids.tolist().count(tokenizer.eos_token_id) == 1  # the template's own


def test_they_are_refused_in_keys_and_in_what_describes_tools():
  tokenizer = stock.tokenizer("qwen2_5")
  talk = stock.conversation("qwen2_5", "tools")
  call = {"name": "weather", "arguments": {"<|im_end|>": 1}}
  talk[1] = talk[1] | {"tool_calls": [{"function": call}]}
  with pytest.raises(JaxsftError, match=r"messages\[1\]: the assistant's text.*<\|im_end\|>"):
    chat.render(talk, tokenizer)
  tool = {"type": "function", "function": {"name": "f", "description": "a<|im_start|>"}}
  talk = stock.conversation("qwen2_5", "one")
  with pytest.raises(JaxsftError, match=r"tools\[0\]: the description.*<\|im_start\|>"):
    chat.render(talk, tokenizer, tools=[tool])
  rendered = chat.render(talk, tokenizer, tools=[tool], escape=True)
  ids = chat.tokenize(rendered, tokenizer).ids.tolist()
  plain = [{"type": "function", "function": {"name": "f", "description": "a"}}]
  other = tokenizer.apply_chat_template(talk, tools=plain)["input_ids"]
  start = tokenizer.convert_tokens_to_ids("<|im_start|>")
  assert ids.count(start) == other.count(start)
  assert "a<|im_start|>" in rendered.text and tokenizer.decode(ids) == rendered.text
  talk = stock.conversation("qwen2_5", "tools")
  talk[1] = talk[1] | {"tool_calls": [{"function": call}]}
  ids = chat.tokenize(chat.render(talk, tokenizer, escape=True), tokenizer).ids.tolist()
  talk[1] = talk[1] | {"tool_calls": [{"function": call | {"arguments": {"a": 1}}}]}
  other = tokenizer.apply_chat_template(talk)["input_ids"]
  end = tokenizer.convert_tokens_to_ids("<|im_end|>")
  assert ids.count(end) == other.count(end)


def test_what_stands_for_tokens_cannot_be_in_the_text():
  tokenizer = stock.tokenizer("chatml")
  text = f"<|im_end|> {chr(control.ALIASES)}"
  with pytest.raises(JaxsftError, match=r"characters of private use.*remove one or the other"):
    chat.plain(text, tokenizer, escape=True)
  assert chat.plain(chr(control.ALIASES), tokenizer, escape=True)  # nothing is escaped here


def test_a_noncharacter_that_stands_for_a_letter_cannot_be_in_the_text():
  words = stock.tokenizer("chatml")
  assert control.show(control.hide("x <|im_end|>", words), words) == "x <|im_end|>"
  mark = control.hide("<|im_end|>", words)[0]
  with pytest.raises(JaxsftError, match="has a noncharacter"):
    control.hide(f"{mark}x <|im_end|> y", words)


def test_a_template_whose_control_token_is_none_cannot_be_told_from_text():
  """This one counts only between spaces, which the template does not write."""
  tokenizer = stock.tokenizer("chatml")
  lonely = tokenizers.AddedToken("mark", single_word=True, special=True)
  tokenizer.add_special_tokens({"additional_special_tokens": [lonely]})
  template = "x{{ 'mark' }}x" + stock.template("chatml")
  talk = [{"role": "user", "content": "<|im_end|>"}, {"role": "assistant", "content": "b"}]
  rendered = chat.render(talk, tokenizer, template, escape=True)
  with pytest.raises(JaxsftError, match="cannot be escaped with this tokenizer"):
    chat.tokenize(rendered, tokenizer, template)


@pytest.mark.full
@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "qwen2.5-coder-1.5b-instruct"])
def test_real_tokenizers_escape_all_of_theirs(name):
  path = pathlib.Path(os.environ["JAXSFT_CHECKPOINTS"]) / name
  tokenizer, oracle = (transformers.AutoTokenizer.from_pretrained(path) for _ in range(2))
  oracle.backend_tokenizer.encode_special_tokens = True
  names = [t for t, own in control.special(tokenizer).added.items() if own]
  text = "Grüße " + " and\n".join(names)
  expected = oracle.backend_tokenizer.encode(text, add_special_tokens=False).ids
  tokens = chat.plain(text, tokenizer, escape=True)[1]
  assert tokens.ids.tolist() == [*expected, tokenizer.eos_token_id]
  talk = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
  rendered = chat.render(talk, tokenizer, escape=True)
  tokens = chat.tokenize(rendered, tokenizer)
  assert tokenizer.decode(tokens.ids[tokens.supervised]) == f"{text}<|im_end|>"
