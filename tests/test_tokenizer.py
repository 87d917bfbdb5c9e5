import json
import os
import pathlib
import subprocess
import sys

import gguf
import pytest
import tokenizers
import transformers

from jaxsft import tokenizer as tokenizer_lib
from jaxsft.errors import JaxsftError

TEMPLATE = (
  "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
  "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ["Ġ Ġ", "h e", "l l", "he ll", "hell o", "1 2", "12 3", "Ġ hello", "' t"]


def alphabet():
  return sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())


def vocabulary(extra=()):
  words = [merge.replace(" ", "") for merge in MERGES]
  return [*SPECIALS, *alphabet(), *words, *extra]


def write(path, pre="smollm", *, drop=(), tokens=None, kinds=None, **keys):
  tokens = vocabulary() if tokens is None else tokens
  kinds = kinds or [3] * len(SPECIALS) + [1] * (len(tokens) - len(SPECIALS))
  writer = gguf.GGUFWriter(path, "llama")
  writer.add_uint32("llama.context_length", 512)
  ggml = {
    "model": "gpt2",
    "pre": pre,
    "tokens": tokens,
    "token_type": kinds,
    "merges": MERGES,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "unknown_token_id": 0,
    "padding_token_id": 2,
  } | keys
  for key, value in ggml.items():
    if key in drop:
      continue
    add = {
      bool: writer.add_bool,
      int: writer.add_uint32,
      str: writer.add_string,
      list: writer.add_array,
    }[type(value)]
    add(f"tokenizer.ggml.{key}", value)
  writer.add_string("tokenizer.chat_template", TEMPLATE)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def pieces(tokenizer, text):
  return tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)


def test_a_gguf_tokenizer_has_its_ids_template_and_limit(tmp_path):
  tokenizer = tokenizer_lib.load_tokenizer(write(tmp_path / "a.gguf"))
  assert tokenizer.bos_token_id == 1
  assert tokenizer.eos_token_id == tokenizer.pad_token_id == 2
  assert tokenizer.unk_token_id == 0
  assert tokenizer.model_max_length == 512
  assert len(tokenizer) == len(vocabulary())
  assert tokenizer.chat_template == TEMPLATE
  assert tokenizer.is_fast
  text = tokenizer.apply_chat_template(
    [{"role": "user", "content": "hello"}], tokenize=False, add_generation_prompt=True
  )
  assert text == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
  ids = tokenizer(text, add_special_tokens=False).input_ids
  assert ids.count(1) == 2 and ids.count(2) == 1
  assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
  ("pre", "text", "expected"),
  [
    # The digit is split off before the white space is looked at.
    ("smollm", "a  2", ["a", "ĠĠ", "2"]),
    ("gpt-2", "a  2", ["a", "Ġ", "Ġ", "2"]),
    ("smollm", "1234", ["1", "2", "3", "4"]),
    ("gpt-2", "1234", ["123", "4"]),
    ("llama-bpe", "12345", ["<|im_start|>", "123", "4", "5"]),
    ("qwen2", "1234", ["1", "2", "3", "4"]),
    ("default", "1234", ["123", "4"]),
    ("llama-bpe", "don'T", ["<|im_start|>", "d", "o", "n", "'", "T"]),
    ("gpt-2", "x hello", ["x", "Ġhello"]),
    ("qwen2", "e\u0301", ["Ã", "©"]),  # composed: NFC
    ("gpt-2", "e\u0301", ["e", "Ì", "ģ"]),
  ],
)
def test_pre_tokenizers_split_as_llama_cpp_does(tmp_path, pre, text, expected):
  tokenizer = tokenizer_lib.load_tokenizer(write(tmp_path / "a.gguf", pre))
  assert pieces(tokenizer, text) == expected


def test_llama_takes_known_words_whole(tmp_path):
  """ignore_merges: a word in the vocabulary needs no path of merges to it."""
  tokens = vocabulary(["xyz"])
  llama = tokenizer_lib.load_tokenizer(write(tmp_path / "a.gguf", "llama-bpe", tokens=tokens))
  assert pieces(llama, "xyz") == ["<|im_start|>", "xyz"]
  gpt2 = tokenizer_lib.load_tokenizer(write(tmp_path / "b.gguf", "gpt-2", tokens=tokens))
  assert pieces(gpt2, "xyz") == ["x", "y", "z"]


