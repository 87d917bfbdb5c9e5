"""Questions learnt by heart are answered as they were, by whoever loads the export."""

import json

import jax
import numpy as np
import pytest

import jaxsft
from jaxsft import predict, prepare, pretrained, train
from jaxsft.data import feed
from jaxsft.data.read import read_rows
from jaxsft.tasks import answer
from tests import tiny
from tests.contract import build

PAIRS = [
  pytest.param(tiny.SPANS[0], id="bert"),
  pytest.param(tiny.SPANS[1], id="llama", marks=pytest.mark.full),
]
STEPS = {"bert": 100, "llama": 300}


@pytest.fixture(scope="module", params=PAIRS)
def taught(request, files, tmp_path_factory):
  """(run, config, rows) of a tiny model that has seen a few questions often."""
  pair, root = request.param, tmp_path_factory.mktemp("taught")
  data = tiny.questions(root / "questions.jsonl", 20)
  config = tiny.config(
    *pair,
    files(*pair)[0],
    data,
    steps=STEPS[pair[0]],
    batch_size=32,
    data__split=0.0,
    data__packing="none",
    data__eval_path=str(data),
    optim__schedule="linear",
    optim__warmup=5.0,
    optim__penalty="none",
    log__every=50,
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(prepare.audit, "_refuse_overlap", lambda *_: None)  # by heart, and asked so
    tiny.on_devices(patch, 1)
    run = train.finetune(config, root / "run")
  rows = [json.loads(line) for line in data.read_text().splitlines()]
  return run, config, rows


def test_it_was_learnt(taught):
  run, _, rows = taught
  metrics = run.result["metrics"]
  assert metrics["exact_match"] == metrics["f1"] == 100 and metrics["loss"] < 0.05
  assert metrics["no_answer_total"] == 5 and metrics["total"] == len(rows)


def test_every_leaf_moved(taught, files):
  run, config, _ = taught
  before = build.host(build.params(build.job(config, tiny.devices(1))))
  after = build.host(jaxsft.load(run.export).params)
  assert before.keys() == after.keys()
  for path, leaf in after.items():
    assert (leaf != before[path]).any(), path


@pytest.mark.parametrize("where", ["run directory", "export"])
def test_predict(taught, where):
  run, config, rows = taught
  model = jaxsft.load(run.directory if where == "run directory" else run.export)
  assert model.base.task == "answer" and model.context.labels == ()
  asked = [{"question": r["question"], "context": r["context"]} for r in rows]
  window, stride = config.data.max_length, config.data.stride
  assert model.context.stride == min(128, model.base.limit // 4) and stride < window
  for row, said in zip(rows, model.predict(asked), strict=True):
    if row["answers"]:
      start, text = row["answers"][0]["start"], row["answers"][0]["text"]
      if len(row["context"].split()) < 20:  # others in windows that it has never seen
        assert (said["answer"], said["start"], said["end"]) == (text, start, start + len(text))
        assert said["score"] > 0.5 and said["null_odds"] < 0
    assert row["context"][said["start"] : said["end"]] == said["answer"] != ""


def test_the_verb_with_the_config_of_training(taught, tmp_path):
  """Windows and threshold are the config's: every answer, and none where there is none."""
  run, config, rows = taught
  out, given = tmp_path / "out.jsonl", tmp_path / "config.py"
  given.write_text(
    "from jaxsft import config\n\n\ndef get_config(arg=''):\n"
    f"  return config.from_dict({config_dict(run)!r})\n"
  )
  predict.main(
    [f"--model={run.export}", f"--data={config.data.path}", f"--out={out}", f"--config={given}"]
  )
  said = [json.loads(line) for line in out.read_text().splitlines()]
  assert [one["id"] for one in said] == [row["name"] for row in rows]
  for one, row in zip(said, rows, strict=True):
    gold = row["answers"][0] if row["answers"] else {"text": "", "start": None}
    assert (one["answer"], one["start"]) == (gold["text"], gold["start"])


def config_dict(run):
  return json.loads((run.directory / "config.json").read_text())


def test_torch_computes_the_same_logits_and_loss(taught, oracle):
  """AutoModelForQuestionAnswering, one window at a time; ours packed."""
  import transformers

  run, config, _ = taught
  model = transformers.AutoModelForQuestionAnswering.from_pretrained(run.export).eval()
  ours = pretrained.load(run.export)
  context = prepare.make_context(config, ours.base, ())
  settings = {"format": "auto", "encoding": "utf-8", "header": None, "quoting": True}
  rows = list(read_rows(config.data.path, columns=None, id="name", **settings))[:9]
  store = prepare.examples(rows, answer, context, prepare.store.in_memory).store
  length = int(store.lengths.sum())
  batch = feed.batch(store, [list(range(len(store)))], row_length=length, segments=len(store))
  for name in ("starts", "ends"):  # else there is hardly a loss
    batch[name] = (batch[name] + 1) % store.lengths
  loss = jax.jit(lambda params: answer.loss(ours.network, params, batch, config.loss))
  total, weight = loss(ours.params)["loss"]
  logits = np.asarray(jax.jit(ours.network.logits)(ours.params, batch))[0]
  theirs = []
  for i in range(len(store)):
    example = store.example(i)
    one = {"input_ids": example["inputs"]}
    for name in ("start", "end"):
      one[f"{name}_positions"] = (example[name] + 1) % len(example["inputs"])
    if ours.family == "bert":
      one["token_type_ids"] = example["token_types"]
    with oracle.no_grad():
      out = model(**{k: oracle.tensor(np.array(v)[None]).long() for k, v in one.items()})
    mine = logits[store.offsets[i] : store.offsets[i + 1]]
    np.testing.assert_allclose(mine[:, 0], out.start_logits[0].numpy(), atol=1e-4)
    np.testing.assert_allclose(mine[:, 1], out.end_logits[0].numpy(), atol=1e-4)
    theirs.append(float(out.loss))
  assert len(store) > len(rows) and weight == len(store)
  assert float(total / weight) == pytest.approx(np.mean(theirs), rel=1e-5) and total > 30
