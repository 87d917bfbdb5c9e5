"""ELECTRA (arXiv:2003.10555), discriminators and generators, as Hugging Face stores it."""

from jaxsft import families
from jaxsft.families import bert_layout as layout
from jaxsft.models import encoder

BASE_PREFIX = "electra."

IGNORED = (
  *layout.IGNORED,
  r"^discriminator_predictions\.",  # which tokens are replaced: of pretraining
  r"^generator_(predictions|lm_head)\.",
)
TIED = (("generator_lm_head.weight", "embeddings.word_embeddings.weight"),)
KNOWN = {*layout.KNOWN, "summary_activation"}
CLASSES = layout.classes("Electra")


def architecture(config):
  """EncoderConfig of an ELECTRA config.json (a dict): BERT with narrower tables.

  Raises JaxsftError for missing fields, unsupported values, and unknown fields that may
  change the computation.
  """
  fields = layout.fields(config)
  families.refuse_unknown(config, KNOWN)
  narrow = families.field(config, "embedding_size", int)
  if narrow != fields["width"]:
    fields["project"] = encoder.Project(narrow, bias=True, before_norm=False)
  dropout = layout.head_dropout(config)
  readers = layout.readers(
    none={},
    sequence={"dropout_in": dropout, "dense": "gelu", "dropout": dropout},
    token={"dropout": dropout},
    span={},
    masked_lm=layout.transform(fields, "gelu"),
  )
  return encoder.EncoderConfig(**fields, readers=readers)


head_fields = layout.head_fields


def names(arch, head):
  """The name table of the encoder and its head."""
  table = [*layout.embeddings(arch), *layout.layer()]
  if arch.project is not None:
    table += layout.linear("embeddings_project", "embed/project")
  if head.kind == "sequence":
    table += layout.linear("classifier.dense", "dense", "head")
  table += layout.output(head, sequence="classifier.out_proj")
  if head.kind == "masked_lm":
    table += layout.linear("generator_predictions.dense", "dense", "head")
    table += layout.norm("generator_predictions.LayerNorm", "dense_norm", "head")
    table += layout.vocabulary(arch, "generator_lm_head.weight", "generator_lm_head.bias")
  return table


def export_config(config, arch, head, labels, dtype="float32"):
  """config.json of the exported model, for transformers 4 and 5.

  config: the one it was loaded with. labels: names in id order, () for a regression.
  """
  return layout.export(config, arch, head, labels, dtype, SELF)


SELF = {
  "classes": CLASSES,
  "model_type": "electra",
  "position_embedding_type": "absolute",
  "is_decoder": False,
  "add_cross_attention": False,
}
