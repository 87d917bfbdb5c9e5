"""report.html of a run directory: curves, the preflight report, final numbers; one plain file.

No scripts, no styles or pictures from elsewhere: it opens anywhere and can be mailed.
"""

import contextlib
import html
import json
import math
import os
import pathlib
from typing import Any

import numpy as np

WIDTH, HEIGHT, LEFT, BOTTOM = 460, 220, 58, 28
CURVES = ("loss", "accuracy", "lr", "grad_norm", "penalty")
NAMES = {"lr": "learning rate", "grad_norm": "gradient norm", "eval_loss": "held-out loss"}
OF_TYPES = ("precision", "recall", "f1", "support")
"""Numbers of each entity type, see metrics.tagging."""

STYLE = """
:root { color-scheme: light dark; --line: #8883; --ink: #2563eb; --soft: #2563eb22 }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem }
body { margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; overflow-wrap: anywhere } h2 { font-size: 1.1rem; margin-top: 2rem }
.curves { display: flex; flex-wrap: wrap; gap: 1rem } figure { margin: 0 }
figcaption { font-weight: 600 } svg { max-width: 100%; height: auto }
svg text { font: 11px system-ui, sans-serif; fill: currentColor; opacity: .75 }
.grid { stroke: var(--line) } .curve { fill: none; stroke: var(--ink); stroke-width: 1.6 }
.dot { fill: var(--ink) }
table { border-collapse: collapse } td, th { padding: .25rem .7rem; text-align: left }
td, th { border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere }
.number { text-align: right; font-variant-numeric: tabular-nums }
pre { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; padding: .8rem }
.note { opacity: .75 }
"""


def read_metrics(path: str | os.PathLike) -> list[dict]:
  """The lines of a metrics.jsonl; an unfinished last one, as a kill leaves it, is left out."""
  lines = []
  with contextlib.suppress(FileNotFoundError):
    for line in pathlib.Path(path).read_text(encoding="utf-8").splitlines():
      with contextlib.suppress(json.JSONDecodeError):
        lines.append(json.loads(line))
  return lines


def shorten(value: Any) -> str:
  """A number for people: whole and large ones without decimals, others to four digits."""
  if isinstance(value, int | np.integer):
    return f"{value:,}"
  if isinstance(value, float | np.floating) and 1000 <= abs(value) < 1e15:
    return f"{value:,.0f}"
  return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)


def write(directory: pathlib.Path) -> pathlib.Path:
  """Writes report.html from metrics.jsonl, data.json, parameters.json and result.json;
  missing ones are said."""
  lines = read_metrics(directory / "metrics.jsonl")
  names = ("data.json", "parameters.json", "result.json")
  data, parameters, result = (_read(directory / name) for name in names)
  shown = [
    f"<h1>{_text(result.get('task', 'run'))}: {_text(directory.resolve().name)}</h1>",
    _summary(result),
    _curves(lines),
    _confusion(result.get("metrics") or {}),
    _types(result.get("metrics") or {}),
    _sets(result.get("sets") or {}),
    _parts(result),
    _examples(result.get("examples") or []),
    _preflight(data),
    _parameters(parameters),
  ]
  title = _text(f"jaxsft: {directory.resolve().name}")
  page = (
    f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    f'<meta name="viewport" content="width=device-width">\n<title>{title}</title>\n'
    f"<style>{STYLE}</style>\n</head>\n<body>\n{''.join(filter(None, shown))}</body>\n</html>\n"
  )
  path = directory / "report.html"
  temporary = path.with_name(".report.html.tmp")
  temporary.write_text(page, encoding="utf-8")
  temporary.replace(path)
  return path


def _read(path):
  return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _text(value):
  return html.escape(shorten(value))


def _numbers(values):
  """Name -> number, without tables and truth values."""
  return {
    k: v for k, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)
  }


def _rows(values):
  rows = (
    f'<tr><td>{_text(name.replace("_", " "))}</td><td class="number">{_text(value)}</td></tr>\n'
    for name, value in values.items()
  )
  return f"<table>\n{''.join(rows)}</table>\n"


def _summary(result):
  if not result:
    return '<p class="note">This run has no result.json: it has not ended yet.</p>\n'
  metrics, best = _numbers(result.get("metrics") or {}), result.get("best")
  when = f" (best, after update {_text(best['step'])})" if best else ""
  places = {k: result[k] for k in ("export",) if result.get(k)}
  return (
    f"<h2>Final metrics{when}</h2>\n{_rows(metrics)}"
    f"<h2>What it took</h2>\n{_rows(_numbers(result) | places)}"
  )


