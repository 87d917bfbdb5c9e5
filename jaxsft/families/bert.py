"""BERT (arXiv:1810.04805) as Hugging Face stores it."""

from jaxsft import families
from jaxsft.families import bert_layout as layout
from jaxsft.models import encoder

BASE_PREFIX = "bert."

IGNORED = (
  *layout.IGNORED,
  r"^cls\.",  # masked-LM and next-sentence heads of pretraining
  r"^(bert\.)?pooler\.",  # where the head reads every token
)
TIED = (("cls.predictions.decoder.weight", "embeddings.word_embeddings.weight"),)
KNOWN = layout.KNOWN
CLASSES = layout.classes("Bert")


def architecture(config):
  """EncoderConfig of a BERT config.json (a dict).

  Raises JaxsftError for missing fields, unsupported values, and unknown fields that may
  change the computation.
  """
  fields = layout.fields(config)
  families.refuse_unknown(config, KNOWN)
  dropout = layout.head_dropout(config)
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
  table = [*layout.embeddings(arch), *layout.layer()]
  if head.kind in ("none", "sequence"):
    table += layout.linear("pooler.dense", "dense", "pooler")
  table += layout.output(head)
  if head.kind == "masked_lm":
    cls = "cls.predictions"
    table += layout.linear(f"{cls}.transform.dense", "dense", "head")
    table += layout.norm(f"{cls}.transform.LayerNorm", "dense_norm", "head")
    table += layout.vocabulary(arch, f"{cls}.decoder.weight", f"{cls}.bias")
  return table


def export_config(config, arch, head, labels, dtype="float32"):
  """config.json of the exported model, for transformers 4 and 5.

  config: the one it was loaded with. labels: names in id order, () for a regression.
  """
  return layout.export(config, arch, head, labels, dtype, SELF)


SELF = {
  "classes": CLASSES,
  "model_type": "bert",
  "position_embedding_type": "absolute",
  "is_decoder": False,
  "add_cross_attention": False,
}
