"""Two data sets, and the settings that read, draw and weigh them."""

from jaxsft import tasks
from jaxsft.config import Data, Part
from tests import tiny

CLASSIFY = tasks.TASKS["classify"]


def checkpoint(place, name):
  """ "bert", "llama", or "judge", which has a head; made when first asked for."""
  family, labels = ("bert", ("neg", "pos")) if name == "judge" else (name, ())
  if not (place / name).exists():
    tiny.checkpoint(place / name, family, labels=labels)
  return family, place / name


COLUMNS = {"text": "review", "label": "stars"}


def parts(place, **changes):
  mix = {
    "a": {"path": str(place / "a.jsonl")},
    "b": {"path": str(place / "b.csv"), "columns": COLUMNS},
  }
  return {name: Part(**own | changes.get(name, {})) for name, own in mix.items()}


def data(place, **changes):
  mix = parts(place, **{k: changes.pop(k) for k in ("a", "b") if k in changes})
  return Data(**{"mix": mix, "id": "name", "split": 0.2} | changes)


def settings(place, task="classify", model="bert", **changes):
  mix = parts(place, **{k: changes.pop(k) for k in ("a", "b") if k in changes})
  if task == "chat":
    paths = {"a": place / "chats.jsonl", "b": place / "short.jsonl"}
    mix = {
      name: Part(str(path), weight=mix[name].weight, loss_weight=mix[name].loss_weight)
      for name, path in paths.items()
    }
  found = {"data__mix": mix, "data__path": "", "data__columns": {}, **changes}
  family, path = checkpoint(place, model)
  return tiny.config(family, task, path, "", **found)
