"""report.html: one file, well formed, nothing from elsewhere, user text as text."""

import html.parser
import json
import re

import pytest

from jaxsft import report

EVIL = "<script>alert('x')</script> & \"quotes\""


class Parser(html.parser.HTMLParser):
  """Collects tags and text; fails where a tag is closed that was not open."""

  VOID = ("meta", "br")

  def __init__(self):
    super().__init__()
    self.open, self.tags, self.attrs, self.text = [], [], [], ""

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attrs += attrs
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append(tag)
    self.attrs += attrs

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data


@pytest.fixture
def run(tmp_path):
  lines = [
    {"kind": "train", "step": step, "loss": 2.0 - step / 10, "lr": 1e-5 * step}
    for step in range(1, 11)
  ]
  lines[4]["loss"] = None
  lines += [{"kind": "eval", "step": s, "eval_accuracy": 0.1 * s} for s in (5, 10)]
  lines += [{"kind": "eval", "step": 5, "eval_bad": None}]
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (tmp_path / "metrics.jsonl").write_text(text + '{"torn')
  data = {"report": ["rows  3 read", f"1  {EVIL}"]}
  (tmp_path / "data.json").write_text(json.dumps(data))
  leaf = {"path": EVIL, "shape": [3, 2], "dtype": "float32", "trained": 4, "rate": [0.25, 1.0]}
  leaf["start"] = 0
  leaves = [leaf | {"decays": True}, leaf | {"path": "still", "trained": 0, "decays": True}]
  table = {"trained": 4, "total": 12, "leaves": leaves}
  (tmp_path / "parameters.json").write_text(json.dumps(table))
  result = {
    "task": "classify",
    "metrics": {"accuracy": 0.87654, "confusion": [[4, 1], [0, 0]], "labels": [EVIL, "pos"]},
    "best": {"step": 10, "metric": "accuracy", "value": 0.87654},
    "examples": [{"text": EVIL, "gold": "pos"}, {"text": "b", "score": 0.5}],
    "tokens": 1234567,
    "seconds": 61.5,
    "export": f"runs/{EVIL}",
  }
  (tmp_path / "result.json").write_text(json.dumps(result))
  return tmp_path


def parse(path):
  parser = Parser()
  parser.feed(path.read_text(encoding="utf-8"))
  parser.close()
  assert parser.open == []
  return parser


def test_the_page_is_well_formed_and_self_contained(run):
  path = report.write(run)
  assert path == run / "report.html"
  page = parse(path)
  assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
  assert not {"src", "href", "onload"} & {name for name, _ in page.attrs}
  assert not re.search(r"url\(|@import|https?:", path.read_text(encoding="utf-8"))


def test_user_text_is_text(run):
  path = report.write(run)
  assert "<script" not in path.read_text(encoding="utf-8")
  assert parse(path).text.count(EVIL) == 6  # label twice, example, path, report, parameter


def test_the_numbers_are_there(run):
  text = parse(report.write(run)).text
  for expected in ("best, after update 10", "0.8765", "1,234,567", "61.5", "rows  3 read"):
    assert expected in text
  for expected in ("4 of 12 train", "3 × 2", "0.25 to 1", "frozen"):
    assert expected in text


def test_the_types_of_entities(run):
  result = json.loads((run / "result.json").read_text())
  numbers = {"precision": 0.5, "recall": 0.25, "f1": 1 / 3, "support": 1200, "predicted": 7}
  result["metrics"]["per_type"] = {EVIL: numbers, "LOC": numbers | {"support": 1300}}
  (run / "result.json").write_text(json.dumps(result))
  text = parse(report.write(run)).text
  assert text.index("1,300") < text.index("1,200") and text.count(EVIL) == 7
  for part in ("Types", "0.3333", "0.25"):
    assert part in text


def test_intervals_and_slices(run):
  result = json.loads((run / "result.json").read_text())
  whole = {"value": 0.75, "low": 0.625, "high": 0.875, "n": 1600}
  none = {"value": None, "low": None, "high": None, "n": 1}
  result |= {"intervals": {"accuracy": whole}}
  result |= {"slices": {EVIL: [{"slice": EVIL, **whole}, {"slice": "b", **none}]}}
  (run / "result.json").write_text(json.dumps(result))
  text = parse(report.write(run)).text
  assert text.count(EVIL) == 8 and f"accuracy by {EVIL}" in text
  for part in ("Intervals and slices", "0.625 to 0.875", "1,600", "undefined"):
    assert part in text


def test_a_curve_for_each_measured_thing(run):
  path = report.write(run)
  page, source = parse(path), path.read_text(encoding="utf-8")
  captions = re.findall(r"<figcaption>(.*?)[<&]", source)
  assert list(map(str.strip, captions)) == [
    "loss",
    "learning rate",
    "eval accuracy",
    "eval bad",
  ]
  assert page.tags.count("polyline") == 3  # eval_bad has no finite value
  assert "(1 not finite, left out)" in page.text and "no finite value" in page.text
  curve = re.search(r'points="([^"]*)"', source).group(1).split()
  assert len(curve) == 9
  x, y = zip(*[map(float, point.split(",")) for point in curve], strict=True)
  assert list(x) == sorted(x) and list(y) == sorted(y)  # the loss falls, y grows downwards
  assert min(x) >= report.LEFT and max(x) <= report.WIDTH
  assert min(y) >= 0 and max(y) <= report.HEIGHT - report.BOTTOM + 0.1


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0], [0.0, 1e-9], [-5.0, 1e6], [1e-5, 3e-5]])
def test_any_range_of_values_is_drawn(values):
  svg = report.picture(list(enumerate(values, start=1)))
  assert "nan" not in svg and "inf" not in svg
  assert svg.count("<text") >= 2
  y = [float(p.split(",")[1]) for p in re.search(r'points="([^"]*)"', svg).group(1).split()]
  assert all(0 <= v <= report.HEIGHT for v in y)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (1, 300), (0.1234, 0.1235), (-3, 7e5)])
def test_ticks_are_few_and_round_and_span(low, high):
  ticks = report._ticks(low, high)
  slack = (high - low) * 1e-6
  assert 3 <= len(ticks) <= 7
  assert ticks[0] <= low + slack and ticks[-1] >= high - slack


def test_a_run_without_anything_still_has_a_page(tmp_path):
  page = parse(report.write(tmp_path))
  assert "has not ended yet" in page.text and "svg" not in page.tags
