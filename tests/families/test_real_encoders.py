"""Real encoders beside torch, there and back: `pytest -m full`, env JAXSFT_CHECKPOINTS.

The directory holds the checkpoints named below. Real text is compared: on random tokens
torch itself is far from its own float64.
"""

import os
import pathlib

import jax
import numpy as np
import pytest

from jaxsft import hf_directory, models, pretrained
from tests.families import record, torch_same

pytestmark = pytest.mark.full
ENGLISH = (
  "The history of computing is longer than the history of computing hardware and modern "
  "computing technology. You are a stupid idiot. They was there, without the aid of tables. "
)
CHINESE = "计算机的历史比计算机硬件和现代计算技术的历史更长。它包括用纸和笔进行计算的方法。"
CASES = {  # checkpoint -> the head that it is read with, its text, new leaves
  "all-minilm-l6-v2": ("none", ENGLISH, ()),
  "bert-tiny-toxicity": ("sequence", ENGLISH, ()),
  "granite-embedding-30m-english": ("none", ENGLISH, ("dense/bias", "dense/kernel")),
  "distilbert-cased-grammar-tagger": ("token", ENGLISH, ()),
  "m3e-small": ("none", CHINESE, ()),
}


@pytest.fixture
def checkpoints():
  if "JAXSFT_CHECKPOINTS" not in os.environ:
    pytest.skip("needs JAXSFT_CHECKPOINTS")
  with jax.default_matmul_precision("highest"):
    yield pathlib.Path(os.environ["JAXSFT_CHECKPOINTS"])


def rows(base, text):
  """Three rows of 120: whole, padded to the right, two texts packed."""
  ids = np.array(base.tokenizer(text * 9).input_ids[:120], np.int32)
  assert len(ids) == 120
  inputs, segments = np.stack([ids] * 3), np.ones((3, 120), np.int32)
  segments[1, 47:] = 0
  segments[2, 50:] = 2
  return {"inputs": inputs, "segments": segments, "example_ids": np.zeros((3, 2), np.int32)}


TEXTS = ((0, slice(0, 120)), (1, slice(0, 47)), (2, slice(0, 50)), (2, slice(50, 120)))


def ours(network, params, batch):
  read = network.hidden if network.head.kind == "none" else network.logits
  out = np.asarray(jax.jit(read)(params, batch))
  if network.head.kind == "sequence":
    return [out[row, batch["segments"][row, part.start] - 1] for row, part in TEXTS]
  return [out[row, part] for row, part in TEXTS]


def theirs(torch, directory, base, network, batch):
  import transformers

  name = base.family.CLASSES[network.head.kind]
  model = getattr(transformers, name).from_pretrained(
    directory, attn_implementation="eager", dtype="float32"
  )
  found = []
  with torch.no_grad():
    for row, part in TEXTS:  # padded to the right as far as the row goes
      inputs = np.where(np.arange(120) < part.stop - part.start, 0, base.tokenizer.pad_token_id)
      inputs[: part.stop - part.start] = batch["inputs"][row, part]
      mask = torch.tensor(np.arange(120) < part.stop - part.start).long()[None]
      out = model.eval()(torch.tensor(inputs).long()[None], attention_mask=mask)
      out = out.last_hidden_state if network.head.kind == "none" else out.logits
      out = out[0].numpy()
      found.append(out if network.head.kind == "sequence" else out[: part.stop - part.start])
  return found


@pytest.mark.parametrize("name", CASES)
def test_a_real_checkpoint_there_and_back(oracle, checkpoints, tmp_path, name):
  kind, text, new = CASES[name]
  base = pretrained.open_pretrained(checkpoints / name)
  assert base.kind == kind
  network = base.network_of(kind, len(base.labels))
  params, drawn = pretrained.load_params(base, network)
  assert drawn == new
  batch = rows(base, text)
  mine, reference = (
    ours(network, params, batch),
    theirs(oracle, checkpoints / name, base, network, batch),
  )
  worst = max(np.abs(a - b).max() for a, b in zip(mine, reference, strict=True))
  print(f"{name}: {worst:.1e} of {max(np.abs(b).max() for b in reference):.1f}")
  assert worst < 1e-4
  record.parity(base.config["model_type"], name, logits=worst)
  hf_directory.write(
    tmp_path / "export",
    source_config=base.config,
    family=base.family,
    arch=base.arch,
    head=network.head,
    params=params,
    tokenizer=base.tokenizer,
    labels=base.labels,
  )
  again = theirs(oracle, tmp_path / "export", base, network, batch)
  for a, b in zip(reference, again, strict=True):
    torch_same.same_outputs(a, b)
  back = pretrained.open_pretrained(tmp_path / "export")
  assert (back.arch, back.labels) == (base.arch, base.labels)
  tree, drawn = pretrained.load_params(back, network)
  assert not drawn
  jax.tree.map(np.testing.assert_array_equal, tree, params)


@pytest.mark.parametrize("name", ["granite-embedding-30m-english", "m3e-small"])
def test_a_real_base_gets_a_new_head(checkpoints, name):
  """RoBERTa's sequence head has no pooler; BERT's reads that of the checkpoint."""
  base = pretrained.open_pretrained(checkpoints / name)
  network = base.network("classify", ("no", "yes"))
  params, new = pretrained.load_params(base, network)
  own = ("head/bias", "head/kernel")
  roberta = base.config["model_type"] == "roberta"
  assert new == (("dense/bias", "dense/kernel", *own) if roberta else own)
  assert isinstance(network, models.Network) and set(params) == {
    "embed",
    "layers",
    "dense",
    "head",
  }
