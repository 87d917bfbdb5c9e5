import dataclasses
import json
from types import SimpleNamespace

import jax
import pytest

from jaxsft import command, inspect, pretrained
from tests import tiny


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
  root = tmp_path_factory.mktemp("inspect")
  return {family: tiny.checkpoint(root / family, family) for family in ("bert", "llama")}


def test_what_is_said_of_a_model(checkpoints, capsys, tmp_path):
  out = tmp_path / "out.json"
  inspect.main([f"--model={checkpoints['llama']}", "--length=32", f"--json={out}"])
  said, found = capsys.readouterr().out, json.loads(out.read_text("utf-8"))
  base = pretrained.open_pretrained(checkpoints["llama"])
  size = sum(leaf.size for leaf in jax.tree.leaves(base.network("chat").shapes()))
  assert found["parameters"] == size and f"{size:,}" in said
  assert found["family"] == "llama" and found["task"] == "chat" and found["head"] == "lm"
  assert found["sizes"]["layers"] == 2 and found["sizes"]["heads.kv"] == 2
  whole = found["training"][0]
  assert whole["method"] == "all" and whole["trainable"] == size
  assert whole["weights"] == whole["gradients"] == whole["moments"] / 2 == 4 * size
  assert "LlamaForCausalLM" in said and "decoder" in said
  assert found["adapter_of"] is None and "adapter" not in said
  assert "\nadapter     of BASE, whose sizes" in inspect.text(found | {"adapter_of": "BASE"})


def test_only_the_head_of_a_classifier_trains(checkpoints):
  base = pretrained.open_pretrained(checkpoints["bert"])
  adapted = SimpleNamespace(base=base)
  found = inspect.describe(dataclasses.replace(base, adapted=adapted), 2, 16)
  assert found["adapter_of"] == str(checkpoints["bert"])
  head = next(one for one in found["training"] if one["method"] == "head")
  assert 0 < head["trainable"] < found["parameters"] / 10
  assert found["head"] == "none" and "sequence" in found["heads"]


def test_activations_grow_with_the_batch_and_shrink_with_remat(checkpoints):
  base = pretrained.open_pretrained(checkpoints["llama"])
  small, large = (inspect.describe(base, rows, 32)["kept"] for rows in (2, 8))
  for remat in inspect.REMATS:
    assert 0 < 3 * small[remat] < large[remat] < 5 * small[remat]
  assert large["full"] < large["dots"] < large["none"]


def test_parity_is_what_the_tests_recorded(checkpoints, monkeypatch, tmp_path):
  recorded = tmp_path / "parity.json"
  recorded.write_text(json.dumps({"bert": {"tiny": {"logits": 2e-6, "gradients": 3e-5}}}))
  monkeypatch.setattr(inspect, "PARITY", recorded)
  found = {
    f: inspect.describe(pretrained.open_pretrained(p), 1, 8) for f, p in checkpoints.items()
  }
  assert "tiny: logits 2e-06, gradients 3e-05" in inspect.text(found["bert"])
  assert "not recorded" in inspect.text(found["llama"])


def test_sizes_must_be_positive(checkpoints, capsys):
  with pytest.raises(SystemExit) as stopped:
    command.run(inspect.main, [f"--model={checkpoints['bert']}", "--rows=0"])
  assert stopped.value.code == 2 and "--rows=0" in capsys.readouterr().err
