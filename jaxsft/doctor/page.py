"""The page of an examination: one HTML file without scripts, styles or pictures elsewhere."""

import html
import os
import pathlib

from jaxsft.doctor import examination
from jaxsft.doctor.codes import GRADES

WIDTH, HEIGHT, LEFT, BOTTOM = 520, 150, 44, 22
LABELS = 40
"""Labels that have a bar."""

STYLE = """
:root { color-scheme: light dark; --line: #8884; --ink: #2563eb; --soft: #2563eb33 }
:root { --refuses: #dc2626; --warns: #d97706; --notes: #64748b; --fine: #16a34a }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem }
body { margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; overflow-wrap: anywhere } h2 { font-size: 1.15rem; margin-top: 2.2rem }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem } a { color: inherit }
.verdict { display: inline-block; padding: .15rem .7rem; border-radius: 1rem; color: #fff }
.fine { background: var(--fine) } .refuses { background: var(--refuses) }
.warns { background: var(--warns) } .notes { background: var(--notes) }
.grade { color: #fff; border-radius: 4px; padding: 0 .45rem; white-space: nowrap }
table { border-collapse: collapse; width: 100% } td, th { padding: .3rem .6rem }
td, th { text-align: left; vertical-align: top; border-bottom: 1px solid var(--line) }
td { overflow-wrap: anywhere } .number { text-align: right; white-space: nowrap }
.code, .ids, .where { opacity: .75; font-size: .85em } .code { white-space: nowrap }
pre { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; padding: .8rem }
.row { border: 1px solid var(--line); border-radius: 6px; padding: .5rem .8rem }
.row { margin: .6rem 0 }
.tokens { font: 14px/2.1 ui-monospace, monospace; white-space: pre-wrap }
.tokens { overflow-wrap: anywhere }
.t { border-radius: 3px; padding: .1em 1px; margin: 0 1px; background: #8882 }
.t.supervised { background: var(--soft); box-shadow: inset 0 -2px var(--ink) }
.t.padding { background: none; opacity: .35 }
.t.special { font-style: italic; outline: 1px dotted #888a }
.t sup { font: 10px system-ui, sans-serif; color: var(--ink); padding-left: 2px }
.cut { font: 11px system-ui, sans-serif; border-left: 3px solid var(--ink); padding: 0 .3em }
.cut { margin-left: .4em; opacity: .8 }
svg { max-width: 100%; height: auto; display: block }
svg text { font: 11px system-ui, sans-serif; fill: currentColor }
.bar { fill: var(--ink); opacity: .75 } .limit { stroke: var(--refuses); stroke-width: 2 }
.axis { stroke: var(--line) } .track { background: #8882; border-radius: 3px; width: 16rem }
.track div { background: var(--ink); height: .9em; border-radius: 3px; opacity: .75 }
.track { display: inline-block }
"""


