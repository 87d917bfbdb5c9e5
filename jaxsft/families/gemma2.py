"""Gemma 2 (arXiv:2408.00118): four norms a layer, softcaps, a window in every other layer."""

from dataclasses import replace

from jaxsft import families
from jaxsft.families import gemma, llama_layout
from jaxsft.models import decoder

BASE_PREFIX = llama_layout.BASE_PREFIX
IGNORED = llama_layout.IGNORED
TIED = llama_layout.TIED
KNOWN = gemma.KNOWN | {
  "sliding_window",
  "layer_types",
  "query_pre_attn_scalar",
  "attn_logit_softcapping",
  "final_logit_softcapping",
}
CLASSES = llama_layout.classes("Gemma2", ("sequence", "token"))
NORMS = {
  "attn_norm": "input_layernorm",
  "attn_out_norm": "post_attention_layernorm",
  "mlp_norm": "pre_feedforward_layernorm",
  "mlp_out_norm": "post_feedforward_layernorm",
}

head_fields = llama_layout.head_fields


def architecture(config):
  """DecoderConfig of a Gemma 2 config.json (a dict); raises like llama.architecture."""
  families.refuse_unknown(config, KNOWN)
  fields = gemma.fields(config, "hidden_activation")
  window = llama_layout.nullable(config, "sliding_window", int)
  sliding = llama_layout.sliding_layers(config, lambda i: i % 2 == 0)
  cap = lambda name: llama_layout.nullable(config, name, float)
  scale = families.field(config, "query_pre_attn_scalar", float) ** -0.5
  fields["heads"] = replace(fields["heads"], scale=scale, softcap=cap("attn_logit_softcapping"))
  return decoder.DecoderConfig(
    **fields
    | {
      "placement": "around",
      "softcap": cap("final_logit_softcapping"),
      "kinds": llama_layout.windows(fields["layers"], window, sliding),
    }
  )


def names(arch, head):
  """The name table of the decoder and its head."""
  return llama_layout.names(arch, head, CLASSES, NORMS)


def export_config(config, arch, head, labels, dtype="float32"):
  """See llama_layout.export_config."""
  more = {
    "model_type": "gemma2",
    "attention_bias": arch.heads.bias,
    "hidden_activation": arch.activation,
    "layer_types": llama_layout.layer_types(arch),
    "attn_logit_softcapping": arch.heads.softcap,
    "final_logit_softcapping": arch.softcap,
  }
  return llama_layout.export_config(config, arch, head, labels, dtype, CLASSES, **more)
