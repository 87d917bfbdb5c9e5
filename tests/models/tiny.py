"""Tiny networks of ours with unequal sizes, and random rows; no torch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxsft import families, models
from tests.models import torch_weights

CONFIGS = {"bert": torch_weights.BERT, "llama": torch_weights.LLAMA}


def network(family, kind, classes=3, changes=None, **settings):
  """(network, params) of the tiny config."""
  module = families.FAMILIES[family]
  arch = module.architecture({**CONFIGS[family], **(changes or {}), "model_type": family})
  head = families.head_of(module, arch, kind, classes if kind != "lm" else 0)
  net = models.Network(arch, head, **settings)
  return net, net.init(jax.random.key(0))


@partial(jax.jit, static_argnums=0)
def hidden(net, *args):
  """`net.hidden`, as one program: an operation at a time each would be one of its own."""
  return net.hidden(*args)


@partial(jax.jit, static_argnums=0)
def logits(net, *args):
  """`net.logits`, as one program."""
  return net.logits(*args)


@partial(jax.jit, static_argnums=0)
def decode(net, params, inputs, cache, segments=None):
  """`net.decode`, as one program."""
  return net.decode(params, inputs, cache, segments=segments)


def keys_of_dropout(monkeypatch, run):
  """The keys that `run()` draws masks with, [n, 2] integers, in their order."""
  keys, bits = [], jax.random.bits
  monkeypatch.setattr(jax.random, "bits", lambda key, *a: keys.append(key) or bits(key, *a))

  def collect():
    keys.clear()
    run()
    return jnp.stack([jax.random.key_data(key) for key in keys])

  return np.asarray(jax.jit(collect)())


def rows(vocab, lengths, seed=0):
  """Random examples of the given lengths."""
  rng = np.random.default_rng(seed)
  return [rng.integers(1, vocab, n).astype(np.int32) for n in lengths]


def packed(examples, padding=3):
  """One row [1,T] with every example a segment."""
  segments = np.repeat(np.arange(1, len(examples) + 1), [len(e) for e in examples])
  inputs = np.pad(np.concatenate(examples), (0, padding))
  return {
    "inputs": inputs[None].astype(np.int32),
    "segments": np.pad(segments, (0, padding))[None].astype(np.int32),
    "labels": np.zeros((1, len(examples)), np.int32),
  }