def test_ends_are_added_as_the_file_says(tmp_path):
  load = tokenizer_lib.load_tokenizer
  both = load(write(tmp_path / "a.gguf", add_bos_token=True, add_eos_token=True))
  assert pieces(both, "he") == ["<|im_start|>", "he", "<|im_end|>"]
  pair = both("he", "ll").input_ids
  assert both.convert_ids_to_tokens(pair) == [
    *("<|im_start|>", "he", "<|im_end|>", "<|im_start|>", "ll", "<|im_end|>")
  ]
  assert both("he", add_special_tokens=False).input_ids == [vocabulary().index("he")]
  none = load(write(tmp_path / "b.gguf", "llama-bpe", add_bos_token=False))
  assert pieces(none, "he") == ["he"]


def test_kinds_of_tokens(tmp_path):
  """Control tokens are special, user-defined ones are whole but plain, unused ones are
  in nobody's vocabulary."""
  tokens = vocabulary(["<tool>", "[PAD0]"])
  kinds = [3] * 3 + [1] * (len(tokens) - 5) + [4, 5]
  path = write(tmp_path / "a.gguf", tokens=tokens, kinds=kinds)
  tokenizer = tokenizer_lib.load_tokenizer(path)
  ids = tokenizer("<tool>he<|im_end|>").input_ids
  assert ids == [len(tokens) - 2, tokens.index("he"), 2]
  assert tokenizer.decode(ids, skip_special_tokens=True) == "<tool>he"
  assert len(tokenizer) == len(tokens) - 1


@pytest.mark.parametrize(
  ("changes", "sentence"),
  [
    ({"pre": "tekken"}, "pre-tokenizer 'tekken' .*with one of gpt-2, smollm, llama-bpe"),
    ({"model": "llama"}, "the tokenizer 'llama' .*expected 'gpt2'"),
    ({"drop": ("merges",)}, "no vocabulary or no merges"),
    ({"drop": ("tokens", "token_type")}, "no vocabulary or no merges"),
  ],
)
def test_other_tokenizers_are_refused(tmp_path, changes, sentence):
  path = write(tmp_path / "a.gguf", **changes)
  with pytest.raises(JaxsftError, match=sentence):
    tokenizer_lib.load_tokenizer(path)


def test_an_unnamed_pre_tokenizer_is_the_default_one(tmp_path):
  tokenizer = tokenizer_lib.load_tokenizer(write(tmp_path / "a.gguf", drop=("pre",)))
  assert pieces(tokenizer, "a  2+") == ["a", "Ġ", "Ġ", "2", "+"]


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world", "##s", "!"]


def bert_directory(directory, **changes):
  """A BERT tokenizer whose file carries truncation and fixed padding."""
  directory.mkdir(exist_ok=True)
  from tokenizers.implementations import BertWordPieceTokenizer

  vocab = {word: i for i, word in enumerate(WORDS)}
  backend = BertWordPieceTokenizer(vocab, lowercase=True)
  backend.enable_truncation(6)
  backend.enable_padding(length=6)
  backend.save(str(directory / "tokenizer.json"))
  config = {
    "tokenizer_class": "BertTokenizer",
    "do_lower_case": True,
    "model_max_length": 6,
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
  } | changes
  (directory / "tokenizer_config.json").write_text(json.dumps(config))
  return directory


def test_truncation_and_padding_of_the_file_are_off(tmp_path, monkeypatch):
  # A call of the tokenizer, such as this check makes, happens to reset both.
  monkeypatch.setattr(tokenizer_lib, "_rebuilt", lambda *args: False)
  tokenizer = tokenizer_lib.load_tokenizer(bert_directory(tmp_path))
  encode = tokenizer.backend_tokenizer.encode
  assert encode("Hello").ids == [2, 5, 3]
  assert len(encode("hello " * 20).ids) == 22
  tokenizer_lib.save_tokenizer(tokenizer, tmp_path, max_length=9)
  raw = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
  assert raw.truncation is None and raw.padding is None


def test_tokenizer_json_counts_where_the_class_would_rebuild_it(tmp_path):
  """do_lower_case contradicts the file; transformers 5 builds BertTokenizer from it."""
  directory = bert_directory(tmp_path, do_lower_case=False)
  tokenizer = tokenizer_lib.load_tokenizer(directory)
  assert tokenizer("HELLO").input_ids == [2, 5, 3]


def test_what_cannot_be_read_is_explained(tmp_path):
  load = tokenizer_lib.load_tokenizer
  with pytest.raises(JaxsftError, match=r"no tokenizer in .*expected tokenizer.json"):
    load(tmp_path)
  directory = bert_directory(tmp_path / "broken")
  (directory / "tokenizer.json").write_text('{"version": "1.0"')
  with pytest.raises(JaxsftError, match="broken unreadable"):
    load(directory)
  remote = {"AutoTokenizer": ["custom.Tokenizer", None]}
  directory = bert_directory(tmp_path / "remote", auto_map=remote, tokenizer_class="Custom")
  (directory / "custom.py").write_text("raise SystemExit('this ran')")
  with pytest.raises(JaxsftError, match="loads without remote code"):
    load(directory)


