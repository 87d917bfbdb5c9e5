"""A tokenizer of a few hundred tokens and templates in the shapes that checkpoints have."""

import pathlib

import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers, processors

HERE = pathlib.Path(__file__).parent

# template -> (beginning of text, end of text, control tokens, end of a turn)
SHAPES = {
  "chatml": (None, "<|im_end|>", ("<|im_start|>",), "<|im_end|>"),
  "default_system": ("<|im_start|>", "<|im_end|>", (), "<|im_end|>"),
  "headers": (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "<|eot_id|>",
  ),
  "turns": ("<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>"), "<end_of_turn>"),
  "generation": (None, "<|im_end|>", ("<|im_start|>",), "<|im_end|>"),
  "generation_closed": (None, "<|im_end|>", ("<|im_start|>",), "<|im_end|>"),
  "thinking": (None, "<|im_end|>", ("<|im_start|>",), "<|im_end|>"),
  "brackets": ("<s>", "</s>", ("[INST]", "[/INST]"), "</s>"),
  "tail": (
    None,
    "<|endoftext|>",
    ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    "<|end|>",
  ),
  "unclosed": (
    None,
    "<|endoftext|>",
    ("<|system|>", "<|user|>", "<|assistant|>"),
    None,
  ),
}

# Some join what a header ends with to what an answer begins with: "\n" and "O", or a space.
MERGES = [
  ("Ċ", "Ċ"),
  ("Ċ", "O"),
  ("Ġ", "Ġ"),
  ("t", "h"),
  ("th", "e"),
  ("Ġ", "the"),
  ("o", "k"),
]


def template(shape):
  """The Jinja text of a shape."""
  return (HERE / f"{shape}.jinja").read_text()


def tokenizer(shape, pad=None):
  """`built` with the control tokens and the template of `shape`."""
  bos, eos, control, _ = SHAPES[shape]
  return built(bos, eos, control, template(shape), pad)


def built(bos, eos, control, chat_template, pad=None):
  """Byte-level BPE with these control tokens and this template.

  pad: the padding token; None: one of its own. Like GPT-2's, its post-processor cuts white
  space from the offsets.
  """
  pad = pad or "<|pad|>"
  special = list(dict.fromkeys([t for t in (pad, bos, eos, *control) if t]))
  pieces = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
  pieces += [a + b for a, b in MERGES]
  vocabulary = {piece: i for i, piece in enumerate(pieces)}
  backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=MERGES))
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  backend.decoder = decoders.ByteLevel()
  backend.post_processor = processors.ByteLevel(trim_offsets=True)
  backend.add_special_tokens(special)
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend,
    bos_token=bos,
    eos_token=eos,
    pad_token=pad,
    chat_template=chat_template,
    clean_up_tokenization_spaces=False,
  )
