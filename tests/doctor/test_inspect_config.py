"""`python -m jaxsft.inspect --config`: the examination, the page and the exit codes."""

import collections
import html.parser
import json

import numpy as np
import pytest

from jaxsft import command, inspect
from jaxsft.data import store as stores
from jaxsft.doctor import examination, page, parts
from tests import tiny
from tests.doctor import conftest, test_findings

KINDS = {
  "classify": ("bert", {}),
  "pairs": ("bert", {}),
  "multi": ("bert", {}),
  "number": ("bert", {}),
  "tag": ("bert", {}),
  "answer": ("bert", {}),
  "masked_lm": ("bert", {}),
  "chat": ("llama", {}),
  "rows": ("llama", {"batch_unit": "rows", "batch_size": 2, "data__max_length": 200}),
  "seq2seq": ("t5", {}),
  "bart": ("bart", {}),
}
VOID = {"meta", "br"}
EVIL = "<img src=x onerror=alert(1)></script><script>alert('&amp;')</script>"


class Page(html.parser.HTMLParser):
  """The elements of a page, which must be balanced, and its text."""

  def __init__(self, text):
    super().__init__()
    self.open, self.found, self.texts = [], [], []
    self.feed(text)
    self.close()
    assert self.open == []

  def handle_starttag(self, tag, attrs):
    self.found.append((tag, dict(attrs)))
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.found.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open and self.open.pop() == tag

  def handle_data(self, data):
    self.texts.append(data)

  def classes(self, name):
    return collections.Counter(a["class"] for t, a in self.found if t == name and "class" in a)


def kind_of(name):
  return {"pairs": "classify", "rows": "chat", "bart": "seq2seq"}.get(name, name)


@pytest.fixture
def made(prepared, tmp_path):
  def make(name):
    family, settings = KINDS[name]
    kind = kind_of(name)
    path = tiny.rows(tmp_path / "data.jsonl", kind)
    if name == "pairs":
      rows = [
        json.loads(line) | {"text_pair": "the end"} for line in path.read_text().splitlines()
      ]
      path = conftest.write(tmp_path / "pairs.jsonl", rows)
    return prepared(kind, path, family=family, **settings)

  return make


@pytest.mark.parametrize("name", KINDS)
def test_every_task_has_a_page(made, name):
  _, config = made(name)
  result = examination.examine(config)
  assert not examination.refused(result), result["findings"]
  text = page.make(result)
  found = Page(text)
  assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in found.found}
  assert not any("src" in a or "href" in a or "on" in a for _, a in found.found)
  colours = collections.Counter()
  for classes, n in found.classes("span").items():
    for kind in ("supervised", "context", "padding"):
      colours[kind] += n * (f"t {kind}" in classes)
  told = collections.Counter({"supervised": 1, "context": 1, "padding": 1})  # the legend
  for one in result["examples"]:
    told.update(t["kind"] for tokens in one["streams"].values() for t in tokens)
  assert colours == told
  assert {one["why"] for one in result["examples"]} >= {"batch row", "first", "longest"}


@pytest.mark.parametrize("name", KINDS)
def test_colours_are_the_weights_of_the_examples(made, name):
  data, config = made(name)
  store = data.train.store
  index = {id: i for i, id in enumerate(store.ids)}
  for one in examination.examine(config)["examples"]:
    ids = [index[id] for id in one["id"].split(", ")]
    assert one["left"] == 0
    stream = one["streams"]["target" if data.task.SOURCE else "tokens"]
    shown = sum(token["kind"] == "supervised" for token in stream)
    if "weights" in store.tokens:
      assert shown == stores.supervised(store)[ids].sum() > 0
    elif "start" in store.values:
      start, end = (np.asarray(store.values[k])[ids] for k in ("start", "end"))
      assert shown == ((end - start + 1) * (start > 0)).sum()
    else:
      assert shown == 0 and one["answer"]
    lengths = np.asarray(store.lengths).reshape(len(store), -1)[ids]
    places = sum(t["kind"] != "padding" for tokens in one["streams"].values() for t in tokens)
    extra = data.task.HEAD == "lm" and one["why"] != "batch row"  # the last target
    assert places == lengths.sum() + extra


def test_a_batch_row_is_the_batch(made):
  from jaxsft.data import feed

  data, config = made("rows")
  rows, (_, length, segments) = data.plan.batch(0), data.plan.shape(0)
  batch = feed.batch(data.train.store, rows, row_length=length, segments=segments)
  shown = [x for x in examination.examine(config)["examples"] if x["why"] == "batch row"]
  assert len(shown) == 2
  for row, one in enumerate(shown):
    stream = one["streams"]["tokens"]
    assert [t["id"] for t in stream] == batch["inputs"][row].tolist()
    assert [t["position"] for t in stream] == batch["positions"][row].tolist()
    assert [t["segment"] for t in stream] == batch["segments"][row].tolist()
    learnt = (batch["weights"][row] > 0).tolist()
    assert [t["kind"] == "supervised" for t in stream] == learnt
    assert [t["kind"] == "padding" for t in stream] == (batch["segments"][row] == 0).tolist()
    texts = data.context.tokenizer.convert_ids_to_tokens(batch["targets"][row].tolist())
    assert all(bool(t["said"]) == yes for t, yes in zip(stream, learnt, strict=True))
    assert any(t["said"] == "<|im_end|>" == x for t, x in zip(stream, texts, strict=True))
  assert max(t["segment"] for t in shown[0]["streams"]["tokens"]) > 1  # it is packed


