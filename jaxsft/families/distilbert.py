"""DistilBERT (arXiv:1910.01108) as Hugging Face stores it."""

from jaxsft import families
from jaxsft.families import bert_layout as layout
from jaxsft.models import encoder, layers

BASE_PREFIX = "distilbert."

IGNORED = (
  *layout.IGNORED,
  r"^vocab_(transform|layer_norm|projector)\.",  # of pretraining
  r"^pre_classifier\.",  # where the head reads every token
)
TIED = (("vocab_projector.weight", "embeddings.word_embeddings.weight"),)
KNOWN = {"attention_dropout"}
CLASSES = layout.classes("DistilBert")
EPS = 1e-12  # config.json has no other


def architecture(config):
  """EncoderConfig of a DistilBERT config.json (a dict).

  Sinusoidal positions are in the file like others, and train like others.
  Raises JaxsftError for missing fields, unsupported values, and unknown fields that may
  change the computation.
  """
  get = lambda name, kind, *absent: families.field(config, name, kind, *absent)
  families.demand(config, "activation", layers.ACTIVATIONS)
  families.refuse_unknown(config, KNOWN)
  dropout = get("dropout", float)
  fields = layout.plain(
    vocab=get("vocab_size", int),
    width=get("dim", int),
    num_layers=get("n_layers", int),
    heads=get("n_heads", int),
    mlp=get("hidden_dim", int),
    max_positions=get("max_position_embeddings", int),
    types=0,
    activation=get("activation", str),
    eps=EPS,
    dropout=dropout,
    attention_dropout=get("attention_dropout", float),
    tied=get("tie_word_embeddings", bool, True),  # the default of both majors
    std=get("initializer_range", float),
  )
  fields["attention_out_dropout"] = 0.0
  readers = layout.readers(
    none={},
    sequence={"dense": "relu", "dropout": get("seq_classif_dropout", float)},
    token={"dropout": dropout},
    span={"dropout": get("qa_dropout", float)},
    masked_lm=layout.transform(fields),
  )
  return encoder.EncoderConfig(**fields, readers=readers)


head_fields = layout.head_fields


def names(arch, head):
  """The name table of the encoder and its head."""
  hf = "transformer.layer.{i}"
  table = [
    *layout.embeddings(arch),
    *layout.linear(f"{hf}.attention.q_lin", "layers/attn/q"),
    *layout.linear(f"{hf}.attention.k_lin", "layers/attn/k"),
    *layout.linear(f"{hf}.attention.v_lin", "layers/attn/v"),
    *layout.linear(f"{hf}.attention.out_lin", "layers/attn/o"),
    *layout.norm(f"{hf}.sa_layer_norm", "layers/attn_norm"),
    *layout.linear(f"{hf}.ffn.lin1", "layers/mlp/up"),
    *layout.linear(f"{hf}.ffn.lin2", "layers/mlp/down"),
    *layout.norm(f"{hf}.output_layer_norm", "layers/mlp_norm"),
  ]
  if head.kind == "sequence":
    table += layout.linear("pre_classifier", "dense", "head")
  table += layout.output(head)
  if head.kind == "masked_lm":
    table += layout.linear("vocab_transform", "dense", "head")
    table += layout.norm("vocab_layer_norm", "dense_norm", "head")
    table += layout.vocabulary(arch, "vocab_projector.weight", "vocab_projector.bias")
  return table


def export_config(config, arch, head, labels, dtype="float32"):
  """config.json of the exported model, for transformers 4 and 5.

  config: the one it was loaded with. labels: names in id order, () for a regression.
  """
  return layout.export(config, arch, head, labels, dtype, SELF)


SELF = {"classes": CLASSES, "model_type": "distilbert"}
