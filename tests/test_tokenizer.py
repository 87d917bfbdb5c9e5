import json
import subprocess
import sys

import pytest
import tokenizers
import transformers

from jaxsft import tokenizer as tokenizer_lib
from jaxsft.errors import JaxsftError
from tests.tiny_gguf_tokenizer import TEMPLATE, write

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
