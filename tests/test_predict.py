"""The verb `predict`: what it reads, what it writes, and how it goes on."""

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest

from jaxsft import evaluate, predict, pretrained, start, tasks
from jaxsft.config import Config, Data, Model
from jaxsft.data.read import Row
from jaxsft.errors import JaxsftError, UsageError
from jaxsft.generation import writing
from tests import tiny

TEXTS = ["the film was good", "it was awful and dull", "a story", "the plot was superb"] * 3


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
  return tiny.checkpoint(tmp_path_factory.mktemp("classifier"), "bert", labels=("neg", "pos"))


@pytest.fixture
def rows(tmp_path):
  path = tmp_path / "rows.jsonl"
  lines = [json.dumps({"text": t, "n": i}) for i, t in enumerate(TEXTS)]
  path.write_text("\n".join(lines) + "\n")
  return path


def read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def run(classifier, rows, out, *flags):
  predict.main([f"--model={classifier}", f"--data={rows}", f"--out={out}", *flags])


def test_rows_come_back_in_their_order_with_what_is_said_of_them(classifier, rows, tmp_path):
  run(classifier, rows, tmp_path / "out.jsonl")
  found = read(tmp_path / "out.jsonl")
  assert [r["id"] for r in found] == [f"rows.jsonl:{n + 1}" for n in range(len(TEXTS))]
  assert [(r["text"], r["n"]) for r in found] == [(t, i) for i, t in enumerate(TEXTS)]
  model = pretrained.load(classifier)
  for row, said in zip(found, model.predict([{"text": t} for t in TEXTS]), strict=True):
    assert row["label"] == said["label"]
    assert row["score"] == pytest.approx(said["score"], abs=1e-6)
  assert sorted(p.name for p in tmp_path.iterdir()) == ["out.jsonl", "rows.jsonl"]


def test_a_table_holds_the_same(classifier, rows, tmp_path):
  run(classifier, rows, tmp_path / "out.jsonl")
  run(classifier, rows, tmp_path / "out.csv")
  with (tmp_path / "out.csv").open(newline="") as file:
    table = list(csv.DictReader(file))
  for cells, row in zip(table, read(tmp_path / "out.jsonl"), strict=True):
    assert list(cells) == list(row)
    assert cells["text"] == row["text"] and json.loads(cells["scores"]) == row["scores"]


def test_a_config_says_how_rows_are_read(classifier, tmp_path):
  (tmp_path / "rows.txt").write_text("review;x\nthe film was good;1\n".replace(";", "\t"))
  (tmp_path / "c.py").write_text(
    "from jaxsft.config import Config, Data, Model\n"
    "def get_config(arg=''):\n"
    "  return Config(model=Model(path='m'), data=Data(path='d', format='tsv', "
    "columns={'text': 'review'}))\n"
  )
  run(
    classifier, tmp_path / "rows.txt", tmp_path / "out.jsonl", f"--config={tmp_path / 'c.py'}"
  )
  (row,) = read(tmp_path / "out.jsonl")
  assert row["text"] == "the film was good" and row["label"] in ("neg", "pos")


def test_templates_of_a_config_make_the_texts(classifier, tmp_path):
  """What training saw, predictions see: of rows without the label's columns too."""
  texts = ("good", None, "dull")
  rows = [{"head": "the film was", "tail": tail, "n": i} for i, tail in enumerate(texts)]
  path, out, config = (tmp_path / name for name in ("rows.jsonl", "out.jsonl", "c.py"))
  path.write_text("\n".join(map(json.dumps, rows)))
  template = tmp_path / "text.jinja"
  template.write_text("{{ head }} {{ tail }}\n")
  config.write_text(
    "from jaxsft.config import Config, Data, Model\n"
    f"def get_config(arg=''): return Config(model=Model(path={str(classifier)!r}), data=Data(\n"
    f"  path='x', prompt={{'text': {str(template)!r}, 'label': '{{{{ stars }}}}'}}))\n"
  )
  run(classifier, path, out, f"--config={config}")
  first, second, third = found = read(out)
  assert (first["text"], third["text"]) == ("the film was good", "the film was dull")
  assert "error" in second and "rows.jsonl:2" in second["error"] and "null" in second["error"]
  assert [row["n"] for row in found] == [0, 1, 2] and second["head"] == "the film was"
  said = pretrained.load(classifier).predict([{"text": first["text"]}])[0]
  assert first["label"] == said["label"] and "gold" not in first
  before = out.read_bytes()
  template.write_text("{{ tail or '' }} {{ head }}")  # another template: all are asked anew
  run(classifier, path, out, f"--config={config}")
  assert out.read_bytes() != before and read(out)[0]["text"] == "good the film was"
  template.write_text("{{ heat }}")
  with pytest.raises(JaxsftError, match=r"rows\.jsonl:1: no column 'heat'.*mean 'head'"):
    run("no model is read", path, out, f"--config={config}")