def _curves(lines):
  names = [n for n in CURVES if any(n in line for line in lines)]
  found = {name for line in lines for name in line if name.startswith("eval_")}
  names += sorted(found)
  figures = []
  for name in names:
    points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    missing = sum(name in line and line[name] is None for line in lines)
    figures.append(_figure(NAMES.get(name, name.replace("_", " ")), points, missing))
  return f'<h2>Curves</h2>\n<div class="curves">\n{"".join(figures)}</div>\n' if figures else ""


def _figure(name, points, missing):
  note = f' <span class="note">({missing} not finite, left out)</span>' if missing else ""
  shown = picture(points) if points else '<p class="note">no finite value</p>'
  return f"<figure><figcaption>{_text(name)}{note}</figcaption>{shown}</figure>\n"


def picture(points, whole=True, mark=None):
  """An SVG line over (step, value) points, all finite.

  whole: label whole steps only; mark: one of the points, which is ringed.
  """
  steps, values = zip(*points, strict=True)
  x_ticks, y_ticks = _ticks(min(steps), max(steps)), _ticks(min(values), max(values))
  low_x, high_x = min(steps[0], x_ticks[0]), max(steps[-1], x_ticks[-1])
  low_y, high_y = min(*values, *y_ticks), max(*values, *y_ticks)
  scale = lambda v, low, high: (v - low) / (high - low) if high > low else 0.5
  x = lambda v: LEFT + scale(v, low_x, high_x) * (WIDTH - 16 - LEFT)
  y = lambda v: HEIGHT - BOTTOM - scale(v, low_y, high_y) * (HEIGHT - BOTTOM - 12)
  parts, right = [], WIDTH - 16
  for tick in y_ticks:
    at = f"{y(tick):.1f}"
    parts.append(
      f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{at}" y2="{at}"/>'
      f'<text x="{LEFT - 6}" y="{at}" dy="4" text-anchor="end">{tick:.4g}</text>'
    )
  for tick in x_ticks:
    if tick == int(tick) or not whole:
      said = f"{int(tick):,}" if whole else f"{tick:.4g}"
      parts.append(
        f'<text x="{x(tick):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{said}</text>'
      )
  places = [(x(step), y(value)) for step, value in points]
  line = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
  parts.append(f'<polyline class="curve" points="{line}"/>')
  if len(points) <= 40:
    parts += [f'<circle class="dot" cx="{a:.1f}" cy="{b:.1f}" r="2.4"/>' for a, b in places]
  if mark is not None:
    a, b = x(mark[0]), y(mark[1])
    parts.append(f'<circle class="curve" cx="{a:.1f}" cy="{b:.1f}" r="6"/>')
  return (
    f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img">{"".join(parts)}</svg>'
  )


def _ticks(low, high):
  """About five round numbers that span [low, high]."""
  if low == high:
    return [low]
  raw = (high - low) / 4
  base = 10.0 ** math.floor(math.log10(raw))
  step = next(base * k for k in (1, 2, 2.5, 5, 10) if base * k >= raw * 0.999)
  first = math.floor(low / step)
  return [step * i for i in range(first, math.ceil(high / step) + 1)]


def _confusion(metrics):
  counts, labels = metrics.get("confusion"), metrics.get("labels")
  if not counts:
    return ""
  most = max(max(row) for row in counts) or 1
  head = "".join(f'<th class="number">{_text(label)}</th>' for label in labels)
  rows = ""
  for label, row in zip(labels, counts, strict=True):
    cells = "".join(
      f'<td class="number" style="background: rgb(37 99 235 / {n / most * 0.4:.2f})">{n:,}</td>'
      for n in row
    )
    rows += f"<tr><th>{_text(label)}</th>{cells}</tr>\n"
  return (
    "<h2>Confusion table</h2>\n<p class='note'>Rows are the true labels, columns what the "
    f"model says.</p>\n<table>\n<tr><th></th>{head}</tr>\n{rows}</table>\n"
  )


def by_support(per_type):
  """[(type, its numbers OF_TYPES as texts)], the most frequent in gold first."""
  found = sorted(per_type.items(), key=lambda item: (-item[1]["support"], item[0]))
  return [(name, [shorten(one[key]) for key in OF_TYPES]) for name, one in found]


