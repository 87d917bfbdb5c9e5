"""What becomes of a head that a checkpoint already has, and of one that transformers lacks."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxsft import families, hf_directory, job, prepare, pretrained
from jaxsft.errors import JaxsftError, UsageError
from tests import tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A BERT with a trained head for ("pos", "neg"), in that order."""
  root = tmp_path_factory.mktemp("trained")
  base = pretrained.open_pretrained(tiny.checkpoint(root / "base", "bert"))
  network = base.network("classify", ("pos", "neg"))
  facts = {"labels": ["pos", "neg"], "label_type": "single", "chat_template": None}
  params = tiny.unlike(network.init(jax.random.key(5)))
  pretrained_head = root / "head"
  from jaxsft import export

  export.write(base, network, params, pretrained_head, facts | {"stop_ids": []}, "float32")
  return pretrained_head, params


def labels_of(trained, rows, **changes):
  """(label names, whether the head is drawn anew) of a config on the trained checkpoint."""
  config = tiny.config("bert", "classify", trained, rows, **changes)
  base = pretrained.open_base(config.model)
  found = prepare.label_names(config, base, prepare.read_data(config.data, _classify()).train)
  return found, job.new_head(config, base)


def _classify():
  from jaxsft.tasks import classify

  return classify


def test_a_trained_head_keeps_its_labels_and_weights(trained, tmp_path):
  path, params = trained
  rows = tiny.sentences(tmp_path / "rows.jsonl")
  assert labels_of(path, rows) == (("pos", "neg"), False)
  base = pretrained.open_pretrained(path)
  network = base.network("classify", base.labels)
  loaded, new = pretrained.load_params(base, network)
  assert new == ()
  np.testing.assert_array_equal(loaded["head"]["kernel"], params["head"]["kernel"])


@pytest.mark.parametrize(
  ("changes", "sentence"),
  [
    ({"data__labels": ("neg", "pos")}, r"in its order, config.data.labels=\('pos', 'neg'\)"),
    ({"data__labels": ("neg", "pos", "none")}, "model.new_head=True"),
    (
      {"data__labels": {"bad": "label == 'neg'", "good": "label == 'pos'"}},
      "rename the labels",
    ),
  ],
)
def test_other_labels_than_the_head_was_trained_with_are_refused(
  trained, tmp_path, changes, sentence
):
  rows = tiny.sentences(tmp_path / "rows.jsonl")
  with pytest.raises(UsageError, match=sentence):
    labels_of(trained[0], rows, **changes)


def test_numbers_for_a_head_of_labels_are_refused(trained, tmp_path):
  rows = tiny.sentences(tmp_path / "rows.jsonl", number=True)
  with pytest.raises(UsageError, match=r"label_type: found 'number'.*'single'.*new_head"):
    labels_of(trained[0], rows, data__label_type="number")


def test_a_new_head_is_drawn_where_it_is_wanted(trained, tmp_path):
  path, params = trained
  rows = tiny.sentences(tmp_path / "rows.jsonl")
  wanted = {"data__labels": ("neg", "pos"), "model__new_head": True}
  assert labels_of(path, rows, **wanted) == (("neg", "pos"), True)
  base = pretrained.open_pretrained(path)
  network = base.network("classify", ("neg", "pos"))
  loaded, new = pretrained.load_params(base, network, new_head=True, seed=1)
  assert set(new) == {"head/kernel", "head/bias"}
  assert np.abs(loaded["head"]["kernel"] - params["head"]["kernel"]).max() > 1e-3


def without_class(monkeypatch, kind):
  """Llama as if transformers had no class for a head of `kind`."""
  classes = {k: v for k, v in families.FAMILIES["llama"].CLASSES.items() if k != kind}
  monkeypatch.setattr(families.FAMILIES["llama"], "CLASSES", classes)


@pytest.fixture
def own_head(monkeypatch, tmp_path):
  """A Llama whose sentence head lies in head.safetensors: (directory, network, params)."""
  without_class(monkeypatch, "sequence")
  base = pretrained.open_pretrained(tiny.checkpoint(tmp_path / "base", "llama"))
  network = base.network("classify", ("a", "b", "c"))
  params = tiny.unlike(network.init(jax.random.key(2)))
  hf_directory.write(
    tmp_path / "out",
    source_config=base.config,
    family=base.family,
    arch=base.arch,
    head=network.head,
    params=params,
    tokenizer=base.tokenizer,
    labels=("a", "b", "c"),
  )
  return tmp_path / "out", network, params


def test_a_head_without_a_class_lies_beside_its_base(own_head):
  directory, network, params = own_head
  config = json.loads((directory / "config.json").read_text("utf-8"))
  assert config["architectures"] == ["LlamaModel"] and config["jaxsft_head"] == "sequence"
  assert (directory / "head.safetensors").is_file()
  model = pretrained.load(directory)
  assert model.base.labels == ("a", "b", "c") and model.base.task == "classify"
  tokens = np.arange(4, 9, dtype=np.int32)[None]
  expected = network.logits(params, {"inputs": tokens})[:, 0]
  np.testing.assert_allclose(model.logits(tokens), expected, atol=1e-6)


def test_transformers_loads_the_base_of_such_a_head(own_head, oracle):
  import transformers

  directory, network, params = own_head
  theirs, info = transformers.AutoModel.from_pretrained(directory, output_loading_info=True)
  assert not info["missing_keys"] and not info["unexpected_keys"]
  tokens = np.arange(4, 9)[None]
  hidden = theirs(oracle.tensor(tokens)).last_hidden_state.detach().numpy()
  ours = network.hidden(params, {"inputs": tokens.astype(np.int32)})
  np.testing.assert_allclose(ours, hidden, atol=1e-4)


def test_a_lost_head_file_is_told(own_head):
  directory, *_ = own_head
  (directory / "head.safetensors").unlink()
  with pytest.raises(JaxsftError, match=r"no head.safetensors; expected the head there"):
    pretrained.load(directory)


def test_a_damaged_head_file_is_told(own_head):
  directory, *_ = own_head
  (directory / "head.safetensors").write_bytes(b"123")
  with pytest.raises(JaxsftError, match=r"head.safetensors unreadable"):
    pretrained.load(directory)


def test_a_base_without_a_head_cannot_be_used(tmp_path):
  with pytest.raises(JaxsftError, match=r"BertModel.* has no head"):
    pretrained.load(tiny.checkpoint(tmp_path / "base", "bert"))


def test_the_pickle_setting_reaches_the_reader(tmp_path):
  base = tiny.checkpoint(tmp_path / "base", "bert")
  (base / "model.safetensors").rename(base / "pytorch_model.bin")
  with pytest.raises(JaxsftError, match=r"allow_pytorch_bin=True"):
    pretrained.open_pretrained(base)
  model = dataclasses.replace(
    tiny.config("bert", "classify", base, base).model, allow_pytorch_bin=True
  )
  with pytest.raises(JaxsftError, match=r"pytorch_model.bin"):  # it is no such file
    pretrained.open_base(model)
