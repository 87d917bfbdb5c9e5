"""Writes the logits of torch's decoders that machines without torch compare with.

  python -m tests.golden.make_decoders

Weights are numbers of numpy's generator, so that only logits need to be stored: of a padded
row, a packed one and one with far positions, of the first words of the vocabulary.
"""

import json
import pathlib
import tempfile

import jax
import numpy as np

from jaxsft import families, models
from tests.families import decoder_configs, torch_decoders

FILE = pathlib.Path(__file__).with_name("decoders.npz")
ROWS, WORDS = (1, 3, 4), 12


def problem(case):
  """(network, params, rows) of a case."""
  module = families.FAMILIES[decoder_configs.family_of(case)]
  config = json.loads(decoder_configs.config_of(case).to_json_string())
  arch = module.architecture(config)
  network = models.Network(arch, families.head_of(module, arch, "lm"))
  rng = np.random.default_rng(7)
  draw = lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32)
  params = jax.tree.map(draw, network.shapes())
  far = decoder_configs.FAR.get(case, 8200)
  return network, params, torch_decoders.batch(network.arch.vocab, far)


def reference(case):
  """The torch logits of a case, 0 at padding."""
  import torch
  import transformers

  network, params, rows = problem(case)
  module = families.FAMILIES[decoder_configs.family_of(case)]
  logits = np.zeros((*rows["inputs"].shape, WORDS), np.float32)
  with tempfile.TemporaryDirectory() as directory, torch.no_grad():
    torch_decoders.write(pathlib.Path(directory), case, network, params)
    model = getattr(transformers, module.CLASSES["lm"]).from_pretrained(
      directory, attn_implementation="eager"
    )
    for row, columns, real, out in torch_decoders.run(torch, model.eval(), rows):
      logits[row, columns] = np.where(real[:, None], out.logits[0, :, :WORDS], 0)
  return logits[list(ROWS)]


def main():
  np.savez_compressed(FILE, **{case: reference(case) for case in decoder_configs.CONFIGS})


if __name__ == "__main__":
  main()
