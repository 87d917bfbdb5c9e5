"""Gemma (arXiv:2403.08295): norms that store scale - 1, token vectors times sqrt(D)."""

from dataclasses import replace

from jaxsft import families
from jaxsft.families import llama_layout
from jaxsft.models import decoder

BASE_PREFIX = llama_layout.BASE_PREFIX
IGNORED = llama_layout.IGNORED
TIED = llama_layout.TIED
KNOWN = llama_layout.KNOWN | {"use_bidirectional_attention"}
CLASSES = llama_layout.classes("Gemma", ("sequence", "token"))

head_fields = llama_layout.head_fields


def architecture(config):
  """DecoderConfig of a Gemma config.json (a dict); raises like llama.architecture."""
  families.refuse_unknown(config, KNOWN)
  # The first files say "gelu" and mean its approximation, which was all that ran.
  activation = config.get("hidden_activation") or config.get("hidden_act")
  activation = "gelu_pytorch_tanh" if activation == "gelu" else activation
  return decoder.DecoderConfig(**fields({**config, "hidden_act": activation}))


def fields(config, activation="hidden_act", **more):
  """Fields of DecoderConfig that the three Gemmas share; tied where the file says nothing."""
  families.demand(config, "use_bidirectional_attention", (False, None), None)
  families.field(config, "head_dim", int)  # transformers would take 256, not D / N
  found = llama_layout.fields(config, activation=activation, tied=True, **more)
  norm = replace(found["norm"], offset=1.0)
  return found | {"norm": norm, "embed_scale": found["width"] ** 0.5}


def names(arch, head):
  """The name table of the decoder and its head."""
  return llama_layout.names(arch, head, CLASSES)


def export_config(config, arch, head, labels, dtype="float32"):
  """See llama_layout.export_config."""
  more = {"model_type": "gemma", "attention_bias": arch.heads.bias}
  more |= {"hidden_act": arch.activation, "hidden_activation": arch.activation}
  return llama_layout.export_config(config, arch, head, labels, dtype, CLASSES, **more)