def test_answers_and_tags_and_labels_are_said(made):
  def said(name):
    data, config = made(name)
    return data, examination.examine(config)["examples"]

  data, shown = said("tag")
  tags = {t["said"] for one in shown for t in one["streams"]["tokens"] if t["said"]}
  assert tags <= set(data.context.labels) and {"O", "B-GOOD"} <= tags
  _, shown = said("answer")
  first = next(one for one in shown if one["why"] == "first")
  learnt = [t["text"] for t in first["streams"]["tokens"] if t["kind"] == "supervised"]
  assert learnt and first["answer"].endswith("".join(learnt))
  data, shown = said("classify")
  labels = {row.id: row.fields["label"] for row in data.train.rows}
  for one in shown:
    ids = one["id"].split(", ")
    expected = [labels[id] for id in ids]
    if one["why"] == "batch row":
      expected = [f"{n}: {label}" for n, label in enumerate(expected, 1)]
    assert one["answer"] == "; ".join(expected)
  special = {t["text"] for one in shown for t in one["streams"]["tokens"] if t["special"]}
  assert special == {"[CLS]", "[SEP]"} | ({"[PAD]"} & special)


def test_counts_are_those_of_the_store(made):
  data, config = made("classify")
  result = examination.examine(config)
  for name, part in parts.examples_of(data).items():
    found, lengths = result["sets"][name], np.asarray(part.store.lengths)
    histogram = found["histograms"]["tokens"]
    assert sum(histogram["counts"]) == found["examples"] == len(part.store)
    quantiles = histogram["quantiles"]
    assert (quantiles["shortest"], quantiles["longest"]) == (lengths.min(), lengths.max())
    for left, right, n in zip(
      histogram["edges"], histogram["edges"][1:], histogram["counts"], strict=False
    ):
      assert n == ((lengths >= left) & (lengths < right)).sum()
    assert sum(found["labels"].values()) == len(part.store)
  found = Page(page.make(result))
  titles = [text for text in found.texts if "to below" in text]
  total = sum(int(text.rpartition(": ")[2]) for text in titles)
  assert total == len(data.train.store) + len(data.held_out.store)


def test_what_users_wrote_is_escaped(prepared):
  rows = [{"text": f"{EVIL} the {i}", "label": EVIL if i % 2 else "ok"} for i in range(60)]
  rows += [{"text": "the film", "label": EVIL}] * 2 + [{"text": "the film", "label": "ok"}]
  _, config = prepared("classify", rows)
  text = page.make(examination.examine(config))
  assert "<img" not in text and "<script" not in text and "</script" not in text
  found = Page(text)
  assert any("onerror=alert(1)" in part for part in found.texts)
  assert any(EVIL in part for part in found.texts)  # a label, as it was written


# --- the verb --------------------------------------------------------------------------


def written(tmp_path, checkpoint, data, **settings):
  """A config file."""
  lines = "".join(f"  c = config.override(c, {k!r}, {v!r})\n" for k, v in settings.items())
  file = tmp_path / "config.py"
  file.write_text(
    "from jaxsft import config\n\ndef get_config(arg=''):\n"
    "  c = config.Config(task='classify')\n"
    f"  c = config.override(c, 'model.path', {str(checkpoint)!r})\n"
    f"  c = config.override(c, 'data.path', {str(data)!r})\n"
    f"  c = config.override(c, 'data.id', 'name')\n{lines}  return c\n"
  )
  return file


@pytest.fixture
def run(checkpoints, tmp_path, monkeypatch, capsys):
  monkeypatch.setenv("JAXSFT_CACHE", str(tmp_path / "cache"))

  def go(rows, *flags):
    data = conftest.write(tmp_path / "rows.jsonl", rows)
    file = written(tmp_path, checkpoints["bert"], data)
    code = 0
    try:
      command.run(inspect.main, [f"--config={file}", *flags])
    except SystemExit as stopped:
      code = stopped.code
    said = capsys.readouterr()
    return code, said.out, said.err

  return go


