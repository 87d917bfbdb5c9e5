"""Tiny models with random weights, tiny rows, and the configs that train the one on the other.

Everything is built from nothing in a directory of the test: no network, no torch. Sizes are
unequal (D != N H, F != 4 D, K < N), so that a wrong transpose cannot pass.
"""

import json
import pathlib

import jax
import numpy as np
import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from jaxsft import config as config_lib
from jaxsft import families, hf_directory, optim, sharding, start
from jaxsft import models as networks
from tests.templates import tiny as templates
from tests.tiny_rows import (  # noqa: F401  all that is tiny is found here
  BAD,
  CHATS,
  FILLERS,
  GOOD,
  TRANSLATED,
  chats,
  entities,
  questions,
  rows,
  sentence,
  sentences,
  translations,
)

BERT = {
  "model_type": "bert",
  "hidden_size": 24,
  "num_hidden_layers": 2,
  "num_attention_heads": 3,
  "intermediate_size": 40,
  "hidden_act": "gelu",
  "hidden_dropout_prob": 0.1,
  "attention_probs_dropout_prob": 0.1,
  "max_position_embeddings": 64,
  "type_vocab_size": 2,
  "layer_norm_eps": 1e-6,
  "initializer_range": 0.1,
  "pad_token_id": 0,
}
LLAMA = {
  "model_type": "llama",
  "hidden_size": 24,
  "num_hidden_layers": 2,
  "num_attention_heads": 6,
  "num_key_value_heads": 2,
  "head_dim": 8,  # 6 x 8 is not 24
  "intermediate_size": 44,
  "hidden_act": "silu",
  "max_position_embeddings": 512,
  "rms_norm_eps": 1e-5,
  "initializer_range": 0.1,
  "tie_word_embeddings": False,
  "attention_bias": False,
  "mlp_bias": False,
  "attention_dropout": 0.0,
  "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
}
T5 = {
  "model_type": "t5",
  "d_model": 24,
  "d_kv": 10,  # 3 x 10 is not 24
  "d_ff": 44,
  "num_layers": 2,
  "num_decoder_layers": 1,
  "num_heads": 3,
  "relative_attention_num_buckets": 8,
  "relative_attention_max_distance": 20,
  "dropout_rate": 0.1,
  "layer_norm_epsilon": 1e-3,
  "initializer_factor": 1.0,
  "feed_forward_proj": "gated-gelu",
  "tie_word_embeddings": False,
  "pad_token_id": 0,
  "eos_token_id": 1,
  "decoder_start_token_id": 0,
}
BART = {
  "model_type": "bart",
  "d_model": 24,
  "encoder_layers": 1,
  "encoder_attention_heads": 3,
  "encoder_ffn_dim": 40,
  "decoder_layers": 2,
  "decoder_attention_heads": 4,
  "decoder_ffn_dim": 52,
  "max_position_embeddings": 64,
  "activation_function": "gelu",
  "scale_embedding": True,
  "dropout": 0.1,
  "attention_dropout": 0.1,
  "activation_dropout": 0.1,
  "init_std": 0.2,
  "tie_word_embeddings": True,
  "pad_token_id": 0,
  "eos_token_id": 1,
  "bos_token_id": 2,
  "decoder_start_token_id": 1,
  "forced_eos_token_id": 1,
}
# (family, task), and data.label_type where it is not "single"
PAIRS = (("bert", "classify"), ("bert", "number"), ("llama", "chat"), ("llama", "classify"))
RULE = optim.Rule(None, lambda update: 1.0)
SPANS = (("bert", "answer"), ("llama", "answer"))
TAGS = (("bert", "tag"), ("llama", "tag"))
# tokens (words, letters) of a window, and how many are shared
WINDOWS = {
  **{("bert", "answer"): (32, 8), ("llama", "answer"): (144, 24)},
  **{("bert", "tag"): (12, 4), ("llama", "tag"): (48, 16)},
}
MORE = (("bert", "multi"), ("bert", "masked_lm"))  # met in fewer layouts, to be quick
SEQ2SEQ = (("t5", "seq2seq"), ("bart", "seq2seq"))


def word_tokenizer():
  """[CLS] words [SEP], with token types for pairs, as BERT has them."""
  words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *FILLERS, *GOOD, *BAD]
  words += [f"w{i}" for i in range(60 - len(words))]
  words.append("[MASK]")
  backend = tokenizers.Tokenizer(
    models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]")
  )
  backend.normalizer = normalizers.Lowercase()
  backend.pre_tokenizer = pre_tokenizers.Whitespace()
  backend.post_processor = processors.TemplateProcessing(
    single="[CLS] $A [SEP]",
    pair="[CLS] $A [SEP] $B:1 [SEP]:1",
    special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
  )
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend,
    pad_token="[PAD]",
    unk_token="[UNK]",
    cls_token="[CLS]",
    sep_token="[SEP]",
    mask_token="[MASK]",
    model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    model_max_length=BERT["max_position_embeddings"],
  )


def letter_tokenizer(shape="chatml"):
  """Byte-level BPE over lower-case text, with the control tokens and template of `shape`.

  No merge reaches over the line end before an answer: there a token would be half prompt.
  """
  bos, eos, control, _ = templates.SHAPES[shape]
  special = [t for t in dict.fromkeys(("<|pad|>", bos, eos, *control)) if t]
  letters = [*"abcdefghijklmnopqrstuvwxyz0123456789.?!,'", "Ġ", "Ċ"]
  merges = [("Ġ", "t"), ("o", "o"), ("m", "e"), ("oo", "f")]
  pieces = [*special, *letters, *(a + b for a, b in merges)]
  backend = tokenizers.Tokenizer(
    models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=merges)
  )
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  backend.decoder = decoders.ByteLevel()
  backend.post_processor = processors.ByteLevel(trim_offsets=True)
  backend.add_special_tokens(special)
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend,
    bos_token=bos,
    eos_token=eos,
    pad_token="<|pad|>",
    chat_template=templates.template(shape),
    clean_up_tokenization_spaces=False,
  )


