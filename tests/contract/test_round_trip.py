"""What trains moves, what does not keeps its bits, and the export is what was trained."""

import json

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors

import jaxsft
from jaxsft import checkpoint, pretrained, train
from tests import tiny
from tests.contract import build

STEPS = 2
BY_TOKEN = ("chat", "masked_lm")  # tasks with logits for every token
LONG = {"bert": 64, "llama": 400}  # tokens: BERT's last position, and far in Llama's rotations


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory):
  """(run, config) of two updates, by pair and settings; each trained once."""
  root, done = tmp_path_factory.mktemp("finished"), {}

  def finish(pair, **settings):
    key = (pair, tuple(settings.items()))
    if key not in done:
      own = {"evaluate__threshold": 0.3} if pair[1] == "multi" else {}
      config = tiny.config(*pair, *files(*pair), steps=STEPS, **own, **settings)
      with pytest.MonkeyPatch.context() as patch:
        tiny.on_devices(patch, 1)
        done[key] = train.finetune(config, root / str(len(done))), config
    return done[key]

  return finish


def trained_params(run, config):
  """The full parameters as the checkpoint of the last update has them, and their network."""
  job = build.job(config, tiny.devices(1))
  before = build.state(job)
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), before.trainable
  )
  trainable, info = checkpoint.Checkpoints(run.directory, read_only=True).restore_best(abstract)
  assert info["step"] == STEPS
  return job, before, trainable


@pytest.mark.parametrize("pair", (*tiny.PAIRS, *tiny.MORE), ids=str)
def test_every_leaf_moved(finished, pair):
  run, config = finished(pair)
  assert run.result["steps"] == STEPS and run.result["skipped"] == 0
  _, before, after = trained_params(run, config)
  before, after = build.host(before.trainable), build.host(after)
  assert before.keys() == after.keys()
  for path, leaf in after.items():
    assert np.isfinite(leaf).all() and leaf.dtype == np.float32
    assert (leaf != before[path]).any(), f"{path} did not move"
    if leaf.ndim == 3:  # stacked: every layer of it
      assert (leaf != before[path]).any((1, 2)).all(), path


FROZEN = (
  (("bert", "classify"), {"tune__method": "head"}, r"classifier|pooler"),
  (
    ("llama", "chat"),
    {"tune__method": "regex", "tune__train": ("layers/attn/(q|v)/kernel", "^norm/")},
    r"(q|v)_proj|model\.norm\.",
  ),
)


@pytest.mark.parametrize(("pair", "settings", "moved"), FROZEN, ids=["head", "regex"])
def test_frozen_leaves_keep_their_bits(finished, files, pair, settings, moved):
  import re

  run, _ = finished(pair, **settings)
  before = safetensors.load_file(files(*pair)[0] / "model.safetensors")
  after = safetensors.load_file(run.export / "model.safetensors")
  prefix = "bert." if pair[0] == "bert" else ""
  known = {prefix + name: tensor for name, tensor in before.items()}
  assert known.keys() <= after.keys()
  for name, tensor in known.items():
    changed = (after[name] != tensor).any()
    assert changed == bool(re.search(moved, name)), name


def test_frozen_leaves_are_in_no_checkpoint(finished):
  pair, settings, _ = FROZEN[0]
  run, _ = finished(pair, **settings)
  text = (run.directory / "checkpoints" / str(STEPS) / "manifest.json").read_text()
  assert "head/kernel" in text and "dense/kernel" in text and "layers/" not in text


def inputs(pair, vocab, rng):
  """tokens, segments, token types: two rows, one shorter and one of full length."""
  length = LONG[pair[0]]
  tokens = rng.integers(4, vocab, (2, length)).astype(np.int32)
  segments = np.ones_like(tokens)
  segments[1, length - 20 :] = 0
  types = np.zeros_like(tokens)
  if pair[0] == "bert":
    types[:, 5:] = 1
  return tokens, segments, types


