"""Writes the logits of torch transformers that machines without torch compare with.

  python -m tests.golden.make_golden

Weights are numbers of numpy's generator, so that only logits need to be stored.
"""

import pathlib

import jax
import numpy as np

from tests.models import tiny, torch_weights

DIRECTORY = pathlib.Path(__file__).parent
LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
CASES = {  # name -> family, head, changes of the tiny config
  "bert_sequence": ("bert", "sequence", {}),
  "llama_tied": ("llama", "lm", {}),
  "llama_untied_biases": (
    "llama",
    "lm",
    {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True},
  ),
  "llama_linear": ("llama", "lm", {"rope_parameters": LINEAR}),
  "llama_llama3": ("llama", "lm", {"rope_parameters": torch_weights.LLAMA3}),
  "llama_sequence": ("llama", "sequence", {}),
}


def problem(name):
  """(network, params, batch) of a case: two rows, the second padded; some far positions."""
  family, kind, changes = CASES[name]
  network, _ = tiny.network(family, kind, changes=changes)
  rng = np.random.default_rng(7)
  draw = lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32)
  params = jax.tree.map(draw, network.shapes())
  inputs = rng.integers(1, network.arch.vocab, (2, 9)).astype(np.int32)
  segments = (np.arange(9) < np.array([[9], [5]])).astype(np.int32)
  positions = np.tile(np.arange(9, dtype=np.int32), (2, 1))
  if family == "llama":
    positions[:, 4:] += 8200
  return (
    network,
    params,
    {
      "inputs": inputs * segments,
      "segments": segments,
      "positions": positions * segments,
    },
  )


def reference(name):
  """The torch logits of a case, at the real tokens."""
  import torch

  family, kind, changes = CASES[name]
  network, params, batch = problem(name)
  model, *_ = torch_weights.make(torch, family, kind, **changes)
  torch_weights.store(params, model, network, family)
  segments = batch["segments"]
  mask = (segments[:, None, None, :] != 0) & (segments[:, None, :, None] != 0)
  if family == "llama":
    mask &= np.tril(np.ones((9, 9), bool))
  with torch.no_grad():
    logits = model(
      torch.tensor(batch["inputs"]).long(),
      position_ids=torch.tensor(batch["positions"]).long(),
      attention_mask=torch.where(torch.tensor(mask), 0.0, -1e30),
    ).logits
  return logits.numpy() if kind == "sequence" else logits.numpy()[segments == 1]


def main():
  np.savez_compressed(DIRECTORY / "logits.npz", **{name: reference(name) for name in CASES})


if __name__ == "__main__":
  main()
