"""Qwen 2 and 2.5 (arXiv:2407.10671): biases on q, k and v, windows in the upper layers."""

from dataclasses import replace

from jaxsft import families
from jaxsft.families import llama_layout
from jaxsft.models import decoder

BASE_PREFIX = llama_layout.BASE_PREFIX
PREFIXES = {"span": "transformer."}
IGNORED = llama_layout.IGNORED
TIED = llama_layout.TIED
WINDOWS = {"use_sliding_window", "sliding_window", "max_window_layers", "layer_types"}
KNOWN = (llama_layout.KNOWN - {"attention_bias"}) | WINDOWS
CLASSES = llama_layout.classes("Qwen2")

head_fields = llama_layout.head_fields


def architecture(config):
  """DecoderConfig of a Qwen 2 config.json (a dict); raises like llama.architecture."""
  families.refuse_unknown(config, KNOWN)
  fields = llama_layout.fields(config)
  fields["heads"] = replace(fields["heads"], bias=True)
  return decoder.DecoderConfig(**fields | {"kinds": kinds(config)})


def kinds(config):
  """Windows from layer max_window_layers on, or where layer_types has them."""
  window = None
  if families.field(config, "use_sliding_window", bool, False):
    window = llama_layout.nullable(config, "sliding_window", int)
  first = config.get("max_window_layers")
  first = config["num_hidden_layers"] if first is None else first
  sliding = llama_layout.sliding_layers(config, lambda i: i >= first)
  return llama_layout.windows(config["num_hidden_layers"], window, sliding)


def names(arch, head):
  """The name table of the decoder and its head."""
  return llama_layout.names(arch, head, CLASSES)


def export_config(config, arch, head, labels, dtype="float32"):
  """See llama_layout.export_config."""
  more = {"model_type": "qwen2", **window_keys(config, arch)}
  return llama_layout.export_config(config, arch, head, labels, dtype, CLASSES, **more)


def window_keys(config, arch):
  """The keys of `kinds`, for both majors."""
  windows = [kind.window for kind in arch.kinds if kind.window is not None]
  types = llama_layout.layer_types(arch)
  first = len(types) if not windows else types.index("sliding_attention")
  return {
    "use_sliding_window": bool(windows),
    "sliding_window": windows[0] if windows else config.get("sliding_window"),
    "max_window_layers": config.get("max_window_layers") or first,
    "layer_types": types,
  }
