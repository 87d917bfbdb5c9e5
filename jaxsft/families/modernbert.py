"""ModernBERT (arXiv:2412.13663) as Hugging Face stores it."""

from jaxsft import families
from jaxsft.errors import JaxsftError
from jaxsft.families import Name, View
from jaxsft.families import bert_layout as layout
from jaxsft.families import rope as ropes
from jaxsft.models import attention_layer, encoder, layers

BASE_PREFIX = "model."

IGNORED = (
  r"^(head|decoder|classifier)\.",  # another head (the table's own names come first)
  r"rotary_emb\.",  # buffers, computed from the config
)
TIED = (("decoder.weight", "embeddings.tok_embeddings.weight"),)
KNOWN = {
  "attention_bias",
  "attention_dropout",
  "classifier_bias",
  "decoder_bias",
  "global_attn_every_n_layers",
  "global_rope_theta",
  "layer_norm_eps",  # nothing reads it
  "local_attention",
  "local_rope_theta",
  "mlp_bias",
  "norm_bias",
  "norm_eps",
  "num_attention_heads",
  "rope_parameters",
}
CLASSES = layout.classes("ModernBert")
TYPES = ("full_attention", "sliding_attention")  # of layers, in the order of the ropes


def architecture(config):
  """EncoderConfig of a ModernBERT config.json (a dict).

  Raises JaxsftError for missing fields, unsupported values, and unknown fields that may
  change the computation.
  """
  get = lambda name, kind, *absent: families.field(config, name, kind, *absent)
  families.demand(config, "hidden_activation", layers.ACTIVATIONS)
  families.refuse_unknown(config, KNOWN)
  fields = layout.plain(
    vocab=get("vocab_size", int),
    width=get("hidden_size", int),
    num_layers=get("num_hidden_layers", int),
    heads=get("num_attention_heads", int),
    mlp=get("intermediate_size", int),
    max_positions=get("max_position_embeddings", int),
    types=0,
    activation=get("hidden_activation", str),
    eps=get("norm_eps", float),
    dropout=get("attention_dropout", float),
    attention_dropout=get("attention_dropout", float),
    tied=get("tie_word_embeddings", bool, True),  # the default of both majors
    std=get("initializer_range", float),
  )
  heads = fields["heads"]
  window = get("local_attention", int) // 2 + 1  # a key half of it away is still seen
  every = _every(config, fields["layers"])
  fields |= {
    "heads": attention_layer.plain_heads(heads.count, heads.dim, get("attention_bias", bool)),
    "gated": True,
    "mlp_bias": get("mlp_bias", bool),
    "norm": layers.Norm("layer", get("norm_eps", float), get("norm_bias", bool), offset=0.0),
    "placement": "before",
    "first_norm": False,
    "position_rows": 0,
    "ropes": _ropes(config, heads.dim),
    "kinds": tuple(
      encoder.Kind(window, rope=1) if i % every else encoder.Kind(None, rope=0)
      for i in range(fields["layers"])
    ),
    "embed_dropout": get("embedding_dropout", float),
    "mlp_dropout": get("mlp_dropout", float),
    "mlp_out_dropout": 0.0,
  }
  return encoder.EncoderConfig(**fields, readers=_readers(config, fields["norm"]))


def _readers(config, norm):
  """All heads begin alike: dense, activation, norm."""
  get = lambda name, kind: families.field(config, name, kind)
  pooling = families.demand(config, "classifier_pooling", ("cls", "mean"))
  steps = {
    "dense": families.demand(config, "classifier_activation", layers.ACTIVATIONS),
    "dense_bias": get("classifier_bias", bool),
    "norm": norm,
  }
  read = {**steps, "dropout": get("classifier_dropout", float)}
  return layout.readers(
    none={},
    sequence={**read, "pool": "mean" if pooling == "mean" else "first"},
    token=read,
    span=read,
    masked_lm={**steps, "bias": get("decoder_bias", bool)},
  )


