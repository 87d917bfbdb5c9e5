"""Encoder-decoders' config.json: read strictly, written for both majors; tables; old files."""

import json
import pathlib
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxsft import families, hf_directory, models, pretrained, sharding, weights
from jaxsft.errors import JaxsftError
from jaxsft.generation import frames
from tests.families import encoder_decoder_configs as configs
from tests.families import encoder_decoder_published as published

PUBLISHED = published.PUBLISHED
EVERY = ("none", "lm", "sequence", "token", "span")
MARIAN = published.MARIAN_EN_DE


def opened(config, kind="lm"):
  module = families.FAMILIES[config["model_type"]]
  arch = module.architecture(config)
  return module, models.Network(arch, families.head_of(module, arch, kind, 3))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_read_and_written(name):
  config = PUBLISHED[name]
  for kind in EVERY:
    module, network = opened(config, kind)
    arch, mesh = network.arch, sharding.make_mesh(2, 2, 2)
    out = module.export_config(dict(config), arch, network.head, ("a", "b", "c"))
    assert module.architecture(json.loads(json.dumps(out))) == arch
    assert families.kind_of(module, out) == kind
    table = module.names(arch, network.head)
    shapes = weights.params.flatten(network.shapes())
    assert sorted(shapes) == sorted(one.path for one in table)
    assert len({one.hf for one in table}) == len(table)
    for path, leaf in shapes.items():
      sharding.spec_for(path, leaf.shape, mesh)


def test_what_published_configs_mean():
  arch = {name: opened(config)[1].arch for name, config in PUBLISHED.items()}
  assert (arch["t5-small"].tied, arch["t5-small"].activation) == (True, "relu")
  assert arch["t5-small"].logit_scale == 512**-0.5
  assert (arch["flan-t5-base"].tied, arch["flan-t5-base"].activation) == (False, "gelu_new")
  assert arch["flan-t5-base"].logit_scale == arch["mt5-small"].logit_scale == 1
  assert arch["umt5-small"].relative.per_layer and not arch["mt5-small"].relative.per_layer
  assert (arch["bart-base"].embed_scale, arch["mbart-large-en-ro"].embed_scale) == (1, 32)
  assert (arch["bart-base"].decoder_start, arch["mbart-large-en-ro"].decoder_start) == (2, None)
  assert (arch["opus-mt-en-de"].frozen_token, arch["bart-base"].frozen_token) == (58100, None)
  kinds = {name: families.kind_of(opened(c)[0], c) for name, c in PUBLISHED.items()}
  assert (kinds["bart-base"], kinds["bart-large-mnli"]) == ("none", "sequence")


def test_how_published_targets_begin_and_end():
  def frame(name, **generation):
    arch = opened(PUBLISHED[name])[1].arch
    base = SimpleNamespace(
      config=PUBLISHED[name], generation=generation, arch=arch, path=pathlib.Path("dir")
    )
    return frames.frame_of(base)

  assert frame("flan-t5-base") == frames.Frame(0)
  assert frame("bart-large-cnn") == frames.Frame(2, 0, (2,))
  assert frame("opus-mt-en-de") == frames.Frame(58100, 0, (0,), (58100,))
  given = {"decoder_start_token_id": 7, "forced_bos_token_id": 9, "bad_words_ids": [[3], [4]]}
  assert frame("mbart-large-en-ro", **given) == frames.Frame(7, 9, (2,), (3, 4))
  with pytest.raises(JaxsftError, match="expected words of one token"):
    frame("opus-mt-en-de", bad_words_ids=[[3, 4]])


T5, BART = published.T5_SMALL, published.BART_BASE


