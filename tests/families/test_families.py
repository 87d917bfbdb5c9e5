"""Configs read strictly and written for both majors of transformers; the name tables."""

import json

import jax
import pytest

from jaxsft import families
from jaxsft.errors import JaxsftError
from jaxsft.families import bert, llama
from jaxsft.models import rope
from tests.models import tiny, torch_weights

BERT = {**torch_weights.BERT, "model_type": "bert"}
LLAMA = {**torch_weights.LLAMA, "model_type": "llama"}
OLD = {k: v for k, v in LLAMA.items() if k != "rope_parameters"} | {"rope_theta": 500.0}


def without(config, name):
  return {k: v for k, v in config.items() if k != name}


@pytest.mark.parametrize("name", sorted(set(BERT) - {"pad_token_id", "model_type"}))
def test_bert_guesses_no_field(name):
  with pytest.raises(JaxsftError, match=name):
    bert.architecture(without(BERT, name))


FREE = {"pad_token_id", "model_type", "rope_parameters", "attention_dropout"}
YOUNG = {"num_key_value_heads", "head_dim", "attention_bias", "mlp_bias"}


@pytest.mark.parametrize("name", sorted(set(LLAMA) - FREE - YOUNG))
def test_llama_guesses_no_field(name):
  with pytest.raises(JaxsftError, match=name):
    llama.architecture(without(LLAMA, name))


