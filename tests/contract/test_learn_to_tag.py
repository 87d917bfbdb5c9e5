"""Rows learnt by heart are tagged as they were, by whoever loads the export."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import jaxsft
from jaxsft import evaluate, predict, preflight, pretrained
from jaxsft.data import feed
from jaxsft.data import store as stores
from jaxsft.data.read import read_rows
from jaxsft.errors import JaxsftError
from jaxsft.tasks import tag
from tests import tiny
from tests.contract import build, learnt

PAIRS = [
  pytest.param(tiny.TAGS[0], id="bert"),
  pytest.param(tiny.TAGS[1], id="llama", marks=pytest.mark.full),
]
STEPS = {"bert": 80, "llama": 400}
NAMES = ("O", "B-BAD", "B-GOOD", "I-BAD", "I-GOOD")


@pytest.fixture(scope="module", params=PAIRS)
def taught(request, files, tmp_path_factory):
  """(run, config, rows) of a tiny model that has seen a few rows often, in windows."""
  pair, root = request.param, tmp_path_factory.mktemp("taught")
  data = tiny.entities(root / "tags.jsonl", 20)
  model = files(*pair)[0]
  run, config = learnt.by_heart(pair, model, data, root / "run", STEPS[pair[0]])
  return run, config, list(read(config.data.path))


def read(path):
  settings = {"format": "auto", "encoding": "utf-8", "header": None, "quoting": True}
  return read_rows(path, columns=None, id="name", **settings)


def gold(row):
  """[(start, end, label)] of a row, by hand."""
  if "entities" in row.fields:
    return [(e["start"], e["end"], e["label"]) for e in row.fields["entities"]]
  text, found, at = " ".join(row.fields["tokens"]), [], 0
  for token in row.fields["tokens"]:
    pair = token in tiny.BAD and found and found[-1][1] == at - 1 and found[-1][2] == "BAD"
    if pair and " " not in text[found[-1][0] : found[-1][1]]:
      found[-1] = (found[-1][0], at + len(token), "BAD")
    elif token in tiny.BAD + tiny.GOOD:
      found.append((at, at + len(token), "BAD" if token in tiny.BAD else "GOOD"))
    at += len(token) + 1
  return found


def test_it_was_learnt(taught):
  run, _, rows = taught
  metrics = run.result["metrics"]
  assert metrics["f1"] == metrics["accuracy"] == 1.0 and metrics["loss"] < 0.05
  assert metrics["entities"] == dict.fromkeys(
    ("right", "predicted", "support"), sum(len(gold(row)) for row in rows)
  )
  words = sum(len(row.fields.get("tokens") or row.fields["text"].split()) for row in rows)
  assert metrics["words"] == {"all": words, "cut": 0, "no token": 0}
  assert run.result["best"]["metric"] == "f1"


def test_every_leaf_moved(taught):
  run, config, _ = taught
  learnt.check_every_leaf_moved(run, config)


def test_the_report_before_training(taught):
  run, _, _ = taught
  report = json.loads((run.directory / "data.json").read_text())["sets"]["train"]
  assert report["unit"] == "words" and report["rows"] == 20 < report["examples"]
  assert report["supervised"] == run.result["metrics"]["words"]["all"]
  assert set(report["labels"]) == {*NAMES} - {"I-GOOD"}


@pytest.mark.parametrize("where", ["run directory", "export"])
def test_predict(taught, where):
  """Text and tokens alike, whole where the model's own limit allows it."""
  run, config, rows = taught
  model = jaxsft.load(run.directory if where == "run directory" else run.export)
  assert model.base.task == "tag" and model.context.labels == NAMES
  context = dataclasses.replace(
    model.context, max_length=config.data.max_length, stride=config.data.stride
  )
  model = dataclasses.replace(model, context=context)
  asked = [{k: v for k, v in r.fields.items() if k in ("text", "tokens")} for r in rows]
  for row, given, said in zip(rows, asked, model.predict(asked), strict=True):
    text = given["text"] if "text" in given else " ".join(given["tokens"])
    assert [(e["start"], e["end"], e["label"]) for e in said["entities"]] == gold(row)
    for one in said["entities"]:
      assert text[one["start"] : one["end"]] == one["text"] and one["score"] > 0.5
    assert len(said["tags"]) == len(text.split()) == len(given.get("tokens") or said["tokens"])
  with pytest.raises(JaxsftError, match="row 0: has no text, found the fields words"):
    model.predict([{"words": ["good"]}])
  with pytest.raises(JaxsftError, match="row 1: found 'good film' for the tokens"):
    model.predict([{"text": "good"}, {"tokens": "good film"}])


def test_the_verbs(taught, tmp_path, capsys):
  """evaluate on the rows as they are written, and predict beside them."""
  run, config, rows = taught
  values = json.loads((run.directory / "config.json").read_text())
  given, out = tmp_path / "config.py", tmp_path / "out.jsonl"
  given.write_text(
    "from jaxsft import config\n\n\ndef get_config(arg=''):\n"
    f"  return config.from_dict({values!r})\n"
  )
  with pytest.MonkeyPatch.context() as patch:
    tiny.on_devices(patch, 1)
    evaluate.main([f"--model={run.export}", f"--config={given}", f"--out={tmp_path / 'found'}"])
    predict.main(
      [
        f"--model={run.export}",
        f"--data={config.data.path}",
        f"--out={out}",
        f"--config={given}",
      ]
    )
  found = json.loads((tmp_path / "found" / "metrics.json").read_text())
  assert found["f1"] == 1.0 and found["intervals"]["f1"]["value"] == 1.0
  for file in (tmp_path / "found" / "predictions.jsonl", out):
    said = [json.loads(line) for line in file.read_text().splitlines()]
    assert [one["id"] for one in said] == [row.id for row in rows]
    for one, row in zip(said, rows, strict=True):
      assert [(e["start"], e["end"], e["label"]) for e in one["entities"]] == gold(row)
      if file != out and "tags" in row.fields:
        assert one["gold"] == one["tags"]  # IOB2, though the rows are IOB1


