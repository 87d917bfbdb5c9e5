"""Writes the logits of torch encoder-decoders that machines without torch compare with.

  python -m tests.golden.make_encoder_decoders

Weights are numbers of numpy's generator, so that only logits need to be stored.
"""

import json
import pathlib
import tempfile

import jax
import numpy as np

from jaxsft import families, models
from tests.families import encoder_decoder_configs as configs
from tests.families import torch_encoder_decoders

FILE = pathlib.Path(__file__).parent / "encoder_decoders.npz"
STEP = 5  # every fifth number of a vocabulary is stored


def problem(case):
  """(network, params, rows) of a case."""
  module = families.FAMILIES[configs.family_of(case)]
  arch = module.architecture(json.loads(configs.config_of(case).to_json_string()))
  network = models.Network(arch, families.head_of(module, arch, "lm"))
  rng = np.random.default_rng(7)
  draw = lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32)
  return network, jax.tree.map(draw, network.shapes()), torch_encoder_decoders.rows(arch)


def reference(case):
  """The torch logits of a case, at the real tokens of one text after another."""
  import torch

  network, params, rows = problem(case)
  with tempfile.TemporaryDirectory() as directory:
    torch_encoder_decoders.write(pathlib.Path(directory), case, network, params)
    module = families.FAMILIES[configs.family_of(case)]
    model, *_ = torch_encoder_decoders.opened(directory, module)
  with torch.no_grad():
    found = [out.numpy() for *_, out in torch_encoder_decoders.run(torch, model, rows)]
  return np.concatenate(found)[:, ::STEP]


def stored(logits, rows):
  """Of logits [B,T,V], what is stored."""
  masks = [(row, target) for row, _, target in torch_encoder_decoders.texts(rows)]
  return np.concatenate([logits[row, target] for row, target in masks])[:, ::STEP]


def main():
  np.savez_compressed(FILE, **{case: reference(case) for case in configs.CONFIGS})


if __name__ == "__main__":
  main()