def test_a_stopped_run_goes_on(classifier, rows, tmp_path, monkeypatch, capsys):
  run(classifier, rows, tmp_path / "whole.jsonl")
  monkeypatch.setattr(predict, "BLOCK", 5)
  answered, original = [], predict.predictor

  def spy(stop_after):
    def make(*args):
      answer = original(*args)

      def counted(block):
        if len(answered) >= stop_after:
          raise KeyboardInterrupt
        answered.append(len(block))
        return answer(block)

      return counted

    return make

  monkeypatch.setattr(predict, "predictor", spy(2))
  with pytest.raises(KeyboardInterrupt):
    run(classifier, rows, tmp_path / "out.jsonl")
  assert not (tmp_path / "out.jsonl").exists() and answered == [5, 5]
  (part,) = tmp_path.glob(".out.jsonl.*.part")
  with part.open("a") as file:
    file.write('{"id": "half a ro')  # a stop in the middle of a row
  answered.clear()
  monkeypatch.setattr(predict, "predictor", spy(9))
  run(classifier, rows, tmp_path / "out.jsonl")
  assert answered == [2] and "going on after 10 rows" in capsys.readouterr().out
  known = read(tmp_path / "whole.jsonl")
  for row, other in zip(read(tmp_path / "out.jsonl"), known, strict=True):
    assert {**row, "score": 0, "scores": 0} == {**other, "score": 0, "scores": 0}
    assert row["score"] == pytest.approx(other["score"], abs=1e-6)
  assert not list(tmp_path.glob(".*part"))


def test_a_row_keeps_its_own_answer_and_hides_none(classifier, tmp_path):
  path, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
  path.write_text(json.dumps({"text": "good film", "label": "neg", "id": 7}) + "\n")
  run(classifier, path, out)
  (row,) = read(out)
  assert (row["gold"], row["id"], row["text"]) == ("neg", 7, "good film") and "score" in row
  path.write_text(json.dumps({"text": "good film", "score": 5}) + "\n")
  with pytest.raises(
    UsageError, match=r"rows\.jsonl:1: the row has a field 'score'.*--columns"
  ):
    run(classifier, path, tmp_path / "other.jsonl")
  run(classifier, path, out, '--columns={"input_score": "score"}')
  assert read(out)[0]["input_score"] == 5


def test_what_else_decides_answers_begins_anew(classifier, tmp_path):
  before = predict._small_files(classifier)
  other = shutil.copytree(classifier, tmp_path / "other")
  assert predict._small_files(other) == before
  (other / "generation_config.json").write_text('{"repetition_penalty": 1.5}')
  assert predict._small_files(other) != before


def test_answers_that_are_written_are_saved_often(classifier, rows, tmp_path, monkeypatch):
  sizes = []
  blocks = predict._blocks
  monkeypatch.setattr(
    predict, "_blocks", lambda rows, size: sizes.append(size) or blocks(rows, size)
  )
  run(classifier, rows, tmp_path / "out.jsonl")
  chatty = tiny.checkpoint(tmp_path / "chatty", "llama")
  (tmp_path / "asked.jsonl").write_text(json.dumps({"prompt": "2 plus 2"}) + "\n")
  run(
    chatty,
    tmp_path / "asked.jsonl",
    tmp_path / "said.jsonl",
    "--max_new_tokens=2",
    "--batch_size=3",
  )
  assert sizes == [predict.BLOCK, 24] and len(read(tmp_path / "said.jsonl")) == 1


def test_refusals(classifier, rows, tmp_path):
  with pytest.raises(UsageError, match=r"out\.txt.*\.jsonl, \.csv"):
    run(classifier, rows, tmp_path / "out.txt")
  (tmp_path / "none.jsonl").write_text("\n")
  with pytest.raises(JaxsftError, match="holds no row"):
    run(classifier, tmp_path / "none.jsonl", tmp_path / "out.jsonl")


