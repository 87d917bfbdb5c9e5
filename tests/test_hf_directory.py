import errno
import json
import os
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import tokenizers
import transformers

from jaxsft import families, hf_directory, models, tokenizer, weights
from jaxsft.errors import JaxsftError
from jaxsft.families import bert, llama

BERT = {
  "model_type": "bert",
  "architectures": ["BertModel"],
  "vocab_size": 23,
  "hidden_size": 12,
  "num_hidden_layers": 3,
  "num_attention_heads": 3,
  "intermediate_size": 20,
  "max_position_embeddings": 16,
  "type_vocab_size": 2,
  "layer_norm_eps": 1e-12,
  "hidden_act": "gelu",
  "hidden_dropout_prob": 0.1,
  "attention_probs_dropout_prob": 0.1,
  "initializer_range": 0.5,
  "pad_token_id": 0,
}
LLAMA = {
  "model_type": "llama",
  "architectures": ["LlamaForCausalLM"],
  "vocab_size": 300,  # more rows than the tokenizer has tokens
  "hidden_size": 20,
  "num_hidden_layers": 3,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 6,
  "intermediate_size": 28,
  "max_position_embeddings": 64,
  "rms_norm_eps": 1e-5,
  "rope_theta": 50000.0,
  "rope_scaling": {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
  },
  "hidden_act": "silu",
  "tie_word_embeddings": True,
  "initializer_range": 0.5,
  "bos_token_id": 1,
  "eos_token_id": 0,
}
TEMPLATE = (
  "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
  "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def word_tokenizer():
  words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "film", "##s"]
  vocab = {word: i for i, word in enumerate(words)}
  backend = tokenizers.implementations.BertWordPieceTokenizer(vocab)
  special = {f"{kind}_token": f"[{kind.upper()}]" for kind in ("pad", "unk", "cls", "sep")}
  return transformers.PreTrainedTokenizerFast(tokenizer_object=backend._tokenizer, **special)


def byte_tokenizer():
  specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  vocab = {token: i for i, token in enumerate([*specials, *alphabet])}
  backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
  backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = tokenizers.decoders.ByteLevel()
  backend.add_special_tokens(specials)
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, bos_token=specials[1], eos_token=specials[0]
  )


def make(family, config, kind, classes=0):
  """(network, params): random in every leaf, so that none is trivial."""
  arch = family.architecture(config)
  network = models.Network(arch, families.head_of(family, arch, kind, classes))
  rng = np.random.default_rng(0)
  random = lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype)
  return network, jax.tree.map(random, network.shapes())


def settings(family, config, network, params, **changes):
  return {
    "source_config": config,
    "family": family,
    "arch": network.arch,
    "head": network.head,
    "params": params,
    "tokenizer": word_tokenizer() if family is bert else byte_tokenizer(),
    "chat_template": TEMPLATE if network.head.kind == "lm" else None,
    "stop_ids": (2,) if network.head.kind == "lm" else (),
  } | changes


def read(path):
  return json.loads(path.read_text(encoding="utf-8"))


def test_a_classifier_opens_in_transformers_with_equal_logits(tmp_path, oracle):
  network, params = make(bert, BERT, "sequence", 3)
  labels = ("bad", "fair", "good")
  hf_directory.write(tmp_path / "out", **settings(bert, BERT, network, params, labels=labels))
  theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
  assert type(theirs).__name__ == "BertForSequenceClassification"
  assert theirs.config.id2label == dict(enumerate(labels))
  assert theirs.config.label2id == {name: i for i, name in enumerate(labels)}
  ids = np.array([[2, 6, 7, 3, 0, 0], [2, 7, 5, 22, 8, 3]])
  mask = np.array([[1, 1, 1, 1, 0, 0], [1] * 6])
  batch = {"inputs": ids.astype(np.int32), "segments": mask.astype(np.int32)}
  ours = jax.jit(network.logits)(params, batch)[:, 0]
  with oracle.no_grad():
    there = theirs.eval()(oracle.tensor(ids), attention_mask=oracle.tensor(mask)).logits
  np.testing.assert_allclose(ours, there.numpy(), atol=1e-5)
  assert np.abs(ours).max() > 0.1


