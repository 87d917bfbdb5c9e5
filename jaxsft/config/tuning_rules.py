"""Choices of which weights train that cannot run."""

from jaxsft.config.data_rules import WRITE


def rules(c):
  """(broken?, sentence) for every combination that cannot run."""
  yield (
    c.tune.method == "regex" and not c.tune.train,
    "config.tune.train: is empty; method='regex' needs patterns over parameter paths",
  )
  yield (
    c.tune.method != "regex" and c.tune.train != (),
    f"config.tune.train: has no effect with tune.method={c.tune.method!r}; set 'regex'",
  )
  yield (
    c.task in WRITE and c.tune.method == "head",
    f"config.tune.method: 'head' trains a task head, which task={c.task!r} does not have",
  )