def test_llama_fields_younger_than_the_format():
  config = LLAMA
  for name in YOUNG:
    config = without(config, name)
  arch = llama.architecture(config)
  assert (arch.heads.kv, arch.heads.dim) == (6, 24 // 6)
  assert (arch.heads.bias, arch.mlp_bias) == (False, False)


@pytest.mark.parametrize(
  ("config", "change", "sentence"),
  [
    (BERT, {"position_embedding_type": "relative_key"}, "position_embedding_type is 'rel"),
    (BERT, {"is_decoder": True}, "is_decoder is True"),
    (BERT, {"hidden_act": "swish9"}, "hidden_act is 'swish9', which is not supported"),
    (BERT, {"hidden_size": 25}, "hidden_size 25 is not a multiple of num_attention_heads"),
    (BERT, {"layer_norm_eps": "tiny"}, "layer_norm_eps is 'tiny', expected float"),
    (BERT, {"sliding_window": 8}, "found sliding_window = 8"),
    (BERT, {"rotary_dim": 8}, "found rotary_dim = 8"),
    (LLAMA, {"num_key_value_heads": 4}, "6 is not a multiple of num_key_value_heads 4"),
    (LLAMA, {"final_logit_softcapping": 30.0}, "found final_logit_softcapping = 30.0"),
    (LLAMA, {"residual_multiplier": 0.2}, "found residual_multiplier"),
    (LLAMA, {"rope_interleaved": True}, "found rope_interleaved"),
    (LLAMA, {"rope_parameters": None}, "neither rope_parameters nor rope_theta"),
    (LLAMA, {"rope_theta": 10000.0}, "disagree"),
    (LLAMA, {"rope_scaling": {"type": "linear", "factor": 2.0}}, "disagree"),
    (OLD, {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope type 'yarn' with"),
    (OLD, {"rope_scaling": {"type": "linear"}}, r"missing fields \['factor'\]"),
    (OLD, {"rope_scaling": {"factor": 2.0}}, r"unknown fields \['factor'\]"),
    (OLD, {"rope_scaling": {"type": "linear", "factor": 2.0, "beta": 1}}, r"\['beta'\]"),
    (OLD, {"rope_scaling": {"type": "linear", "rope_type": "llama3"}}, "rope type"),
    (LLAMA, {"rope_parameters": {"rope_type": "default"}}, "no 'rope_theta'"),
  ],
)
def test_what_is_not_understood_is_refused(config, change, sentence):
  module = families.FAMILIES[config["model_type"]]
  with pytest.raises(JaxsftError, match=sentence):
    module.architecture({**config, **change})


def test_both_spellings_of_rope_are_one():
  llama3 = torch_weights.LLAMA3
  new = {**LLAMA, "rope_parameters": llama3}
  old = {**OLD, "rope_scaling": {k: v for k, v in llama3.items() if k != "rope_theta"}}
  fields = {k: v for k, v in llama3.items() if k not in ("rope_type", "rope_theta")}
  expected = rope.Rope("llama3", 500.0, 8, False, tuple(sorted(fields.items())))
  for config in (new, old, {**new, **old}):
    assert llama.architecture(config).ropes == (expected,)
  assert llama.architecture(OLD).ropes == (rope.Rope("default", 500.0, 8, False, ()),)


@pytest.mark.parametrize("kind", [None, "linear", "dynamic", "llama3"])
def test_llama_export_is_read_back(kind):
  kinds = {
    None: LLAMA["rope_parameters"],
    "linear": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 4.0},
    "llama3": torch_weights.LLAMA3,
  }
  config = {**LLAMA, "rope_parameters": kinds[kind], "transformers_version": "9"}
  arch = llama.architecture(config)
  out = json.loads(
    json.dumps(llama.export_config(config, arch, families.head_of(llama, arch, "lm"), ()))
  )
  assert llama.architecture(out) == arch
  for name in ("rope_parameters", "rope_theta"):  # each major finds what it reads
    assert (
      llama.architecture(
        without(out, name)
        if name == "rope_parameters"
        else without(without(out, "rope_theta"), "rope_scaling")
      )
      == arch
    )
  assert out["architectures"] == ["LlamaForCausalLM"]
  assert "transformers_version" not in out and "id2label" not in out


def test_exported_labels():
  arch = bert.architecture(BERT)
  head = families.head_of(bert, arch, "sequence", 2)
  out = bert.export_config({**BERT, "num_labels": 9}, arch, head, ("bad", "good"))
  assert out["id2label"] == {"0": "bad", "1": "good"}
  assert out["label2id"] == {"bad": 0, "good": 1}
  assert out["problem_type"] == "single_label_classification"
  assert out["architectures"] == ["BertForSequenceClassification"]
  assert "num_labels" not in out and out["torch_dtype"] == out["dtype"] == "float32"
  number = families.head_of(bert, arch, "sequence", 1)
  out = bert.export_config(out, arch, number, ())
  assert out["problem_type"] == "regression" and len(out["id2label"]) == 1


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("kind", ["none", "lm", "sequence", "token"])
def test_the_name_table_has_every_leaf_once(family, kind):
  if (family, kind) == ("bert", "lm"):
    arch = bert.architecture(BERT)
    with pytest.raises(JaxsftError, match="no 'lm' head"):
      bert.names(arch, families.head_of(bert, arch, "lm"))
    return
  changes = {} if family == "bert" else {"attention_bias": True, "mlp_bias": True}
  network, params = tiny.network(
    family, kind, changes={**changes, "tie_word_embeddings": False}
  )
  table = families.FAMILIES[family].names(network.arch, network.head)
  paths = [
    "/".join(str(key.key) for key in path)
    for path, _ in jax.tree_util.tree_leaves_with_path(params)
  ]
  assert sorted(paths) == sorted(name.path for name in table)
  assert len({name.hf for name in table}) == len(table)


def test_transformers_reads_the_exports(oracle):
  """The config classes of the installed major, and their own files read by us."""
  import transformers

  for config_class, module, config in (
    (transformers.BertConfig, bert, BERT),
    (transformers.LlamaConfig, llama, {**LLAMA, "rope_parameters": torch_weights.LLAMA3}),
  ):
    arch = module.architecture(config)
    head = families.head_of(module, arch, "sequence", 2)
    theirs = config_class(**module.export_config(config, arch, head, ("a", "b")))
    assert (theirs.num_labels, theirs.id2label) == (2, {0: "a", 1: "b"})
    assert module.architecture(json.loads(theirs.to_json_string())) == arch
