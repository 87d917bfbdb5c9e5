"""Questions learnt by heart are answered as they were, by whoever loads the export."""

import json

import jax
import numpy as np
import pytest

import jaxsft
from jaxsft import config as config_lib
from jaxsft import encoding, predict, prepare, pretrained, tasks
from jaxsft.data import feed
from jaxsft.data.read import read_rows
from jaxsft.errors import JaxsftError
from jaxsft.tasks import answer
from tests import tiny
from tests.contract import build, learnt

PAIRS = [
  pytest.param(tiny.SPANS[0], id="bert"),
  pytest.param(tiny.SPANS[1], id="llama", marks=pytest.mark.full),
]
STEPS = {"bert": 70, "llama": 300}


@pytest.fixture(scope="module", params=PAIRS)
def taught(request, files, tmp_path_factory):
  """(run, config, rows) of a tiny model that has seen a few questions often."""
  pair, root = request.param, tmp_path_factory.mktemp("taught")
  data = tiny.questions(root / "questions.jsonl", 20)
  model = files(*pair)[0]
  run, config = learnt.by_heart(pair, model, data, root / "run", STEPS[pair[0]])
  rows = [json.loads(line) for line in data.read_text().splitlines()]
  return run, config, rows


def test_it_was_learnt(taught):
  run, _, rows = taught
  metrics = run.result["metrics"]
  assert metrics["exact_match"] == metrics["f1"] == 100 and metrics["loss"] < 0.05
  assert metrics["no_answer_total"] == 5 and metrics["total"] == len(rows)


def test_the_report_counts_windows(taught):
  run, config, rows = taught
  report = "\n".join(json.loads((run.directory / "data.json").read_text())["report"])
  job = build.job(config, tiny.devices(1))
  count, told = len(job.data.train.store), np.asarray(job.data.train.store.values["start"]) > 0
  assert count > len(rows) and f"train      {count} examples of {len(rows)} rows, " in report
  assert f"{count} supervised windows" in report
  assert f"answer {told.sum()} (" in report and f"no answer {count - told.sum()} (" in report
  first = rows[0]["answers"][0]
  shown = rows[0]["context"].replace(first["text"], f"⟦{first['text']}⟧")
  assert f"{rows[0]['question']} | {shown}" in report and "duplicates 20 held out" in report


def test_every_leaf_moved(taught, files):
  run, config, _ = taught
  learnt.check_every_leaf_moved(run, config)


@pytest.mark.parametrize("where", ["run directory", "export"])
def test_predict(taught, where):
  run, config, rows = taught
  model = jaxsft.load(run.directory if where == "run directory" else run.export)
  assert model.base.task == "answer" and model.context.labels == ()
  asked = [{"question": r["question"], "context": r["context"]} for r in rows]
  context = model.context  # windows and threshold are those of the training
  assert (context.max_length, context.stride) == (config.data.max_length, config.data.stride)
  assert context.null_threshold == 0
  for row, said in zip(rows, model.predict(asked), strict=True):
    text, place = row["answers"][0]["text"] if row["answers"] else "", (None, None)
    if text:
      place = (row["answers"][0]["start"], row["answers"][0]["start"] + len(text))
      assert row["context"][said["start"] : said["end"]] == text
    assert (said["answer"], said["start"], said["end"]) == (text, *place)
    assert said["score"] > 0.5 and (said["null_odds"] > 0) == (not text)


def test_a_row_without_a_context_is_told(taught):
  model = jaxsft.load(taught[0].export)
  with pytest.raises(JaxsftError, match=r"row 1: has no context, found the fields question"):
    model.predict([{"question": "?", "context": "a film"}, {"question": "?"}])
  with pytest.raises(JaxsftError, match=r"row 0: the question leaves room for 0 of \d+ tokens"):
    model.predict([{"question": "end " * 40, "context": "film " * 21}])


def test_saved_again_it_answers_the_same(taught, tmp_path):
  model = jaxsft.load(taught[0].export)
  model.save(tmp_path / "again")
  again = jaxsft.load(tmp_path / "again")
  assert tasks.answering(again.context) == tasks.answering(model.context)
  config = json.loads((tmp_path / "again" / "config.json").read_text())
  usual = {"text_steps", "control_tokens", "unwritten"}
  assert set(config.pop("jaxsft_answers")) == set(tasks.ANSWERING) - usual
  (tmp_path / "again" / "config.json").write_text(json.dumps(config))
  plain = jaxsft.load(tmp_path / "again").context  # as someone else would have written it
  limit = model.base.limit
  assert (plain.max_length, plain.stride) == (limit, min(128, limit // 4))
  assert plain.null_threshold is None and plain.n_best == 20


@pytest.mark.parametrize("new_head", [False, True])
def test_a_trained_head_goes_on_unless_a_new_one_is_asked_for(taught, new_head):
  run, config, _ = taught
  for key, value in {"model.path": str(run.export), "model.new_head": new_head}.items():
    config = config_lib.override(config, key, value)
  heads = (build.params(build.job(config, tiny.devices(1))), jaxsft.load(run.export).params)
  ours, trained = (np.asarray(params["head"]["kernel"]) for params in heads)
  assert (ours == trained).all() != new_head


def test_the_verb_with_a_config(taught, tmp_path):
  """Windows and threshold are the config's: here nothing is thought to have no answer."""
  run, config, rows = taught
  out, given = tmp_path / "out.jsonl", tmp_path / "config.py"
  given.write_text(
    "from jaxsft import config\n\n\ndef get_config(arg=''):\n"
    f"  found = config.from_dict({config_dict(run)!r})\n"
    "  return config.override(found, 'evaluate.null_threshold', 1e9)\n"
  )
  predict.main(
    [f"--model={run.export}", f"--data={config.data.path}", f"--out={out}", f"--config={given}"]
  )
  said = [json.loads(line) for line in out.read_text().splitlines()]
  assert [one["id"] for one in said] == [row["name"] for row in rows]
  for one, row in zip(said, rows, strict=True):
    gold = row["answers"][0]["text"] if row["answers"] else one["answer"]
    assert one["answer"] == gold != ""


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
  store = encoding.examples(rows, answer, context, encoding.store.in_memory).store
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
