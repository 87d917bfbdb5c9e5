"""Rows of two classes as an evaluation has found them."""

import numpy as np

from jaxsft import tasks
from jaxsft.data.read import Row

CONTEXT = tasks.Context(None, 64, labels=("neg", "pos"))


def found(margins, golds, fields=None, name="r"):
  """[tasks.Found]: the logit of "pos" less that of "neg", the gold id."""
  rows = []
  for i, (margin, gold) in enumerate(zip(margins, golds, strict=True)):
    more = {} if fields is None else fields[i]
    row = Row(
      f"{name}{i}", f"rows:{i + 1}", {"text": f"t{i}", "label": CONTEXT.labels[gold], **more}
    )
    example = {"inputs": np.zeros(3 + i % 5, np.int32), "label": np.int32(gold)}
    rows.append(tasks.Found(row, [example], [{"logits": np.float32([0, margin])}]))
  return rows
