"""Writes the logits of torch encoders that machines without torch compare with.

  python -m tests.golden.make_encoders

Weights are numbers of numpy's generator, so that only logits need to be stored.
"""

import json
import pathlib
import tempfile

import jax
import numpy as np

from jaxsft import families, models
from tests.families import encoder_configs, torch_encoders

FILE = pathlib.Path(__file__).parent / "encoders.npz"
STEP = 5  # every fifth number of a vocabulary is stored
CASES = {
  f"{case}_{kind}": (case, kind)
  for case, kind in encoder_configs.HEADS
  if kind in ("masked_lm", "sequence")
}


def problem(name):
  """(network, params, batch, config) of a case."""
  case, kind = CASES[name]
  module, torch_config = torch_encoders.module_of(case), torch_encoders.config_of(case, kind)
  config = json.loads(torch_config.to_json_string())
  arch = module.architecture(config)
  head = families.head_of(module, arch, kind, torch_encoders.CLASSES)
  network = models.Network(arch, head)
  rng = np.random.default_rng(7)
  draw = lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32)
  params = jax.tree.map(draw, network.shapes())
  start = arch.max_positions - torch_encoders.LENGTH
  return network, params, torch_encoders.rows(arch.vocab, arch.types, start), config


def reference(name):
  """The torch logits of a case, at the real tokens of one text after another."""
  import torch
  import transformers

  case, kind = CASES[name]
  network, params, batch, config = problem(name)
  module = torch_encoders.module_of(case)
  with tempfile.TemporaryDirectory() as directory:
    torch_encoders.write(pathlib.Path(directory), network, params, module, config)
    model = getattr(transformers, module.CLASSES[kind]).from_pretrained(
      directory, attn_implementation="eager"
    )
  with torch.no_grad():
    found = [
      out.numpy() for *_, out in torch_encoders.outputs(torch, model.eval(), network, batch)
    ]
  return stored(found)


def stored(logits):
  """Of logits of each text, [C] or [n,C], what is stored."""
  every = np.concatenate([np.atleast_2d(one) for one in logits])
  return every[:, :: STEP if every.shape[1] > torch_encoders.CLASSES else 1]


def main():
  np.savez_compressed(FILE, **{name: reference(name) for name in CASES})


if __name__ == "__main__":
  main()
