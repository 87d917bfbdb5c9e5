"""Mixtral (arXiv:2401.04088): Mistral with a mixture of experts in every layer."""

from jaxsft import families
from jaxsft.families import llama_layout
from jaxsft.models import decoder, experts

BASE_PREFIX = llama_layout.BASE_PREFIX
IGNORED = llama_layout.IGNORED
TIED = llama_layout.TIED
KNOWN = (llama_layout.KNOWN - {"attention_bias"}) | {"sliding_window"}
CLASSES = llama_layout.classes("Mixtral")

head_fields = llama_layout.head_fields


def architecture(config):
  """DecoderConfig of a Mixtral config.json (a dict); raises like llama.architecture."""
  families.refuse_unknown(config, KNOWN)
  families.demand(config, "router_jitter_noise", (0, None), None)
  fields = llama_layout.fields(config)
  get = lambda name, kind: families.field(config, name, kind)
  window, count = llama_layout.nullable(config, "sliding_window", int), fields["layers"]
  mixture = experts.Experts(
    get("num_local_experts", int),
    get("num_experts_per_tok", int),
    fields["mlp"],
    normalise=True,
    auxiliary=get("router_aux_loss_coef", float),
  )
  kinds = llama_layout.windows(count, window, range(count))
  return decoder.DecoderConfig(**fields | {"kinds": kinds, "experts": mixture})


def names(arch, head):
  """The name table of the decoder and its head."""
  moe = "layers.{i}.block_sparse_moe"
  parts = llama_layout.attention(arch)
  parts += llama_layout.linear(f"{moe}.gate", "layers/mlp/router")
  for hf, leaf in (("w1", "gate"), ("w3", "up"), ("w2", "down")):
    parts += llama_layout.linear(f"{moe}.experts.{{e}}.{hf}", f"layers/mlp/experts/{leaf}")
  return llama_layout.names(arch, head, CLASSES, parts=parts)


def export_config(config, arch, head, labels, dtype="float32"):
  """See llama_layout.export_config."""
  more = {"model_type": "mixtral", "sliding_window": arch.kinds[0].window}
  return llama_layout.export_config(config, arch, head, labels, dtype, CLASSES, **more)
