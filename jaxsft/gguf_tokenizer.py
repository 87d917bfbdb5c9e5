"""The tokenizer of a GGUF file, rebuilt from its vocabulary for the tokenizers library.

Names of models and pre-tokenizers, kinds of token and defaults are llama.cpp's
(llama-vocab.cpp).
"""

import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxsft.errors import JaxsftError

# How byte-level BPE splits text before merging; patterns are isolated in this order, then
# bytes become characters.
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = (
  CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
  r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
PATTERNS = {
  "gpt-2": (GPT2,),
  "smollm": (r"\p{N}", GPT2),
  "llama-bpe": (LLAMA3,),
  "qwen2": (LLAMA3.replace("{1,3}", ""),),
  "default": (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
}
ADDS_BOS = {"llama-bpe"}  # where tokenizer.ggml.add_bos_token is not in the file
IGNORES_MERGES = {"llama-bpe"}  # words of the vocabulary are taken whole
NO_BOS = {"qwen2"}  # the file names one, the published tokenizers have none

# Kinds of token in tokenizer.ggml.token_type.
UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 2, 3, 4, 5
# Control tokens in the file, by their looks, that are published as plain text.
PLAIN = re.compile(
  r"<unused\d+>|<mask>|<2mass>|\[@BOS@\]|</?tool_(call|response)>|</?think>"
  r"|<\|fim_\w+\|>|<\|repo_name\|>|<\|file_sep\|>"
)


class Built(NamedTuple):
  backend: Any
  """tokenizers.Tokenizer"""
  special: dict[str, str]
  """ "bos_token" … -> token."""
  template: str | None
  max_length: int | None


def build(path: pathlib.Path, meta: Mapping[str, Any]) -> Built:
  """The tokenizer of a file, from its metadata.

  Raises JaxsftError for a model or pre-tokenizer that is not known, and for a file
  without a vocabulary.
  """
  get = lambda key: meta.get(f"tokenizer.ggml.{key}")
  model, splitter = get("model"), get("pre") or "default"
  if model not in MODELS or (model == "gpt2" and splitter not in PATTERNS):
    raise JaxsftError(
      f"found the tokenizer {model!r} with pre-tokenizer {splitter!r} in {path}; expected "
      "'llama' (sentencepiece with scores), or 'gpt2' (byte-level BPE) with one of "
      f"{', '.join(PATTERNS)}: put the model's tokenizer.json and safetensors into a "
      "directory and use that"
    )
  tokens = get("tokens")
  needed = {"gpt2": "merges", "llama": "scores"}[model]
  if not tokens or get(needed) is None:
    raise JaxsftError(
      f"found no vocabulary or no {needed} in {path}; expected both: the file may hold "
      "weights only"
    )
  name = lambda key: None if get(key) is None else tokens[get(key)]
  special = {
    "bos_token": None if splitter in NO_BOS else name("bos_token_id"),
    "eos_token": name("eos_token_id"),
    "unk_token": name("unknown_token_id"),
    "pad_token": name("padding_token_id"),
    "sep_token": name("seperator_token_id"),  # as llama.cpp spells it
    "cls_token": name("cls_token_id"),
    "mask_token": name("mask_token_id"),
  }
  backend = MODELS[model](path, get, special["unk_token"])
  add_bos = get("add_bos_token")
  if add_bos is None:
    add_bos = model == "llama" or splitter in ADDS_BOS
  _add_ends(
    backend,
    special["bos_token"] if add_bos else None,
    special["eos_token"] if get("add_eos_token") else None,
  )
  return Built(
    backend,
    {key: token for key, token in special.items() if token is not None},
    meta.get("tokenizer.chat_template"),
    meta.get(f"{meta.get('general.architecture')}.context_length"),
  )


def _byte_level(path: pathlib.Path, get: Any, unknown: str | None) -> Any:
  """GPT-2's BPE: patterns split the text, merges are in the file."""
  import tokenizers
  from tokenizers import decoders, models, normalizers, pre_tokenizers

  tokens, splitter = get("tokens"), get("pre") or "default"
  kinds = get("token_type") or [1] * len(tokens)
  backend = tokenizers.Tokenizer(
    models.BPE(
      vocab={t: i for i, t in enumerate(tokens) if kinds[i] != UNUSED},
      merges=[tuple(merge.split(" ")) for merge in get("merges")],
      ignore_merges=splitter in IGNORES_MERGES,
    )
  )
  if splitter == "qwen2":
    backend.normalizer = normalizers.NFC()
  steps = [
    pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    for pattern in PATTERNS[splitter]
  ]
  steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
  backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
  backend.decoder = decoders.ByteLevel()
  _add_tokens(backend, tokens, kinds)
  return backend


def _sentencepiece(path: pathlib.Path, get: Any, unknown: str | None) -> Any:
  """Sentencepiece's BPE: merges follow from scores, bytes stand for unknown characters."""
  import tokenizers
  from tokenizers import decoders, models, normalizers

  if get("remove_extra_whitespaces"):
    raise JaxsftError(
      f"found tokenizer.ggml.remove_extra_whitespaces in {path}; expected a tokenizer that "
      "keeps them, as Llama's and Gemma's: use a directory with tokenizer.json instead"
    )
  kinds, scores = get("token_type") or [1] * len(get("tokens")), get("scores")
  # The conversion writes runs of spaces as such; a token with other text stays as it is.
  tokens = [
    token if kind == USER_DEFINED and token.strip(" ▁") else token.replace(" ", "▁")
    for token, kind in zip(get("tokens"), kinds, strict=True)
  ]
  vocab = {token: i for i, token in enumerate(tokens) if kinds[i] != UNUSED}
  # The conversion gives -1000 to added tokens, which have 0 in sentencepiece.
  added = (CONTROL, USER_DEFINED)
  scores = [0.0 if kind in added else s for kind, s in zip(kinds, scores, strict=True)]
  backend = tokenizers.Tokenizer(
    models.BPE(
      vocab=vocab,
      merges=merges_of(vocab, scores),
      unk_token=unknown,
      fuse_unk=True,
      byte_fallback=True,
    )
  )
  prefix = get("add_space_prefix") in (None, True)
  spaces = normalizers.Replace(" ", "▁")
  backend.normalizer = (
    normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
  )
  steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
  backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
  _add_tokens(backend, tokens, kinds)
  return backend


MODELS = {"gpt2": _byte_level, "llama": _sentencepiece}


def merges_of(vocab: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
  """Every way to join two tokens into a third, the best score first, as published.

  Ties: the longer left part, then the longer right part, then the order of the vocabulary.
  """
  found = []
  for token, i in vocab.items():
    pairs = [(token[:k], token[k:]) for k in range(1, len(token))]
    pairs = [pair for pair in pairs if pair[0] in vocab and pair[1] in vocab]
    found += [(-scores[i], -len(left), -len(right), left, right) for left, right in pairs]
  found.sort(key=lambda merge: merge[:3])
  return [merge[3:] for merge in found]


def _add_tokens(backend: Any, tokens: Sequence[str], kinds: Sequence[int]) -> None:
  """Control tokens are special, user-defined ones are whole but plain text."""
  import tokenizers

  special, plain = [], []
  for token, kind in zip(tokens, kinds, strict=True):
    if kind not in (UNKNOWN, CONTROL, USER_DEFINED):
      continue
    is_special = kind != USER_DEFINED and not PLAIN.fullmatch(token)
    added = tokenizers.AddedToken(token, normalized=False, special=is_special)
    (special if is_special else plain).append(added)
  backend.add_special_tokens(special)
  backend.add_tokens(plain)


def _add_ends(backend: Any, bos: str | None, eos: str | None) -> None:
  """Makes every encoded text begin with `bos` and end with `eos`, where given."""
  from tokenizers import processors

  if bos is None and eos is None:
    return
  piece = lambda text: [*([bos] if bos else []), text, *([eos] if eos else [])]
  second = [f"{token}:1" for token in piece("$B")]
  backend.post_processor = processors.TemplateProcessing(
    single=piece("$A"),
    pair=[*piece("$A"), *second],
    special_tokens=[(t, backend.token_to_id(t)) for t in (bos, eos) if t],
  )
