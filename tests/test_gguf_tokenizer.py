import os
import pathlib

import numpy as np
import pytest

from jaxsft import gguf_tokenizer
from jaxsft import tokenizer as tokenizer_lib
from jaxsft.errors import JaxsftError
from tests.tiny_gguf_tokenizer import TEMPLATE, pieces, vocabulary, write, write_sentencepiece


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
    ({"model": "bert"}, r"the tokenizer 'bert' .*expected 'llama' \(sentence.*or 'gpt2'"),
    ({"model": "llama"}, "no vocabulary or no scores"),
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


def test_a_qwen_has_no_bos_and_shows_its_tool_calls(tmp_path):
  """The conversion marks by looks, and names a bos that the published tokenizers lack."""
  tokens = vocabulary(["<tool_call>", "<|fim_prefix|>", "<|other|>"])
  kinds = [3] * 3 + [1] * (len(tokens) - 6) + [3] * 3
  path = write(tmp_path / "a.gguf", "qwen2", tokens=tokens, kinds=kinds)
  tokenizer = tokenizer_lib.load_tokenizer(path)
  assert tokenizer.bos_token is None
  ids = tokenizer("<tool_call>he<|fim_prefix|><|other|>").input_ids
  assert ids == [len(tokens) - 3, tokens.index("he"), len(tokens) - 2, len(tokens) - 1]
  assert tokenizer.decode(ids, skip_special_tokens=True) == "<tool_call>he<|fim_prefix|>"


@pytest.mark.parametrize(
  ("text", "changes", "expected"),
  [
    ("the", {}, ["▁th", "e"]),
    ("xthe", {}, ["▁", "x", "th", "e"]),
    ("xthe", {"he": -0.5}, ["▁", "x", "t", "he"]),  # the better score goes first
    ("xthe", {"he": -1.0}, ["▁", "x", "th", "e"]),  # a tie: the order of the vocabulary
    ("xthe", {"the": -9.0}, ["▁", "x", "the"]),
    ("x  y", {}, ["▁", "x", "▁▁", "y"]),  # an added token has 0, not the file's -1000
    ("x y", {}, ["▁", "x", "▁y"]),
    ("xé", {}, ["▁", "x", "<0xC3>", "<0xA9>"]),
    ("<s>the", {}, ["<s>", "▁th", "e"]),
    ("x<tool call>", {}, ["▁", "x", "<tool call>"]),
  ],
)
def test_sentencepiece_joins_by_scores(tmp_path, text, changes, expected):
  tokenizer = tokenizer_lib.load_tokenizer(write_sentencepiece(tmp_path / "a.gguf", changes))
  assert pieces(tokenizer, text) == ["<s>", *expected]  # llama.cpp: a bos unless it says no
  ids = tokenizer(text, add_special_tokens=False).input_ids
  shown = tokenizer.decode(ids, skip_special_tokens=True)
  assert shown.lstrip(" ") == text.removeprefix("<s>")


def test_sentencepiece_without_a_space_in_front(tmp_path):
  keys = {"add_space_prefix": False, "add_bos_token": False}
  tokenizer = tokenizer_lib.load_tokenizer(write_sentencepiece(tmp_path / "a.gguf", **keys))
  assert pieces(tokenizer, "the y") == ["th", "e", "▁y"]
  assert tokenizer.decode(tokenizer(" the y").input_ids) == " the y"


def test_sentencepiece_specials_and_a_saved_copy(tmp_path):
  tokenizer = tokenizer_lib.load_tokenizer(write_sentencepiece(tmp_path / "a.gguf"))
  assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
  assert tokenizer.unk_token == "<unk>"
  ids = tokenizer("x<unused7></s>", add_special_tokens=False).input_ids
  assert tokenizer.decode(ids, skip_special_tokens=True) == "x<unused7>"
  tokenizer_lib.save_tokenizer(tokenizer, tmp_path)
  again = tokenizer_lib.load_tokenizer(tmp_path)
  assert tokenizer_lib.differences(tokenizer, again) == ""


def test_extra_whitespace_is_never_dropped(tmp_path):
  path = write_sentencepiece(tmp_path / "a.gguf", remove_extra_whitespaces=True)
  with pytest.raises(
    JaxsftError, match=r"remove_extra_whitespaces .*expected a tokenizer that"
  ):
    tokenizer_lib.load_tokenizer(path)


def test_merges_are_in_the_order_of_the_published_tokenizers():
  """Beside the function of transformers that has made the published files."""
  from transformers.convert_slow_tokenizer import generate_merges

  rng = np.random.default_rng(0)
  words = {"".join(rng.choice([*"abc"], rng.integers(1, 6))) for _ in range(150)}
  words = [*"abc", *sorted(words - {*"abc"})]
  rng.shuffle(words)
  vocab = {word: i for i, word in enumerate(words)}
  scores = [float(-rng.integers(0, 9)) for _ in words]  # many ties
  theirs = generate_merges(vocab, dict(zip(words, scores, strict=True)))
  ours = gguf_tokenizer.merges_of(vocab, scores)
  assert len(ours) > 100
  assert ours == theirs


REAL = {  # file below JAXSFT_CHECKPOINTS -> directory made from it
  "SmolLM2-135M-Instruct.Q4_1.gguf": "smollm2-135m-instruct",
  "gemma3-270m.Q4_K_M.gguf": "gemma3-270m",
  "qwen2.5-coder-1.5b-instruct.Q4_K_M.gguf": "qwen2.5-coder-1.5b-instruct",
}


def texts():
  """Code, every character up to the ideographs, runs of white space, tokens as text."""
  yield from (path.read_text(encoding="utf-8") for path in pathlib.Path("tests").rglob("*.py"))
  yield from ("".join(map(chr, range(i, i + 97))) for i in range(32, 0x3000, 97))
  yield from (space * n + "x" for n in range(1, 70) for space in " \n\t")
  yield "<b>x</b> <table> <unused7> <tool_call>{}</tool_call> <|im_end|> <start_of_turn>user"
  yield "你好，世界！ こんにちは 안녕하세요 🤗 \x00\x01 e\u0301 ﬁ a▁▁b ▁ ▁▁▁ c"


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("file", REAL)
def test_real_tokenizers_equal_their_directories(file):
  root = pathlib.Path(os.environ.get("JAXSFT_CHECKPOINTS", "/nowhere"))
  found, reference = [*root.glob(f"*/{file}"), *root.rglob(file)], root / REAL[file]
  if not found or not reference.is_dir():
    pytest.skip(f"needs JAXSFT_CHECKPOINTS with {file} and {REAL[file]}")
  ours, theirs = map(tokenizer_lib.load_tokenizer, (found[0], reference))
  if theirs.mask_token == "<mask>":  # Gemma's, which is in no GGUF
    ours.mask_token = "<mask>"
  assert tokenizer_lib.differences(ours, theirs) == ""
  for text in texts():
    a, b = (t(text, return_offsets_mapping=True) for t in (ours, theirs))
    assert a.input_ids == b.input_ids, text[:90]
    assert a.offset_mapping == b.offset_mapping
    assert ours.decode(a.input_ids) == theirs.decode(b.input_ids)
  if "SmolLM2" in file:
    assert ours("a  2").input_ids == [81, 256, 34]
