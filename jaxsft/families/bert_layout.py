"""What families that look like BERT share: fields of config.json, tensor names, the export."""

from jaxsft import families
from jaxsft.errors import JaxsftError
from jaxsft.families import Name
from jaxsft.models import attention_layer, encoder, layers

KNOWN = {
  "hidden_act",
  "attention_probs_dropout_prob",
  "num_attention_heads",
  "layer_norm_eps",
  "pooler_num_attention_heads",  # of Google's checkpoints; nothing reads it
}
IGNORED = (
  r"embeddings\.(position|token_type)_ids$",  # buffers 0, 1, 2, … and 0, 0, 0, …
  r"^qa_outputs\.",  # another head (the table's own names come first)
  r"^classifier\.",
)


def plain(
  *,
  vocab,
  width,
  num_layers,
  heads,
  mlp,
  max_positions,
  types,
  activation,
  eps,
  dropout,
  attention_dropout,
  tied,
  std,
):
  """Fields of EncoderConfig as BERT has them; a family replaces those where it differs."""
  return {
    "vocab": vocab,
    "width": width,
    "layers": num_layers,
    "heads": attention_layer.plain_heads(heads, families.head_dim(width, heads)),
    "mlp": mlp,
    "max_positions": max_positions,
    "activation": activation,
    "gated": False,
    "mlp_bias": True,
    "norm": layers.Norm("layer", eps, bias=True, offset=0.0),
    "placement": "residual",
    "first_norm": True,
    "shared": False,
    "kinds": (encoder.Kind(window=None, rope=None),) * num_layers,
    "ropes": (),
    "relative": None,
    "conv": None,
    "position_rows": max_positions,
    "position_offset": 0,
    "types": types,
    "project": None,
    "tied": tied,
    "spelling": "",
    "embed_dropout": dropout,
    "attention_dropout": attention_dropout,
    "attention_out_dropout": dropout,
    "mlp_dropout": 0.0,
    "mlp_out_dropout": dropout,
    "relative_dropout": 0.0,
    "std": std,
  }


def fields(config):
  """`plain` of a config.json with BERT's keys.

  Raises JaxsftError for missing fields and unsupported values.
  """
  get = lambda name, kind, *absent: families.field(config, name, kind, *absent)
  # transformers 5 no longer writes the first: it has no other kind left.
  families.demand(config, "position_embedding_type", ("absolute",), "absolute")
  families.demand(config, "is_decoder", (False,), False)
  families.demand(config, "add_cross_attention", (False,), False)
  families.demand(config, "hidden_act", layers.ACTIVATIONS)
  return plain(
    vocab=get("vocab_size", int),
    width=get("hidden_size", int),
    num_layers=get("num_hidden_layers", int),
    heads=get("num_attention_heads", int),
    mlp=get("intermediate_size", int),
    max_positions=get("max_position_embeddings", int),
    types=count(config, "type_vocab_size"),
    activation=get("hidden_act", str),
    eps=get("layer_norm_eps", float),
    dropout=get("hidden_dropout_prob", float),
    attention_dropout=get("attention_probs_dropout_prob", float),
    tied=get("tie_word_embeddings", bool, True),  # the default of both majors
    std=get("initializer_range", float),
  )


def count(config, name, absent=families.REQUIRED):
  """config[name], a whole number that may be 0."""
  value = config.get(name)
  if value is None or isinstance(value, bool) or not isinstance(value, int) or value < 0:
    if value is None and absent is not families.REQUIRED:
      return absent
    raise JaxsftError(f"config.json: {name} is {value!r}, expected a whole number from 0")
  return value


def head_dropout(config):
  """classifier_dropout; null: hidden_dropout_prob."""
  dropout = families.field(config, "hidden_dropout_prob", float)
  return families.field(config, "classifier_dropout", float, dropout)


def transform(plain, activation=None):
  """The steps before a masked-LM head's projection: dense, activation and norm."""
  project = plain["project"]
  return {
    "dense": activation or plain["activation"],
    "dense_width": None if project is None else project.width,
    "norm": plain["norm"],
  }


def readers(**kinds):
  """EncoderConfig.readers of {kind: {field of heads.Head: value}}."""
  return tuple((kind, tuple(sorted(steps.items()))) for kind, steps in sorted(kinds.items()))


def head_fields(arch, kind):
  """How the family's head of `kind` reads the hidden states."""
  return dict(dict(arch.readers).get(kind, ()))


def classes(name):
  """{kind: class} of transformers; every encoder has these."""
  return {
    "none": f"{name}Model",
    "masked_lm": f"{name}ForMaskedLM",
    "sequence": f"{name}ForSequenceClassification",
    "token": f"{name}ForTokenClassification",
    "span": f"{name}ForQuestionAnswering",
  }


def output(head, sequence="classifier"):
  """Names of the projection of a head for sentences, tokens or spans; none for others."""
  hf = {"sequence": sequence, "token": "classifier", "span": "qa_outputs"}.get(head.kind)
  return linear(hf, "head", "head") if hf else []


def linear(hf, path, part="base", bias=True):
  """The names of a projection."""
  names = [Name(f"{hf}.weight", f"{path}/kernel", part)]
  return names + [Name(f"{hf}.bias", f"{path}/bias", part)] * bias


def norm(hf, path, part="base", bias=True):
  """The names of a norm."""
  names = [Name(f"{hf}.weight", f"{path}/scale", part)]
  return names + [Name(f"{hf}.bias", f"{path}/bias", part)] * bias


def embeddings(arch, hf="embeddings"):
  """The names of the tables that there are, and of their norm."""
  tables = {"tokens": "word_embeddings"}
  if arch.position_rows:
    tables["positions"] = "position_embeddings"
  if arch.types:
    tables["types"] = "token_type_embeddings"
  names = [
    Name(f"{hf}.{old}.weight", f"embed/{new}/embedding", "base") for new, old in tables.items()
  ]
  return names + norm(f"{hf}.LayerNorm", "embed/norm")


def layer(hf="encoder.layer.{i}", q="query", k="key", v="value"):
  """The names of the layers."""
  return [
    *linear(f"{hf}.attention.self.{q}", "layers/attn/q"),
    *linear(f"{hf}.attention.self.{k}", "layers/attn/k"),
    *linear(f"{hf}.attention.self.{v}", "layers/attn/v"),
    *linear(f"{hf}.attention.output.dense", "layers/attn/o"),
    *norm(f"{hf}.attention.output.LayerNorm", "layers/attn_norm"),
    *linear(f"{hf}.intermediate.dense", "layers/mlp/up"),
    *linear(f"{hf}.output.dense", "layers/mlp/down"),
    *norm(f"{hf}.output.LayerNorm", "layers/mlp_norm"),
  ]


def vocabulary(arch, kernel, bias):
  """The names of a masked-LM head's projection."""
  own = [] if arch.tied else [Name(kernel, "lm_head/kernel", "head")]
  return [*own, Name(bias, "lm_head/bias", "head")]


def export(config, arch, head, labels, dtype, known):
  """config.json of the exported model, for transformers 4 and 5.

  known: what the family says of itself: its classes, model_type, and keys with defaults.
  """
  return {
    **families.with_labels(config, head, labels),
    **families.class_of(known["classes"], head.kind),
    "tie_word_embeddings": arch.tied,
    **{key: value for key, value in known.items() if key != "classes"},
    "torch_dtype": dtype,
    "dtype": dtype,
  }
