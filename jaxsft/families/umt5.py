"""UMT5 (arXiv:2304.09151): T5 1.1 with a table of relative positions in every layer."""

from jaxsft.families import t5_layout

BASE_PREFIX, PREFIXES = t5_layout.BASE_PREFIX, t5_layout.PREFIXES
IGNORED, TIED, KNOWN = t5_layout.IGNORED, t5_layout.TIED, t5_layout.KNOWN
CLASSES = t5_layout.classes("UMT5")

head_fields = t5_layout.head_fields


def architecture(config):
  """EncoderDecoderConfig of a UMT5 config.json (a dict).

  Raises JaxsftError for missing fields, unsupported values, and unknown fields that may
  change the computation.
  """
  return t5_layout.architecture(
    config,
    is_tied=t5_layout.tied(config, absent=True),
    act=t5_layout.activation(config),
    per_layer=True,
  )


def names(arch, head):
  """The name table of both stacks and the head."""
  return t5_layout.names(arch, head, CLASSES)


def export_config(config, arch, head, labels, dtype="float32"):
  """See t5_layout.export_config."""
  return t5_layout.export_config(
    config,
    arch,
    head,
    labels,
    dtype,
    CLASSES,
    model_type="umt5",
    scale_decoder_outputs=arch.tied,
  )
