"""Choices of which weights train that cannot run."""

import re

from jaxsft.config import values
from jaxsft.config.data_rules import WRITE
from jaxsft.config.tuning import Lora

METHODS = ("all", "head", "last:k", "bias", "norms", "regex", "lora")


def rules(c):
  """(broken?, sentence) for every combination that cannot run."""
  for group in (_method, _starts, _update, _effects, _adapters):
    yield from group(c)


def _method(c):
  method = c.tune.method
  last = re.fullmatch(r"last:[1-9]\d*", method)
  yield (
    not last and (method == "last:k" or method not in METHODS),
    f"config.tune.method: found {method!r}, expected one of {', '.join(METHODS)} (as 'last:2')"
    f"{values.nearest(method, METHODS) if method != 'last:k' else ''}",
  )
  yield (
    c.tune.method == "regex" and not c.tune.train,
    "config.tune.train: is empty; method='regex' needs patterns over parameter paths",
  )
  yield (
    c.tune.method not in ("regex", "lora") and c.tune.train != (),
    f"config.tune.train: has no effect with tune.method={c.tune.method!r}; set 'regex'",
  )


def _starts(c):
  yield (
    c.tune.unfreeze_every < 0,
    f"config.tune.unfreeze_every: found {c.tune.unfreeze_every}, expected 0 (off) or more",
  )
  for pattern, start in (c.tune.unfreeze or {}).items():
    found = f"config.tune.unfreeze: found {start} for {pattern!r}"
    yield start < 0, f"{found}, expected the number of an update, from 0"
  yield (
    bool(c.tune.unfreeze) and c.tune.unfreeze_every > 0,
    "config.tune.unfreeze, config.tune.unfreeze_every: both say when layers train, expected "
    "one of them",
  )


def _update(c):
  yield (
    not 0 < c.optim.layer_decay <= 1,
    f"config.optim.layer_decay: found {c.optim.layer_decay}, expected above 0 and at most 1",
  )
  for name, value in (("ema", c.optim.ema), ("swa", c.optim.swa)):
    yield not 0 <= value < 1, f"config.optim.{name}: found {value}, expected 0 up to below 1"
  yield (
    c.optim.ema > 0 < c.optim.swa,
    "config.optim.ema, config.optim.swa: two kinds of average are set, expected one",
  )
  yield (
    not c.optim.clip_value >= 0,
    f"config.optim.clip_value: found {c.optim.clip_value}, expected 0 (off) or more",
  )
  for pattern, factor in (c.optim.rates or {}).items():
    yield (
      not 0 < factor < float("inf"),
      f"config.optim.rates: found {factor} for {pattern!r}, expected a positive number; "
      "config.tune chooses what does not train",
    )


def _effects(c):
  yield (
    c.task in WRITE and c.tune.method == "head",
    f"config.tune.method: 'head' trains a task head, which task={c.task!r} does not have",
  )
  for name, given in (
    ("tune.unfreeze_every", c.tune.unfreeze_every > 0),
    ("optim.layer_decay", c.optim.layer_decay != 1),
  ):
    yield (
      c.tune.method == "head" and given,
      f"config.{name}: has no effect with tune.method='head', which trains no layer",
    )
  yield (
    c.tune.method == "lora" and not c.tune.train and c.optim.name == "muon",
    "config.optim.name: 'muon' updates matrices of layers, of which tune.method='lora' trains "
    "none; set 'adamw'",
  )
  yield (
    c.tune.method == "all" and c.tune.base_dtype != "float32",
    "config.tune.base_dtype: has no effect with tune.method='all', which freezes nothing",
  )


def _adapters(c):
  tune, lora = c.tune, c.tune.lora
  adapters = tune.method == "lora"
  changed = [name for name in vars(lora) if getattr(lora, name) != getattr(Lora(), name)]
  yield (
    not adapters and bool(changed),
    f"config.tune.lora.{(changed or [''])[0]}: has no effect with tune.method={tune.method!r}; "
    "set 'lora'",
  )
  yield (
    not adapters and c.export.format in ("peft", "merged"),
    f"config.export.format: found {c.export.format!r}, but tune.method={tune.method!r} makes "
    "no adapter; set 'hf'",
  )
  yield (
    c.export.format == "peft" and c.export.dtype != "float32",
    f"config.export.dtype: found {c.export.dtype!r}, but adapters are saved in float32 with "
    "export.format='peft'; set 'float32', or the format 'merged'",
  )
  yield from _lora(lora)


def _lora(lora):
  """`rules` of the group `tune.lora`."""
  for name in ("rank", "alpha", "plus"):
    value = getattr(lora, name)
    yield value <= 0, f"config.tune.lora.{name}: found {value}, expected more than 0"
  for name in ("rank_pattern", "alpha_pattern"):
    bad = {k: v for k, v in (getattr(lora, name) or {}).items() if v <= 0}
    yield bool(bad), f"config.tune.lora.{name}: found {bad}, expected numbers above 0"
  yield (
    not 0 <= lora.dropout < 1,
    f"config.tune.lora.dropout: found {lora.dropout}, expected at least 0 and below 1",
  )
  yield (
    lora.targets == (),
    "config.tune.lora.targets: is empty; expected 'all-linear' or patterns, as ('attn/(q|v)',)",
  )
  yield (
    lora.dora and lora.init in ("pissa", "olora"),
    f"config.tune.lora.init: {lora.init!r} moves a part of the weights into the adapter, which "
    "with lora.dora=True nothing else could load; set 'default' or 'gaussian'",
  )
