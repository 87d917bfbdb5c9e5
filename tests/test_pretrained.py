"""What becomes of a head that a checkpoint already has, and of one that transformers lacks."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxsft import families, hf_directory, job, labels, prepare, pretrained, sources
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
  found, _ = labels.settle(config, base, sources.read_data(config.data, _classify()))
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


def test_whether_all_rows_that_train_are_pairs(trained, tmp_path):
  path, _ = trained
  for pairs in (True, False):
    rows = tmp_path / f"{pairs}.jsonl"
    line = {"text": "the film", "text_pair": "the plot"}
    lines = [line | {"name": f"s{i}", "label": ("pos", "neg")[i % 2]} for i in range(12)]
    if not pairs:
      del lines[-1]["text_pair"]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = tiny.config("bert", "classify", path, rows, data__split=0.0)
    mesh = tiny.devices(1)
    found = prepare.prepare(config, pretrained.open_base(config.model), mesh)
    assert found.context.pairs is pairs
    hidden = tiny.config("bert", "masked_lm", path, rows, data__split=0.0)
    base = pretrained.open_base(hidden.model)
    assert prepare.prepare(hidden, base, mesh).context.pairs is False  # it reads no second text


def test_numbers_of_the_rows_are_ids_of_a_trained_head(trained, tmp_path):
  """0 is "pos" here, as the head has it, in the rows that train and in those held out."""
  path, _ = trained
  rows = tmp_path / "rows.jsonl"
  lines = [{"name": f"s{i}", "text": "the film", "label": i % 2} for i in range(40)]
  rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
  config = tiny.config("bert", "classify", path, rows)
  base = pretrained.open_base(config.model)
  names, read = labels.settle(config, base, sources.read_data(config.data, _classify()))
  assert names == ("pos", "neg") and read.train and read.held_out
  for row in (*read.train, *read.held_out):
    assert row.fields["label"] == names[int(row.id[1:]) % 2]
  assert len({row.id for row in (*read.train, *read.held_out)}) == 40
  for line in lines[20:]:
    line["label"] = 2
  rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
  with pytest.raises(JaxsftError, match=r"rows.jsonl:2\d: the label is 2, outside 0 … 1"):
    labels.settle(config, base, sources.read_data(config.data, _classify()))
  new = tiny.config("bert", "classify", path, rows, model__new_head=True)
  found, _ = labels.settle(new, base, sources.read_data(config.data, _classify()))
  assert found == ("0", "1", "2")


def test_names_for_a_head_that_says_a_number_are_refused(tmp_path):
  """By what is wrong, the kind of label, although 0 and 1 are also no ids of its one output."""
  path = tiny.checkpoint(tmp_path / "one", "bert", labels=("a", "b"))
  said = json.loads((path / "config.json").read_text())
  said |= {"problem_type": "regression", "id2label": {"0": "LABEL_0"}}
  (path / "config.json").write_text(json.dumps(said))
  rows = tmp_path / "rows.jsonl"
  lines = [{"name": f"s{i}", "text": "the film", "label": i % 2} for i in range(40)]
  rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
  with pytest.raises(UsageError, match=r"label_type: found 'single'.*trained with 'number'"):
    labels_of(path, rows)


@pytest.mark.parametrize("classes", [2, 3])
def test_labels_that_transformers_does_not_write(oracle, tmp_path, classes):
  """It leaves out names that are its own, and of two classes even how many there are."""
  import transformers

  path = tiny.checkpoint(tmp_path / "c", "bert", labels=("a", "b"))
  kept = json.loads((path / "config.json").read_text())
  plain = {k: v for k, v in kept.items() if k not in ("id2label", "label2id", "problem_type")}
  config = transformers.BertConfig(**plain, num_labels=classes)
  theirs = transformers.BertForSequenceClassification(config).eval()
  theirs.save_pretrained(path)
  written = json.loads((path / "config.json").read_text())
  assert ("id2label" in written) == (classes != 2)
  model = pretrained.load(path)
  assert model.context.labels == tuple(f"LABEL_{i}" for i in range(classes))
  tokens = np.array([[2, 5, 6, 3]])
  with oracle.no_grad():
    expected = theirs(oracle.tensor(tokens)).logits.numpy()
  np.testing.assert_allclose(model.logits(tokens), expected, atol=1e-5)


def test_what_the_classes_of_a_head_are(tmp_path):
  """One output without a problem_type is a number: rerankers and reward models are such."""
  path = tiny.checkpoint(tmp_path / "one", "bert", labels=("a", "b"))
  config = json.loads((path / "config.json").read_text())
  for names, problem, expected in (
    ({"0": "LABEL_0"}, None, "number"),
    ({"0": "a", "1": "b"}, None, "single"),
    ({"0": "LABEL_0"}, "regression", "number"),
    ({"0": "a"}, "multi_label_classification", "multi"),
    ({"0": "a", "1": "b"}, "single_label_classification", "single"),
  ):
    said = config | {"problem_type": problem, "id2label": names}
    (path / "config.json").write_text(json.dumps(said))
    assert pretrained.open_pretrained(path).label_type == expected, said


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
