"""BERT (arXiv:1810.04805) as Hugging Face stores it."""

from jaxsft import families
from jaxsft.errors import JaxsftError
from jaxsft.models import encoder, layers

BASE_PREFIX = "bert."

IGNORED = (
  r"^cls\.",  # masked-LM and next-sentence heads of pretraining
  r"^qa_outputs\.",  # question answering
  r"^classifier\.",  # another classification head (the table's own names come first)
  r"^(bert\.)?pooler\.",  # where the head reads every token
  r"embeddings\.position_ids$",  # a buffer 0, 1, 2, …
)
TIED = ()

KNOWN = {
  "hidden_act",
  "attention_probs_dropout_prob",
  "num_attention_heads",
  "layer_norm_eps",
}
CLASSES = {
  "none": "BertModel",
  "sequence": "BertForSequenceClassification",
  "token": "BertForTokenClassification",
}


def architecture(config):
  """EncoderConfig of a BERT config.json (a dict).

  Raises JaxsftError for missing fields, unsupported values, and unknown fields that may
  change the computation.
  """
  get = lambda name, kind, *absent: families.field(config, name, kind, *absent)
  # transformers 5 no longer writes the first: it has no other kind left.
  families.demand(config, "position_embedding_type", ("absolute",), "absolute")
  families.demand(config, "is_decoder", (False,), False)
  families.demand(config, "add_cross_attention", (False,), False)
  families.demand(config, "hidden_act", layers.ACTIVATIONS)
  families.refuse_unknown(config, KNOWN)
  width, heads = get("hidden_size", int), get("num_attention_heads", int)
  if width % heads:
    raise JaxsftError(
      f"config.json: hidden_size {width} is not a multiple of num_attention_heads {heads}"
    )
  dropout = get("hidden_dropout_prob", float)
  return encoder.EncoderConfig(
    vocab=get("vocab_size", int),
    width=width,
    layers=get("num_hidden_layers", int),
    heads=heads,
    mlp=get("intermediate_size", int),
    max_positions=get("max_position_embeddings", int),
    types=get("type_vocab_size", int),
    eps=get("layer_norm_eps", float),
    activation=get("hidden_act", str),
    dropout=dropout,
    attention_dropout=get("attention_probs_dropout_prob", float),
    head_dropout=get("classifier_dropout", float, dropout),  # null: hidden_dropout_prob
    std=get("initializer_range", float),
  )


def head_fields(arch, kind):
  """How BERT's heads read the hidden states."""
  return {
    "pool": "first",
    "pooler": kind in ("none", "sequence"),
    "bias": True,
    "dropout": arch.head_dropout,
  }


def names(arch, head):
  """The name table of the encoder and its head."""
  if head.kind not in CLASSES:
    raise JaxsftError(
      f"the bert family has no {head.kind!r} head, expected one of {list(CLASSES)}: "
      "choose a task that reads sentences or tokens (config.task)"
    )
  table = [
    ("embeddings.word_embeddings.weight", "embed/tokens/embedding"),
    ("embeddings.position_embeddings.weight", "embed/positions/embedding"),
    ("embeddings.token_type_embeddings.weight", "embed/types/embedding"),
    *_norm("embeddings.LayerNorm", "embed/norm"),
    *_linear("encoder.layer.{i}.attention.self.query", "layers/attn/q"),
    *_linear("encoder.layer.{i}.attention.self.key", "layers/attn/k"),
    *_linear("encoder.layer.{i}.attention.self.value", "layers/attn/v"),
    *_linear("encoder.layer.{i}.attention.output.dense", "layers/attn/o"),
    *_norm("encoder.layer.{i}.attention.output.LayerNorm", "layers/attn_norm"),
    *_linear("encoder.layer.{i}.intermediate.dense", "layers/mlp/up"),
    *_linear("encoder.layer.{i}.output.dense", "layers/mlp/down"),
    *_norm("encoder.layer.{i}.output.LayerNorm", "layers/mlp_norm"),
  ]
  if head.pooler:
    table += _linear("pooler.dense", "pooler")
  own = _linear("classifier", "head") if head.kind != "none" else []
  base = [families.Name(hf, path, "base") for hf, path in table]
  return base + [families.Name(hf, path, "head") for hf, path in own]


def _linear(hf, path):
  return [(f"{hf}.weight", f"{path}/kernel"), (f"{hf}.bias", f"{path}/bias")]


def _norm(hf, path):
  return [(f"{hf}.weight", f"{path}/scale"), (f"{hf}.bias", f"{path}/bias")]


def export_config(config, arch, head, labels, dtype="float32"):
  """config.json of the exported model, for transformers 4 and 5.

  config: the one it was loaded with. labels: names in id order, () for a regression.
  """
  return {
    **families.with_labels(config, head, labels),
    "architectures": [CLASSES[head.kind]],
    "model_type": "bert",
    "position_embedding_type": "absolute",
    "torch_dtype": dtype,
    "dtype": dtype,
  }
