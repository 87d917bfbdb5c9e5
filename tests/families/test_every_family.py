"""What holds for every family alike: it lies on a mesh, trains, and is exported for all."""

import json
import os
import pathlib
import subprocess
import tempfile

import jax
import numpy as np
import pytest

from jaxsft import families, hf_directory, models, pretrained, sharding, tokenizer, train
from tests import tiny
from tests.families import every

HEADS = {  # architecture -> the heads whose weights have places on a mesh
  models.encoder.EncoderConfig: ("masked_lm", "sequence"),
  models.decoder.DecoderConfig: ("lm", "sequence"),
  models.encoder_decoder.EncoderDecoderConfig: ("lm", "sequence"),
}


def opened(case, **changes):
  """(config.json, family module, architecture) of a case."""
  config = every.config(case, **changes)
  module = families.FAMILIES[config["model_type"]]
  return config, module, module.architecture(config)


def test_every_family_has_a_case():
  found = {every.config(case)["model_type"] for case in every.CASES}
  assert found == set(families.FAMILIES)


@pytest.mark.parametrize("case", every.CASES)
def test_every_leaf_has_its_place_on_a_mesh(case):
  """No leaf is without a rule, and all but vectors and odd sizes are split by fsdp."""
  _, module, arch = opened(case)
  mesh = sharding.make_mesh(2, 2, 2)
  for kind in HEADS[type(arch)]:
    network = models.Network(arch, families.head_of(module, arch, kind, 4))
    places = sharding.shardings_for(network.shapes(), mesh)
    shapes = jax.tree.leaves(network.shapes())
    for leaf, place in zip(shapes, jax.tree.leaves(places), strict=True):
      matrix = len([n for n in leaf.shape if n > 1]) > 1 and leaf.size > 600
      if matrix and any(n % 2 == 0 for n in leaf.shape[-2:]):
        assert place.shard_shape(leaf.shape) != leaf.shape, (leaf, place)


def opened_tokenizer(config, which):
  """A tokenizer of ours as a checkpoint of this model_type has it: its class may add to it."""
  words = tiny.letter_tokenizer() if which == "letters" else tiny.word_tokenizer()
  with tempfile.TemporaryDirectory() as directory:
    root = pathlib.Path(directory)
    tokenizer.save_tokenizer(words, root)
    (root / "config.json").write_text(json.dumps(config))
    return tokenizer.load_tokenizer(root)


def written(case, directory, kind, **changes):
  """A Hugging Face directory of random weights with a tokenizer of ours: (network, params)."""
  config, module, arch = opened(case, **changes)
  words = opened_tokenizer(config, "letters" if kind == "lm" else "words")
  head = families.head_of(module, arch, kind, 2)
  network = models.Network(arch, head)
  params = tiny.unlike(network.init(jax.random.key(0)))
  hf_directory.write(
    directory,
    source_config=config,
    family=module,
    arch=arch,
    head=head,
    params=params,
    tokenizer=words,
    labels=["neg", "pos"] if kind == "sequence" else [],
  )
  return network, params


def torch_logits(torch, directory, tokens):
  """What torch says of token ids [1,T] after loading a directory by its class."""
  import transformers

  config = json.loads((pathlib.Path(directory) / "config.json").read_text("utf-8"))
  name = config["architectures"][0]
  model, info = getattr(transformers, name).from_pretrained(
    directory, attn_implementation="eager", output_loading_info=True
  )
  assert not info["missing_keys"] and not info["unexpected_keys"], info
  with torch.no_grad():
    out = model.eval()(torch.tensor(tokens).long())
  return (out.logits if "logits" in out else out.last_hidden_state).numpy()


TRAINED = [  # encoder-decoders have no task yet
  case for case in every.CASES if case not in every.encoder_decoder_configs.CONFIGS
]