def write(path, result):
  """Writes the page of an `examination.examine`."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f".{path.name}.tmp")
  temporary.write_text(make(result), encoding="utf-8", errors="backslashreplace")
  os.replace(temporary, path)


def make(result):
  """The page as text; everything that is not ours is escaped."""
  title = f"{result['task']}: {result['data']}"
  refused = examination.refused(result)
  verdict = "training would not start" if refused else "training would start"
  body = [
    f"<h1>{_text(title)}</h1>\n",
    f'<p><span class="verdict {"refuses" if refused else "fine"}">{verdict}</span> ',
    f"{_counts(result)}<br><span class='where'>model {_text(result['model'])}</span></p>\n",
    _findings(result["findings"]),
  ]
  if "sets" in result:
    body += [_numbers(result), _examples(result["examples"]), _suspects(result["suspects"])]
  return (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width">\n'
    f"<title>{_text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
    f"{''.join(body)}</body>\n</html>\n"
  )


def _text(value):
  return html.escape(str(value))


def _counts(result):
  return ", ".join(f"{result['counts'][grade]} {grade}" for grade in GRADES)


def _findings(found):
  if not found:
    return "<h2>Findings</h2>\n<p>None: nothing here gives reason to look twice.</p>\n"
  rows = []
  for one in found:
    ids = f'<div class="ids">rows: {_text(", ".join(one["rows"]))}</div>' if one["rows"] else ""
    rows.append(
      f'<tr><td><span class="grade {one["grade"]}">{one["grade"]}</span></td>'
      f'<td>{_text(one["text"])}{ids}</td><td class="code">{one["code"]}</td></tr>\n'
    )
  return f"<h2>Findings</h2>\n<table>\n{''.join(rows)}</table>\n"


def _numbers(result):
  lines = "\n".join(result["report"])
  shown = [f"<h2>Numbers</h2>\n<pre>{_text(lines)}</pre>\n"]
  for name, found in result["sets"].items():
    shown.append(f"<h3>{_text(name)}</h3>\n")
    for stream, histogram in found["histograms"].items():
      shown.append(_histogram(histogram, f"{stream} of an example"))
    if found["numbers"]:
      shown.append(_histogram(found["numbers"], "label"))
    shown.append(_bars(found["labels"]))
    for part, own in found["of_parts"].items():
      what = f"{own['rows']:,} rows of {part}, {own['examples']:,} examples, their tokens"
      shown += [_histogram(own["histogram"], what), _bars(own["labels"])]
  return "".join([*shown, _changes(result["rows"]["changes"])])


def _changes(changes):
  """What cleaning and augmentation did, with samples before and after."""
  if not changes:
    return ""
  rows = [
    f"<tr><td>{_text(change['what'])}</td><td>{_text(s['row'])}</td>"
    f"<td>{_text(s['before'])}</td><td>{_text(s.get('after', ''))}</td></tr>\n"
    for change in changes
    for s in change["samples"]
  ]
  head = "<tr><th>what was done</th><th>row</th><th>before</th><th>after</th></tr>\n"
  return f"<h3>Cleaning</h3>\n<table>\n{head}{''.join(rows)}</table>\n"


def _histogram(found, what):
  """Bars over the edges, with quantiles below, and the limit where it is in sight."""
  edges, counts = found["edges"], found["counts"]
  low, high, top = edges[0], edges[-1], max(counts)
  limit = found.get("limit")
  if limit is not None and limit <= 1.5 * high:
    high = max(high, limit + 1)
  scale = (WIDTH - LEFT - 10) / (high - low)
  x, room = lambda value: LEFT + (value - low) * scale, HEIGHT - BOTTOM - 14
  parts = []
  for left, right, n in zip(edges, edges[1:], counts, strict=False):
    if n:
      tall = max(1.0, n / top * room)
      parts.append(
        f'<rect class="bar" x="{x(left):.1f}" y="{HEIGHT - BOTTOM - tall:.1f}" '
        f'width="{max(1.0, (right - left) * scale - 1):.1f}" height="{tall:.1f}">'
        f"<title>{left:g} to below {right:g}: {n:,}</title></rect>"
      )
  if limit is not None and limit <= high:
    parts.append(
      f'<line class="limit" x1="{x(limit):.1f}" x2="{x(limit):.1f}" y1="4" '
      f'y2="{HEIGHT - BOTTOM}"><title>limit {limit:,}</title></line>'
      f'<text x="{x(limit) - 4:.1f}" y="12" text-anchor="end">limit {limit:,}</text>'
    )
  quantiles = ", ".join(f"{name} {value:,.6g}" for name, value in found["quantiles"].items())
  beyond = "" if limit is None or limit <= high else f"; the limit is {limit:,}"
  return (
    f'<p class="where">{_text(what)}: {quantiles}{beyond}</p>\n'
    f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img">'
    f'<line class="axis" x1="{LEFT}" x2="{WIDTH}" y1="{HEIGHT - BOTTOM}" '
    f'y2="{HEIGHT - BOTTOM}"/>'
    f'<text x="{LEFT - 4}" y="14" text-anchor="end">{top:,}</text>'
    f'<text x="{LEFT}" y="{HEIGHT - 6}">{low:g}</text>'
    f'<text x="{WIDTH}" y="{HEIGHT - 6}" text-anchor="end">{high:g}</text>'
    f"{''.join(parts)}</svg>\n"
  )


def _bars(labels):
  """A bar a label, the most frequent first."""
  if not labels:
    return ""
  order = sorted(labels.items(), key=lambda item: -item[1])
  top, total = order[0][1], sum(labels.values())
  rows = [
    f'<tr><td>{_text(name)}</td><td class="number">{n:,}</td>'
    f'<td class="number">{n / total:.1%}</td><td><div class="track">'
    f'<div style="width:{100 * n / top:.1f}%"></div></div></td></tr>\n'
    for name, n in order[:LABELS]
  ]
  more = f"<p>and {len(order) - LABELS} more labels</p>\n" if len(order) > LABELS else ""
  return f"<table>\n{''.join(rows)}</table>\n{more}"


def _examples(shown):
  legend = (
    '<p class="tokens"><span class="t supervised">supervised</span> is learnt, '
    '<span class="t context">context</span> is only read, '
    '<span class="t padding">padding</span> is nothing; '
    '<span class="t special">special</span> tokens are the tokenizer\'s. Ids and positions are '
    "shown on hover.</p>\n"
    "<p>In a row of a batch the colour of a place is that of what is predicted there; in a "
    "language model that is the next token, written small. A label is learnt of its whole "
    "segment.</p>\n"
  )
  rows = "".join(map(_example, shown))
  return f"<h2>Examples as the model sees them</h2>\n{legend}{rows}"


def _example(one):
  parts = []
  for name, tokens in one["streams"].items():
    title = f'<div class="where">{_text(name)}</div>' if len(one["streams"]) > 1 else ""
    parts.append(f'{title}<div class="tokens">{_tokens(tokens)}</div>\n')
  answer = f" → <b>{_text(one['answer'])}</b>" if one["answer"] else ""
  left = f" ({one['left']:,} tokens are not shown)" if one["left"] else ""
  head = f'<div class="where">{_text(one["why"])}: {_text(one["id"])}{answer}{left}</div>'
  return f'<div class="row">{head}\n{"".join(parts)}</div>\n'


def _tokens(tokens):
  parts, segment = [], 1
  for token in tokens:
    if token["segment"] != segment:
      segment = token["segment"]
      name = f"segment {segment}" if segment else "padding"
      parts.append(f'<span class="cut">{name}</span>')
    kinds = f"t {token['kind']}{' special' if token['special'] else ''}"
    said = f" · learns {token['said']}" if token["said"] else ""
    where = f"id {token['id']} · position {token['position']} · segment {token['segment']}"
    above = f"<sup>{_text(token['said'].replace(chr(10), '⏎'))}</sup>" if token["said"] else ""
    text = "·" if token["kind"] == "padding" else token["text"].replace("\t", "⇥\t")
    line, end, rest = text.partition("\n")
    shown = f"{_text(line)}⏎{above}\n{_text(rest)}" if end else f"{_text(line)}{above}"
    parts.append(f'<span class="{kinds}" title="{_text(where + said)}">{shown}</span>')
  return "".join(parts)


def _suspects(judged):
  if judged is None:
    return ""
  title = f"<h2>Label suspects</h2>\n<p>{_text(examination.said_of(judged))}</p>\n"
  if not judged["suspects"]:
    return title
  head = "<tr><th>row</th><th>text</th><th>label</th><th>likely</th></tr>\n"
  rows = [
    f'<tr><td>{_text(s["id"])}<div class="where">{_text(s["set"])}</div></td>'
    f"<td>{_text(s['text'][:400])}</td>"
    f"<td>{_text(s['given'])} ({s['given_probability']:.2f})</td>"
    f"<td>{_text(s['likely'])} ({s['likely_probability']:.2f})</td></tr>\n"
    for s in judged["suspects"]
  ]
  return f"{title}<table>\n{head}{''.join(rows)}</table>\n"