def test_exit_code_0_with_warnings_and_what_json_holds(run, tmp_path):
  rows = [*test_findings.sentences(), {"text": "the the good", "label": "pos"}]
  target, shown = tmp_path / "out.json", tmp_path / "pages" / "out.html"
  code, out, _ = run(rows, f"--json={target}", f"--html={shown}")
  assert code == 0
  result = json.loads(target.read_text("utf-8"))
  keys = {"version", "task", "model", "data", "counts", "findings", "rows", "sets"}
  keys |= {"duplicates", "plan", "report", "suspects", "examples"}
  assert set(result) == keys and result["version"] == examination.VERSION == 1
  assert set(result["findings"][0]) == {"grade", "code", "text", "rows"}
  assert set(result["counts"]) == {"refuses", "warns", "notes"}
  codes = {one["code"] for one in result["findings"]}
  assert {"duplicates", "label-conflicts"} <= codes
  assert "[label-conflicts]" in out and "verdict    training would start" in out
  assert f"{result['counts']['warns']} warns" in out and "101 read, 101 kept" in out
  Page(shown.read_text("utf-8"))


def test_exit_code_1_where_training_would_not_start(run, tmp_path):
  long = {"text": "film " * 70, "label": "pos"}
  target = tmp_path / "out.json"
  flags = ("--config.data.too_long=drop", f"--json={target}")
  code, out, _ = run(test_findings.sentences() + [long] * 5, *flags)
  assert code == 1 and "verdict    training would not start" in out
  result = json.loads(target.read_text("utf-8"))
  assert result["findings"][0]["code"] == "too-many-dropped"
  assert "examples" in result  # the rest is there all the same


def test_rows_that_cannot_be_read_are_a_finding(run, tmp_path):
  target, shown = tmp_path / "out.json", tmp_path / "out.html"
  rows = [*test_findings.sentences(8), {"text": 3, "label": "pos"}]
  code, out, _ = run(rows, f"--json={target}", f"--html={shown}")
  assert code == 1 and "[unreadable]" in out and "rows.jsonl:9" in out
  (one,) = json.loads(target.read_text("utf-8"))["findings"]
  assert one["grade"] == "refuses" and "rows.jsonl:9" in one["text"]
  assert "rows.jsonl:9" in "".join(Page(shown.read_text("utf-8")).texts)


@pytest.mark.parametrize(
  "flags, said",
  [
    (["--model=x"], "expected --config"),
    (["--rows=9"], "--rows"),
    (["--config.data.path="], "config.data"),
  ],
)
def test_wrong_usage_is_exit_code_2(run, flags, said):
  code, _, err = run(test_findings.sentences(), *flags)
  assert code == 2 and said in err


def test_each_data_set_of_a_mixture_has_its_figures(prepared, tmp_path):
  rows = test_findings.sentences(60)
  for name, part in (("a", rows[:40]), ("b", [row | {"label": "pos"} for row in rows[40:]])):
    conftest.write(tmp_path / f"{name}.jsonl", part, name)
  mix = {name: {"path": str(tmp_path / f"{name}.jsonl")} for name in "ab"}
  data, config = prepared("classify", "", data__mix=mix, data__path="")
  result = examination.examine(config)
  for name, part in parts.examples_of(data).items():
    found = result["sets"][name]["of_parts"]
    for own in "ab":
      labels = collections.Counter(r.fields["label"] for r in part.rows if r.part == own)
      assert (
        found[own]["rows"] == sum(labels.values()) == sum(found[own]["histogram"]["counts"])
      )
      assert found[own]["labels"] == labels and found[own]["rows"] > 0
  assert set(result["sets"]["train"]["of_parts"]["b"]["labels"]) == {"pos"}
  text = "".join(Page(page.make(result)).texts)
  assert " rows of a, " in text and result["plan"]["mixture"][0]["name"] == "a"


def test_what_cleaning_did_is_on_the_page(prepared):
  rows = [row | {"text": f"{row['text']} <b>"} for row in test_findings.sentences(60)]
  rows[7] |= {key: rows[2][key] for key in ("text", "label")}
  settings = {"clean__text": ("markup",), "clean__duplicates": "drop"}
  _, config = prepared("classify", rows, **settings)
  result = examination.examine(config)
  assert "duplicates" not in {one["code"] for one in result["findings"]}
  text = page.make(result)
  found = Page(text)
  assert (
    "<b>"
    not in text.replace("<b>neg</b>", "")
    .replace("<b>pos</b>", "")
    .partition("Cleaning</h3>")[2]
    .partition("<h2>")[0]
  )
  changes = result["rows"]["changes"]
  assert {change["rows"] for change in changes} >= {60, 1}
  assert all(any(change["what"] in part for part in found.texts) for change in changes)


def test_copies_of_augmentation_are_no_suspects(prepared):
  from jaxsft.doctor import suspects

  settings = {"augment__copies": 2, "augment__swap": 0.5}
  data, _ = prepared("classify", test_findings.sentences(60), **settings)
  assert data.rows.copies > 20
  assert suspects.search(data).total == 60
