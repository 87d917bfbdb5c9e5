"""Tiny torch decoders, the same weights read by our loader, and rows of every kind."""

import functools
import json
import pathlib
import tempfile

import numpy as np

from jaxsft import families, hf_directory, models, weights
from tests.families import decoder_configs

LENGTH = 14


def make(torch, case, kind="lm", classes=3, **changes):
  """(torch model in eval mode, network): random weights, norms and biases not neutral."""
  import transformers

  module = families.FAMILIES[decoder_configs.family_of(case)]
  more = {} if kind in ("lm", "none") else {"num_labels": classes}
  config = decoder_configs.config_of(case, **changes, **more)
  config._experts_implementation = "eager"
  torch.manual_seed(0)
  name = module.CLASSES.get(kind, module.CLASSES["none"])
  model = getattr(transformers, name)._from_config(config, attn_implementation="eager")
  with torch.no_grad():
    for path, tensor in model.named_parameters():
      if tensor.ndim == 1:
        tensor.add_(0.3 * torch.randn_like(tensor))
      elif "experts" in path or path.endswith("gate.weight"):  # not all of these are drawn
        tensor.copy_(0.3 * torch.randn_like(tensor))
  arch = module.architecture(json.loads(config.to_json_string()))
  return model.eval(), models.Network(arch, families.head_of(module, arch, kind, classes))


def read(model, network, module):
  """Our parameters of a torch model, through the files that transformers writes."""
  with tempfile.TemporaryDirectory() as directory:
    model.save_pretrained(directory)
    return load(pathlib.Path(directory), network, module)


def load(directory, network, module):
  """Our parameters of a directory; every leaf must be there."""
  source = weights.open_source(directory)
  params, report = weights.load(
    source,
    module.names(network.arch, network.head),
    network.shapes(),
    base_prefix=families.prefix_of(module, network.head.kind),
    ignored=module.IGNORED,
    tied=module.TIED,
  )
  assert not report.new
  return params


def write(directory, case, network, params):
  """What an export writes, without a tokenizer."""
  module = families.FAMILIES[decoder_configs.family_of(case)]
  config = json.loads(decoder_configs.config_of(case).to_json_string())
  labels = [f"name{i}" for i in range(network.head.classes)]
  out = module.export_config(config, network.arch, network.head, labels, "float32")
  (directory / "config.json").write_text(json.dumps(out))
  hf_directory._write_weights(
    directory, module, network.arch, network.head, params, np.dtype("float32")
  )
  return out


def gradients(torch, model, network, module):
  """The torch gradients as our tree."""
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
  return read(model, network, module)


@functools.cache
def batch(vocab, far):
  """Rows [5,T]: whole, padded right, padded left, two examples packed, and far positions."""
  rng = np.random.default_rng(0)
  inputs = rng.integers(1, vocab, (5, LENGTH)).astype(np.int32)
  segments = np.ones((5, LENGTH), np.int32)
  segments[1, 11:] = 0
  segments[2, :3] = 0
  segments[3, 9:] = 2
  positions = np.tile(np.arange(LENGTH, dtype=np.int32), (5, 1))
  positions[2] -= 3
  positions[3, 9:] -= 9
  positions[4, 1:] += far  # distances as far as the positions
  filled = segments != 0
  targets = rng.integers(0, vocab, (5, LENGTH)).astype(np.int32)
  return {
    "inputs": inputs * filled,
    "segments": segments,
    "positions": positions * filled,
    "targets": targets,
  }


def rows_of(rows):
  """(row, slice, padding slice) of every text: what torch is given, one at a time."""
  return [
    (row, columns, rows["segments"][row, columns])
    for row, columns in (
      (0, slice(None)),
      (1, slice(None)),
      (2, slice(None)),
      (3, slice(0, 9)),
      (3, slice(9, None)),
      (4, slice(None)),
    )
  ]


def run(torch, model, rows):
  """Torch's outputs a text at a time: yields (row, columns, mask, output)."""
  for row, columns, mask in rows_of(rows):
    mask = (mask != 0).astype(np.int64)[None]
    take = lambda name, row=row, columns=columns: torch.tensor(rows[name][row, columns]).long()
    out = model(
      take("inputs")[None],
      position_ids=take("positions")[None],
      attention_mask=torch.tensor(mask),
    )
    yield row, columns, mask[0] != 0, out
