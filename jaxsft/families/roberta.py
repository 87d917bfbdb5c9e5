"""RoBERTa (arXiv:1907.11692) as Hugging Face stores it."""

from jaxsft import families
from jaxsft.errors import JaxsftError
from jaxsft.families import bert_layout as layout
from jaxsft.models import encoder

BASE_PREFIX = "roberta."

IGNORED = (
  *layout.IGNORED,
  r"^lm_head\.",  # of pretraining
  r"^(roberta\.)?pooler\.",  # no head reads it
)
TIED = (("lm_head.decoder.weight", "embeddings.word_embeddings.weight"),)
KNOWN = layout.KNOWN
CLASSES = layout.classes("Roberta")


def architecture(config):
  """EncoderConfig of a RoBERTa config.json (a dict): BERT, but for positions and heads.

  Raises JaxsftError for missing fields, unsupported values, and unknown fields that may
  change the computation.
  """
  fields = layout.fields(config)
  families.refuse_unknown(config, KNOWN)
  rows = fields["max_positions"]
  offset = layout.count(config, "pad_token_id") + 1  # the rows up to it are never trained
  if offset >= rows:
    raise JaxsftError(
      f"config.json: pad_token_id {offset - 1} leaves no position of "
      f"max_position_embeddings {rows}, expected a smaller one: positions begin after it"
    )
  fields |= {"max_positions": rows - offset, "position_rows": rows, "position_offset": offset}
  dropout = layout.head_dropout(config)
  readers = layout.readers(
    none={"dense": "tanh"},
    sequence={"dropout_in": dropout, "dense": "tanh", "dropout": dropout},
    token={"dropout": dropout},
    span={},
    masked_lm=layout.transform(fields, "gelu"),
  )
  return encoder.EncoderConfig(**fields, readers=readers)


head_fields = layout.head_fields


def names(arch, head):
  """The name table of the encoder and its head."""
  table = [*layout.embeddings(arch), *layout.layer()]
  if head.kind == "none":
    table += layout.linear("pooler.dense", "dense", "pooler")
  if head.kind == "sequence":
    table += layout.linear("classifier.dense", "dense", "head")
  table += layout.output(head, sequence="classifier.out_proj")
  if head.kind == "masked_lm":
    table += layout.linear("lm_head.dense", "dense", "head")
    table += layout.norm("lm_head.layer_norm", "dense_norm", "head")
    table += layout.vocabulary(arch, "lm_head.decoder.weight", "lm_head.bias")
  return table


def export_config(config, arch, head, labels, dtype="float32"):
  """config.json of the exported model, for transformers 4 and 5.

  config: the one it was loaded with. labels: names in id order, () for a regression.
  """
  return layout.export(config, arch, head, labels, dtype, SELF)


SELF = {
  "classes": CLASSES,
  "model_type": "roberta",
  "position_embedding_type": "absolute",
  "is_decoder": False,
  "add_cross_attention": False,
}
