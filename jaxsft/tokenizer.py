"""Text to ids and back: the only importer of transformers at run time.

A tokenizer comes from a Hugging Face directory or from the metadata of a GGUF file, and is
written so that transformers 4 and 5 both load it. Importing transformers takes seconds, so
it happens inside the functions.
"""

import functools
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from jaxsft.errors import JaxsftError

SPECIAL = (
  "bos_token",
  "eos_token",
  "unk_token",
  "sep_token",
  "pad_token",
  "cls_token",
  "mask_token",
)

PROBES = (
  "Hello world! It's a  test,\n\n\tof 1234 números & 3.14 — naïve Äpfel.",
  "a  2",
  "   leading and trailing   ",
  "你好，世界！ こんにちは 🤗 don't WE'LL",
  "def f(x):\r\n    return x**2  # [MASK] <s> </s>",
)


def load_tokenizer(path: pathlib.Path) -> Any:
  """The fast tokenizer of a Hugging Face directory or a .gguf file.

  Truncation and padding that tokenizer.json may carry are switched off: lengths are
  decided by the caller. No code of the checkpoint is run. Raises JaxsftError where there
  is no tokenizer, or only one in Python.
  """
  return _from_directory(path) if path.is_dir() else _from_gguf(path)


def added_tokens(tokenizer: Any) -> dict[str, bool]:
  """{text: is it a control token?} of every added token, the longest first.

  Decoding without special tokens leaves out control tokens, and no text of a row or prompt
  may contain one. Some are so in tokenizer.json alone (Llama 3's <|eot_id|>).
  """
  added = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}
  added |= dict.fromkeys(map(str, tokenizer.all_special_tokens), True)
  return {text: added[text] for text in sorted(added, key=len, reverse=True)}


def control_token_in(text: str, tokenizer: Any, unknown: bool = True) -> str | None:
  """The first control token in a text; None: there is none. White space is never one.

  unknown: whether the name of the unknown token is one. Where False, it still is if it is also
  one that opens, ends, divides or hides (GPT-2's).
  """
  harmless = None if unknown else _harmless(tokenizer)
  found = _control_tokens(tokenizer, len(tokenizer), harmless).search(text)
  return found and found.group()


def _harmless(tokenizer):
  """The token for what is unknown, where it stands for nothing that is obeyed."""
  obeyed = ("bos_token", "eos_token", "sep_token", "cls_token", "mask_token")
  unknown = tokenizer.unk_token
  return None if unknown in [getattr(tokenizer, name) for name in obeyed] else unknown


@functools.lru_cache(maxsize=8)
def _control_tokens(tokenizer, size, harmless):
  """Pattern of those of a tokenizer with `size` tokens (in the key: they can be added).

  harmless: a token that is left out.
  """
  del size
  added = added_tokens(tokenizer).items()
  found = [text for text, control in added if control and text.strip() and text != harmless]
  return re.compile("|".join(map(re.escape, found)) or r"(?!)")


