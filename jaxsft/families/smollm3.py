"""SmolLM3: Llama whose every fourth layer does not turn its heads (NoPE, arXiv:2501.18795)."""

from dataclasses import replace

from jaxsft import families
from jaxsft.errors import JaxsftError
from jaxsft.families import llama_layout
from jaxsft.models import decoder

BASE_PREFIX = llama_layout.BASE_PREFIX
PREFIXES = {"span": "transformer."}
IGNORED = llama_layout.IGNORED
TIED = llama_layout.TIED
KNOWN = llama_layout.KNOWN | {
  "mlp_bias",
  "no_rope_layers",
  "no_rope_layer_interval",
  "use_sliding_window",
  "sliding_window",
  "max_window_layers",  # in the files, without effect
  "layer_types",
}
CLASSES = llama_layout.classes("SmolLM3")

head_fields = llama_layout.head_fields


def architecture(config):
  """DecoderConfig of a SmolLM3 config.json (a dict); raises like llama.architecture."""
  families.refuse_unknown(config, KNOWN)
  fields = llama_layout.fields(config, tied=True)
  turning = _turning(config, fields["layers"])
  window = None
  if families.field(config, "use_sliding_window", bool, False):
    window = llama_layout.nullable(config, "sliding_window", int)
  sliding = llama_layout.sliding_layers(config, lambda i: not turning[i])
  kinds = llama_layout.windows(fields["layers"], window, sliding)
  kinds = tuple(
    replace(kind, rope=0 if turns else None) for kind, turns in zip(kinds, turning, strict=True)
  )
  return decoder.DecoderConfig(**fields | {"kinds": kinds})


def _turning(config, count):
  """Whether each of the layers turns its heads."""
  found = config.get("no_rope_layers")  # 1: it turns
  if found is None:
    every = families.field(config, "no_rope_layer_interval", int)
    return [(i + 1) % every != 0 for i in range(count)]
  if not isinstance(found, list) or len(found) != count or set(found) - {0, 1}:
    raise JaxsftError(
      f"config.json: no_rope_layers is {found!r}, expected 0 or 1 for each of {count} layers"
    )
  return [bool(one) for one in found]


def names(arch, head):
  """The name table of the decoder and its head."""
  return llama_layout.names(arch, head, CLASSES)


def export_config(config, arch, head, labels, dtype="float32"):
  """See llama_layout.export_config."""
  windows = [kind.window for kind in arch.kinds if kind.window is not None]
  more = {
    "model_type": "smollm3",
    "attention_bias": arch.heads.bias,
    "mlp_bias": arch.mlp_bias,
    "no_rope_layers": [int(kind.rope is not None) for kind in arch.kinds],
    "use_sliding_window": bool(windows),
    "sliding_window": windows[0] if windows else config.get("sliding_window"),
    "layer_types": llama_layout.layer_types(arch),
  }
  return llama_layout.export_config(config, arch, head, labels, dtype, CLASSES, **more)