@pytest.mark.full
@pytest.mark.parametrize("case", TRAINED)
def test_it_trains_and_torch_loads_the_export(oracle, case, tmp_path):
  """From a directory to a directory: losses are finite, all weights move, logits agree."""
  encoder = case in every.encoder_configs.TINY
  kind, task = ("sequence", "classify") if encoder else ("lm", "chat")
  longer = {} if encoder else {"vocab_size": 80}
  if case in ("gpt2", "gpt2-plain", "opt", "opt-350m"):
    longer["n_positions" if "gpt2" in case else "max_position_embeddings"] = 96
  written(case, tmp_path / "base", kind, **longer)
  rows = tiny.rows(tmp_path / "rows.jsonl", task)
  config = tiny.config(
    case, task, tmp_path / "base", rows, steps=6, optim__peak_lr=3e-3, model__dropout=None
  )
  run = train.finetune(config, workdir=str(tmp_path / "run"))
  lines = (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
  losses = [json.loads(line)["loss"] for line in lines if '"loss"' in line]
  assert len(losses) == 6 and np.isfinite(losses).all()
  before, after = pretrained.load(tmp_path / "base"), pretrained.load(run.export)
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max() > 0, before.params, after.params)
  assert all(jax.tree.leaves(moved)), moved
  tokens = np.array([[2, 5, 7, 11, 13, 3]], np.int32)
  theirs = torch_logits(oracle, run.export, tokens)
  np.testing.assert_allclose(after.logits(tokens), theirs, atol=1e-3, rtol=1e-4)


READER = """
import json, pathlib, sys
import numpy as np, torch, transformers
assert transformers.__version__.startswith("4."), transformers.__version__
tokens = torch.tensor([[2, 5, 7, 11, 13, 3, 8, 9, 21, 22, 23, 24]])

def read(directory):
  name = json.loads((directory / "config.json").read_text())["architectures"][0]
  transformers.AutoTokenizer.from_pretrained(directory)
  model, info = getattr(transformers, name).from_pretrained(
    directory, attn_implementation="eager", output_loading_info=True)
  assert not info["missing_keys"] and not info["unexpected_keys"], info
  more = {"decoder_input_ids": tokens[:, :5]} if model.config.is_encoder_decoder else {}
  with torch.no_grad():
    return model.eval()(tokens, attention_mask=torch.ones_like(tokens), **more).logits.numpy()

for directory in map(pathlib.Path, sys.argv[1:]):
  try:
    np.save(directory / "logits.npy", read(directory))
  except Exception as error:
    (directory / "error.txt").write_text(repr(error))
"""


@pytest.mark.full
def test_exports_are_read_by_transformers_4(tmp_path):
  """Env JAXSFT_TRANSFORMERS4: a Python interpreter that has it, with torch."""
  python = os.environ.get("JAXSFT_TRANSFORMERS4")
  if not python:
    pytest.skip("needs JAXSFT_TRANSFORMERS4, a Python with transformers 4 and torch")
  made = {}
  for case in every.CASES:
    if case == "marian-separate":  # a decoder's own vocabulary: 4.57 expects the encoder's size
      continue
    kind = HEADS[type(opened(case)[2])][0]
    made[case] = written(case, tmp_path / case, kind)
  tokens = np.array([[2, 5, 7, 11, 13, 3, 8, 9, 21, 22, 23, 24]], np.int32)
  done = subprocess.run(
    [python, "-c", READER, *(str(tmp_path / case) for case in made)],
    capture_output=True,
    text=True,
    env={**os.environ, "PYTHONPATH": ""},
  )
  assert done.returncode == 0, done.stderr[-3000:]
  wrong = {}
  for case, (network, params) in made.items():
    if (tmp_path / case / "error.txt").is_file():
      wrong[case] = (tmp_path / case / "error.txt").read_text()
      continue
    batch = {"inputs": tokens}
    if network.has_source:
      batch = {"source": tokens, "inputs": tokens[:, :5]}
    ours = np.asarray(network.logits(params, batch))
    difference = np.abs(ours - np.load(tmp_path / case / "logits.npy")).max()
    if not difference < 1e-3:
      wrong[case] = float(difference)
  assert not wrong, wrong
