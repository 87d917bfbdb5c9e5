"""Real encoders beside torch: `pytest -m full`, env JAXSFT_CHECKPOINTS, which holds
all-minilm-l6-v2."""

import json
import os
import pathlib

import jax
import numpy as np
import pytest

from jaxsft import families, models
from tests.models import torch_weights

pytestmark = pytest.mark.full
TEXT = (
  "The history of computing is longer than the history of computing hardware and modern "
  "computing technology. It includes methods intended for pen and paper or for chalk and "
  "slate, with or without the aid of tables. "
)


@pytest.fixture
def checkpoints():
  if "JAXSFT_CHECKPOINTS" not in os.environ:
    pytest.skip("needs JAXSFT_CHECKPOINTS")
  with jax.default_matmul_precision("highest"):
    yield pathlib.Path(os.environ["JAXSFT_CHECKPOINTS"])


def open_both(directory, kind):
  """(torch model, network, params, ids of the text)."""
  import tokenizers
  import transformers

  config = json.loads((directory / "config.json").read_text())
  module = families.FAMILIES[config["model_type"]]
  model = getattr(transformers, module.CLASSES[kind]).from_pretrained(
    directory, attn_implementation="eager", dtype="float32"
  )
  arch = module.architecture(config)
  network = models.Network(arch, families.head_of(module, arch, kind))
  tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
  tokenizer.no_truncation()
  tokenizer.no_padding()
  ids = np.array(tokenizer.encode(TEXT * 5).ids, np.int32)[:120]
  params = torch_weights.load(model.state_dict(), module, network)
  return model.eval(), network, params, ids


def test_minilm(oracle, checkpoints):
  model, network, params, ids = open_both(checkpoints / "all-minilm-l6-v2", "none")
  inputs = np.stack([ids, np.where(np.arange(120) < 47, ids, 0)])
  segments = (np.arange(120) < np.array([[120], [47]])).astype(np.int32)
  for start in (0, 390):
    positions = np.tile(np.arange(start, start + 120, dtype=np.int32), (2, 1))
    with oracle.no_grad():
      theirs = model(
        oracle.tensor(inputs).long(),
        attention_mask=oracle.tensor(segments),
        position_ids=oracle.tensor(positions).long(),
      ).last_hidden_state.numpy()
    batch = {"inputs": inputs, "segments": segments, "positions": positions}
    ours = np.asarray(jax.jit(network.hidden)(params, batch))
    difference = np.abs(ours - theirs)[segments == 1].max()
    print(f"MiniLM from position {start}: {difference:.1e}")
    assert difference < 1e-4
