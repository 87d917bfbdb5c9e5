"""What a combination leaves beside its model: the curve over alpha as a page, and a table."""

import html
import json
import math

from jaxsft import log, report


def write(directory, result):
  """Writes what `interpolate.main` found: alphas.jsonl, result.json, curve.html, curve.png."""
  rows = (json.dumps(log.plain(row), allow_nan=False) + "\n" for row in result["table"])
  (directory / "alphas.jsonl").write_text("".join(rows), encoding="utf-8")
  log.write_json(directory / "result.json", result)
  (directory / "curve.html").write_text(page(result), encoding="utf-8")
  _draw(directory / "curve.png", result)


def lines(result):
  """The table for people: a line each."""
  shown = columns(result)
  cells = [
    [title for title, _ in shown],
    *([c(row) for _, c in shown] for row in result["table"]),
  ]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  padded = (zip(row, widths, strict=True) for row in cells)
  return ["  ".join(cell.rjust(width) for cell, width in row).rstrip() for row in padded]


def page(result):
  """The page as text, without scripts, styles or pictures from elsewhere."""
  title = html.escape(f"{result['how']}: {', '.join(result['models'])} and {result['base']}")
  shown, chosen = [], result["chosen"]
  for name, key in curves(result):
    points = [(row["alpha"], row[key]) for row in plotted(result["table"], key)]
    mark = (
      None if chosen["alphas_of"] or chosen[key] is None else (chosen["alpha"], chosen[key])
    )
    picture = report.picture(points, whole=False, mark=mark) if points else "no finite value"
    shown.append(f"<figure><figcaption>{html.escape(name)}</figcaption>{picture}</figure>\n")
  lines = "".join(f"<li>{html.escape(line)}</li>\n" for line in result["notes"])
  return (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width">\n'
    f"<title>{title}</title>\n<style>{report.STYLE}</style>\n</head>\n<body>\n"
    f"<h1>{title}</h1>\n<p>alpha 1 is the pretrained model, alpha 0 the tuned one; the ring is "
    f'the chosen one.</p>\n<div class="curves">\n{"".join(shown)}</div>\n'
    f"<h2>All that was measured</h2>\n{_table(result)}<ul>\n{lines}</ul>\n</body>\n</html>\n"
  )


def curves(result):
  """[(what a curve is called, its key in the rows)]."""
  found = [(f"task: {result['metric']} ({result['mode']})", "value")]
  if result["general"]:
    found.append((f"general: {result['general']['metric']}", "general"))
  return found


def plotted(table, key):
  """The rows of one alpha for all leaves that have a value, by alpha."""
  rows = [row for row in table if not row["alphas_of"] and row[key] is not None]
  return sorted(rows, key=lambda row: row["alpha"])


def columns(result):
  """[(title, function of a row)] of the table for people."""
  found = [
    ("alpha", lambda row: f"{row['alpha']:g}"),
    (result["metric"], lambda row: _shown(row["value"])),
  ]
  if any(row["alphas_of"] for row in result["table"]):
    shown = lambda row: ", ".join(f"{p} {a:g}" for p, a in row["alphas_of"].items())
    found.insert(1, ("apart from", shown))
  if result["general"]:
    found.append((f"general {result['general']['metric']}", lambda r: _shown(r["general"])))
    lost = lambda row: (
      f"{row['forgetting']:+.2%}" if math.isfinite(row["forgetting"]) else "all"
    )
    found.append(("forgetting", lost))
  found.append(("", lambda row: "chosen" if row is result["chosen"] else ""))
  return found


def _table(result):
  shown = columns(result)
  head = "".join(f'<th class="number">{html.escape(title)}</th>' for title, _ in shown)
  rows = ""
  for row in result["table"]:
    cells = (f'<td class="number">{html.escape(cell(row))}</td>' for _, cell in shown)
    rows += f"<tr>{''.join(cells)}</tr>\n"
  return f"<table>\n<tr>{head}</tr>\n{rows}</table>\n"


def _shown(value):
  return "undefined" if value is None else report.shorten(value)


def _draw(path, result):
  """curve.png, where matplotlib is there."""
  try:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
  except ImportError:
    return
  shown = curves(result)
  figure = Figure(figsize=(5 * len(shown), 3.4), layout="constrained")
  FigureCanvasAgg(figure)
  for i, (name, key) in enumerate(shown):
    axes, rows = figure.add_subplot(1, len(shown), i + 1), plotted(result["table"], key)
    axes.plot([row["alpha"] for row in rows], [row[key] for row in rows], "o-")
    if not result["chosen"]["alphas_of"]:
      axes.plot(result["chosen"]["alpha"], result["chosen"][key], "o", ms=12, mfc="none")
    axes.set(xlabel="alpha (1: pretrained, 0: tuned)", title=name)
  figure.savefig(path, dpi=120)