def _every(config, num_layers):
  """Of how many layers one sees the whole text, beginning with the first."""
  every, kinds = config.get("global_attn_every_n_layers"), config.get("layer_types")
  if kinds is None:
    return families.field(config, "global_attn_every_n_layers", int)
  full = [i for i, kind in enumerate(kinds) if kind == TYPES[0]]
  step = (full[1] if len(full) > 1 else num_layers) if full else 1
  if kinds != [TYPES[bool(i % step)] for i in range(num_layers)] or every not in (None, step):
    raise JaxsftError(
      f"config.json: layer_types is {kinds} with global_attn_every_n_layers {every}, expected "
      f"{num_layers} of {TYPES}, full ones at equal distances from the first on and as often "
      "as global_attn_every_n_layers says"
    )
  return step


def _ropes(config, head_dim):
  """(of layers that see the whole text, of the others), from the newer or the older keys."""
  new, found = config.get("rope_parameters"), []
  if new is not None:
    found.append(tuple(ropes.parse(new.get(kind) or {}, head_dim) for kind in TYPES))
  if new is None or config.get("global_rope_theta") is not None:
    thetas = (
      families.field(config, name, float) for name in ("global_rope_theta", "local_rope_theta")
    )
    found.append(tuple(ropes.parse({"rope_theta": theta}, head_dim) for theta in thetas))
  if found[0] != found[-1] or {rope.kind for rope in found[0]} != {"default"}:
    raise JaxsftError(
      f"config.json: rope_parameters is {new}, expected the type 'default' for each of "
      f"{TYPES} with the bases of global_rope_theta and local_rope_theta"
    )
  return found[0]


head_fields = layout.head_fields


def names(arch, head):
  """The name table of the encoder and its head."""
  size, bias = arch.heads.count * arch.heads.dim, arch.norm.bias
  table = [
    Name("embeddings.tok_embeddings.weight", "embed/tokens/embedding", "base"),
    *layout.norm("embeddings.norm", "embed/norm", bias=bias),
    *_parts("attn.Wqkv", "attn", ("q", "k", "v"), size, arch.heads.bias),
    *layout.linear("layers.{i}.attn.Wo", "layers/attn/o", bias=arch.heads.out_bias),
    *layout.norm("layers.{i+1}.attn_norm", "later/attn_norm", bias=bias),
    *_parts("mlp.Wi", "mlp", ("gate", "up"), arch.mlp, arch.mlp_bias),
    *layout.linear("layers.{i}.mlp.Wo", "layers/mlp/down", bias=arch.mlp_bias),
    *layout.norm("layers.{i}.mlp_norm", "layers/mlp_norm", bias=bias),
    *layout.norm("final_norm", "norm", bias=bias),
  ]
  if head.kind != "none":
    table += layout.linear("head.dense", "dense", "head", bias=head.dense_bias)
    table += layout.norm("head.norm", "dense_norm", "head", bias=bias)
  if head.kind in ("sequence", "token", "span"):
    table += layout.linear("classifier", "head", "head")
  if head.kind == "masked_lm":
    own = layout.vocabulary(arch, "decoder.weight", "decoder.bias")
    table += own if head.bias else own[:-1]
  return table


def _parts(hf, path, leaves, size, bias):
  """The names of projections that the file keeps as one."""
  found = []
  for i, leaf in enumerate(leaves):
    view = View(i * size, (i + 1) * size, len(leaves) * size)
    for name in layout.linear(f"layers.{{i}}.{hf}", f"layers/{path}/{leaf}", bias=bias):
      found.append(name._replace(view=view))
  return found


def export_config(config, arch, head, labels, dtype="float32"):
  """config.json of the exported model, for transformers 4 and 5.

  config: the one it was loaded with. labels: names in id order, () for a regression.
  """
  every = _every(config, arch.layers)
  thetas = [rope.theta for rope in arch.ropes]
  own = {
    "global_attn_every_n_layers": every,
    "layer_types": [TYPES[bool(i % every)] for i in range(arch.layers)],
    "global_rope_theta": thetas[0],
    "local_rope_theta": thetas[1],
    "rope_parameters": {
      kind: ropes.fields_of(rope, arch.heads.dim)
      for kind, rope in zip(TYPES, arch.ropes, strict=True)
    },
  }
  known = {"classes": CLASSES, "model_type": "modernbert", **own}
  return layout.export(config, arch, head, labels, dtype, known)