def source_tokenizer(form="$A </s>", special=("<pad>", "</s>", "<s>", "<unk>")):
  """Byte-level BPE over lower-case text, written as `form`; special tokens have ids 0, 1, …"""
  letters = [*"abcdefghijklmnopqrstuvwxyz0123456789.?!,':", "Ġ"]
  merges = [("Ġ", "t"), ("e", "i"), ("Ġ", "a"), ("i", "n")]
  pieces = [*special, *letters, *(a + b for a, b in merges)]
  backend = tokenizers.Tokenizer(
    models.BPE({p: i for i, p in enumerate(pieces)}, merges, unk_token="<unk>")
  )
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  backend.decoder = decoders.ByteLevel()
  backend.post_processor = processors.TemplateProcessing(
    single=form, special_tokens=[(token, i) for i, token in enumerate(special)]
  )
  backend.add_special_tokens(list(special))
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend,
    eos_token="</s>",
    pad_token="<pad>",
    unk_token="<unk>",
    bos_token="<s>" if "<s>" in form else None,
    clean_up_tokenization_spaces=False,
  )


def checkpoint(directory, family, seed=0, labels=(), kind=None, **changes):
  """Writes a random checkpoint as a Hugging Face directory and returns its path.

  BERT comes without a task head (BertModel), Llama as a language model; with labels each is
  a classifier of sentences; kind: of another head. changes: keys of config.json. The
  vocabulary of Llama is larger than the tokenizer's, as Qwen's is.
  """
  module, tokenizer = families.FAMILIES[family], word_tokenizer()
  config = BERT | {"vocab_size": len(tokenizer)}
  if family == "llama":
    tokenizer = letter_tokenizer()
    config = LLAMA | {"vocab_size": len(tokenizer) + 3}
  if family in ("t5", "bart", "mbart"):
    tokenizer = source_tokenizer("<s> $A </s>" if family == "bart" else "$A </s>")
    config = {"t5": T5, "bart": BART, "mbart": BART | {"model_type": "mbart"}}[family]
    config = config | {"vocab_size": len(tokenizer) + 3}
  config |= changes
  arch = module.architecture(config)
  kind = kind or ("sequence" if labels else "none" if family == "bert" else "lm")
  head = families.head_of(module, arch, kind, len(labels))
  params = networks.Network(arch, head).init(jax.random.key(seed))
  hf_directory.write(
    directory,
    source_config=config,
    family=module,
    arch=arch,
    head=head,
    params=unlike(params, seed),
    tokenizer=tokenizer,
    labels=labels,
  )
  return pathlib.Path(directory)


def unlike(params, seed=0):
  """The tree with noise on biases and norms, which `init` makes 0 and 1."""
  rng = np.random.default_rng(seed)

  def one(path, leaf):
    noisy = path[-1].key in ("bias", "scale")
    leaf = np.array(leaf, np.float32)
    return leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32) if noisy else leaf

  return jax.tree_util.tree_map_with_path(one, params)


def config(family, kind, model, data, **overrides):
  """A `Config` of few updates without dropout, penalty or TensorBoard.

  kind: the task as in PAIRS. overrides: dotted keys with "__" for the dot, such as
  optim__peak_lr=1.
  """
  settings = {
    "task": kind if kind in ("answer", "chat", "masked_lm", "seq2seq", "tag") else "classify",
    "steps": 4,
    "batch_size": 8,
    "model.path": str(model),
    "model.new_head": kind == "masked_lm",  # BERT comes without one
    "model.dropout": 0.0,
    "data.path": str(data),
    "data.id": "name",
    "data.split": 0.2,
    "data.label_type": kind if kind in ("number", "multi") else "single",
    "optim.peak_lr": 1e-2,
    "optim.schedule": "constant",
    "optim.warmup": 0.0,
    "evaluate.every": 0,
    "checkpoint.every": 0,
    "log.every": 1,
    "log.tensorboard": False,
  }
  if (family, kind) in WINDOWS:
    settings["data.max_length"], settings["data.stride"] = WINDOWS[family, kind]
  if kind in ("chat", "seq2seq"):
    settings["evaluate.max_new_tokens"] = 0
  if kind == "answer":
    settings["evaluate.null_threshold"] = 0.0
  if kind == "tag":
    settings["data.too_long"] = "windows"
  settings |= {key.replace("__", "."): value for key, value in overrides.items()}
  result = config_lib.Config()
  for key, value in settings.items():
    result = config_lib.override(result, key, value)
  return config_lib.check(result)


def devices(count, fsdp=1, tensor=1):
  """A mesh over the first `count` devices, where a config's mesh has to take them all."""
  return sharding.make_mesh(-1, fsdp, tensor, devices=jax.devices()[:count])


def on_devices(monkeypatch, count):
  """Lets configs see the first `count` devices only, as on a smaller machine."""
  few = lambda sizes: sharding.make_mesh(
    sizes.data, sizes.fsdp, sizes.tensor, sizes.context, devices=jax.devices()[:count]
  )
  monkeypatch.setattr(start, "mesh_of", few)


def write_config(path, config):
  """A config file whose get_config returns exactly `config`."""
  path.write_text(
    "import json\nfrom jaxsft import config\n"
    f"TREE = json.loads({json.dumps(config_lib.to_dict(config))!r})\n"
    "def get_config():\n  return config.from_dict(TREE)\n"
  )
  return path