@pytest.mark.parametrize(
  ("config", "change", "sentence"),
  [
    (T5, {"feed_forward_proj": "gated-swish9"}, "feed_forward_proj is 'gated-swish9'"),
    (T5, {"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu"}, "the same in all three"),
    (T5, {"tie_word_embeddings": False, "scale_decoder_outputs": True}, "different models"),
    (T5, {"relative_attention_num_buckets": 2}, "expected at least 4"),
    (T5, {"relative_attention_max_distance": 12}, "up to the distance 12"),
    (T5, {"attention_scaling": 2.0}, "found attention_scaling"),
    (T5, {"is_decoder": True}, "is_decoder is True"),
    (T5, {"d_kv": None}, "no 'd_kv'"),
    (T5, {"decoder_start_token_id": "a"}, "decoder_start_token_id is 'a'"),
    (published.MT5_SMALL, {"tie_word_embeddings": True}, "true in an mt5"),
    (BART, {"normalize_before": True}, "normalize_before is True"),
    (BART, {"add_final_layer_norm": True}, "add_final_layer_norm is True"),
    (BART, {"static_position_embeddings": True}, "static_position_embeddings is True"),
    (BART, {"encoder_layerdrop": 0.1}, "encoder_layerdrop is 0.1"),
    (BART, {"activation_function": "swish9"}, "activation_function is 'swish9'"),
    (
      BART,
      {"encoder_attention_heads": 7},
      "768 is not a multiple of encoder_attention_heads 7",
    ),
    (
      MARIAN,
      {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": None},
      "no 'dec",
    ),
  ],
)
def test_what_is_not_understood_is_refused(config, change, sentence):
  with pytest.raises(JaxsftError, match=sentence):
    opened({**config, **change})


def test_what_transformers_5_writes_of_an_untied_head():
  for config in (published.FLAN_T5_BASE, published.UMT5_SMALL):
    saved = {**config, "tie_word_embeddings": True, "scale_decoder_outputs": False}
    assert opened(saved)[1].arch == opened(config)[1].arch
  saved = {**published.MT5_SMALL, "tie_word_embeddings": True, "transformers_version": "5.3.0"}
  assert opened(saved)[1].arch == opened(published.MT5_SMALL)[1].arch


# --- files -----------------------------------------------------------------------------


def directory_of(tmp_path, case, more=(), without=()):
  """(network, params) of random weights, written with `more` tensors and `without` some."""
  name = configs.family_of(case)
  module = families.FAMILIES[name]
  config = {**configs.CONFIGS[case][1], "model_type": name}
  arch = module.architecture(config)
  network = models.Network(arch, families.head_of(module, arch, "lm"))
  params = jax.tree.map(np.asarray, network.init(jax.random.key(0)))
  names = module.names(arch, network.head)
  found = dict(weights.export_tensors(params, names, base_prefix=module.BASE_PREFIX))
  found |= {name: tensor(found) for name, tensor in dict(more).items()}
  found = {name: tensor for name, tensor in found.items() if name not in without}
  weights.save_safetensors(tmp_path, found.items())
  (tmp_path / "config.json").write_text(json.dumps(config))
  return module, network, params


def loaded(tmp_path, module, network):
  base = SimpleNamespace(
    source=weights.open_source(tmp_path), family=module, arch=network.arch, kind="lm"
  )
  base.path, base.adapted = tmp_path, None
  return pretrained.load_params(base, network)


def test_a_file_without_the_constant_of_the_logits_has_none(tmp_path):
  """bart-base is a bare model, of which everyone makes a summariser."""
  module, network, params = directory_of(tmp_path, "bart", without=("final_logits_bias",))
  found, new = loaded(tmp_path, module, network)
  assert not new and not np.asarray(found["lm_head"]["bias"]).any()
  np.testing.assert_array_equal(
    found["embed"]["tokens"]["embedding"], params["embed"]["tokens"]["embedding"]
  )


SHARED = {"t5": "shared.weight", "pegasus": "model.shared.weight"}


@pytest.mark.parametrize("case", SHARED)
def test_tables_that_are_stored_three_times(case, tmp_path):
  prefix, shared = SHARED[case].removesuffix("shared.weight"), SHARED[case]
  copies = {f"{prefix}{stack}.embed_tokens.weight": lambda t: t[shared] for stack in STACKS}
  copies["lm_head.weight"] = lambda t: t[shared]
  if case == "pegasus":
    copies |= {
      f"{prefix}{stack}.embed_positions.weight": lambda t: t[shared] for stack in STACKS
    }
  module, network, params = directory_of(tmp_path, case, copies)
  found, new = loaded(tmp_path, module, network)
  assert not new
  jax.tree.map(np.testing.assert_array_equal, found, params)


STACKS = ("encoder", "decoder")


@pytest.mark.parametrize("stack", STACKS)
def test_a_shared_table_under_the_name_of_a_stack(stack, tmp_path):
  name = f"model.{stack}.embed_tokens.weight"
  copy = {name: lambda t: t["model.shared.weight"]}
  lost = ("model.shared.weight",)
  module, network, params = directory_of(tmp_path, "bart", copy, lost)
  found, _ = loaded(tmp_path, module, network)
  jax.tree.map(np.testing.assert_array_equal, found, params)


@pytest.mark.parametrize(
  ("case", "name"),
  [
    ("t5", "lm_head.weight"),
    ("t5", "encoder.embed_tokens.weight"),
    ("t5-v1.1", "decoder.embed_tokens.weight"),
  ],
)
def test_a_table_that_differs_from_the_shared_one_is_refused(case, name, tmp_path):
  module, network, _ = directory_of(tmp_path, case, {name: lambda t: t["shared.weight"] + 1})
  with pytest.raises(JaxsftError, match=r"to differ from 'shared\.weight'"):
    loaded(tmp_path, module, network)


def test_transformers_reads_an_export(oracle, tmp_path):
  """Each of the installed major's configs is what we wrote."""
  import transformers

  for name, config in PUBLISHED.items():
    module, network = opened(config)
    out = module.export_config(dict(config), network.arch, network.head, ())
    (tmp_path / "config.json").write_text(json.dumps(out))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert module.architecture(json.loads(theirs.to_json_string())) == network.arch, name


def test_an_export_says_how_targets_begin_and_end():
  """What config.json had goes to generation_config.json, which wins where it says so itself."""
  config = published.BART_LARGE_CNN | {"decoder_start_token_id": 2}
  found = hf_directory._generation(config, [2], {"forced_bos_token_id": 9, "num_beams": 5})
  assert found == {
    "decoder_start_token_id": 2,
    "forced_bos_token_id": 9,
    "forced_eos_token_id": 2,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": [2],
    "num_beams": 5,
    "early_stopping": True,
    "force_bos_token_to_be_generated": True,
    "no_repeat_ngram_size": 3,
  }
  config |= {"min_length": 56, "length_penalty": 1.0, "max_length": 20}
  kept = hf_directory._generation(config, [2], {})  # transformers does not look there any more
  assert (kept["num_beams"], kept["min_length"], kept["no_repeat_ngram_size"]) == (4, 56, 3)
  assert not {"length_penalty", "max_length", "vocab_size"} & set(kept)
