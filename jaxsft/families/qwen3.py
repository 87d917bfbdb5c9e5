"""Qwen 3 (arXiv:2505.09388): norms on the heads of queries and keys, no biases."""

from dataclasses import replace

from jaxsft import families
from jaxsft.families import llama_layout, qwen2
from jaxsft.models import decoder

BASE_PREFIX = llama_layout.BASE_PREFIX
PREFIXES = {"span": "transformer."}
IGNORED = llama_layout.IGNORED
TIED = llama_layout.TIED
KNOWN = llama_layout.KNOWN | qwen2.WINDOWS
CLASSES = llama_layout.classes("Qwen3")

head_fields = llama_layout.head_fields


def architecture(config):
  """DecoderConfig of a Qwen 3 config.json (a dict); raises like llama.architecture."""
  families.refuse_unknown(config, KNOWN)
  families.field(config, "head_dim", int)  # transformers would take 128, not D / N
  fields = llama_layout.fields(config)
  fields["heads"] = replace(fields["heads"], norm=fields["norm"])
  return decoder.DecoderConfig(**fields | {"kinds": qwen2.kinds(config)})


def names(arch, head):
  """The name table of the decoder and its head."""
  return llama_layout.names(arch, head, CLASSES)


def export_config(config, arch, head, labels, dtype="float32"):
  """See llama_layout.export_config."""
  more = {"model_type": "qwen3", "attention_bias": arch.heads.bias}
  more |= qwen2.window_keys(config, arch)
  return llama_layout.export_config(config, arch, head, labels, dtype, CLASSES, **more)