def test_more_training_keeps_the_head(taught, tmp_path):
  """With its labels, though a row has but some; another set of them needs a new head."""
  run, config, _ = taught
  data = tmp_path / "more.jsonl"
  some = {"tokens": ["the", "good", "film"], "tags": ["O", "I-GOOD", "O"]}
  data.write_text("".join(json.dumps(some | {"name": f"m{i}"}) + "\n" for i in range(4)))
  change = {"path": str(data), "eval_path": None}
  more = dataclasses.replace(
    config,
    model=dataclasses.replace(config.model, path=str(run.export)),
    data=dataclasses.replace(config.data, **change),
  )
  job = build.job(more, tiny.devices(1))
  assert job.data.context.labels == NAMES
  assert job.data.train.rows[0].fields["tags"] == ["O", "B-GOOD", "O"]
  data.write_text(json.dumps(some | {"name": "m", "tags": ["O", "B-FINE", "O"]}) + "\n")
  with pytest.raises(JaxsftError, match=r"found \('O', 'B-FINE', 'I-FINE'\), the head of"):
    build.job(more, tiny.devices(1))


def test_weights_of_labels_and_words_of_no_token(taught, tmp_path):
  """Weights go by the words of the training rows, as scikit-learn's do; what is odd is said."""
  from sklearn.utils.class_weight import compute_class_weight

  _, config, _ = taught
  data = tmp_path / "odd.jsonl"
  rows = [["O", "I-GOOD", "O", "O"], ["O", "O", "O", "I-BAD"]]
  lines = [
    {"name": str(n), "tokens": ["a", "b", " ", "c"], "tags": t} for n, t in enumerate(rows)
  ]
  data.write_text("".join(json.dumps(line) + "\n" for line in lines))
  change = dataclasses.replace(config.data, path=str(data), eval_path=None)
  loss = dataclasses.replace(config.loss, class_weights="balanced")
  job = build.job(dataclasses.replace(config, data=change, loss=loss), tiny.devices(1))
  learnt = [tag_ for t in rows for word, tag_ in enumerate(t) if word != 2]
  names = sorted(set(learnt))
  wanted = dict(
    zip(names, compute_class_weight("balanced", classes=np.array(names), y=learnt), strict=True)
  )
  assert job.data.context.labels == NAMES
  ours = dict(zip(NAMES, job.data.options.class_weights, strict=True))
  wanted = {"B-GOOD": wanted["I-GOOD"], "B-BAD": wanted["I-BAD"], "O": wanted["O"]}
  assert ours == pytest.approx({"I-GOOD": 1.0, "I-BAD": 1.0} | wanted)
  shapes = job.network.shapes()
  report = preflight.report(job.data, job.config, shapes, job.chosen, job.rule)
  found = report.as_dict()["sets"]["train"]
  assert found["noted"] == {"with words that the tokenizer maps to nothing": 2}
  assert found["supervised"] == 6 and found["truncated"] == found["dropped"] == {}


def test_torch_says_the_same(taught, oracle):
  """AutoModelForTokenClassification, row by row; its tokenizer finds the words itself."""
  import transformers

  run, _, rows = taught
  model = transformers.AutoModelForTokenClassification.from_pretrained(run.export).eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(run.export)
  assert model.config.id2label == dict(enumerate(NAMES))
  ours = pretrained.load(run.export)
  whole = dataclasses.replace(ours.context, max_length=ours.base.limit)  # not in windows
  ours = dataclasses.replace(ours, context=whole)
  asked = [row.fields.get("tokens") or row.fields["text"].split() for row in rows[:8]]
  encode = lambda words: tag.encode(rows[0]._replace(fields={"tokens": words}), ours.context)
  store = stores.in_memory((str(n), encode(w).examples[0]) for n, w in enumerate(asked))
  batch = feed.batch(store, [list(range(8))], row_length=int(store.offsets[-1]), segments=8)
  packed = np.asarray(jax.jit(ours.network.logits)(ours.params, batch))[0]
  for n, (words, said) in enumerate(
    zip(asked, ours.predict([{"tokens": w} for w in asked]), strict=True)
  ):
    given = tokenizer(" ".join(words), return_tensors="pt", return_offsets_mapping=True)
    places = given.pop("offset_mapping")[0].tolist()
    given = {k: v for k, v in given.items() if k in ("input_ids", "token_type_ids")}
    with oracle.no_grad():
      logits = model(**given).logits[0].numpy()
    mine = packed[store.offsets[n] : store.offsets[n + 1]]
    np.testing.assert_allclose(mine, logits, atol=1e-4)
    starts = np.cumsum([0, *(len(w) + 1 for w in words)])[:-1]
    first = [next(t for t, (a, b) in enumerate(places) if a <= s < b) for s in starts]
    assert said["tags"] == [model.config.id2label[int(i)] for i in logits[first].argmax(-1)]
