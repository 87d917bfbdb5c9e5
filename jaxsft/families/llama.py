"""Llama 1 to 3 (arXiv:2407.21783) and what shares its layout, as Hugging Face stores it."""

from jaxsft import families
from jaxsft.families import llama_layout
from jaxsft.models import decoder

BASE_PREFIX = llama_layout.BASE_PREFIX
PREFIXES = {"span": "transformer."}
IGNORED = llama_layout.IGNORED
TIED = llama_layout.TIED
KNOWN = llama_layout.KNOWN | {"mlp_bias"}
CLASSES = llama_layout.classes("Llama")

head_fields = llama_layout.head_fields


def architecture(config):
  """DecoderConfig of a Llama config.json (a dict).

  Raises JaxsftError for missing fields, unsupported values, and unknown fields that may
  change the computation.
  """
  families.refuse_unknown(config, KNOWN)
  return decoder.DecoderConfig(**llama_layout.fields(config))


def names(arch, head):
  """The name table of the decoder and its head."""
  return llama_layout.names(arch, head, CLASSES)


def export_config(config, arch, head, labels, dtype="float32"):
  """See llama_layout.export_config."""
  return llama_layout.export_config(
    config,
    arch,
    head,
    labels,
    dtype,
    CLASSES,
    model_type="llama",
    attention_bias=arch.heads.bias,
    mlp_bias=arch.mlp_bias,
  )
