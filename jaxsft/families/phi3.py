"""Phi 3, 3.5 and 4 (arXiv:2404.14219): fused projections, longrope, maybe a window."""

from jaxsft import families
from jaxsft.families import llama_layout
from jaxsft.families import rope as ropes
from jaxsft.models import decoder, rope

BASE_PREFIX = llama_layout.BASE_PREFIX
IGNORED = llama_layout.IGNORED
TIED = llama_layout.TIED
ORIGINAL = "original_max_position_embeddings"
WITHOUT = ("attention_bias", "mlp_bias", "lm_head_bias")  # files have the keys
KNOWN = llama_layout.KNOWN | {
  *WITHOUT,
  "sliding_window",
  "partial_rotary_factor",
  "full_attn_mod",
}
CLASSES = llama_layout.classes("Phi3", ("sequence", "token"))

head_fields = llama_layout.head_fields


def architecture(config):
  """DecoderConfig of a Phi 3 config.json (a dict); raises like llama.architecture."""
  families.refuse_unknown(config, KNOWN)
  for name in WITHOUT:
    families.demand(config, name, (False, None), None)
  families.demand(config, "full_attn_mod", (1, None), None)
  dim = families.field(config, "hidden_size", int) // config["num_attention_heads"]
  found = llama_layout.fields(
    config, tied=False, rope=_rope(config, config.get("head_dim") or dim)
  )
  window, count = llama_layout.nullable(config, "sliding_window", int), found["layers"]
  return decoder.DecoderConfig(
    **found
    | {
      "kinds": llama_layout.windows(count, window, range(count)),
      "dropout": families.field(config, "resid_pdrop", float),
    }
  )


def _rope(config, head_dim):
  """Its longrope keeps its original length outside, and has the names of its first days."""
  config = dict(config)
  for name in ("rope_scaling", "rope_parameters"):
    if config.get(name):
      config[name] = dict(config[name])
      for key in ("type", "rope_type"):
        if config[name].get(key) in ("su", "yarn"):
          config[name][key] = "longrope"
  original = config.get(ORIGINAL)
  longest = families.field(config, "max_position_embeddings", int)
  extra = None if original is None else {ORIGINAL: original, "factor": longest / original}
  return ropes.read(config, head_dim, extra=extra)


def names(arch, head):
  """The name table of the decoder and its head."""
  heads, attn = arch.heads, "layers/attn"
  q, kv = heads.count * heads.dim, heads.kv * heads.dim
  layer = "layers.{i}.self_attn"
  parts = llama_layout.fused(
    f"{layer}.qkv_proj", {f"{attn}/q": q, f"{attn}/k": kv, f"{attn}/v": kv}
  )
  parts += llama_layout.linear(f"{layer}.o_proj", f"{attn}/o")
  return llama_layout.names(arch, head, CLASSES, parts=parts + fused_mlp(arch))


def fused_mlp(arch):
  """Names of an MLP whose gate and up are one tensor."""
  sizes = {"layers/mlp/gate": arch.mlp, "layers/mlp/up": arch.mlp}
  found = llama_layout.fused("layers.{i}.mlp.gate_up_proj", sizes)
  return found + llama_layout.linear("layers.{i}.mlp.down_proj", "layers/mlp/down")


def export_config(config, arch, head, labels, dtype="float32"):
  """See llama_layout.export_config."""
  found = arch.ropes[0]
  keys = ropes.write(found, arch.heads.dim)
  if found.kind == "longrope":
    keys |= _longrope(found, arch)
  more = {
    **keys,
    "model_type": "phi3",
    "sliding_window": arch.kinds[0].window,
    "resid_pdrop": arch.dropout,
  }
  return llama_layout.export_config(config, arch, head, labels, dtype, CLASSES, **more)


def _longrope(found, arch):
  """Of its scaling transformers 4 takes three fields and no more; it derives the others."""
  fields = dict(found.fields)
  original = rope.original_length(found)
  derived = {"factor": arch.max_positions / original, ORIGINAL: original}
  keys = {ORIGINAL: original}
  if set(fields) == {"long_factor", "short_factor", *derived} and (
    fields["factor"] == derived["factor"]
  ):
    scaling = {name: list(fields[name]) for name in ("short_factor", "long_factor")}
    keys["rope_scaling"] = {"type": "longrope", **scaling}
  return keys
