"""What the rows mean: one file a task, all with the same five functions.

`encode` makes the arrays of one row, `loss` and `predict` run on the device, `decode` and
`metrics` on the host. A task module also names the fields of its rows (`FIELDS`), and its
metrics with the direction in which each is better (`METRICS`, `DEFAULT_METRIC`).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Context:
  """What a task needs to know besides the row: plain values, no config."""

  tokenizer: Any
  max_length: int
  """Longest example in tokens."""
  too_long: str = "error"
  """"error", "drop" or "truncate"."""
  labels: tuple[str, ...] = ()
  """Label names in id order; () where the task has none."""
  label_type: str = "single"
  """"single" (one of `labels`) or "number"."""
  chat_template: str | None = None
  """Jinja text that replaces the tokenizer's own template."""
  train_on: str = "all"
  """"all" assistant turns or only the "last"."""


class Encoded(NamedTuple):
  """What `encode` makes of one row."""

  example: dict | None
  """Arrays for the store; None: the row is left out."""
  note: str | None
  """None, "truncated" or "dropped: too long"; the caller counts them."""
  text: str
  """What the tokens stand for."""
  spans: list[tuple[int, int]]
  """(start, end) in characters of `text`: what is supervised."""
  stop_ids: frozenset
  """Ids that end the supervised parts."""


from jaxsft.tasks import chat, classify  # noqa: E402  the tasks use what is above

TASKS = {"chat": chat, "classify": classify}
