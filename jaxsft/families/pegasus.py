"""Pegasus (arXiv:1912.08777): sinusoids, norms in front and after the last layer."""

from jaxsft.families import bart_layout
from jaxsft.models import encoder_decoder, layers

BASE_PREFIX, KNOWN = bart_layout.BASE_PREFIX, bart_layout.KNOWN
IGNORED, TIED = bart_layout.IGNORED + bart_layout.COMPUTED, bart_layout.TIED
CLASSES = bart_layout.classes("Pegasus", kinds=())

head_fields = bart_layout.plain_head_fields


def architecture(config):
  """EncoderDecoderConfig of a Pegasus config.json (a dict).

  Raises JaxsftError for missing fields, unsupported values, and unknown fields that may
  change the computation.
  """
  fields = bart_layout.fields(
    config, positions="sinusoid", embed_norm=False, placement="before", final_norm=True
  )
  return encoder_decoder.EncoderDecoderConfig(**fields)


def names(arch, head):
  """The name table of both stacks and the head."""
  return bart_layout.names(arch, head, CLASSES)


def computed(arch):
  """(name, array) of tensors that transformers misses in a file although it computes them."""
  table = layers.sinusoids(arch.max_positions, arch.width)
  return [(f"{stack}.embed_positions.weight", table) for stack in ("encoder", "decoder")]


def export_config(config, arch, head, labels, dtype="float32"):
  """See bart_layout.export_config."""
  return bart_layout.export_config(
    config, arch, head, labels, dtype, CLASSES, model_type="pegasus"
  )