OF_LEAVES = ("train", "decay", "x learning rate", "from update")
OF_PARTS = ("value", "95 %", "rows")


def parts(result):
  """[(title, [(name, its OF_PARTS as texts)])]: numbers and intervals; one number by slices."""
  intervals = result.get("intervals") or {}
  found = [("metric", intervals.items())] if intervals else []
  for field, slices in (result.get("slices") or {}).items():
    title = f"{next(iter(intervals))} by {field}"
    found.append((title, [(part["slice"], part) for part in slices]))
  return [(title, [(name, _part(one)) for name, one in rows]) for title, rows in found]


def _part(one):
  value = "undefined" if one["value"] is None else shorten(one["value"])
  span = "" if one["low"] is None else f"{one['low']:.4g} to {one['high']:.4g}"
  return value, span, f"{one['n']:,}"


def _parts(result):
  tables = ""
  for title, found in parts(result):
    head = "".join(f'<th class="number">{name}</th>' for name in OF_PARTS)
    tables += f"<table>\n<tr><th>{_text(title)}</th>{head}</tr>\n"
    for name, values in found:
      cells = "".join(f'<td class="number">{value}</td>' for value in values)
      tables += f"<tr><td>{_text(name)}</td>{cells}</tr>\n"
    tables += "</table>\n"
  return f"<h2>Intervals and slices</h2>\n{tables}" if tables else ""


def by_set(numbers):
  """{"NAME/metric": value} as {NAME: {metric: value}}."""
  found = {}
  for name, value in numbers.items():
    of, _, key = name.rpartition("/")
    found.setdefault(of, {})[key] = value
  return found


def _sets(numbers):
  tables = "".join(
    f"<h3>{_text(name)}</h3>\n{_rows(found)}" for name, found in by_set(numbers).items()
  )
  return f"<h2>Data sets</h2>\n{tables}" if tables else ""


def _types(metrics):
  if not metrics.get("per_type"):
    return ""
  head = "".join(f'<th class="number">{name}</th>' for name in OF_TYPES)
  rows = ""
  for name, values in by_support(metrics["per_type"]):
    cells = "".join(f'<td class="number">{value}</td>' for value in values)
    rows += f"<tr><th>{_text(name)}</th>{cells}</tr>\n"
  return (
    "<h2>Types</h2>\n<p class='note'>Support is how often a type is in the gold rows.</p>\n"
    f"<table>\n<tr><th></th>{head}</tr>\n{rows}</table>\n"
  )


def _examples(examples):
  if not examples:
    return ""
  names = list(dict.fromkeys(name for example in examples for name in example))
  head = "".join(f"<th>{_text(name)}</th>" for name in names)
  rows = "".join(
    "<tr>" + "".join(f"<td>{_text(e.get(name, ''))}</td>" for name in names) + "</tr>\n"
    for e in examples
  )
  return f"<h2>Examples</h2>\n<table>\n<tr>{head}</tr>\n{rows}</table>\n"


def _preflight(data):
  lines = data.get("report")
  return f"<h2>Data</h2>\n<pre>{_text(chr(10).join(lines))}</pre>\n" if lines else ""


def _ends(values):
  """The least and the largest of them."""
  values = values if isinstance(values, list) else [values]
  return " to ".join(dict.fromkeys(map(shorten, (min(values), max(values)))))


def _parameters(table):
  if not table:
    return ""
  head = "".join(f"<th>{name}</th>" for name in ("path", "shape", "type", *OF_LEAVES))
  rows = ""
  for leaf in table["leaves"]:
    decays = "yes" if leaf["decays"] else "no"
    fate = (f"{leaf['trained']:,}", decays, _ends(leaf["rate"]), _ends(leaf["start"]))
    shape = " × ".join(map(str, leaf["shape"]))
    cells = (
      leaf["path"],
      shape,
      leaf["dtype"],
      *(fate if leaf["trained"] else ("frozen", "", "", "")),
    )
    rows += f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in cells)}</tr>\n"
  return (
    f"<h2>Parameters</h2>\n<details><summary>{table['trained']:,} of {table['total']:,} train"
    f"</summary>\n<table>\n<tr>{head}</tr>\n{rows}</table>\n</details>\n"
  )
