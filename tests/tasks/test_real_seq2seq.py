"""A real Flan-T5 on real pairs against torch; needs env JAXSFT_CHECKPOINTS, a directory with
flan-t5-small-titler, and JAXSFT_DATA, one with multi30k_en_de."""

import gzip
import os
import pathlib

import jax
import pytest

import jaxsft
from jaxsft import config as config_lib
from jaxsft import evaluate

pytestmark = pytest.mark.full
INSTRUCTION = "translate English to German: "
COUNT = 8


@pytest.fixture(scope="module")
def places():
  """(checkpoint, directory of the pairs)."""
  for name in ("JAXSFT_CHECKPOINTS", "JAXSFT_DATA"):
    if name not in os.environ:
      pytest.skip(f"needs {name}")
  data = pathlib.Path(os.environ["JAXSFT_DATA"]) / "multi30k_en_de"
  return pathlib.Path(os.environ["JAXSFT_CHECKPOINTS"]) / "flan-t5-small-titler", data


def test_the_loss_and_the_answers_are_those_of_torch(oracle, places, monkeypatch):
  import transformers

  monkeypatch.setattr(transformers.logging.get_logger("transformers"), "disabled", True)
  checkpoint, data = places
  settings = {
    "model.path": str(checkpoint),
    "data.path": str(data / "val.{en,de}.gz"),
    "data.columns": {"source": "en", "target": "de"},
    "data.limit": COUNT,
    "data.split": 0.0,
    "data.instruction": INSTRUCTION,
    "evaluate.generate": -1,
    "evaluate.text_metrics": ("bleu",),
  }
  config = config_lib.override(config_lib.Config(), "task", "seq2seq")
  for key, value in settings.items():
    config = config_lib.override(config, key, value)
  with jax.default_matmul_precision("highest"):
    metrics = evaluate.evaluate(jaxsft.load(checkpoint), config_lib.check(config))
  model = transformers.T5ForConditionalGeneration.from_pretrained(
    checkpoint, attn_implementation="eager", dtype="float32"
  ).eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
  sides = {}
  for side in ("en", "de"):
    with gzip.open(data / f"val.{side}.gz", "rt", encoding="utf-8") as file:
      sides[side] = [next(file).rstrip("\n") for _ in range(COUNT)]
  texts = [INSTRUCTION + text for text in sides["en"]]
  given = tokenizer(texts, padding=True, return_tensors="pt")
  labels = tokenizer(text_target=sides["de"], padding=True, return_tensors="pt")
  labels = labels.input_ids.masked_fill(labels.attention_mask == 0, -100)
  with oracle.no_grad():
    loss = float(model(**given, labels=labels).loss)
    out = model.generate(**given, max_new_tokens=64, do_sample=False, num_beams=1)
  print(f"flan-t5-small: loss {metrics['loss']:.6f}, torch {loss:.6f}")
  assert metrics["loss"] == pytest.approx(loss, rel=2e-5)
  import sacrebleu

  said = tokenizer.batch_decode(out, skip_special_tokens=True)
  assert metrics["answered"] == metrics["rows"] == COUNT
  assert metrics["bleu"] == pytest.approx(sacrebleu.corpus_bleu(said, [sides["de"]]).score)
