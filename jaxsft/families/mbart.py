"""mBART (arXiv:2001.08210): BART in many languages, norms in front and after the last layer."""

from jaxsft.families import bart_layout
from jaxsft.models import encoder_decoder

BASE_PREFIX, KNOWN = bart_layout.BASE_PREFIX, bart_layout.KNOWN
IGNORED, TIED = bart_layout.IGNORED, bart_layout.TIED
CLASSES = bart_layout.classes("MBart")

head_fields = bart_layout.head_fields


def architecture(config):
  """EncoderDecoderConfig of a MBart config.json (a dict).

  Raises JaxsftError for missing fields, unsupported values, and unknown fields that may
  change the computation.
  """
  fields = bart_layout.fields(
    config, positions="learned", embed_norm=True, placement="before", final_norm=True
  )
  # A target begins with its own last token, whatever generation begins with.
  fields |= {"decoder_start": None, "frozen_token": None}
  return encoder_decoder.EncoderDecoderConfig(**fields)


def names(arch, head):
  """The name table of both stacks and the head."""
  return bart_layout.names(arch, head, CLASSES)


def export_config(config, arch, head, labels, dtype="float32"):
  """See bart_layout.export_config."""
  return bart_layout.export_config(
    config,
    arch,
    head,
    labels,
    dtype,
    CLASSES,
    model_type="mbart",
    decoder_start_token_id=config.get("decoder_start_token_id"),
  )
