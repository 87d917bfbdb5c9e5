"""Marian's translators (arXiv:1804.00344): sinusoids, norms after the residuals."""

from jaxsft import families
from jaxsft.families import bart_layout
from jaxsft.models import encoder_decoder

BASE_PREFIX = bart_layout.BASE_PREFIX
KNOWN = bart_layout.KNOWN | {"share_encoder_decoder_embeddings"}
IGNORED, TIED = bart_layout.IGNORED + bart_layout.COMPUTED, bart_layout.TIED
CLASSES = bart_layout.classes("Marian", kinds=(), lm="MTModel")

head_fields = bart_layout.plain_head_fields


def architecture(config):
  """EncoderDecoderConfig of a Marian config.json (a dict).

  Raises JaxsftError for missing fields, unsupported values, and unknown fields that may
  change the computation.
  """
  fields = bart_layout.fields(
    config, positions="sinusoid", embed_norm=False, placement="residual", final_norm=False
  )
  if not families.field(config, "share_encoder_decoder_embeddings", bool, True):
    fields["source_vocab"] = fields["vocab"]
    fields["vocab"] = families.field(config, "decoder_vocab_size", int)
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
    model_type="marian",
    vocab_size=arch.source_vocab or arch.vocab,
    decoder_vocab_size=arch.vocab,
    share_encoder_decoder_embeddings=arch.source_vocab is None,
  )
