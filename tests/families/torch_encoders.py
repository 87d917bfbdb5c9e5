"""Tiny torch encoders, the same weights read by our loader, and rows of every kind."""

import functools
import json
import pathlib
import tempfile

import numpy as np

from jaxsft import families, hf_directory, models, weights
from tests.families import encoder_configs

LENGTH = 16
CLASSES = 3
ROWS = (  # (row, columns, segment) of every text
  (0, slice(0, 16), 1),  # the whole row, from a later position on
  (1, slice(0, 11), 1),  # padded to the right
  (2, slice(5, 16), 1),  # padded to the left
  (3, slice(0, 7), 1),  # packed
  (3, slice(7, 13), 2),
)


def config_of(case, kind, **changes):
  """The torch config of a case."""
  import transformers

  model_type, fields = encoder_configs.TINY[case]
  config = transformers.AutoConfig.for_model(model_type, **{**fields, **changes})
  if kind in ("sequence", "token"):
    config.num_labels = CLASSES
  return config


def make(torch, case, kind, **changes):
  """(torch model in eval mode, network, config as a dict): random, norms and biases too."""
  import transformers

  config = config_of(case, kind, **changes)
  module = families.FAMILIES[config.model_type]
  torch.manual_seed(0)
  model = getattr(transformers, module.CLASSES[kind])._from_config(
    config, attn_implementation="eager"
  )
  with torch.no_grad():
    for tensor in model.parameters():
      if tensor.ndim == 1:  # torch makes them 1 and 0
        tensor.add_(0.3 * torch.randn_like(tensor))
      else:  # some families draw them smaller
        tensor.copy_(0.3 * torch.randn_like(tensor))
  found = json.loads(config.to_json_string())
  arch = module.architecture(found)
  head = families.head_of(module, arch, kind, CLASSES)
  return model.eval(), models.Network(arch, head), found


def module_of(case):
  return families.FAMILIES[encoder_configs.TINY[case][0]]


def read(model, network, module):
  """Our parameters of a torch model, through the files that transformers writes."""
  with tempfile.TemporaryDirectory() as directory:
    model.save_pretrained(directory)
    source = weights.open_source(pathlib.Path(directory))
    params, report = weights.load(
      source,
      module.names(network.arch, network.head),
      network.shapes(),
      base_prefix=families.prefix_of(module, network.head.kind),
      ignored=module.IGNORED,
      tied=module.TIED,
    )
  assert not report.new and not report.ignored
  return params


def gradients(torch, model, network, module):
  """The torch gradients as our tree; the model is lost."""
  with torch.no_grad():
    for parameter in model.parameters():
      none = parameter.grad is None
      parameter.copy_(torch.zeros_like(parameter) if none else parameter.grad)
  return read(model, network, module)


def write(directory, network, params, module, config):
  """What an export writes, without a tokenizer."""
  labels = [f"name{i}" for i in range(network.head.classes)]
  out = module.export_config(config, network.arch, network.head, labels, "float32")
  (directory / "config.json").write_text(json.dumps(out))
  hf_directory._write_weights(
    directory, module, network.arch, network.head, params, np.dtype("float32")
  )
  return out


@functools.cache
def rows(vocab, types, start):
  """A batch [4,T] of ROWS; ids from 3 on. start: of the first row's positions."""
  rng = np.random.default_rng(0)
  shape = (4, LENGTH)
  inputs = rng.integers(3, vocab, shape).astype(np.int32)
  token_types = rng.integers(0, max(types, 1), shape).astype(np.int32)
  segments, positions = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
  for row, columns, segment in ROWS:
    segments[row, columns] = segment
    size = columns.stop - columns.start
    positions[row, columns] = np.arange(size) + (start if row == 0 else 0)
  return {
    "inputs": inputs,  # padding is found by its segment, never by its id
    "segments": segments,
    "positions": positions,
    "token_types": token_types,
    "example_ids": np.zeros((4, 2), np.int32),
  }


def outputs(torch, model, network, batch):
  """(row, columns, segment, logits) of torch for each text: [C], or [n,C] of its tokens.

  Where a model reads its row's first token, padding to the left is left out.
  """
  kind, arch = network.head.kind, network.arch
  for row, columns, segment in ROWS:
    padded = row in (1, 2) and not (row == 2 and kind == "sequence")
    part = slice(None) if padded else columns
    take = lambda name, row=row, part=part: torch.tensor(batch[name][row, part]).long()[None]
    given = {
      "attention_mask": (take("segments") == segment).long(),
      "position_ids": take("positions") + arch.position_offset,
    }
    if arch.types:
      given["token_type_ids"] = take("token_types")
    out = model(take("inputs"), **given)
    if kind == "sequence":
      yield row, columns, segment, out.logits[0]
      continue
    logits = (
      out.logits if kind != "span" else torch.stack([out.start_logits, out.end_logits], -1)
    )
    yield row, columns, segment, logits[0, columns] if padded else logits[0]
