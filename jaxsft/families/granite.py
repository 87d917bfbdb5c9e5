"""Granite 3 (arXiv:2405.04324): Llama with multipliers on vectors, scores, branches, logits."""

from dataclasses import replace

from jaxsft import families
from jaxsft.families import llama_layout
from jaxsft.models import decoder

BASE_PREFIX = llama_layout.BASE_PREFIX
IGNORED = llama_layout.IGNORED
TIED = llama_layout.TIED
SCALES = (
  "embedding_multiplier",
  "attention_multiplier",
  "residual_multiplier",
  "logits_scaling",
)
KNOWN = llama_layout.KNOWN | {"mlp_bias", *SCALES}
CLASSES = llama_layout.classes("Granite", ())  # transformers has no other heads

head_fields = llama_layout.head_fields


def architecture(config):
  """DecoderConfig of a Granite config.json (a dict); raises like llama.architecture."""
  families.refuse_unknown(config, KNOWN)
  fields = llama_layout.fields(config, tied=True)
  embed, scores, branch, logits = (families.field(config, name, float) for name in SCALES)
  return decoder.DecoderConfig(
    **fields
    | {
      "heads": replace(fields["heads"], scale=scores),
      "embed_scale": embed,
      "residual_scale": branch,
      "logit_scale": 1 / logits,
    }
  )


def names(arch, head):
  """The name table of the decoder and its head."""
  return llama_layout.names(arch, head, CLASSES)


def export_config(config, arch, head, labels, dtype="float32"):
  """See llama_layout.export_config."""
  more = {
    "model_type": "granite",
    "attention_bias": arch.heads.bias,
    "mlp_bias": arch.mlp_bias,
    "embedding_multiplier": arch.embed_scale,
    "attention_multiplier": arch.heads.scale,
    "residual_multiplier": arch.residual_scale,
    "logits_scaling": 1 / arch.logit_scale,
  }
  return llama_layout.export_config(config, arch, head, labels, dtype, CLASSES, **more)
