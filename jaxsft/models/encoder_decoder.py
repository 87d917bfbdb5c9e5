"""The encoder-decoder Transformer: T5, BART and what is like them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EncoderDecoderConfig:
  """The architecture, as config.json states it; no field has a default."""

  vocab: int
