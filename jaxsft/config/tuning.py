"""Settings of which weights train, and how."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Lora:
  """tune.method="lora": low-rank adapters beside frozen projections (arXiv:2106.09685)."""

  rank: int = 16
  """R: A is [R, in], B [out, R]."""
  alpha: float = 32.0
  """What the adapter adds is multiplied by alpha / rank."""
  dropout: float = 0.0
  """Of what the adapters read, while training."""
  targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
  """Every projection of attention and MLP; or patterns over paths such as "attn/(q|v)"."""
  rank_pattern: dict[str, int] | None = None
  """{pattern over paths: rank} of projections with another rank; the first match counts."""
  alpha_pattern: dict[str, float] | None = None
  """The same for alpha."""
  rslora: bool = False
  """Multiply by alpha / sqrt(rank) instead (arXiv:2312.03732)."""
  dora: bool = False
  """Train the length of every row apart from its direction (DoRA, arXiv:2402.09353)."""
  init: Literal["default", "gaussian", "pissa", "olora"] = "default"
  """A uniform or normal and B zero; or both from the weights, which then keep only the rest:
  principal components (arXiv:2404.02948) or a QR decomposition (arXiv:2406.01775)."""
  plus: float = 1.0
  """Learning rate of B over that of A (LoRA+, arXiv:2402.12354, suggests 16)."""


@dataclass(frozen=True)
class Tune:
  """Which weights train."""

  method: str = "all"
  """"all"; "head": the task head; "last:k", as "last:2": the last k layers (of the decoder,
  where there is one), the last norm and the head; "bias" (BitFit, arXiv:2106.10199) or "norms":
  these, and the task head; "regex": what `train` matches; "lora": adapters (see `lora`), the
  task head and what `train` matches."""
  train: tuple[str, ...] = ()
  """Patterns over parameter paths (re.search), such as "layers/attn/" or, for one layer of a
  stack, "layers.11/attn/", of what trains by itself."""
  unfreeze: dict[str, int] | None = None
  """Pattern over paths as in `train` -> number of the update from which on it trains; the first
  that matches counts, the rest trains from the start."""
  unfreeze_every: int = 0
  """Updates after which one more layer trains, the head first, embeddings last (ULMFiT,
  arXiv:1801.06146); 0: all at once."""
  base_dtype: Literal["float32", "bfloat16"] = "float32"
  """What matrices and tables that do not train are held in."""
  lora: Lora = field(default_factory=Lora)
