"""Qwen 3 with a mixture of experts in every layer (arXiv:2505.09388)."""

from dataclasses import replace

from jaxsft import families
from jaxsft.families import llama_layout
from jaxsft.models import decoder, experts

BASE_PREFIX = llama_layout.BASE_PREFIX
PREFIXES = {"span": "transformer."}
IGNORED = llama_layout.IGNORED
TIED = llama_layout.TIED
KNOWN = llama_layout.KNOWN | {
  "use_sliding_window",
  "sliding_window",
  "max_window_layers",  # in the files, without effect
  "norm_topk_prob",
}
CLASSES = llama_layout.classes("Qwen3Moe")

head_fields = llama_layout.head_fields


def architecture(config):
  """DecoderConfig of a Qwen 3 MoE config.json (a dict); raises like llama.architecture."""
  families.refuse_unknown(config, KNOWN)
  # Layers with a plain MLP between those with experts: no published model has them.
  families.demand(config, "decoder_sparse_step", (1,))
  families.demand(config, "mlp_only_layers", ([], None), None)
  families.field(config, "head_dim", int)
  fields = llama_layout.fields(config)
  get = lambda name, kind: families.field(config, name, kind)
  mixture = experts.Experts(
    get("num_experts", int) if "num_experts" in config else get("num_local_experts", int),
    get("num_experts_per_tok", int),
    get("moe_intermediate_size", int),
    normalise=get("norm_topk_prob", bool),
    auxiliary=get("router_aux_loss_coef", float),
  )
  window, count = None, fields["layers"]
  if families.field(config, "use_sliding_window", bool, False):
    window = llama_layout.nullable(config, "sliding_window", int)
  return decoder.DecoderConfig(
    **fields
    | {
      "heads": replace(fields["heads"], norm=fields["norm"]),
      "experts": mixture,
      "kinds": llama_layout.windows(count, window, range(count)),
    }
  )


def names(arch, head):
  """The name table of the decoder and its head."""
  moe = "layers.{i}.mlp"
  parts = llama_layout.attention(arch)
  parts += llama_layout.linear(f"{moe}.gate", "layers/mlp/router")
  for leaf in ("gate", "up", "down"):
    parts += llama_layout.linear(
      f"{moe}.experts.{{e}}.{leaf}_proj", f"layers/mlp/experts/{leaf}"
    )
  return llama_layout.names(arch, head, CLASSES, parts=parts)


def export_config(config, arch, head, labels, dtype="float32"):
  """See llama_layout.export_config."""
  window = arch.kinds[0].window
  more = {
    "model_type": "qwen3_moe",
    "attention_bias": arch.heads.bias,
    "num_experts": arch.experts.count,
    "norm_topk_prob": arch.experts.normalise,
    "use_sliding_window": window is not None,
    "sliding_window": window,
  }
  return llama_layout.export_config(config, arch, head, labels, dtype, CLASSES, **more)
