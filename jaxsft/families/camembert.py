"""CamemBERT (arXiv:1911.03894) as Hugging Face stores it: RoBERTa by another name."""

from jaxsft.families import bert_layout as layout
from jaxsft.families import roberta

BASE_PREFIX = roberta.BASE_PREFIX
IGNORED = roberta.IGNORED
TIED = roberta.TIED
KNOWN = roberta.KNOWN
CLASSES = layout.classes("Camembert")
SELF = {**roberta.SELF, "classes": CLASSES, "model_type": "camembert"}

architecture = roberta.architecture
head_fields = roberta.head_fields
names = roberta.names


def export_config(config, arch, head, labels, dtype="float32"):
  """See roberta.export_config."""
  return layout.export(config, arch, head, labels, dtype, SELF)
