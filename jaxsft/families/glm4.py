"""GLM-4 0414 (arXiv:2406.12793): half of every head turns, in neighbouring pairs; four norms a
layer, fused gate and up."""

from dataclasses import replace

from jaxsft import families
from jaxsft.families import llama_layout, phi3
from jaxsft.families import rope as ropes
from jaxsft.models import decoder

BASE_PREFIX = llama_layout.BASE_PREFIX
IGNORED = llama_layout.IGNORED
TIED = llama_layout.TIED
KNOWN = llama_layout.KNOWN | {"partial_rotary_factor"}
CLASSES = llama_layout.classes("Glm4", ("sequence", "token"))
NORMS = {
  "attn_norm": "input_layernorm",
  "attn_out_norm": "post_self_attn_layernorm",
  "mlp_norm": "post_attention_layernorm",
  "mlp_out_norm": "post_mlp_layernorm",
}
FRACTION = 0.5  # where config.json does not say partial_rotary_factor

head_fields = llama_layout.head_fields


def architecture(config):
  """DecoderConfig of a GLM-4 config.json (a dict); raises like llama.architecture."""
  families.refuse_unknown(config, KNOWN)
  head_dim = families.field(config, "head_dim", int)
  families.field(config, "attention_bias", bool)  # transformers would take true
  rope = ropes.read(config, head_dim, fraction=FRACTION, interleaved=True)
  fields = llama_layout.fields(config, rope=rope)
  heads = replace(fields["heads"], out_bias=False)
  return decoder.DecoderConfig(**fields | {"heads": heads, "placement": "around"})


def names(arch, head):
  """The name table of the decoder and its head."""
  parts = llama_layout.attention(arch) + phi3.fused_mlp(arch)
  return llama_layout.names(arch, head, CLASSES, NORMS, parts)


def export_config(config, arch, head, labels, dtype="float32"):
  """See llama_layout.export_config."""
  rope, dim = arch.ropes[0], arch.heads.dim
  fraction = rope.dim / dim
  more = {"model_type": "glm4", "attention_bias": arch.heads.bias}
  more |= {"partial_rotary_factor": fraction}
  return llama_layout.export_config(config, arch, head, labels, dtype, CLASSES, **more)
