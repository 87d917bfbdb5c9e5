"""Runs that train adapters: what they save, go on from and leave."""

import json

import numpy as np
import pytest

import jaxsft
from jaxsft import export, train
from tests import tiny

TEXT = np.arange(4, 40)[None] % 40 + 2
CASES = [("bert", "classify", {}), ("llama", "chat", {"tune__lora__init": "pissa"})]


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
