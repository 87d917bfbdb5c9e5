"""Gemma 3 (arXiv:2503.19786), its text model: five layers with a window and a base of their
own to one that sees all, norms on the heads of queries and keys."""

from dataclasses import replace

from jaxsft import families
from jaxsft.errors import JaxsftError
from jaxsft.families import gemma, gemma2, llama_layout
from jaxsft.families import rope as ropes
from jaxsft.models import decoder

BASE_PREFIX = llama_layout.BASE_PREFIX
IGNORED = llama_layout.IGNORED
TIED = llama_layout.TIED
KNOWN = gemma2.KNOWN | {
  "rope_local_base_freq",
  "sliding_window_pattern",
  "_sliding_window_pattern",
}
CLASSES = llama_layout.classes("Gemma3", ()) | {
  "none": "Gemma3TextModel",
  "sequence": "Gemma3TextForSequenceClassification",
}
FULL, SLIDING = "full_attention", "sliding_attention"

head_fields = llama_layout.head_fields


def architecture(config):
  """DecoderConfig of a Gemma 3 text config.json (a dict); raises like llama.architecture."""
  families.refuse_unknown(config, KNOWN)
  # Gemma 3 has the key and no softcap on its scores.
  families.demand(config, "attn_logit_softcapping", (None,), None)
  head_dim = families.field(config, "head_dim", int)
  full, local = _ropes(config, head_dim)
  fields = gemma.fields(config, "hidden_activation", rope=full)
  window = families.field(config, "sliding_window", int)
  every = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6
  sliding = llama_layout.sliding_layers(config, lambda i: (i + 1) % every)
  scale = families.field(config, "query_pre_attn_scalar", float) ** -0.5
  fields["heads"] = replace(fields["heads"], scale=scale, norm=fields["norm"])
  kinds = llama_layout.windows(fields["layers"], window, sliding)
  kinds = tuple(replace(kind, rope=0 if kind.window is None else 1) for kind in kinds)
  return decoder.DecoderConfig(
    **fields
    | {
      "placement": "around",
      "softcap": families.field(config, "final_logit_softcapping", float, None),
      "ropes": (full, local),
      "kinds": kinds,
    }
  )


def _ropes(config, head_dim):
  """The ropes of layers that see all and of those with a window, in either spelling."""
  new, old = config.get("rope_parameters"), None
  if config.get("rope_theta") is not None or config.get("rope_local_base_freq") is not None:
    local = families.field(config, "rope_local_base_freq", float)
    theta = families.field(config, "rope_theta", float)
    full = {"rope_theta": theta, **(config.get("rope_scaling") or {})}
    old = {FULL: full, SLIDING: {"rope_theta": local}}
  elif new is not None and config.get("rope_scaling"):
    raise JaxsftError("config.json: found rope_scaling without rope_theta, expected both")
  found = []
  for both in (new, old):
    if both is None:
      continue
    if set(both) != {FULL, SLIDING}:
      raise JaxsftError(
        f"config.json: rope_parameters has {sorted(both)}, expected {[FULL, SLIDING]}"
      )
    found.append(tuple(ropes.parse(both[name], head_dim) for name in (FULL, SLIDING)))
  if not found or found[0] != found[-1]:
    raise JaxsftError(
      f"config.json: found rope_parameters {new}, rope_theta {config.get('rope_theta')} and "
      f"rope_local_base_freq {config.get('rope_local_base_freq')}; expected one of the "
      "spellings, or both saying the same"
    )
  return found[0]


def names(arch, head):
  """The name table of the decoder and its head."""
  return llama_layout.names(arch, head, CLASSES, gemma2.NORMS)


def export_config(config, arch, head, labels, dtype="float32"):
  """See llama_layout.export_config."""
  full, local = arch.ropes
  dim = arch.heads.dim
  more = {
    **ropes.write(full, dim),
    "rope_local_base_freq": local.theta,
    "rope_parameters": {
      FULL: ropes.fields_of(full, dim),
      SLIDING: ropes.fields_of(local, dim),
    },
    "model_type": "gemma3_text",
    "attention_bias": arch.heads.bias,
    "hidden_activation": arch.activation,
    "layer_types": llama_layout.layer_types(arch),
    "attn_logit_softcapping": None,
    "final_logit_softcapping": arch.softcap,
  }
  return llama_layout.export_config(config, arch, head, labels, dtype, CLASSES, **more)
