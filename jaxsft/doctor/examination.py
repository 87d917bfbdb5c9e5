"""The whole look at a config's data: `examine`, as plain values, and `text` of them."""

import json

from jaxsft import preflight, prepare, pretrained, start
from jaxsft.data import audit
from jaxsft.doctor import figures, findings, of_texts, parts, suspects, tokens
from jaxsft.doctor.codes import GRADES, found
from jaxsft.errors import JaxsftError, UsageError

VERSION = 1
"""Of the keys that `examine` returns."""


def examine(config):
  """A dict of all that is found: "findings" of every grade, "rows", "sets", "plan" …

  The data are prepared as training would, without weights. Rows that cannot be read are a
  finding too; UsageError for settings that do not fit is raised.
  """
  result = {"version": VERSION, "task": config.task, "model": config.model.path}
  mix = config.data.mix or {}
  result["data"] = ", ".join(part.path for part in mix.values()) or config.data.path
  try:
    base = pretrained.open_base(config.model)
    prepared = prepare.prepare(config, base, start.mesh_of(config.mesh))
  except UsageError:
    raise
  except JaxsftError as error:
    return _graded(result, [found("unreadable", str(error))])
  sets = parts.all_described(prepared)
  judged = suspects.search(prepared)
  all_found = findings.ranked([
    *findings.findings(prepared, config, sets),
    *of_texts.near(prepared, sets),
    *suspects.finding(judged),
  ])  # fmt: skip
  rows, plan = preflight.rows_of(prepared), preflight.plan_of(prepared, config)
  further = {name: sets[name] for name in prepared.sets}
  described = audit.audit(rows, sets["train"], sets.get("held out"), plan, further=further)
  result = _graded(result, all_found) | described.as_dict()
  for name in ("samples", "rates", "warnings"):  # of weights, and said otherwise
    del result[name]
  for name, part in parts.examples_of(prepared).items():
    result["sets"][name]["histograms"] = figures.lengths(part, prepared)
    result["sets"][name]["numbers"] = figures.numbers(part, prepared)
    result["sets"][name]["of_parts"] = figures.of_parts(part, prepared)
  result["report"] = described.lines()
  result["suspects"] = _suspects(judged)
  result["examples"] = [
    *map(_plain, tokens.batch_rows(prepared, config)),
    *map(_plain, tokens.examples(prepared.train, prepared)),
  ]
  return json.loads(json.dumps(result))  # as --json keeps it


def refused(result):
  """Whether training would not start."""
  return result["counts"]["refuses"] > 0


def text(result):
  """The lines that are printed of `examine`."""
  lines = list(result.get("report", ()))
  judged = result.get("suspects")
  if judged:
    lines.append(f"suspects   {said_of(judged)}")
  for one in result["findings"]:
    lines.append(f"{one['grade']:<10} [{one['code']}] {one['text']}")
  counts = result["counts"]
  verdict = "training would not start" if refused(result) else "training would start"
  many = ", ".join(f"{counts[grade]} {grade}" for grade in GRADES)
  return "\n".join([*lines, f"verdict    {verdict} ({many})"])


def said_of(judged):
  """A sentence on what was judged, of result["suspects"]."""
  if judged["why"]:
    return f"none looked for: {judged['why']}"
  sample = ""
  if judged["judged"] < judged["total"]:
    sample = f", a sample of {judged['total']:,} by a hash of their ids"
  return f"{judged['count']:,} of {judged['judged']:,} {judged['unit']} judged{sample}"


def _graded(result, all_found):
  counts = {grade: sum(one.grade == grade for one in all_found) for grade in GRADES}
  return result | {"counts": counts, "findings": [one._asdict() for one in all_found]}


def _suspects(judged):
  if judged is None:
    return None
  return vars(judged) | {"suspects": [one._asdict() for one in judged.suspects]}


def _plain(shown):
  streams = {name: [t._asdict() for t in found] for name, found in shown.streams.items()}
  return shown._asdict() | {"streams": streams}
