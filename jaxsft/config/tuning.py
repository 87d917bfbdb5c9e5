"""Settings of which weights train, and how."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tune:
  """Which weights train."""

  method: str = "all"
  """"all"; "head": the task head; "last:k", as "last:2": the last k layers (of the decoder,
  where there is one), the last norm and the head; "bias" (BitFit, arXiv:2106.10199) or "norms":
  these, and the task head; "regex": what `train` matches."""
  train: tuple[str, ...] = ()
  """method="regex": patterns over parameter paths (re.search), such as "layers/attn/" or, for
  one layer of a stack, "layers.11/attn/"."""
  unfreeze: dict[str, int] | None = None
  """Pattern over paths as in `train` -> number of the update from which on it trains; the first
  that matches counts, the rest trains from the start."""
  unfreeze_every: int = 0
  """Updates after which one more layer trains, the head first, embeddings last (ULMFiT,
  arXiv:1801.06146); 0: all at once."""