@pytest.mark.parametrize("pair", (*tiny.PAIRS, *tiny.MORE), ids=str)
def test_the_export_computes_what_was_trained(finished, pair):
  run, config = finished(pair)
  job, before, trainable = trained_params(run, config)
  model = jaxsft.load(run.directory)
  assert model.family == pair[0]
  tokens, segments, types = inputs(pair, 40, np.random.default_rng(0))
  batch = {"inputs": tokens, "segments": segments, "token_types": types}
  ours = np.asarray(jax.jit(job.network.logits)(trainable, batch))
  ours = ours if pair[1] in BY_TOKEN else ours[:, 0]
  theirs = model.logits(tokens, segments=segments, token_types=types)
  np.testing.assert_array_equal(theirs, ours)
  old = np.asarray(jax.jit(job.network.logits)(before.trainable, batch))
  old = old if pair[1] in BY_TOKEN else old[:, 0]
  assert np.abs(old - ours).max() > 1e-2  # not the weights that it started from


@pytest.mark.parametrize("pair", (*tiny.PAIRS, *tiny.MORE), ids=str)
def test_torch_computes_the_same(finished, oracle, pair):
  import transformers

  run, _ = finished(pair)
  kinds = {"chat": "CausalLM", "masked_lm": "MaskedLM"}
  kind = kinds.get(pair[1], "SequenceClassification")
  model = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(run.export).eval()
  tokens, segments, types = inputs(pair, 40, np.random.default_rng(1))
  if pair == ("llama", "classify"):  # transformers finds the last token by the padding id
    tokens[segments == 0] = model.config.pad_token_id
  given = {"input_ids": tokens, "attention_mask": segments}
  if pair[0] == "bert":
    given["token_type_ids"] = types
  with oracle.no_grad():
    theirs = model(**{k: oracle.tensor(v).long() for k, v in given.items()}).logits.numpy()
  ours = jaxsft.load(run.export).logits(tokens, segments=segments, token_types=types)
  real = segments > 0 if pair[1] in BY_TOKEN else np.ones(len(tokens), bool)
  np.testing.assert_allclose(ours[real], theirs[real], atol=1e-4)


@pytest.mark.parametrize("pair", (*tiny.PAIRS, *tiny.MORE), ids=str)
def test_labels_template_and_stop_ids_are_kept(finished, pair):
  run, _ = finished(pair)
  config = json.loads((run.export / "config.json").read_text())
  base = pretrained.open_pretrained(str(run.export))
  if pair[1] == "classify":
    assert config["id2label"] == {"0": "neg", "1": "pos"} and base.labels == ("neg", "pos")
  elif pair[1] == "number":
    assert config["problem_type"] == "regression" and base.label_type == "number"
  elif pair[1] == "multi":
    assert config["problem_type"] == "multi_label_classification"
    assert config["id2label"] == {"0": "film", "1": "pos", "2": "the"}
    assert base.label_type == "multi" and base.threshold == 0.3
  elif pair[1] == "masked_lm":
    assert config["architectures"] == ["BertForMaskedLM"] and "id2label" not in config
  else:
    end = base.tokenizer.convert_tokens_to_ids("<|im_end|>")
    generation = json.loads((run.export / "generation_config.json").read_text())
    assert generation["eos_token_id"] in (end, [end]) and config["eos_token_id"] == end
    template = tiny.letter_tokenizer().chat_template
    assert base.tokenizer.chat_template == template
    assert (run.export / "chat_template.jinja").read_text() == template
  if pair[1] != "chat":
    answer = jaxsft.load(run.export).predict([{"text": "the film was good"}])[0]
    said = {"classify": {"label", "score", "scores"}, "number": {"number"}}
    said["masked_lm"] = {"pseudo_perplexity", "tokens"}
    assert set(answer) == said.get(pair[1], {"labels", "scores"})
    if pair[1] == "multi":
      assert answer["labels"] == [n for n, score in answer["scores"].items() if score > 0.3]
