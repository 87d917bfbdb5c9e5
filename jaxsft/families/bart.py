"""BART (arXiv:1910.13461): norms after the residuals, learned positions."""

from jaxsft.families import bart_layout
from jaxsft.models import encoder_decoder

BASE_PREFIX, KNOWN = bart_layout.BASE_PREFIX, bart_layout.KNOWN
IGNORED, TIED = bart_layout.IGNORED, bart_layout.TIED
CLASSES = bart_layout.classes("Bart")

head_fields = bart_layout.head_fields


def architecture(config):
  """EncoderDecoderConfig of a Bart config.json (a dict).

  Raises JaxsftError for missing fields, unsupported values, and unknown fields that may
  change the computation.
  """
  fields = bart_layout.fields(
    config, positions="learned", embed_norm=True, placement="residual", final_norm=False
  )
  return encoder_decoder.EncoderDecoderConfig(**fields)


def names(arch, head):
  """The name table of both stacks and the head."""
  return bart_layout.names(arch, head, CLASSES)


def export_config(config, arch, head, labels, dtype="float32"):
  """See bart_layout.export_config."""
  return bart_layout.export_config(
    config, arch, head, labels, dtype, CLASSES, model_type="bart"
  )
