"""Pairs of texts learnt by heart are written word for word, and ended, by whoever has them."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import jaxsft
from jaxsft import config as config_lib
from jaxsft import evaluate, train
from tests import tiny
from tests.contract import build

ROOM = 24
PAIRS = [
  pytest.param("t5", id="t5"),
  pytest.param("bart", id="bart", marks=pytest.mark.full),
]


@pytest.fixture(scope="module", params=PAIRS)
def taught(request, files, tmp_path_factory):
  """(family, run, config) of a tiny model that has seen a few pairs often."""
  family = request.param
  root = tmp_path_factory.mktemp("taught")
  data = tiny.translations(root / "pairs.jsonl", count=len(tiny.TRANSLATED))
  held = root / "held.jsonl"
  lines = [json.loads(line) for line in data.read_text().splitlines()]
  lines = [line | {"name": f"again {line['name']}"} for line in lines]
  lines[0] |= {"targets": ["vier", lines[0].pop("target")]}
  held.write_text("".join(json.dumps(line) + "\n" for line in lines))
  config = tiny.config(
    family,
    "seq2seq",
    files(family, "seq2seq")[0],
    data,
    steps=80,
    data__split=0.0,
    data__eval_path=str(held),
    data__instruction="de: ",
    optim__schedule="linear",
    optim__warmup=5.0,
    optim__penalty="none",
    evaluate__generate=-1,
    evaluate__max_new_tokens=ROOM,
    evaluate__prompts=tuple(line["source"] for line in lines),  # in the same program
    log__every=50,
  )
  with pytest.MonkeyPatch.context() as patch:
    tiny.on_devices(patch, 1)
    return family, train.finetune(config, root / "run"), config


def asked(run):
  """(source, target) of the training rows."""
  lines = (run.directory.parent / "pairs.jsonl").read_text().splitlines()
  return [(row["source"], row["target"]) for row in map(json.loads, lines)]


def test_it_was_learnt_and_every_reference_scores(taught):
  _, run, _ = taught
  metrics = run.result["metrics"]
  assert metrics["token_accuracy"] > 0.8  # "vier" is the first reference of a row
  assert metrics["answered"] == 6 and metrics["answers_at_limit"] == 0
  assert metrics["exact_match"] == 1 and metrics["chrf"] == pytest.approx(100)
  assert run.result["examples"][1]["text"] == asked(run)[1][1]
  said = (run.directory / "evaluation" / "predictions.jsonl").read_text().splitlines()
  assert [json.loads(line)["text"] for line in said] == [target for _, target in asked(run)]


def test_the_verb_says_the_same(taught, monkeypatch):
  """On the same rows, whatever devices and batches; before training it said otherwise."""
  _, run, config = taught
  tiny.on_devices(monkeypatch, 2)
  config = config_lib.override(config, "evaluate.batch_size", 4)
  metrics = evaluate.evaluate(jaxsft.load(run.export), config)
  for name, value in run.result["metrics"].items():
    if isinstance(value, int | float):
      assert metrics[name] == pytest.approx(value, rel=1e-4), name
    else:
      assert metrics[name] == value, name


@pytest.mark.parametrize("where", ["run directory", "export"])
def test_what_was_loaded_from_disk_writes_the_same(taught, where):
  _, run, _ = taught
  model = jaxsft.load(run.directory if where == "run directory" else run.export)
  assert model.config["prefix"] == model.context.instruction == "de: "
  rows = [{"source": source} for source, _ in asked(run)]
  said = model.predict(rows, batch_size=8, max_new_tokens=ROOM)
  assert said == [{"text": target} for _, target in asked(run)]
  assert model.predict(rows[::-1], batch_size=8, max_new_tokens=ROOM) == said[::-1]
  long = dataclasses.replace(model, context=dataclasses.replace(model.context, max_length=6))
  (one,) = long.predict(rows[:1], batch_size=8, max_new_tokens=ROOM)
  assert one.pop("source_cut") is True and set(one) <= {"text", "cut"}
  source, target = asked(run)[0]
  assert model.generate(source, max_new_tokens=ROOM) == target
  assert model.generate(f"de: {source}", max_new_tokens=ROOM) == target  # not twice


def test_torch_writes_the_same(taught, oracle):
  import transformers

  _, run, _ = taught
  model = transformers.AutoModelForSeq2SeqLM.from_pretrained(run.export).eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(run.export)
  for source, target in asked(run):
    given = tokenizer(f"de: {source}", return_tensors="pt")
    with oracle.no_grad():
      out = model.generate(**given, max_new_tokens=ROOM, do_sample=False, num_beams=1)
    assert tokenizer.decode(out[0], skip_special_tokens=True) == target
    assert out[0, -1] == tokenizer.eos_token_id and len(out[0]) < ROOM


def test_every_leaf_moved_and_the_export_computes_what_was_trained(taught, oracle):
  import transformers

  family, run, config = taught
  job = build.job(config, tiny.devices(1))
  model = jaxsft.load(run.export)
  before, after = build.host(build.params(job)), build.host(model.params)
  assert before.keys() == after.keys()
  for path, leaf in after.items():
    constant = path == "lm_head/bias"  # BART's final_logits_bias: a buffer
    assert (leaf != before[path]).any() != constant, path
  rng = np.random.default_rng(0)
  source, target = (rng.integers(4, 50, (2, n)).astype(np.int32) for n in (20, 12))
  segments = np.ones_like(source)
  segments[1, 13:] = 0
  ours = model.logits(source, segments=segments, decoder_tokens=target)
  theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(run.export).eval()
  with oracle.no_grad():
    expected = theirs(
      input_ids=oracle.tensor(source).long(),
      attention_mask=oracle.tensor(segments).long(),
      decoder_input_ids=oracle.tensor(target).long(),
    ).logits.numpy()
  np.testing.assert_allclose(ours, expected, atol=2e-4)
  generation = json.loads((run.export / "generation_config.json").read_text())
  kept = {"t5": {}, "bart": {"forced_eos_token_id": 1}}[family]
  assert generation["decoder_start_token_id"] == job.network.arch.decoder_start
  assert generation["eos_token_id"] == [1] and kept.items() <= generation.items()
  assert jax.tree.leaves(model.params)
