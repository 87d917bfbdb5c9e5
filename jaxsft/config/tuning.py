"""Settings of which weights train, and how."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Tune:
  """Which weights train."""

  method: Literal["all", "head", "regex"] = "all"
  """Everything; the task head only; or the leaves whose path matches `train`."""
  train: tuple[str, ...] = ()
  """method="regex": patterns over parameter paths such as "layers/attn/.*" (re.search)."""
