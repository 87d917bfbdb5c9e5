"""A real Flan-T5 against torch, needs env JAXSFT_CHECKPOINTS: a directory with
flan-t5-small-titler, as test_real_encoders.py has it."""

import json
import os
import pathlib

import jax
import numpy as np
import pytest

from jaxsft import export, pretrained
from jaxsft.generation import batches
from jaxsft.generation import prompts as reading
from tests.families import record, torch_same
from tests.generation import continued

pytestmark = pytest.mark.full
SENTENCE = "translate English to German: The house is wonderful."
TEXTS = (
  SENTENCE,
  "summarize: The history of computing is longer than the history of computing hardware and "
  "modern computing technology. It includes methods intended for pen and paper or for chalk "
  "and slate, with or without the aid of tables. " * 5,
)


@pytest.fixture(scope="module")
def directory():
  if "JAXSFT_CHECKPOINTS" not in os.environ:
    pytest.skip("needs JAXSFT_CHECKPOINTS")
  return pathlib.Path(os.environ["JAXSFT_CHECKPOINTS"]) / "flan-t5-small-titler"


@pytest.fixture(scope="module")
def model(directory):
  return pretrained.load(directory)


def torch_model(directory):
  import transformers

  return transformers.T5ForConditionalGeneration.from_pretrained(
    directory, attn_implementation="eager", dtype="float32"
  ).eval()


def batch(tokenizer, target):
  """Sources of very different lengths, padded to the right, and one target for both."""
  rows = [tokenizer(text)["input_ids"] for text in TEXTS]
  S = max(map(len, rows))
  source = np.array([row + [0] * (S - len(row)) for row in rows], np.int32)
  segments = (np.arange(S) < np.array([[len(row)] for row in rows])).astype(np.int32)
  inputs = np.array([[0, *target[:-1]]] * len(rows), np.int32)
  return {"source": source, "source_segments": segments, "inputs": inputs}


def logits(torch, theirs, given):
  with torch.no_grad():
    return theirs(
      torch.tensor(given["source"]).long(),
      attention_mask=torch.tensor(given["source_segments"]).long(),
      decoder_input_ids=torch.tensor(given["inputs"]).long(),
    ).logits.numpy()


def test_logits_and_an_export(oracle, directory, model, tmp_path):
  target = model.tokenizer("Das Haus ist wunderbar, und die Geschichte ist lang.")["input_ids"]
  given = batch(model.tokenizer, target)
  with jax.default_matmul_precision("highest"):
    ours = np.asarray(jax.jit(model.network.logits)(model.params, given))
  reference = torch_model(directory)
  expected = logits(oracle, reference, given)
  # At logits of 65 torch's own rounding is half of what is allowed: float64 has none.
  exact = logits(oracle, torch_model(directory).double(), given)
  difference = float(np.abs(ours - exact).max())
  print(f"flan-t5-small: {difference:.1e} of {np.abs(expected).max():.0f}")
  record.parity("t5", "flan-t5-small", logits=difference)
  assert difference < 1e-4
  export.save(model, tmp_path / "export")
  config = json.loads((tmp_path / "export/config.json").read_text())
  assert config["tie_word_embeddings"] is False
  again = torch_model(tmp_path / "export")
  torch_same.same_weights(oracle, reference, again)
  torch_same.same_outputs(expected, logits(oracle, again, given))


def test_text(oracle, directory, model):
  assert model.generate(SENTENCE) == "Das Haus ist wunderbar."
  theirs = torch_model(directory)
  sources = [reading.encode_source(text, model.tokenizer) for text in TEXTS]
  for source in sources:
    expected = theirs.generate(
      oracle.tensor([source]), max_new_tokens=40, do_sample=False, num_beams=1
    )[0].tolist()
    (found,) = continued.best_ids(
      model.network, model.params, [source], max_new_tokens=40, stop_ids=[1]
    )
    assert found == [token for token in expected[1:] if token != 1]


@pytest.mark.parametrize(
  "settings",
  [
    {"num_beams": 4},
    {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True, "no_repeat_ngram_size": 3},
    {"num_beams": 5, "length_penalty": 0.6, "early_stopping": "never", "min_new_tokens": 12},
  ],
)
def test_beams(oracle, directory, model, settings):
  sources = [reading.encode_source(text, model.tokenizer) for text in TEXTS]
  found = batches.continuations(
    model.network,
    model.params,
    sources,
    max_new_tokens=40,
    stop_ids=[1],
    num_return=3,
    **settings,
  )
  for source, best in zip(sources, found, strict=True):
    theirs = torch_model(directory).generate(
      oracle.tensor([source]),
      max_new_tokens=40,
      num_return_sequences=3,
      return_dict_in_generate=True,
      output_scores=True,
      **settings,
    )
    rows = [[i for i in row[1:] if i > 1] for row in theirs.sequences.tolist()]
    assert [one.ids for one in best] == rows
    scores = theirs.sequences_scores.tolist()
    np.testing.assert_allclose([one.score for one in best], scores, rtol=1e-3)
