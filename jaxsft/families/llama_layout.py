"""What families that look like Llama share: fields of config.json, tensor names, the export."""

from jaxsft import families
from jaxsft.errors import JaxsftError
from jaxsft.families import rope as ropes
from jaxsft.models import attention_layer, decoder, layers

BASE_PREFIX = "model."
IGNORED = (
  r"^lm_head\.",  # where the task has another head (the table's own names come first)
  r"^(score|classifier|qa_outputs)\.",  # another head
  r"rotary_emb\.inv_freq$",  # a buffer, computed from the config
)
TIED = (("lm_head.weight", "embed_tokens.weight"),)
KNOWN = {
  "num_attention_heads",
  "attention_bias",
  "attention_dropout",
  "rms_norm_eps",
  "rope_theta",
  "rope_scaling",
  "rope_parameters",
  "hidden_act",
}
BEFORE = {  # leaf -> tensor, for norms in front of the branches
  "attn_norm": "input_layernorm",
  "mlp_norm": "post_attention_layernorm",
}


def classes(name, kinds=("sequence", "token", "span")):
  """{kind: class} of transformers for the heads that it has beside "lm"."""
  suffixes = {
    "sequence": "ForSequenceClassification",
    "token": "ForTokenClassification",
    "span": "ForQuestionAnswering",
  }
  own = {"none": f"{name}Model", "lm": f"{name}ForCausalLM"}
  return own | {kind: name + suffixes[kind] for kind in kinds}


def nullable(config, name, kind):
  """config[name], which must be there and may be null."""
  if name not in config:
    raise JaxsftError(
      f"config.json of the {config.get('model_type')} model has no {name!r}, for which null "
      "and a number are different models: add the value that it was trained with"
    )
  return None if config[name] is None else families.field(config, name, kind)


