"""Llama 1 to 3 (arXiv:2407.21783) and what shares its layout, as Hugging Face stores it."""

from jaxsft import families
from jaxsft.errors import JaxsftError
from jaxsft.models import decoder, layers

BASE_PREFIX = "model."

IGNORED = (
  r"^lm_head\.",  # where the task has another head (the table's own names come first)
  r"^score\.",  # another classification head
  r"rotary_emb\.inv_freq$",  # a buffer, computed from the config
)
TIED = (("lm_head.weight", "embed_tokens.weight"),)

KNOWN = {
  "num_attention_heads",
  "attention_bias",
  "attention_dropout",
  "mlp_bias",
  "rms_norm_eps",
  "rope_theta",
  "rope_scaling",
  "rope_parameters",
  "hidden_act",
}
CLASSES = {
  "none": "LlamaModel",
  "lm": "LlamaForCausalLM",
  "sequence": "LlamaForSequenceClassification",
  "token": "LlamaForTokenClassification",
}
ROPE = {  # kind -> the fields that it needs beside theta
  "default": (),
  "linear": ("factor",),
  "dynamic": ("factor",),
  "llama3": (
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
  ),
}


def architecture(config):
  """DecoderConfig of a Llama config.json (a dict).

  Raises JaxsftError for missing fields, unsupported values, and unknown fields that may
  change the computation.
  """
  get = lambda name, kind, *absent: families.field(config, name, kind, *absent)
  families.demand(config, "hidden_act", layers.ACTIVATIONS)
  families.refuse_unknown(config, KNOWN)
  width, heads = get("hidden_size", int), get("num_attention_heads", int)
  # The five with a value to fall back on are younger than the format. A wrong guess cannot
  # pass: other biases and head counts have other tensors and shapes.
  kv_heads = get("num_key_value_heads", int, heads)
  head_dim = get("head_dim", int, width // heads)
  if heads % kv_heads:
    raise JaxsftError(
      f"config.json: num_attention_heads {heads} is not a multiple of "
      f"num_key_value_heads {kv_heads}"
    )
  return decoder.DecoderConfig(
    vocab=get("vocab_size", int),
    width=width,
    layers=get("num_hidden_layers", int),
    heads=heads,
    kv_heads=kv_heads,
    head_dim=head_dim,
    mlp=get("intermediate_size", int),
    max_positions=get("max_position_embeddings", int),
    eps=get("rms_norm_eps", float),
    activation=get("hidden_act", str),
    rope=rope(config),
    tied=get("tie_word_embeddings", bool),
    attention_bias=get("attention_bias", bool, False),
    mlp_bias=get("mlp_bias", bool, False),
    attention_dropout=get("attention_dropout", float, 0.0),
    std=get("initializer_range", float),
  )


def rope(config):
  """layers.Rope of `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling`.

  Raises JaxsftError where both are there and disagree, for unknown kinds and unknown keys.
  """
  new, scaling = config.get("rope_parameters"), config.get("rope_scaling")
  old, theta = None, config.get("rope_theta")
  if theta is not None or scaling:
    theta = (new or {}).get("rope_theta") if theta is None else theta
    old = {"rope_theta": theta, **(scaling or {})}
  found = [_rope(r) for r in (new, old) if r is not None]
  if not found:
    raise JaxsftError(
      "config.json has neither rope_parameters nor rope_theta: add the base that the "
      "model was trained with (10000.0 for Llama 1 and 2)"
    )
  if found[0] != found[-1]:
    raise JaxsftError(
      f"config.json: rope_parameters {new} disagree with rope_theta and rope_scaling "
      f"{old}; keep the right one"
    )
  return found[0]


def _rope(fields):
  fields = dict(fields)
  kinds = {fields.pop(k) for k in ("type", "rope_type") if fields.get(k)} or {"default"}
  kind = kinds.pop()
  if kinds or kind not in ROPE:
    raise JaxsftError(
      f"config.json: the rope type {kind!r} is not supported, expected one of {', '.join(ROPE)}"
    )
  theta = families.field(fields, "rope_theta", float)
  if fields.get("partial_rotary_factor", 1.0) != 1.0:
    raise JaxsftError(
      f"config.json: partial_rotary_factor is {fields['partial_rotary_factor']}, "
      "expected 1.0: partly rotated heads are not supported"
    )
  extra = {"rope_theta", "partial_rotary_factor"}
  unknown = {k for k, v in fields.items() if v is not None} - {*ROPE[kind], *extra}
  missing = [name for name in ROPE[kind] if fields.get(name) is None]
  if unknown or missing:
    raise JaxsftError(
      f"config.json: rope type {kind!r} with unknown fields {sorted(unknown)} and missing "
      f"fields {missing}; expected {list(ROPE[kind])}"
    )
  values = [float(fields[name]) for name in ROPE[kind]]
  return layers.Rope(kind, theta, *values)


def head_fields(arch, kind):
  """How Llama's heads read the hidden states."""
  return {"pool": "last", "pooler": False, "bias": kind == "token", "dropout": 0.0}


def names(arch, head):
  """The name table of the decoder and its head."""
  layer, linear = "layers.{i}.", []
  for hf, path, bias in (
    ("self_attn.q_proj", "attn/q", arch.attention_bias),
    ("self_attn.k_proj", "attn/k", arch.attention_bias),
    ("self_attn.v_proj", "attn/v", arch.attention_bias),
    ("self_attn.o_proj", "attn/o", arch.attention_bias),
    ("mlp.gate_proj", "mlp/gate", arch.mlp_bias),
    ("mlp.up_proj", "mlp/up", arch.mlp_bias),
    ("mlp.down_proj", "mlp/down", arch.mlp_bias),
  ):
    linear.append((f"{layer}{hf}.weight", f"layers/{path}/kernel"))
    if bias:
      linear.append((f"{layer}{hf}.bias", f"layers/{path}/bias"))
  base = [
    ("embed_tokens.weight", "embed/tokens/embedding"),
    *linear,
    (f"{layer}input_layernorm.weight", "layers/attn_norm/scale"),
    (f"{layer}post_attention_layernorm.weight", "layers/mlp_norm/scale"),
    ("norm.weight", "norm/scale"),
  ]
  own = []
  if head.kind == "lm" and not arch.tied:
    own = [("lm_head.weight", "lm_head/kernel")]
  elif head.kind in ("sequence", "token"):
    own = [("score.weight", "head/kernel")]
    own += [("score.bias", "head/bias")] if head.bias else []
  return [families.Name(hf, path, "base") for hf, path in base] + [
    families.Name(hf, path, "head") for hf, path in own
  ]


def export_config(config, arch, head, labels, dtype="float32"):
  """config.json of the exported model, with both spellings of rope and of the type.

  config: the one it was loaded with. labels: names in id order, () for a regression.
  transformers 4 reads rope_theta and rope_scaling, 5 reads rope_parameters.
  """
  rope = arch.rope
  values = (rope.factor, rope.low, rope.high, rope.original)
  scaling = dict(zip(ROPE[rope.kind], values, strict=False))
  if "original_max_position_embeddings" in scaling:
    scaling["original_max_position_embeddings"] = int(rope.original)
  typed = {"rope_type": rope.kind, **scaling}
  return {
    **families.with_labels(config, head, labels),
    "architectures": [CLASSES[head.kind]],
    "model_type": "llama",
    "head_dim": arch.head_dim,
    "num_key_value_heads": arch.kv_heads,
    "attention_bias": arch.attention_bias,
    "mlp_bias": arch.mlp_bias,
    "tie_word_embeddings": arch.tied,
    "rope_theta": rope.theta,
    "rope_scaling": None if rope.kind == "default" else typed,
    "rope_parameters": {"rope_theta": rope.theta, **typed},
    "torch_dtype": dtype,
    "dtype": dtype,
  }