def saved(tokenizer, directory, **settings):
  directory.mkdir(exist_ok=True)
  tokenizer_lib.save_tokenizer(tokenizer, directory, **settings)
  return json.loads((directory / "tokenizer_config.json").read_text())


def test_a_saved_bert_tokenizer_is_the_same(tmp_path):
  tokenizer = tokenizer_lib.load_tokenizer(bert_directory(tmp_path / "a"))
  config = saved(tokenizer, tmp_path / "b", max_length=9)
  assert config["tokenizer_class"] == "BertTokenizer"
  assert config["model_max_length"] == 9
  assert config["model_input_names"][1] == "token_type_ids"
  assert not (tmp_path / "b/chat_template.jinja").exists()
  again = tokenizer_lib.load_tokenizer(tmp_path / "b")
  assert tokenizer_lib.differences(tokenizer, again) == ""
  assert again("Hello", "worlds!").token_type_ids == [0, 0, 0, 1, 1, 1, 1]


def test_a_saved_gguf_tokenizer_is_the_same(tmp_path):
  tokenizer = tokenizer_lib.load_tokenizer(write(tmp_path / "a.gguf"))
  config = saved(tokenizer, tmp_path / "b")
  assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
  assert config["chat_template"] == TEMPLATE
  assert (tmp_path / "b/chat_template.jinja").read_text() == TEMPLATE
  again = tokenizer_lib.load_tokenizer(tmp_path / "b")
  assert tokenizer_lib.differences(tokenizer, again) == ""
  assert again.model_max_length == 512
  raw = transformers.PreTrainedTokenizerFast.from_pretrained(str(tmp_path / "b"))
  assert tokenizer_lib.differences(tokenizer, raw) == ""


def test_the_training_template_replaces_the_tokenizers_own(tmp_path):
  tokenizer = tokenizer_lib.load_tokenizer(write(tmp_path / "a.gguf"))
  saved(tokenizer, tmp_path / "b", chat_template="{{ messages }}é\n")
  again = tokenizer_lib.load_tokenizer(tmp_path / "b")
  assert again.chat_template == "{{ messages }}é\n"
  assert tokenizer_lib.differences(tokenizer, again).startswith("chat_template")
  assert tokenizer_lib.differences(tokenizer, again, "{{ messages }}é\n") == ""


def test_named_templates_are_kept(tmp_path):
  tokenizer = tokenizer_lib.load_tokenizer(write(tmp_path / "a.gguf"))
  tokenizer.chat_template = {"default": "a", "tool_use": "b"}
  saved(tokenizer, tmp_path / "b")
  again = tokenizer_lib.load_tokenizer(tmp_path / "b")
  assert again.chat_template == {"default": "a", "tool_use": "b"}


def test_differences_are_seen(tmp_path):
  load = tokenizer_lib.load_tokenizer
  smollm = load(write(tmp_path / "a.gguf"))
  gpt2 = load(write(tmp_path / "b.gguf", "gpt-2"))
  assert tokenizer_lib.differences(smollm, gpt2).startswith("ids of")
  other = load(write(tmp_path / "c.gguf", eos_token_id=0))
  assert tokenizer_lib.differences(smollm, other).startswith("eos_token")


def test_transformers_is_imported_late():
  code = "import jaxsft.tokenizer, jaxsft.weights, sys; print('transformers' in sys.modules)"
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert done.stdout.strip() == "False", done.stderr


@pytest.mark.full
def test_the_real_smollm2_tokenizer_equals_its_reference():
  root = os.environ.get("JAXSFT_CHECKPOINTS")
  if root is None:
    pytest.skip("set JAXSFT_CHECKPOINTS to a directory with the checkpoints")
  files = list(pathlib.Path(root).rglob("SmolLM2-135M-Instruct.Q4_1.gguf"))
  if not files:
    pytest.skip("no SmolLM2-135M-Instruct.Q4_1.gguf under JAXSFT_CHECKPOINTS")
  ours = tokenizer_lib.load_tokenizer(files[0])
  reference = tokenizer_lib.load_tokenizer(pathlib.Path(root) / "smollm2-135m-instruct")
  assert tokenizer_lib.differences(ours, reference) == ""
  assert ours("a  2").input_ids == [81, 256, 34]
  texts = [p.read_text(encoding="utf-8") for p in pathlib.Path("tests").rglob("*.py")]
  for text in texts:
    a, b = (t(text, return_offsets_mapping=True) for t in (ours, reference))
    assert a.input_ids == b.input_ids
    assert a.offset_mapping == b.offset_mapping
