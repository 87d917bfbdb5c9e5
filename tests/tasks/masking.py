"""Rows, settings and batches that the tests of masked_lm share."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsft import config, tasks
from jaxsft.tasks import masked_lm
from tests import tiny


class Row(NamedTuple):
  id: str
  where: str
  fields: dict[str, Any]


def row(text):
  return Row("a", "rows.jsonl:7", {"text": text})


def context(tokenizer=None, max_length=20, **settings):
  return tasks.Context(tokenizer or tiny.word_tokenizer(), max_length, **settings)


def options(place=None, **settings):
  """masked_lm.Options of a context and settings of the loss or of Options themselves."""
  loss = {k: v for k, v in settings.items() if k in ("weighting", "label_smoothing", "z_loss")}
  found = masked_lm.options(config.Loss(**loss), place or context())
  rest = {k: v for k, v in settings.items() if k not in loss}
  return dataclasses.replace(found, **rest)


def drawn(segments, words=False, vocab=60, seed=0, **weights):
  """A batch of random tokens with segments [R,T] (0: padding) and seeds of their own."""
  rng, segments = np.random.default_rng(seed), np.asarray(segments, np.int32)
  positions = np.zeros_like(segments)
  for r, line in enumerate(segments):
    for m in set(line.tolist()) - {0}:
      positions[r, line == m] = np.arange((line == m).sum())
  able = (segments > 0) & (positions > 0)  # the first is special
  batch = {
    "inputs": rng.integers(4, vocab, segments.shape).astype(np.int32),
    "segments": segments,
    "positions": positions,
    "weights": able.astype(np.float32),
    "seeds": rng.integers(0, 2**32, (len(segments), segments.max()), np.uint32),
  }
  if words:
    batch["words"] = positions // 3
  return {k: jnp.asarray(v) for k, v in batch.items()}


def hidden(batch, settings):
  masked, inputs = jax.jit(lambda b: masked_lm.hide(b, settings))(batch)
  return np.asarray(masked), np.asarray(inputs)
