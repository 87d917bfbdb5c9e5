"""mT5 (arXiv:2010.11934): T5 1.1 in many languages; its head is never the token table."""

from jaxsft import families
from jaxsft.errors import JaxsftError
from jaxsft.families import t5_layout

BASE_PREFIX, PREFIXES = t5_layout.BASE_PREFIX, t5_layout.PREFIXES
IGNORED, TIED, KNOWN = t5_layout.IGNORED, t5_layout.TIED, t5_layout.KNOWN
CLASSES = t5_layout.classes("MT5")

head_fields = t5_layout.head_fields


def architecture(config):
  """EncoderDecoderConfig of an mT5 config.json (a dict).

  Raises JaxsftError for missing fields, unsupported values, and unknown fields that may
  change the computation.
  """
  tied = families.field(config, "tie_word_embeddings", bool, False)
  version = str(config.get("transformers_version", ""))
  if tied and not version.startswith("5."):  # which writes true, whatever the file has
    raise JaxsftError(
      "config.json: tie_word_embeddings is true in an mt5, for which transformers 4 scales "
      "the logits and transformers 5 does not: set it to false, and have lm_head.weight in "
      "the file"
    )
  return t5_layout.architecture(
    config, is_tied=False, act=t5_layout.activation(config), per_layer=False
  )


def names(arch, head):
  """The name table of both stacks and the head."""
  return t5_layout.names(arch, head, CLASSES)


def export_config(config, arch, head, labels, dtype="float32"):
  """See t5_layout.export_config."""
  return t5_layout.export_config(config, arch, head, labels, dtype, CLASSES, model_type="mt5")
