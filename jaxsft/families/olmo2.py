"""OLMo 2 (arXiv:2501.00656): norms after the branches, and over all queries and all keys."""

from dataclasses import replace

from jaxsft import families
from jaxsft.families import llama_layout
from jaxsft.models import decoder

BASE_PREFIX = llama_layout.BASE_PREFIX
IGNORED = llama_layout.IGNORED
TIED = llama_layout.TIED
KNOWN = llama_layout.KNOWN
CLASSES = llama_layout.classes("Olmo2", ("sequence",))
NORMS = {
  "attn_out_norm": "post_attention_layernorm",
  "mlp_out_norm": "post_feedforward_layernorm",
}

head_fields = llama_layout.head_fields


def architecture(config):
  """DecoderConfig of an OLMo 2 config.json (a dict); raises like llama.architecture."""
  families.refuse_unknown(config, KNOWN)
  fields = llama_layout.fields(config)
  heads = replace(fields["heads"], norm=fields["norm"], norm_over="all")
  return decoder.DecoderConfig(**fields | {"heads": heads, "placement": "after"})


def names(arch, head):
  """The name table of the decoder and its head."""
  return llama_layout.names(arch, head, CLASSES, NORMS)


def export_config(config, arch, head, labels, dtype="float32"):
  """See llama_layout.export_config."""
  more = {"model_type": "olmo2", "attention_bias": arch.heads.bias}
  return llama_layout.export_config(config, arch, head, labels, dtype, CLASSES, **more)
