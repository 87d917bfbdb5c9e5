"""A tiny tokenizer in the metadata of a GGUF file."""

import gguf
import tokenizers

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


BYTES = [f"<0x{i:02X}>" for i in range(256)]
# Sentencepiece's scores: the higher, the sooner two tokens are joined.
SCORES = {"▁": -20.0, "t": -21.0, "h": -22.0, "e": -23.0, "x": -24.0, "y": -25.0}
SCORES |= {"th": -1.0, "he": -2.0, "▁th": -3.0, "▁y": -1.5}


def write_sentencepiece(path, changes=None, **keys):
  """Llama's kind of tokenizer; changes: scores of words, new or known."""
  scores = SCORES | (changes or {})
  ends = ["<unk>", "<s>", "</s>"]
  tokens = [*ends, *BYTES, *scores, "  ", "<tool call>", "<unused7>"]
  kinds = [2, 3, 3] + [6] * 256 + [1] * len(scores) + [4, 4, 3]
  values = [0.0] * (3 + 256) + [*scores.values()] + [-1000.0] * 3
  settings = {"model": "llama", "scores": values, "kinds": kinds, "drop": ("merges", "pre")}
  return write(path, tokens=tokens, **(settings | keys))


def pieces(tokenizer, text):
  return tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)
