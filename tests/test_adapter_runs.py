"""Runs that train adapters: what they save, go on from and leave."""

import json
import shutil

import numpy as np
import pytest

import jaxsft
from jaxsft import export, train
from tests import tiny

TEXT = np.arange(4, 40)[None] % 40 + 2
CASES = [("bert", "classify", {}), ("llama", "chat", {"tune__lora__init": "pissa"})]


@pytest.fixture(scope="module")
def chatty(tmp_path_factory):
  """(config, its base, the directory of its run): two updates, a checkpoint after each."""
  root = tmp_path_factory.mktemp("chatty")
  tiny.rows(root / "rows.jsonl", "chat")
  base = tiny.checkpoint(root / "base", "llama", num_hidden_layers=1)
  lora = {
    "method": "lora",
    "lora__rank": 3,
    "lora__targets": ("attn/(q|o)",),
    "lora__dropout": 0.2,
    "lora__plus": 4.0,
  }
  settings = {f"tune__{name}": value for name, value in lora.items()}
  settings |= {"export__format": "merged", "evaluate__max_new_tokens": 0, "data__split": 0.0}
  data = root / "rows.jsonl"
  config = tiny.config("llama", "chat", base, data, **settings, steps=2, checkpoint__every=1)
  train.finetune(config, root / "run")
  return config, base, root / "run"


def test_a_run_leaves_the_merged_model_of_what_it_saved(chatty, tmp_path):
  _, base, run = chatty
  export.export_run(run, tmp_path / "adapter", format="peft")
  apart, whole = jaxsft.load(tmp_path / "adapter"), jaxsft.load(run / "export")
  np.testing.assert_allclose(whole.logits(TEXT), apart.logits(TEXT), rtol=1e-4, atol=1e-5)
  assert np.abs(whole.logits(TEXT) - jaxsft.load(base).logits(TEXT)).max() > 1e-3


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(chatty, tmp_path, capsys):
  """Of the adapters, of their moments and of the counters, by the checksums of all leaves."""
  config, _, run = chatty
  shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("export"))
  shutil.rmtree(tmp_path / "run/checkpoints/2")
  train.finetune(config, tmp_path / "run")
  assert "going on after update 1" in capsys.readouterr().out
  saved = [root / "checkpoints/2/manifest.json" for root in (run, tmp_path / "run")]
  first, again = (json.loads(path.read_text())["leaves"] for path in saved)
  assert first == again and any("/mu/" in name and "lora_b" in name for name in first)


@pytest.mark.full
@pytest.mark.parametrize(("family", "kind", "more"), CASES, ids=["bert", "pissa"])
def test_a_run_leaves_an_adapter_that_computes_what_the_merged_model_does(
  family, kind, more, tmp_path
):
  """The new head of a classifier comes with it; a checkpoint holds nothing that is frozen."""
  data, model = tmp_path / "rows.jsonl", tiny.checkpoint(tmp_path / "base", family)
  tiny.rows(data, kind)
  settings = {"tune__method": "lora", "tune__lora__rank": 3, "export__format": "peft", **more}
  config = tiny.config(family, kind, model, data, **settings, steps=2, checkpoint__every=2)
  run = train.finetune(config, tmp_path / "run")
  saved = json.loads(next((tmp_path / "run").glob("checkpoints/2/manifest.json")).read_text())
  named = [name for name in saved["leaves"] if name.startswith("trainable/")]
  own = ("trainable/head", "trainable/dense")
  assert named and all("lora_" in name or name.startswith(own) for name in named)
  export.export_run(tmp_path / "run", tmp_path / "merged", format="merged")
  noted = json.loads((tmp_path / "merged" / "jaxsft_export.json").read_text())["merged"]
  assert noted["largest_difference_of_logits"] < 1e-5
  assert not (tmp_path / "merged" / "adapter_config.json").exists()
  adapted, whole = jaxsft.load(run.export), jaxsft.load(tmp_path / "merged")
  np.testing.assert_allclose(adapted.logits(TEXT), whole.logits(TEXT), rtol=1e-4, atol=1e-5)
  if kind == "classify":
    assert adapted.base.labels == whole.base.labels == ("neg", "pos")
  else:
    assert np.abs(adapted.logits(TEXT) - jaxsft.load(model).logits(TEXT)).max() > 1e-3