def fields(config, *, activation="hidden_act", tied=families.REQUIRED, rope=None):
  """Fields of DecoderConfig as Llama has them; a family replaces those where it differs.

  activation: the key of the activation. tied: what an absent tie_word_embeddings means.
  rope: the rope.Rope of all layers; None: as rope_parameters or rope_theta say.
  """
  get = lambda name, kind, *absent: families.field(config, name, kind, *absent)
  families.demand(config, activation, layers.ACTIVATIONS)
  width, heads = get("hidden_size", int), get("num_attention_heads", int)
  # Those with a value to fall back on are younger than the formats. A wrong guess cannot
  # pass: other biases and head counts have other tensors and shapes.
  kv = get("num_key_value_heads", int, heads)
  head_dim = get("head_dim", int, width // heads)
  if heads % kv:
    raise JaxsftError(
      f"config.json: num_attention_heads {heads} is not a multiple of num_key_value_heads {kv}"
    )
  bias = get("attention_bias", bool, False)
  norm = layers.Norm("rms", get("rms_norm_eps", float), bias=False, offset=0.0)
  num_layers = get("num_hidden_layers", int)
  return {
    "vocab": get("vocab_size", int),
    "width": width,
    "layers": num_layers,
    "heads": attention_layer.Heads(
      heads, kv, head_dim, bias, bias, scale=None, softcap=None, norm=None, norm_over="head"
    ),
    "mlp": get("intermediate_size", int),
    "experts": None,
    "max_positions": get("max_position_embeddings", int),
    "activation": get(activation, str),
    "gated": True,
    "mlp_bias": get("mlp_bias", bool, False),
    "norm": norm,
    "placement": "before",
    "final_norm": True,
    "ropes": (ropes.read(config, head_dim) if rope is None else rope,),
    "kinds": windows(num_layers, None, ()),
    "position_rows": 0,
    "position_offset": 0,
    "embed_width": width,
    "embed_scale": 1.0,
    "residual_scale": 1.0,
    "logit_scale": 1.0,
    "softcap": None,
    "tied": get("tie_word_embeddings", bool, tied),
    "embed_dropout": 0.0,
    "dropout": 0.0,
    "attention_dropout": get("attention_dropout", float, 0.0),
    "head_dropout": head_dropout(config),
    "std": get("initializer_range", float),
  }


def head_dropout(config):
  """What transformers drops before a head that reads every token."""
  get = lambda name, *absent: families.field(config, name, float, *absent)
  return get("classifier_dropout", get("hidden_dropout", 0.1))


def windows(num_layers, window, sliding):
  """One decoder.Kind a layer; those whose index is in `sliding` have the window."""
  return tuple(
    decoder.Kind(window if i in sliding else None, rope=0, scale=None)
    for i in range(num_layers)
  )


def sliding_layers(config, pattern):
  """Indices of the layers with a window: by `layer_types`, or where pattern(index) holds."""
  types, num_layers = config.get("layer_types"), config["num_hidden_layers"]
  if types is None:
    return [i for i in range(num_layers) if pattern(i)]
  kinds = {"full_attention", "sliding_attention"}
  if not isinstance(types, list) or len(types) != num_layers or set(types) - kinds:
    raise JaxsftError(
      f"config.json: layer_types is {types!r}, expected one of {sorted(kinds)} for each of "
      f"the {num_layers} layers"
    )
  return [i for i, kind in enumerate(types) if kind == "sliding_attention"]


def layer_types(arch):
  """`layer_types` of config.json."""
  return [
    "full_attention" if kind.window is None else "sliding_attention" for kind in arch.kinds
  ]


def head_fields(arch, kind):
  """How the heads read the hidden states."""
  dropout = arch.head_dropout if kind == "token" else 0.0
  return {"pool": "last", "bias": kind in ("token", "span"), "dropout": dropout}


# --- names -----------------------------------------------------------------------------


def linear(hf, path, bias=False, view=None):
  """Names of a projection of the base."""
  found = [families.Name(f"{hf}.weight", f"{path}/kernel", "base", view)]
  return found + ([families.Name(f"{hf}.bias", f"{path}/bias", "base", view)] if bias else [])


def norm(hf, path, norm):
  """Names of a norm of the base."""
  found = [families.Name(f"{hf}.weight", f"{path}/scale", "base")]
  return found + ([families.Name(f"{hf}.bias", f"{path}/bias", "base")] if norm.bias else [])


def fused(hf, sizes, bias=False):
  """Names of leaves {path: rows} that one tensor holds one after another."""
  whole, start, found = sum(sizes.values()), 0, []
  for path, size in sizes.items():
    found += linear(hf, path, bias, families.View(start, start + size, whole))
    start += size
  return found


def attention(arch, hf="layers.{i}.self_attn"):
  """Names of the attention: four projections, and norms on queries and keys."""
  heads, found = arch.heads, []
  for one in ("q", "k", "v"):
    found += linear(f"{hf}.{one}_proj", f"layers/attn/{one}", heads.bias)
  found += linear(f"{hf}.o_proj", "layers/attn/o", heads.out_bias)
  for one in ("q", "k") if heads.norm is not None else ():
    found += norm(f"{hf}.{one}_norm", f"layers/attn/{one}_norm", heads.norm)
  return found


def mlp(arch, hf="layers.{i}.mlp"):
  """Names of a gated MLP."""
  found = []
  for one in ("gate", "up", "down"):
    found += linear(f"{hf}.{one}_proj", f"layers/mlp/{one}", arch.mlp_bias)
  return found


def names(arch, head, own, norms=None, parts=None):
  """The name table of the decoder and its head.

  own: the family's CLASSES. norms: {leaf: tensor} of a layer; None: BEFORE. parts: names of
  attention and MLP; None: Llama's.
  """
  found = [families.Name("embed_tokens.weight", "embed/tokens/embedding", "base")]
  found += attention(arch) + mlp(arch) if parts is None else parts
  for leaf, hf in (BEFORE if norms is None else norms).items():
    found += norm(f"layers.{{i}}.{hf}", f"layers/{leaf}", arch.norm)
  found += norm("norm", "norm", arch.norm)
  return found + head_names(arch, head, own)


def head_names(arch, head, own, token="score"):
  """Names of the head: those of the family's class, our own where it has none (`own`).

  token: what the class calls a head that reads every token.
  """
  if head.kind == "none" or (head.kind == "lm" and arch.tied):
    return []
  if head.kind == "lm":
    return [families.Name("lm_head.weight", "lm_head/kernel", "head")]
  hf = {"sequence": "score", "token": token, "span": "qa_outputs"}[head.kind]
  hf = hf if head.kind in own else "head"
  found = [families.Name(f"{hf}.weight", "head/kernel", "head")]
  return found + ([families.Name(f"{hf}.bias", "head/bias", "head")] if head.bias else [])


# --- export ----------------------------------------------------------------------------


def export_config(config, arch, head, labels, dtype, own, **more):
  """config.json of the exported model, with both spellings of rope and of the type.

  config: the one it was loaded with. labels: names in id order, () for a regression. own:
  the family's CLASSES. more: keys of the family. Every key is written that a default of
  transformers could fill.
  """
  return {
    **families.with_labels(config, head, labels),
    **families.class_of(own, head.kind),
    "head_dim": arch.heads.dim,
    "num_key_value_heads": arch.heads.kv,
    "attention_dropout": arch.attention_dropout,
    "tie_word_embeddings": arch.tied,
    **(ropes.write(arch.ropes[0], arch.heads.dim) if len(arch.ropes) == 1 else {}),
    "torch_dtype": dtype,
    "dtype": dtype,
    **more,
  }
