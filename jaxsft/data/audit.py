"""The preflight report: what will be trained on.

A pure function of plain values, shown before anything compiles and kept in data.json.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from jaxsft.errors import JaxsftError

QUANTILES = {"shortest": 0, "median": 0.5, "90%": 0.9, "99%": 0.99, "longest": 1}


@dataclass(frozen=True)
class Source:
  """One set of rows as it was read."""

  key: str
  """The config key that names it."""
  path: str
  """As the config has it."""
  found: str
  """The file, glob or directory that was read: fetched sets lie in the cache."""
  format: str
  """Of read.formats_of."""
  rows: int
  forms: dict[str, int]
  """How its cleaned rows are written -> rows."""

  @property
  def words(self) -> str:
    forms = [f"{n:,} {form}" if len(self.forms) > 1 else form for form, n in self.forms.items()]
    return f"{', '.join([self.format, f'{self.rows:,} rows', *forms])}"


@dataclass(frozen=True)
class Rows:
  """What cleaning did, before any example was encoded."""

  read: int
  kept: int
  left_out: dict[str, int] = field(default_factory=dict)
  """Reason -> rows."""
  split: str = ""
  """What was held out by what."""
  changes: Sequence[Any] = ()
  """What was done to rows, counted, with samples: data.cleaning.record.Change."""
  sources: tuple[Source, ...] = ()


@dataclass(frozen=True)
class Examples:
  """One set of encoded examples."""

  ids: Sequence[str]
  lengths: np.ndarray
  """[N] tokens; [N,2] of source and target."""
  supervised: np.ndarray
  """[N] supervised tokens, or labels, of each (store.supervised)."""
  unit: str = "tokens"
  """What `supervised` counts: "tokens", "labels" or "windows"."""
  rows: int | None = None
  """Rows that the examples are of; None: one example each."""
  keys: Sequence[int] | np.ndarray = ()
  """`key` of what each row says, to find duplicates by; () does not look."""
  labels: dict[str, int] = field(default_factory=dict)
  """Label -> examples."""
  forms: dict[str, int] = field(default_factory=dict)
  """How conversations are written -> rows."""
  parts: dict[str, int] = field(default_factory=dict)
  """Data set of a mixture -> rows."""
  dropped: dict[str, int] = field(default_factory=dict)
  """Reason -> examples that the encoder left out."""
  truncated: dict[str, int] = field(default_factory=dict)
  """Reason -> examples that the encoder cut."""
  noted: dict[str, int] = field(default_factory=dict)
  """What is odd -> whole examples of which it is true."""


@dataclass(frozen=True)
class Leaf:
  """One parameter array and what will happen to it."""

  path: str
  shape: tuple[int, ...]
  dtype: str
  trained: int
  """How many of its numbers train."""
  layers: list[int] | None
  """Of a stacked leaf those that train; None: all, or nothing does."""
  decays: bool
  rate: float | list[float]
  """Factor of the learning rate, or one for each row that trains."""
  start: int | list[int] = 0
  """The first update that changes it, or each row that trains."""

  def size(self) -> int:
    return math.prod(self.shape)

  def line(self, width: int) -> str:
    shape = " x ".join(map(str, self.shape)) or "scalar"
    fate = "trains" + (f" in {_spans(self.layers)}" if self.layers else "")
    fate += ", decays" if self.decays else ""
    rate, start = _ends(self.rate), _ends(self.start)
    fate += "" if rate == "1" else f", {rate} x lr"
    fate += "" if start == "0" else f", from update {start}"
    return f"{self.path:<{width}}  {shape:<16} {fate}"


@dataclass(frozen=True)
class Audit:
  """The report; `lines` for people, `as_dict` for data.json, `parameters` for itself."""

  rows: Rows
  sets: dict[str, dict]
  duplicates: dict[str, int]
  plan: dict
  rates: dict[str, float | int]
  leaves: tuple[Leaf, ...]
  samples: tuple[str, ...]
  warnings: tuple[str, ...]

  def trained(self) -> int:
    return sum(leaf.trained for leaf in self.leaves)

  def total(self) -> int:
    return sum(leaf.size() for leaf in self.leaves)

  def parameters(self) -> dict:
    """The whole table, for parameters.json."""
    rows = [asdict(leaf) for leaf in self.leaves]
    return {"trained": self.trained(), "total": self.total(), "leaves": rows}

  def as_dict(self) -> dict:
    found = asdict(self)
    del found["leaves"]
    found["rows"]["changes"] = [change._asdict() for change in self.rows.changes]
    return found

  def lines(self) -> list[str]:
    rows = self.rows
    lines = [f"rows       {rows.read:,} read, {rows.kept:,} kept"]
    lines += [f"           {one.key} read as: {one.words}" for one in rows.sources]
    lines += [f"           {n:,} left out: {why}" for why, n in rows.left_out.items()]
    lines += [f"split      {rows.split}"] if rows.split else []
    lines += [f"cleaning   {change.line()}" for change in rows.changes]
    for name, found in self.sets.items():
      lines += _set_lines(name, found)
    if self.duplicates:
      text = ", ".join(f"{n:,} {where}" for where, n in self.duplicates.items())
      lines.append(f"duplicates {text} (same text, case and spaces aside)")
    return [*lines, *_plan_lines(self.plan, self.rates), *self._leaf_lines()]

  def _leaf_lines(self) -> list[str]:
    moving = [leaf for leaf in self.leaves if leaf.trained]
    width, lines = max((len(leaf.path) for leaf in moving), default=0), []
    if self.leaves:
      lines.append(f"weights    {self.trained():,} of {self.total():,} train")
    lines += [f"           {leaf.line(width)}" for leaf in moving]
    if still := len(self.leaves) - len(moving):
      size = self.total() - sum(leaf.size() for leaf in moving)
      lines.append(f"           frozen: {still} more, {size:,} numbers (parameters.json)")
    for number, sample in enumerate(self.samples, 1):
      lines.append(f"example {number}  " + sample.replace("\n", "\n           "))
    lines += [f"note       {text}" for text in self.plan.get("notes", ())]
    return lines + [f"warning    {text}" for text in self.warnings]


def _ends(values):
  """ "0.5 to 1", the least and the largest."""
  values = values if isinstance(values, list) else [values]
  return " to ".join(dict.fromkeys(f"{x:.6g}" for x in (min(values), max(values))))


def _spans(rows):
  """ "layers 0, 8-11" of their numbers."""
  spans = []
  for n in rows:
    if spans and spans[-1][1] == n - 1:
      spans[-1][1] = n
    else:
      spans.append([n, n])
  names = (f"{a}-{b}" if b > a else str(a) for a, b in spans)
  return f"layer{'s' if len(rows) > 1 else ''} {', '.join(names)}"


def audit(
  rows: Rows,
  train: Examples,
  held_out: Examples | None,
  plan: dict,
  *,
  further: Mapping[str, Examples] | None = None,
  rates: dict[str, float | int] | None = None,
  leaves: Sequence[Leaf] = (),
  samples: Sequence[str] = (),
  warnings: Sequence[str] = (),
) -> Audit:
  """The report on a run about to start.

  plan: `order.Plan.summary()`. further: other sets that are measured, by name. rates: learning
  rate at start, peak and end. samples: a few examples through `mark`. warnings: what else is to
  be known, a sentence each.
  """
  sets = {"train": train} | ({"held out": held_out} if held_out is not None else {})
  sets |= further or {}
  return Audit(
    rows=rows,
    sets={name: _describe(examples) for name, examples in sets.items()},
    duplicates=_duplicates(train, held_out),
    plan=plan,
    rates=rates or {},
    leaves=tuple(leaves),
    samples=tuple(samples),
    warnings=tuple(warnings),
  )


def mark(text: str, spans: Sequence[tuple[int, int]]) -> str:
  """The text with its supervised character spans in brackets: ⟦…⟧; touching ones merge."""
  parts, at = [], 0
  for start, stop in _merged(spans):
    if not 0 <= start < stop <= len(text):
      raise JaxsftError(
        f"the supervised span ({start}, {stop}) is not in a text of {len(text)} characters"
      )
    parts += [text[at:start], "⟦", text[start:stop], "⟧"]
    at = stop
  return "".join([*parts, text[at:]])


def _merged(spans):
  merged: list[list[int]] = []
  for start, stop in sorted(spans):
    if merged and start <= merged[-1][1]:
      merged[-1][1] = max(merged[-1][1], stop)
    else:
      merged.append([start, stop])
  return merged


def _describe(examples: Examples) -> dict:
  lengths = np.asarray(examples.lengths)
  tokens, supervised = int(lengths.sum()), int(np.sum(examples.supervised))
  at = np.quantile(lengths, list(QUANTILES.values()), axis=0, method="higher")
  streams = (
    {"lengths": at} if at.ndim == 1 else {"source_lengths": at[:, 0], "lengths": at[:, 1]}
  )
  return {
    "examples": len(examples.ids),
    "rows": len(examples.ids) if examples.rows is None else examples.rows,
    "tokens": tokens,
    **{k: dict(zip(QUANTILES, map(int, v), strict=True)) for k, v in streams.items()},
    "supervised": supervised,
    "supervised_share": supervised / tokens,
    "unit": examples.unit,
    "labels": dict(examples.labels),
    "forms": dict(examples.forms),
    "parts": dict(examples.parts),
    "dropped": dict(examples.dropped),
    "truncated": dict(examples.truncated),
    "noted": dict(examples.noted),
  }


def key(text: str) -> int:
  """A hash of the text without case and spaces, of 64 bits; another one in every process."""
  return hash(" ".join(text.casefold().split()))


def _duplicates(train: Examples, held_out: Examples | None) -> dict[str, int]:
  """Texts met more than once."""
  found = {"within train": len(train.keys) - len(np.unique(train.keys))}
  if held_out is not None:
    leaked = int(np.isin(held_out.keys, train.keys).sum())
    found["held out and also trained on"] = leaked
  return {where: n for where, n in found.items() if n}


def _set_lines(name: str, found: dict) -> list[str]:
  words = {"source_lengths": "sources: ", "lengths": "targets: "}
  words = words if words.keys() <= found.keys() else {"lengths": ""}
  lengths = "; ".join(
    word + ", ".join(f"{at} {value}" for at, value in found[key].items())
    for key, word in words.items()
  )
  rows = f" of {found['rows']:,} rows" if found["rows"] != found["examples"] else ""
  lines = [
    f"{name:<10} {found['examples']:,} examples{rows}, {found['tokens']:,} tokens ({lengths})",
  ]
  share = f" ({found['supervised_share']:.1%})" if found["unit"] == "tokens" else ""
  lines.append(f"           {found['supervised']:,} supervised {found['unit']}{share}")
  if found["labels"]:
    each = found["unit"] == "labels"  # an example may have many
    total = found["examples"] if each else sum(found["labels"].values())
    counts = Counter(found["labels"]).most_common()
    text = ", ".join(f"{label} {n:,} ({n / total:.1%})" for label, n in counts[:20])
    more = f", and {len(counts) - 20} more labels" if len(counts) > 20 else ""
    lines.append(f"           labels: {text}{more}")
  if found["forms"]:
    text = ", ".join(f"{n:,} {form}" for form, n in Counter(found["forms"]).most_common())
    lines.append(f"           written as: {text}")
  if found["parts"]:
    text = ", ".join(f"{n:,} of {name}" for name, n in found["parts"].items())
    lines.append(f"           rows: {text}")
  for what in ("dropped", "truncated", "noted"):
    for why, n in found[what].items():
      text = why if what == "noted" or why.startswith(what) else f"{what}: {why}"
      lines += [f"           {n:,} {text}"] if n else []
  return lines


def _plan_lines(plan: dict, rates: dict[str, float | int]) -> list[str]:
  size = lambda t: " + ".join(map(str, np.ravel(t).tolist()))
  shapes = ", ".join(f"{r} x {size(t)} ({n:,} updates)" for r, t, _, n in plan["shapes"])
  filled = ", ".join(f"{name} {share:.1%}" for name, share in plan.get("filled", {}).items())
  lines = [
    f"plan       {plan['updates']:,} updates over {plan['epochs']:,} epochs, "
    f"{plan['tokens']:,} tokens, {plan['efficiency']:.1%} of the places filled"
    + (f" ({filled})" if filled else ""),
    f"shapes     {shapes}; one compilation each",
  ]
  for one in plan.get("mixture", ()):
    least, most = one["seen"]
    times = f"{least:,}" if least == most else f"{least:,} or {most:,}"
    lines.append(
      f"drawn      {one['name']}: {one['an_epoch']:,} of {one['examples']:,} examples an epoch "
      f"({one['share']:.1%}); in all {one['drawn']:,}, {one['tokens']:,} tokens, each example "
      f"{times} times"
    )
  if rates:
    text = ", ".join(f"{where} {rate:.3g}" for where, rate in rates.items())
    lines.append(f"rate       {text}")
  return lines
