"""ALBERT (arXiv:1909.11942) as Hugging Face stores it."""

from jaxsft import families
from jaxsft.families import bert_layout as layout
from jaxsft.models import encoder

BASE_PREFIX = "albert."

IGNORED = (
  *layout.IGNORED,
  r"^predictions\.",  # of pretraining
  r"^sop_classifier\.",
  r"^(albert\.)?pooler\.",  # where the head reads every token
)
TIED = (("predictions.decoder.weight", "embeddings.word_embeddings.weight"),)
KNOWN = {*layout.KNOWN, "down_scale_factor"}  # nothing reads the last
CLASSES = layout.classes("Albert")


def architecture(config):
  """EncoderConfig of an ALBERT config.json (a dict): BERT whose layers are one.

  Raises JaxsftError for missing fields, unsupported values, and unknown fields that may
  change the computation.
  """
  fields = layout.fields(config)
  families.refuse_unknown(config, KNOWN)
  families.demand(config, "num_hidden_groups", (1,))
  families.demand(config, "inner_group_num", (1,))
  narrow = families.field(config, "embedding_size", int)
  dropout = families.field(config, "classifier_dropout_prob", float)
  fields |= {
    "shared": True,
    "project": encoder.Project(narrow, bias=True, before_norm=False),
    "mlp_out_dropout": 0.0,
  }
  readers = layout.readers(
    none={"dense": "tanh"},
    sequence={"dense": "tanh", "dropout": dropout},
    token={"dropout": dropout},
    span={},
    masked_lm=layout.transform(fields),
  )
  return encoder.EncoderConfig(**fields, readers=readers)


head_fields = layout.head_fields


def names(arch, head):
  """The name table of the encoder and its head."""
  hf = "encoder.albert_layer_groups.0.albert_layers.0"
  table = [
    *layout.embeddings(arch),
    *layout.linear("encoder.embedding_hidden_mapping_in", "embed/project"),
    *layout.linear(f"{hf}.attention.query", "layers/attn/q"),
    *layout.linear(f"{hf}.attention.key", "layers/attn/k"),
    *layout.linear(f"{hf}.attention.value", "layers/attn/v"),
    *layout.linear(f"{hf}.attention.dense", "layers/attn/o"),
    *layout.norm(f"{hf}.attention.LayerNorm", "layers/attn_norm"),
    *layout.linear(f"{hf}.ffn", "layers/mlp/up"),
    *layout.linear(f"{hf}.ffn_output", "layers/mlp/down"),
    *layout.norm(f"{hf}.full_layer_layer_norm", "layers/mlp_norm"),
  ]
  if head.kind in ("none", "sequence"):
    table += layout.linear("pooler", "dense", "pooler")
  table += layout.output(head)
  if head.kind == "masked_lm":
    table += layout.linear("predictions.dense", "dense", "head")
    table += layout.norm("predictions.LayerNorm", "dense_norm", "head")
    table += layout.vocabulary(arch, "predictions.decoder.weight", "predictions.bias")
  return table


def export_config(config, arch, head, labels, dtype="float32"):
  """config.json of the exported model, for transformers 4 and 5.

  config: the one it was loaded with. labels: names in id order, () for a regression.
  """
  return layout.export(config, arch, head, labels, dtype, SELF)


SELF = {
  "classes": CLASSES,
  "model_type": "albert",
  "position_embedding_type": "absolute",
}