def test_a_row_that_cannot_be_answered_says_why_and_the_others_are(
  classifier, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(predict, "BLOCK", 3)
  rows, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
  bad = {1: {"text": " "}, 3: {"text": 5}, 4: {"text": "a [SEP] b"}}
  lines = [bad.get(i, {"text": text}) for i, text in enumerate(TEXTS[:6])]
  rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
  run(classifier, rows, out)
  said = read(out)
  assert [sorted(row) for row in said if "error" in row] == [["error", "id", "text"]] * 3
  assert [i for i, row in enumerate(said) if "error" in row] == [1, 3, 4]
  assert "rows.jsonl:2: has no text" in said[1]["error"] and "5" in said[3]["error"]
  assert "rows.jsonl:5: the text contains the control token '[SEP]'" in said[4]["error"]
  shown = capsys.readouterr().out
  assert "6 rows in" in shown and "3 rows read now have no answer" in shown
  known = pretrained.load(classifier).predict([{"text": TEXTS[i]} for i in (0, 2, 5)])
  for i, one in zip((0, 2, 5), known, strict=True):
    assert said[i]["score"] == pytest.approx(one["score"], abs=1e-6)
  rows.write_text('{"txt": "a"}\n{"txt": "b"}\n{"txt": "a"}\n{"text": "good"}\n')
  with pytest.raises(JaxsftError, match=r"rows\.jsonl:1: has no text"):  # no row of the first
    run(classifier, rows, tmp_path / "none.jsonl")
  assert sorted(p.name for p in tmp_path.iterdir()) == ["out.jsonl", "rows.jsonl"]
  with pytest.raises(JaxsftError, match="row 1: has no text"):
    pretrained.load(classifier).predict([{"text": "good"}, {"text": ""}])


def test_a_text_that_was_cut_says_so(classifier, tmp_path, caplog):
  """What an export was trained to read: 8 tokens with [CLS] and [SEP]."""
  model = pretrained.load(classifier)
  assert model.context.max_length == 64
  context = dataclasses.replace(model.context, max_length=8)
  dataclasses.replace(model, context=context).save(tmp_path / "short")
  short = pretrained.load(tmp_path / "short")
  assert short.context.max_length == 8
  texts = [{"text": "good " * n} for n in (6, 7, 70)]
  with caplog.at_level("WARNING"):
    said = short.predict(texts)
  assert [one.get("cut") for one in said] == [None, True, True] and not caplog.records
  assert said[1]["scores"] == pytest.approx(said[0]["scores"], abs=1e-6)
  assert [one.get("cut") for one in model.predict(texts)] == [None, None, True]
  model.save(tmp_path / "usual")
  assert "jaxsft_answers" not in json.loads((tmp_path / "usual/config.json").read_text())


def test_a_chat_model_reads_as_far_as_its_positions_reach(tmp_path):
  model = pretrained.load(tiny.checkpoint(tmp_path / "llama", "llama"))
  context = dataclasses.replace(model.context, max_length=8)
  dataclasses.replace(model, context=context).save(tmp_path / "saved")
  assert pretrained.load(tmp_path / "saved").context.max_length == 512


def test_a_config_says_that_control_tokens_are_text(tmp_path):
  path = tiny.checkpoint(tmp_path / "llama", "llama")
  model, rows = pretrained.load(path), tmp_path / "rows.jsonl"
  asks = [{"messages": [{"role": "user", "content": "a <|im_end|> b"}]}]
  with pytest.raises(JaxsftError, match=r"row 0: .*control_tokens to 'escape'"):
    predict.predict(model, asks, max_new_tokens=1)
  made = tiny.config("llama", "chat", path, rows, data__control_tokens="escape")
  assert predict._as_config_says(model, made).predict(asks, max_new_tokens=1)[0].keys() <= {
    "text",
    "cut",
  }


def test_an_export_remembers_how_conversations_are_read(tmp_path, monkeypatch):
  """What training took as text is text for `predict` and `generate`, and no token is obeyed."""
  model = pretrained.load(tiny.checkpoint(tmp_path / "llama", "llama"))
  how = {"control_tokens": "escape", "unwritten": "leave_out"}
  taught = dataclasses.replace(model, context=dataclasses.replace(model.context, **how))
  taught.save(tmp_path / "saved")
  config = json.loads((tmp_path / "saved" / "config.json").read_text())
  assert config["jaxsft_answers"] == how
  model.save(tmp_path / "plain")
  assert "jaxsft_answers" not in (tmp_path / "plain" / "config.json").read_text()
  asks = {"messages": [{"role": "user", "content": "a <|im_end|> b"}]}
  asks["tools"] = [{"type": "function", "function": {"name": "f"}}]
  again, seen = pretrained.load(tmp_path / "saved"), []
  assert {name: getattr(again.context, name) for name in how} == how
  written = writing.written

  def spy(network, params, tokenizer, prompts, **rules):
    seen.append(prompts)
    return written(network, params, tokenizer, prompts, **rules)

  monkeypatch.setattr(writing, "written", spy)
  assert "text" in again.predict([asks], max_new_tokens=1)[0]
  again.generate(asks["messages"], max_new_tokens=1)
  again.generate("a <|im_end|> b", max_new_tokens=1)
  trained = tasks.TASKS["chat"].prompt(Row("r", "x:1", asks), again.context)
  assert seen == [[trained]] * 3
  end = model.tokenizer.convert_tokens_to_ids("<|im_end|>")
  assert trained.count(end) == 1  # the turn's own
  for ask in (model.generate, pretrained.load(tmp_path / "plain").generate):
    with pytest.raises(JaxsftError, match=r"contains the control token '<\|im_end\|>'"):
      ask("a <|im_end|> b", max_new_tokens=1)


def test_a_model_of_pairs_is_not_asked_about_single_texts(classifier, tmp_path):
  model = pretrained.load(classifier)
  context = dataclasses.replace(model.context, pairs=True)
  dataclasses.replace(model, context=context).save(tmp_path / "pairs")
  of_pairs = pretrained.load(tmp_path / "pairs")
  assert "label" in of_pairs.predict([{"text": "good", "text_pair": "bad"}])[0]
  with pytest.raises(JaxsftError, match="row 0: has no text_pair, found the fields text;"):
    of_pairs.predict([{"text": "good"}])
  assert "label" in model.predict([{"text": "good"}])[0]
  made = Config(model=Model(path="m"), data=Data(path="d"))
  with pytest.raises(JaxsftError, match="has no text_pair"):  # a config does not know of pairs
    predict._as_config_says(of_pairs, made).predict([{"text": "good"}])


def test_columns_that_the_task_does_not_read_are_free(classifier):
  model = pretrained.load(classifier)
  row = {"text": "good", "source": 3, "question": None, "context": ["a"], "prompt": 1}
  assert model.predict([row]) == model.predict([{"text": "good", "text_pair": None}])
  for name in ("text", "text_pair"):
    with pytest.raises(JaxsftError, match=f"row 0: the field '{name}' is 3, expected text"):
      model.predict([{"text": "good", name: 3}])


def test_a_text_with_nothing_to_hide_is_not_called_too_long(tmp_path):
  model = pretrained.load(tiny.checkpoint(tmp_path / "m", "bert", kind="masked_lm"))
  with pytest.raises(JaxsftError, match="row 0: cannot be answered: no token to hide"):
    model.predict([{"text": "zzzz qqqq"}])


def test_where_answers_go_is_checked_before_the_model_is_read(rows, tmp_path, monkeypatch):
  (tmp_path / "link.jsonl").symlink_to(rows)
  before = rows.read_bytes()
  for out, words in (
    (rows, "is the file that --data reads"),
    (tmp_path / "link.jsonl", "is the file that --data reads"),
    (tmp_path / "out.txt", "expected a file that ends with"),
  ):
    with pytest.raises(UsageError, match=words):
      run(tmp_path / "no model", rows, out)
  assert rows.read_bytes() == before


@pytest.mark.parametrize("verb", [predict, evaluate])
def test_programs_are_kept(verb, rows, classifier, tmp_path, monkeypatch):
  asked = []
  monkeypatch.setattr(start, "compilation_cache", lambda: asked.append(verb))
  (tmp_path / "c.py").write_text(
    "from jaxsft.config import Config, Data, Model\n"
    "def get_config(arg=''):\n"
    f"  return Config(model=Model(path='m'), data=Data(path={str(rows)!r}, split=0.0))\n"
  )
  argv = ["--model=./none", f"--config={tmp_path / 'c.py'}"]
  with pytest.raises(JaxsftError):
    verb.main(argv + [f"--data={rows}", "--out=o.jsonl"] * (verb is predict))
  assert asked == [verb]


def test_blocks_share_programs(classifier):
  """Other lengths in the next block, the same sizes of batches."""
  model, mesh = pretrained.load(classifier), tiny.devices(1)
  rng, plans = np.random.default_rng(0), set()
  for _ in range(20):
    plan = predict._plan(rng.integers(3, 33, 200).astype(np.int32), 16, model.base.limit, mesh)
    plans |= plan.shapes()
    met = [i for k in range(plan.num_steps) for row in plan.batch(k) for i in row]
    assert sorted(met) == list(range(200))
  assert len(plans) <= 4, plans