def save_tokenizer(
  tokenizer: Any,
  directory: pathlib.Path,
  *,
  chat_template: str | None = None,
  max_length: int | None = None,
) -> None:
  """Writes tokenizer.json, tokenizer_config.json and, with a template, the .jinja file.

  chat_template: replaces the tokenizer's own. max_length: model_max_length, the model's
  limit; None keeps the tokenizer's. The class written is one that transformers 4 has too
  (version 5 itself writes "TokenizersBackend", which 4 cannot load).
  """
  template = tokenizer.chat_template if chat_template is None else chat_template
  bert = type(tokenizer).__name__ in ("BertTokenizer", "BertTokenizerFast")
  config: dict[str, Any] = {
    "tokenizer_class": "BertTokenizer" if bert else "PreTrainedTokenizerFast",
    "model_max_length": int(max_length or tokenizer.model_max_length),
    "model_input_names": list(tokenizer.model_input_names),
    "padding_side": tokenizer.padding_side,
    "truncation_side": tokenizer.truncation_side,
    "clean_up_tokenization_spaces": bool(tokenizer.clean_up_tokenization_spaces),
  }
  for key in SPECIAL:  # null is written too: classes such as Qwen's fill in what is left out
    token = getattr(tokenizer, key, None)
    config[key] = None if token is None else str(token)
  named = {config[key] for key in SPECIAL}
  if extra := [t for t in map(str, tokenizer.all_special_tokens) if t not in named]:
    config["additional_special_tokens"] = extra
  if bert:  # transformers 5 rebuilds the normaliser of this class from these
    for key in ("do_lower_case", "strip_accents", "tokenize_chinese_chars"):
      if key in tokenizer.init_kwargs:
        config[key] = tokenizer.init_kwargs[key]
  if isinstance(template, Mapping):
    config["chat_template"] = [
      {"name": name, "template": text} for name, text in template.items()
    ]
  elif template is not None:
    config["chat_template"] = template
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
  text = tokenizer.backend_tokenizer.to_str(pretty=True)
  (directory / "tokenizer.json").write_text(text, encoding="utf-8")
  text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
  (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")


def differences(ours: Any, theirs: Any, chat_template: str | None = None) -> str:
  """What two tokenizers disagree about on probe texts and settings; "" for nothing.

  chat_template: what `theirs` should have; None: that of `ours`.
  """
  template = ours.chat_template if chat_template is None else chat_template
  if theirs.chat_template != template:
    return f"chat_template: {template!r} against {theirs.chat_template!r}"
  for key in (*SPECIAL, "padding_side"):
    a, b = getattr(ours, key, None), getattr(theirs, key, None)
    if a != b:
      return f"{key}: {a!r} against {b!r}"
  for text in PROBES:
    for special in (False, True):
      a, b = (t(text, add_special_tokens=special).input_ids for t in (ours, theirs))
      if a != b:
        return f"ids of {text!r}: {a} against {b}"
  for i in range(len(ours)):
    if i % 997 == 0 and ours.decode([i]) != theirs.decode([i]):
      return f"text of id {i}: {ours.decode([i])!r} against {theirs.decode([i])!r}"
  return ""


def _from_directory(directory: pathlib.Path) -> Any:
  import tokenizers
  import transformers

  file = directory / "tokenizer.json"
  if not any((directory / n).is_file() for n in (file.name, "vocab.txt", "vocab.json")):
    raise JaxsftError(
      f"found no tokenizer in {directory}; expected tokenizer.json (and "
      "tokenizer_config.json): copy it from the model's page"
    )
  settings = {"local_files_only": True, "trust_remote_code": False}
  try:
    tokenizer = transformers.AutoTokenizer.from_pretrained(
      str(directory), use_fast=True, **settings
    )
    raw = tokenizers.Tokenizer.from_file(str(file)) if file.is_file() else None
  except Exception as error:  # transformers and tokenizers raise bare Exceptions
    raise JaxsftError(
      f"found the tokenizer in {directory} unreadable ({str(error).strip()[:300]}); "
      "expected a tokenizer.json that transformers loads without remote code: copy it "
      "from the model's page again"
    ) from error
  if not tokenizer.is_fast:
    raise JaxsftError(
      f"found only a Python tokenizer ({type(tokenizer).__name__}) in {directory}; "
      "expected tokenizer.json, which gives the position of every token in the text"
    )
  if raw is not None and _rebuilt(tokenizer, raw):
    # transformers 5 rebuilds some classes from their vocabulary and loses what else
    # tokenizer.json says; the model was trained on what it says.
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(str(directory), **settings)
  return _unbounded(tokenizer)


def _rebuilt(tokenizer: Any, raw: Any) -> bool:
  """Whether the class gives other ids than tokenizer.json alone."""
  raw.no_truncation()
  raw.no_padding()
  return any(
    raw.encode(text, add_special_tokens=False).ids
    != tokenizer(text, add_special_tokens=False).input_ids
    for text in PROBES
  )


def _unbounded(tokenizer: Any) -> Any:
  tokenizer.backend_tokenizer.no_truncation()
  tokenizer.backend_tokenizer.no_padding()
  return tokenizer


def _from_gguf(path: pathlib.Path) -> Any:
  """Builds the tokenizer from vocabulary, merges and kinds of token in the metadata."""
  import transformers

  from jaxsft import gguf_tokenizer
  from jaxsft.weights import gguf_read

  built = gguf_tokenizer.build(path, gguf_read.read_gguf(path).metadata)
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=built.backend,
    model_max_length=built.max_length or int(1e30),
    clean_up_tokenization_spaces=False,
    **built.special,
  )
  tokenizer.chat_template = built.template
  return _unbounded(tokenizer)
