"""How a bad input is written down: what is broken, the verb, the exit code, the sentence."""

import pytest

ASK, ANSWER = ("user", "2 plus 2"), ("assistant", "four")
PYPI = "pypi:some-models==1.0!models/tiny"
ROW = {"name": "x", "text": "the film was good", "label": "pos"}
LONG = {"name": "x", "text": "good " * 70, "label": "pos"}
QUERY = "encoder.layer.1.attention.self.query.weight"


def case(name, verb, spoil, code, *parts, task="classify"):
  return pytest.param(verb, task, spoil, code, parts, id=name)


def rows(name, row, code, *parts, **settings):
  """A case of training with one bad row, the twelfth, and settings."""

  def spoil(p):
    p.rows(row) if row else None
    for key, value in settings.items():
      p.set(key.replace("__", "."), value)

  return case(name, "train", spoil, code, *parts)


def settings(name, code, *parts, task="classify", **values):
  """A case of training with settings that cannot be."""

  def spoil(p):
    for key, value in values.items():
      p.set(key.replace("__", "."), value)

  return case(name, "train", spoil, code, *parts, task=task)


def chat(name, row, code, *parts, **values):
  """A case of training with the second conversation bad, and settings."""
  good = {"messages": [{"role": r, "content": c} for r, c in (ASK, ANSWER)]}

  def spoil(p):
    if row is not None:
      p.chats(good, row, good, good)
    for key, value in values.items():
      p.set(key.replace("__", "."), value)

  return case(name, "train", spoil, code, *parts, task="chat")


def turns(*pairs):
  return {"messages": [{"role": r, "content": c} for r, c in pairs]}


def model(name, spoil, code, *parts, task="classify"):
  return case(name, "train", spoil, code, *parts, task=task)
