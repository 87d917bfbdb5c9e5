"""Combinations of settings of several data sets, and of balanced labels, that cannot run."""

import math
import re

BESIDE = {
  "prompt": "to {} if their fields are ready",
  "columns": "to {} if their columns are named like fields",
  "format": "to the format of these rows",
  "keep": "to 'True' if all of them count",
}
"""Keys by which a data set may be read in its own way -> what rows beside the mixture need."""


def own_reading(data, part):
  """The keys of BESIDE that a data set has for itself, where `data` says nothing of others."""
  usual = type(data)()
  for key in BESIDE:
    mine, shared = getattr(part, key), getattr(data, key)
    if mine and mine != shared and shared == getattr(usual, key):
      yield key


def rules(c):
  """(broken?, sentence) for every combination that cannot run."""
  for group in (_mix, _parts, _balance):
    yield from group(c)


def _mix(c):
  d, mix = c.data, c.data.mix or {}
  yield d.mix == {}, "config.data.mix: is empty; name the data sets, or set it to None"
  for key in ("path", "sha256"):
    yield (
      d.mix is not None and bool(getattr(d, key)),
      f"config.data.{key}: is {getattr(d, key)!r} beside config.data.mix, whose data sets have "
      "paths of their own; remove one of the two",
    )
  temperature = d.mix_temperature
  weighed = [name for name, part in mix.items() if part.weight is not None]
  bare = [name for name in mix if name not in weighed]
  yield (
    not 0 < temperature < math.inf,
    f"config.data.mix_temperature: found {temperature}, expected a number above 0",
  )
  yield (
    temperature != 1 and d.mix is None,
    f"config.data.mix_temperature: is {temperature}, which has no effect without "
    "config.data.mix; set it to 1",
  )
  yield (
    bool(weighed and bare),
    f"config.data.mix: {(*weighed, '')[0]!r} has a weight and {(*bare, '')[0]!r} has none; "
    "give all of them a weight, or none",
  )
  for name, part in mix.items():
    for key, other in (("weight", part.weight), ("epochs", part.epochs)):
      yield (
        other is not None and temperature != 1,
        f"config.data.mix_temperature: is {temperature}, but config.data.mix.{name}.{key} says "
        "how often that set is drawn; remove one of the two",
      )
    yield (
      part.epochs is not None and bool(weighed),
      f"config.data.mix.{name}.epochs: stands beside weights, which say how often a set is "
      "drawn; give the sets weights, or epochs",
    )


def _parts(c):
  for name, part in (c.data.mix or {}).items():
    key = f"config.data.mix.{name}"
    yield (
      not re.fullmatch(r"\w[\w+=-]*", name) or name in (c.evaluate.sets or {}),
      f"config.data.mix: the name {name!r} cannot stand in front of ids and numbers, expected "
      "letters, digits and + = - _, and none of config.evaluate.sets; rename the set",
    )
    measured = c.evaluate.sets or c.data.eval_path
    for which in own_reading(c.data, part):
      yield (
        bool(measured),
        f"{key}.{which}: rows of config.evaluate.sets and config.data.eval_path are read by "
        f"config.data.{which}, which is {getattr(c.data, which)!r}; set that too, "
        f"{BESIDE[which]}",
      )
    yield not part.path, f"{key}.path: is empty; expected the rows to train on"
    for which in ("weight", "epochs", "loss_weight"):
      value = getattr(part, which)
      yield (
        value is not None and not 0 < value < math.inf,
        f"{key}.{which}: found {value}, expected a number above 0; to leave a set out, "
        "remove it from config.data.mix",
      )


def _balance(c):
  d, on = c.data, c.data.balance != "none"
  yield (
    on and d.label_type != "single",
    f"config.data.balance: {d.balance!r} needs one label a row, but data.label_type is "
    f"{d.label_type!r}; set it to 'none'",
  )
  yield (
    on and d.mix is not None,
    f"config.data.balance: {d.balance!r} says how often an example is drawn, as "
    "config.data.mix does; set it to 'none', and weigh labels by config.loss.class_weights",
  )
  yield (
    on and c.loss.class_weights == "balanced",
    "config.data.balance: labels would be balanced twice, by config.loss.class_weights="
    "'balanced' too; set one of the two to 'none'",
  )