@pytest.mark.parametrize("tied", [True, False])
def test_a_chat_model_opens_in_transformers_with_equal_logits(tmp_path, oracle, tied):
  config = LLAMA | {"tie_word_embeddings": tied}
  network, params = make(llama, config, "lm")
  hf_directory.write(tmp_path / "out", **settings(llama, config, network, params))
  theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
  assert type(theirs).__name__ == "LlamaForCausalLM"
  stored = safetensors.numpy.load_file(tmp_path / "out/model.safetensors")
  assert ("lm_head.weight" in stored) is not tied
  assert stored["model.embed_tokens.weight"].shape == (300, 20)
  ids = np.random.default_rng(1).integers(0, 300, (2, 50))
  ours = jax.jit(network.logits)(params, {"inputs": ids.astype(np.int32)})
  with oracle.no_grad():
    there = theirs.eval()(oracle.tensor(ids)).logits
  np.testing.assert_allclose(ours, there.numpy(), atol=1e-4)


def test_stop_ids_agree_everywhere(tmp_path, oracle):
  network, params = make(llama, LLAMA, "lm")
  sampling = {"temperature": 0.6, "do_sample": True, "eos_token_id": 7}
  given = settings(llama, LLAMA, network, params, generation_config=sampling)
  hf_directory.write(tmp_path / "out", **given)
  # 2 was supervised, 0 is the tokenizer's own; the checkpoint's 7 is neither.
  assert read(tmp_path / "out/config.json")["eos_token_id"] == [2, 0]
  generation = read(tmp_path / "out/generation_config.json")
  assert generation["eos_token_id"] == [2, 0]
  assert generation["temperature"] == 0.6
  theirs = transformers.GenerationConfig.from_pretrained(tmp_path / "out")
  assert theirs.eos_token_id == [2, 0]
  written = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
  assert written.eos_token_id in theirs.eos_token_id
  assert written.chat_template == TEMPLATE
  assert (tmp_path / "out/chat_template.jinja").read_text() == TEMPLATE
  assert read(tmp_path / "out/tokenizer_config.json")["chat_template"] == TEMPLATE
  assert written.model_max_length == 64
  messages = [{"role": "user", "content": "hé 12"}]
  text = given["tokenizer"].apply_chat_template(
    messages, chat_template=TEMPLATE, tokenize=False, add_generation_prompt=True
  )
  ids = given["tokenizer"](text, add_special_tokens=False).input_ids
  again = written.apply_chat_template(messages, add_generation_prompt=True)
  assert again["input_ids"] == ids


def test_no_stop_or_an_impossible_one_is_refused(tmp_path):
  network, params = make(llama, LLAMA, "lm")
  given = settings(llama, LLAMA, network, params, stop_ids=(300,))
  with pytest.raises(JaxsftError, match=r"\[300\] outside the vocabulary of 300"):
    hf_directory.write(tmp_path / "out", **given)
  endless = byte_tokenizer()
  endless.eos_token = None
  given = settings(llama, LLAMA, network, params, stop_ids=(), tokenizer=endless)
  with pytest.raises(JaxsftError, match="no stop token"):
    hf_directory.write(tmp_path / "out", **given)
  assert not list(tmp_path.iterdir())


CASES = [
  (bert, BERT, "none", 0),
  (bert, BERT, "sequence", 2),
  (bert, BERT, "token", 4),
  (llama, LLAMA, "lm", 0),
  (llama, LLAMA | {"tie_word_embeddings": False}, "lm", 0),
  (llama, LLAMA | {"attention_bias": True, "mlp_bias": True}, "sequence", 2),
]


