"""Questions for tests: tokenizers that place tokens and pair texts differently, and rows."""

import functools

import numpy as np
import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from jaxsft import tasks
from jaxsft.data.read import Row
from jaxsft.tasks import answer

ASKED = "who was it"
PASSAGE = "In  1066 the Normans, led by William, took\tHastings"
LONG = " ".join(f"w{i}" for i in range(40))
WORDS = ("in", "the", "normans", "who", "was", "it", "took", "red", "hill", "oak", "and", "a")
CHINESE = "北京是中国的首"
STOP = "\N{IDEOGRAPHIC FULL STOP}"
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


def wordpiece():
  """BERT's: lower case, no accents, Chinese apart, unknown words whole; no space in offsets."""
  words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *(f"w{i}" for i in range(40))]
  words += [",", STOP, *CHINESE, "will", "##iam", "hast", "##ing", "##s", "mul", "##ler"]
  vocabulary = {word: i for i, word in enumerate(words)}
  backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
  backend.normalizer = normalizers.BertNormalizer(lowercase=True)
  backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  backend.post_processor = processors.TemplateProcessing(
    single="[CLS] $A [SEP]",
    pair="[CLS] $A [SEP] $B:1 [SEP]:1",
    special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
  )
  return backend, {"pad": 0, "unk": 1, "cls": 2, "sep": 3}


def _bytes(prefix):
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("o", "r"), ("l", "l"), ("Ġ", "r")]
  pieces = ["<pad>", "<unk>", "<s>", "</s>", *alphabet, *(a + b for a, b in merges)]
  backend = tokenizers.Tokenizer(
    models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges)
  )
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
  backend.decoder = decoders.ByteLevel()
  return backend


def bytes_():
  """RoBERTa's: a token of bytes has the space before it in its offsets; </s></s> between."""
  backend = _bytes(prefix=True)
  backend.post_processor = processors.RobertaProcessing(
    ("</s>", 3), ("<s>", 2), trim_offsets=False, add_prefix_space=True
  )
  return backend, {"pad": 0, "unk": 1, "cls": 2, "sep": 3}


def plain():
  """GPT-2's and Qwen's: nothing between question and context, and nothing around them."""
  return _bytes(prefix=False), {"pad": 0, "unk": 1, "eos": 3}


def metaspace():
  """SentencePiece's: words with ▁ before them, in bytes where a letter is unknown."""
  special = ["<pad>", "<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
  scores = [(piece, 0.0) for piece in special]
  scores += [(f"▁{word}", -2.0) for word in WORDS] + [
    (letter, -8.0) for letter in LETTERS + CHINESE
  ]
  scores += [("▁", -7.0), *((f"▁{letter}", -9.0) for letter in LETTERS)]
  backend = tokenizers.Tokenizer(models.Unigram(scores, unk_id=1, byte_fallback=True))
  backend.pre_tokenizer = pre_tokenizers.Metaspace()
  backend.post_processor = processors.TemplateProcessing(
    single="<s> $A </s>",
    pair="<s> $A </s> </s> $B </s>",
    special_tokens=[("<s>", 2), ("</s>", 3)],
  )
  return backend, {"pad": 0, "unk": 1, "cls": 2, "sep": 3}


MAKE = {"wordpiece": wordpiece, "bytes": bytes_, "plain": plain, "metaspace": metaspace}


@functools.cache
def _made(name):
  return MAKE[name]()


def make(name):
  """A new tokenizer of that name."""
  backend, special = _made(name)
  text = {f"{kind}_token": backend.id_to_token(i) for kind, i in special.items()}
  backend = tokenizers.Tokenizer.from_str(backend.to_str())
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, clean_up_tokenization_spaces=False, **text
  )


NAMES = tuple(MAKE)


def row(passage, *answers, question=ASKED, **fields):
  """A row whose answers are pieces of the context or (piece, first character)."""
  made = []
  for one in answers:
    text, start = one if isinstance(one, tuple) else (one, passage.index(one))
    made.append({"text": text, "start": start})
  fields = {"question": question, "context": passage, "answers": made, **fields}
  return Row("a", "squad.json:a", fields)


def context(name="wordpiece", max_length=1000, **settings):
  return tasks.Context(make(name), max_length, **settings)


def sure(encoded, height=9.0):
  """Outputs of a model that is sure of what it was taught."""
  outputs = []
  for example in encoded.examples:
    logits = np.zeros((len(example["inputs"]), 2), np.float32)
    logits[example["start"], 0] = logits[example["end"], 1] = height
    outputs.append({"logits": logits})
  return outputs


def found(given, place, outputs=None):
  encoded = answer.encode(given, place)
  return tasks.Found(given, list(encoded.examples), outputs or sure(encoded))
