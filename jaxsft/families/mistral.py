"""Mistral (arXiv:2310.06825): Llama with one window for all layers, or none."""

from jaxsft import families
from jaxsft.families import llama_layout
from jaxsft.models import decoder

BASE_PREFIX = llama_layout.BASE_PREFIX
IGNORED = llama_layout.IGNORED
TIED = llama_layout.TIED
KNOWN = (llama_layout.KNOWN - {"attention_bias"}) | {"sliding_window"}
CLASSES = llama_layout.classes("Mistral")

head_fields = llama_layout.head_fields


def architecture(config):
  """DecoderConfig of a Mistral config.json (a dict); raises like llama.architecture."""
  families.refuse_unknown(config, KNOWN)
  fields = llama_layout.fields(config)
  window, count = llama_layout.nullable(config, "sliding_window", int), fields["layers"]
  return decoder.DecoderConfig(
    **fields | {"kinds": llama_layout.windows(count, window, range(count))}
  )


def names(arch, head):
  """The name table of the decoder and its head."""
  return llama_layout.names(arch, head, CLASSES)


def export_config(config, arch, head, labels, dtype="float32"):
  """See llama_layout.export_config."""
  more = {"model_type": "mistral", "sliding_window": arch.kinds[0].window}
  return llama_layout.export_config(config, arch, head, labels, dtype, CLASSES, **more)