@pytest.mark.parametrize(("family", "config", "kind", "classes"), CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_head_and_type_comes_back_bit_for_bit(
  tmp_path, family, config, kind, classes, dtype
):
  network, params = make(family, config, kind, classes)
  given = settings(family, config, network, params, dtype=dtype)
  files = hf_directory.write(tmp_path / "out", **given)
  assert sorted(p.name for p in (tmp_path / "out").iterdir()) == files
  source = weights.open_source(tmp_path / "out")
  assert {info.dtype for info in source.tensors.values()} == {dtype}
  assert source.config["dtype"] == dtype
  assert family.architecture(source.config) == network.arch
  prefixed = any(name.startswith(family.BASE_PREFIX) for name in source.tensors)
  assert prefixed is (kind != "none")
  loaded, report = weights.load(
    source,
    family.names(network.arch, network.head),
    network.shapes(),
    base_prefix=family.BASE_PREFIX,
  )
  assert report.new == report.ignored == ()
  kinds = {"bfloat16": ml_dtypes.bfloat16}
  rounded = jax.tree.map(
    lambda x: np.asarray(x).astype(kinds.get(dtype, dtype)).astype(np.float32), params
  )
  jax.tree.map(np.testing.assert_array_equal, loaded, rounded)


def test_transformers_finds_nothing_missing_or_unknown(tmp_path, oracle):
  autos = {
    "none": transformers.AutoModel,
    "lm": transformers.AutoModelForCausalLM,
    "sequence": transformers.AutoModelForSequenceClassification,
    "token": transformers.AutoModelForTokenClassification,
  }
  for i, (family, config, kind, classes) in enumerate(CASES):
    network, params = make(family, config, kind, classes)
    hf_directory.write(tmp_path / str(i), **settings(family, config, network, params))
    _, info = autos[kind].from_pretrained(tmp_path / str(i), output_loading_info=True)
    assert not any(info.values()), (kind, info)


def test_a_regression_has_no_invented_labels(tmp_path):
  network, params = make(bert, BERT, "sequence", 1)
  hf_directory.write(tmp_path / "out", **settings(bert, BERT, network, params))
  assert read(tmp_path / "out/config.json")["problem_type"] == "regression"


def test_sharded_parameters_are_exported_whole(tmp_path):
  network, params = make(llama, LLAMA, "lm")
  mesh = jax.make_mesh((2, 2), ("fsdp", "tensor"), devices=jax.devices()[:4])
  spec = lambda x: jax.sharding.PartitionSpec(*([None] * (x.ndim - 1)), "fsdp")
  sharded = jax.tree.map(
    lambda x: jax.device_put(x, jax.sharding.NamedSharding(mesh, spec(x))), params
  )
  for name, tree in (("one", params), ("four", sharded)):
    hf_directory.write(tmp_path / name, **settings(llama, LLAMA, network, tree))
  one, four = (tmp_path / n / "model.safetensors" for n in ("one", "four"))
  assert one.read_bytes() == four.read_bytes()


def test_verify_compares_logits(tmp_path):
  network, params = make(llama, LLAMA, "lm")
  probe = {"inputs": np.arange(24, dtype=np.int32).reshape(2, 12)}
  given = {"family": llama, "network": network, "probe": probe}
  for dtype in ("float32", "bfloat16"):
    out = tmp_path / dtype
    hf_directory.write(out, **settings(llama, LLAMA, network, params, dtype=dtype))
    assert hf_directory.verify(out, params=params, **given) <= 1e-6
  params["norm"]["scale"] = params["norm"]["scale"] * 1.1
  with pytest.raises(JaxsftError, match=r"logits of the export .* differ"):
    hf_directory.verify(tmp_path / "float32", params=params, **given)


def test_an_earlier_export_is_replaced_and_nothing_else(tmp_path):
  network, params = make(bert, BERT, "sequence", 2)
  given = settings(bert, BERT, network, params)
  out = tmp_path / "out"
  out.mkdir()
  hf_directory.write(out, **given)  # an empty directory is free
  manifest = read(out / hf_directory.MANIFEST)
  assert manifest["files"].keys() == {p.name for p in out.iterdir()} - {hf_directory.MANIFEST}
  params["head"]["bias"] = params["head"]["bias"] + 1
  hf_directory.write(out, **given)
  stored = safetensors.numpy.load_file(out / "model.safetensors")
  np.testing.assert_array_equal(stored["classifier.bias"], params["head"]["bias"])
  assert [p.name for p in tmp_path.iterdir()] == ["out"]

  (out / "notes.txt").write_text("mine")
  with pytest.raises(JaxsftError, match=r"notes.txt in .* changed since"):
    hf_directory.write(out, **given)
  (out / "notes.txt").unlink()
  (out / "config.json").write_text("{}")
  with pytest.raises(JaxsftError, match=r"config.json in .* changed since"):
    hf_directory.write(out, **given)
  (out / hf_directory.MANIFEST).write_text("{")
  with pytest.raises(JaxsftError, match="unreadable"):
    hf_directory.write(out, **given)
  (out / hf_directory.MANIFEST).unlink()
  with pytest.raises(JaxsftError, match="not an export of jaxsft"):
    hf_directory.write(out, **given)
  assert (out / "config.json").read_text() == "{}"
  with pytest.raises(JaxsftError, match="not an export of jaxsft"):
    hf_directory.write(out / "config.json", **given)


def listing(directory):
  return {p: p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_a_failure_leaves_the_earlier_export(tmp_path, monkeypatch):
  network, params = make(bert, BERT, "sequence", 2)
  given = settings(bert, BERT, network, params)
  hf_directory.write(tmp_path / "out", **given)
  before = listing(tmp_path)

  usage = shutil.disk_usage(tmp_path)._replace(free=100)
  monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
  with pytest.raises(JaxsftError, match="free some space"):
    hf_directory.write(tmp_path / "out", **given)
  monkeypatch.undo()

  def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(tokenizer, "save_tokenizer", full)
  with pytest.raises(JaxsftError, match=r"No space left.*nothing was left half-written"):
    hf_directory.write(tmp_path / "out", **given)
  monkeypatch.undo()

  rename = os.rename

  def stuck(source, target):
    if str(target).endswith("out") and "writing" in str(source) and "old" not in str(source):
      raise OSError(errno.EBUSY, "busy")
    rename(source, target)

  monkeypatch.setattr(os, "rename", stuck)
  with pytest.raises(JaxsftError, match="the earlier one, if any, was left as it was"):
    hf_directory.write(tmp_path / "out", **given)
  assert listing(tmp_path) == before
  assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_place_where_nothing_can_be_written_is_explained(tmp_path):
  network, params = make(bert, BERT, "sequence", 2)
  (tmp_path / "file").write_text("mine")
  with pytest.raises(JaxsftError, match=r"writing the export to .*file/out failed"):
    hf_directory.write(tmp_path / "file/out", **settings(bert, BERT, network, params))


def test_a_wrong_table_is_noticed_before_the_export_counts(tmp_path, monkeypatch):
  """Square matrices under swapped names: only their values can tell."""
  network, params = make(bert, BERT, "sequence", 2)
  given = settings(bert, BERT, network, params)
  honest = weights.params.export_tensors

  def swapped(*args, **kwargs):
    for name, value in honest(*args, **kwargs):
      square = value.ndim == 2 and value.shape[0] == value.shape[1]
      yield name, value.T if square else value

  monkeypatch.setattr(weights.params, "export_tensors", swapped)
  with pytest.raises(JaxsftError, match="'layers/attn/q/kernel' to differ after it was"):
    hf_directory.write(tmp_path / "out", **given)
  assert not list(tmp_path.iterdir())


def test_a_config_that_reads_differently_is_noticed(tmp_path, monkeypatch):
  """Another rope base changes no tensor, and the model only far from position 0."""
  network, params = make(llama, LLAMA, "lm")
  honest = llama.export_config

  def careless(*args):
    config = honest(*args)
    rope = config["rope_parameters"] | {"rope_theta": 10000.0}
    return config | {"rope_theta": 10000.0, "rope_parameters": rope}

  monkeypatch.setattr(llama, "export_config", careless)
  with pytest.raises(JaxsftError, match=r"the written config.json to describe"):
    hf_directory.write(tmp_path / "out", **settings(llama, LLAMA, network, params))
  assert not list(tmp_path.iterdir())


def test_a_tokenizer_that_reads_differently_is_noticed(tmp_path, monkeypatch):
  network, params = make(llama, LLAMA, "lm")
  honest = tokenizer.save_tokenizer

  def forgets_template(tok, directory, **settings):
    honest(tok, directory, **settings | {"chat_template": "other"})

  monkeypatch.setattr(tokenizer, "save_tokenizer", forgets_template)
  with pytest.raises(JaxsftError, match=r"chat_template.*'other'"):
    hf_directory.write(tmp_path / "out", **settings(llama, LLAMA, network, params))
  assert not list(tmp_path.iterdir())


def test_weights_that_overflow_the_type_are_refused(tmp_path):
  network, params = make(bert, BERT, "sequence", 2)
  params["head"]["bias"] = params["head"]["bias"] + 1e6
  given = settings(bert, BERT, network, params, dtype="float16")
  with pytest.raises(JaxsftError, match=r"'classifier.bias'.*export.dtype"):
    hf_directory.write(tmp_path / "out", **given)
  assert not list(tmp_path.iterdir())
