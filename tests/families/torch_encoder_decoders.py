"""Tiny torch encoder-decoders, the same weights read by our loader, and rows of every kind."""

import functools
import json
import pathlib
import tempfile

import numpy as np

from jaxsft import families, hf_directory, models, weights
from tests.families import encoder_decoder_configs as configs

SOURCE, TARGET = 17, 14
FIRST = 3  # ids below are special


def saved(torch, case, directory, kind="lm", **changes):
  """Writes a random torch model; norms, biases and logit biases are not neutral.

  transformers 5 ties T5's head by force, but for a file in which it differs.
  """
  import transformers

  more = {} if kind in ("lm", "none", "span") else {"num_labels": 3}
  config = configs.config_of(case, **changes, **more)
  untied = configs.CONFIGS[case][1].get("tie_word_embeddings") is False
  torch.manual_seed(0)
  module = families.FAMILIES[configs.family_of(case)]
  model = getattr(transformers, module.CLASSES[kind])._from_config(config)
  with torch.no_grad():
    if untied and kind == "lm":
      model.lm_head.weight = torch.nn.Parameter(0.3 * torch.randn_like(model.lm_head.weight))
    for tensor in model.parameters():
      if tensor.ndim == 1:
        tensor.add_(0.3 * torch.randn_like(tensor))
    if hasattr(model, "final_logits_bias"):
      model.final_logits_bias.normal_()
  model.save_pretrained(directory)


def opened(directory, module, kind="lm"):
  """(torch model in eval mode, network, params) of a directory; every leaf must be there."""
  import transformers

  model, info = getattr(transformers, module.CLASSES[kind]).from_pretrained(
    directory, attn_implementation="eager", output_loading_info=True
  )
  assert not info["missing_keys"] and not info["unexpected_keys"], info
  network, params = read(directory, module, kind)
  return model.eval(), network, params


def read(directory, module, kind="lm"):
  """(network, params) of a directory."""
  source = weights.open_source(pathlib.Path(directory))
  arch = module.architecture(source.config)
  head = families.head_of(module, arch, kind, 3)
  network = models.Network(arch, head)
  params, report = weights.load(
    source,
    module.names(arch, head),
    network.shapes(),
    base_prefix=families.prefix_of(module, kind),
    ignored=module.IGNORED,
    tied=module.TIED,
  )
  assert not report.new, report.new
  return network, params


def write(directory, case, network, params):
  """What an export writes, without a tokenizer."""
  module = families.FAMILIES[configs.family_of(case)]
  config = json.loads(configs.config_of(case).to_json_string())
  labels = [f"name{i}" for i in range(network.head.classes)]
  out = module.export_config(config, network.arch, network.head, labels, "float32")
  (directory / "config.json").write_text(json.dumps(out))
  hf_directory._write_weights(
    directory, module, network.arch, network.head, params, np.dtype("float32")
  )
  return out


def gradients(torch, model, module):
  """The torch gradients as our tree."""
  with torch.no_grad():
    for parameter in model.parameters():
      grad = parameter.grad
      parameter.copy_(torch.zeros_like(parameter) if grad is None else grad)
    if hasattr(model, "final_logits_bias"):
      model.final_logits_bias.zero_()  # a buffer
  with tempfile.TemporaryDirectory() as directory:
    model.save_pretrained(directory)
    return read(directory, module)[1]


def rows(arch):
  """Rows [4,T] and sources [4,S]: whole, padded right, padded left, two examples packed."""
  start = FIRST if arch.decoder_start is None else arch.decoder_start
  return _rows(arch.vocab, arch.source_vocab or arch.vocab, start)


@functools.cache
def _rows(vocab, source_vocab, start):
  rng = np.random.default_rng(0)
  found = {}
  for name, length, limit, right, left, cut in (
    ("", TARGET, vocab, 11, 3, 5),
    ("source_", SOURCE, source_vocab, 12, 4, 11),
  ):
    segments = np.ones((4, length), np.int32)
    segments[1, right:] = 0
    segments[2, :left] = 0
    segments[3, cut:] = 2
    places = np.tile(np.arange(length, dtype=np.int32), (4, 1))
    places[2] -= left
    places[3, cut:] -= cut
    tokens = rng.integers(FIRST, limit, (4, length)).astype(np.int32)
    if not name:
      tokens = np.where(places == 0, start, tokens)
    found |= {f"{name}segments": segments, f"{name}positions": places * (segments != 0)}
    found["source" if name else "inputs"] = tokens * (segments != 0)
  found["targets"] = rng.integers(FIRST, vocab, (4, TARGET)).astype(np.int32)
  return found


def texts(rows):
  """(row, mask of its source, mask of its target) of every example."""
  for row, segment in ((0, 1), (1, 1), (2, 1), (3, 1), (3, 2)):
    yield row, rows["source_segments"][row] == segment, rows["segments"][row] == segment


def run(torch, model, rows):
  """Torch's outputs an example at a time: (row, mask of its target, logits [T,V]).

  The second is padded as its row is; BART's positions are places, so that a row that is
  padded on the left must be its text alone.
  """
  for row, source, target in texts(rows):
    if row == 1:
      source, target = np.ones_like(source), np.ones_like(target)
    take = lambda name, mask, row=row: torch.tensor(rows[name][row, mask]).long()[None]
    out = model(
      input_ids=take("source", source),
      attention_mask=(take("source_segments", source) > 0).long(),
      decoder_input_ids=take("inputs", target),
      decoder_attention_mask=(take("segments", target) > 0).long(),
    )
    real = rows["segments"][row] == 1 if row == 1 else target
    yield row, real, out.logits[0][: real.sum()] if row == 1 else out.logits[0]
