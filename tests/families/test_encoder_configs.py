"""Encoders' config.json: read strictly, written for both majors; tables and shardings."""

import json
import pathlib

import jax
import numpy as np
import pytest

from jaxsft import families, models, sharding, weights
from jaxsft.errors import JaxsftError
from tests.families import encoder_configs, encoder_published

PUBLISHED = encoder_published.PUBLISHED
EVERY = ("none", "masked_lm", "sequence", "token", "span")


def network(config, kind, classes=3):
  module = families.FAMILIES[config["model_type"]]
  arch = module.architecture(config)
  return module, models.Network(arch, families.head_of(module, arch, kind, classes))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_read_and_written(name):
  config = PUBLISHED[name]
  mesh = sharding.make_mesh(2, 2, 2)
  for kind in EVERY:
    module, net = network(config, kind)
    out = module.export_config(dict(config), net.arch, net.head, ("a", "b", "c"))
    assert module.architecture(json.loads(json.dumps(out))) == net.arch
    assert families.kind_of(module, out) == kind
    table = module.names(net.arch, net.head)
    shapes = weights.params.flatten(net.shapes())
    assert sorted(shapes) == sorted(one.path for one in table)
    assert len({(one.hf, one.view) for one in table}) == len(table)
    for path, leaf in shapes.items():
      sharding.spec_for(path, leaf.shape, mesh)


@pytest.mark.parametrize("name", PUBLISHED)
def test_transformers_reads_the_exports(oracle, name):
  """The config class of the installed major, and what it writes read by us."""
  import transformers

  module, net = network(PUBLISHED[name], "sequence")
  labels = ("a", "b", "c")
  out = module.export_config(dict(PUBLISHED[name]), net.arch, net.head, labels)
  theirs = transformers.AutoConfig.for_model(**out)
  assert (theirs.num_labels, theirs.id2label) == (3, dict(enumerate(labels)))
  assert module.architecture(json.loads(theirs.to_json_string())) == net.arch


def test_sizes():
  """Parameters of the published checkpoints without heads, as torch counts them."""
  count = lambda name: sum(
    np.prod(leaf.shape)
    for leaf in jax.tree.leaves(network(PUBLISHED[name], "none")[1].shapes())
  )
  assert count("google-bert/bert-base-uncased") == 109_482_240
  assert count("FacebookAI/roberta-base") == 124_645_632
  assert count("distilbert/distilbert-base-uncased") == 66_362_880
  assert count("albert/albert-base-v2") == 11_683_584
  assert count("google/electra-small-discriminator") == 13_483_008
  assert count("answerdotai/ModernBERT-base") == 149_014_272
  assert count("microsoft/deberta-v3-base") == 183_831_552
  assert count("microsoft/deberta-v2-xlarge") == 884_593_152


@pytest.mark.parametrize("name", ["FacebookAI/roberta-base", "almanach/camembert-base"])
def test_positions_begin_after_the_padding_id(name):
  arch = network(PUBLISHED[name], "none")[1].arch
  assert (arch.max_positions, arch.position_rows, arch.position_offset) == (512, 514, 2)


BASE, LARGE = (
  PUBLISHED["google-bert/bert-base-uncased"],
  PUBLISHED["microsoft/deberta-v2-xlarge"],
)
MODERN = PUBLISHED["answerdotai/ModernBERT-base"]
NEW_ROPE = {
  "full_attention": {"rope_type": "default", "rope_theta": 160000.0},
  "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}


@pytest.mark.parametrize(
  ("config", "change", "sentence"),
  [
    (BASE, {"type_vocab_size": -1}, "type_vocab_size is -1, expected a whole number from 0"),
    (PUBLISHED["FacebookAI/roberta-base"], {"pad_token_id": 600}, "pad_token_id 600 leaves no"),
    (PUBLISHED["FacebookAI/roberta-base"], {"pad_token_id": None}, "pad_token_id is None"),
    (PUBLISHED["albert/albert-base-v2"], {"num_hidden_groups": 2}, "num_hidden_groups is 2"),
    (PUBLISHED["albert/albert-base-v2"], {"inner_group_num": 2}, "inner_group_num is 2"),
    (MODERN, {"rope_scaling": {"type": "linear", "factor": 2.0}}, "found rope_scaling"),
    (MODERN, {"local_rope_theta": None}, "no 'local_rope_theta'"),
    (
      MODERN,
      {"rope_parameters": {**NEW_ROPE, "sliding_attention": {"rope_theta": 9.0}}},
      "type",
    ),
    (MODERN, {"layer_types": ["full_attention"] * 22}, "layer_types is"),
    (MODERN, {"classifier_pooling": "max"}, "classifier_pooling is 'max'"),
    (LARGE, {"attention_head_size": 32}, "attention_head_size is 32"),
    (LARGE, {"conv_kernel_size": 4}, "conv_kernel_size is 4, expected an odd number"),
    (LARGE, {"pos_att_type": "c2p|p2p"}, "pos_att_type has"),
    (LARGE, {"pooler_hidden_size": 3}, "pooler_hidden_size is 3"),
  ],
)
def test_what_is_not_understood_is_refused(config, change, sentence):
  with pytest.raises(JaxsftError, match=sentence):
    families.FAMILIES[config["model_type"]].architecture({**config, **change})


def test_both_spellings_of_modernbert_are_one():
  module, net = network(MODERN, "none")
  old = ("global_rope_theta", "local_rope_theta", "global_attn_every_n_layers")
  kinds = ["sliding_attention" if i % 3 else "full_attention" for i in range(22)]
  new = {k: v for k, v in MODERN.items() if k not in old}
  new |= {"rope_parameters": NEW_ROPE, "layer_types": kinds}
  assert module.architecture(new) == net.arch
  for config in (MODERN, new):
    out = module.export_config(dict(config), net.arch, net.head, ())
    assert {name: out[name] for name in old} == {name: MODERN[name] for name in old}
    assert (out["rope_parameters"], out["layer_types"]) == (NEW_ROPE, kinds)
  windows = [kind.window for kind in net.arch.kinds]
  assert windows[:4] == [None, 65, 65, None] and net.arch.kinds[1].rope == 1


def source_of(config, tensors):
  """A weights.Source of arrays in memory."""
  infos = {name: weights.Info(x.shape, x.dtype.name) for name, x in tensors.items()}
  read = lambda name, index: tensors[name][index]
  return weights.Source(pathlib.Path("memory"), config, infos, read)


def stored(config, kind):
  """(module, network, tensors by name) of random weights."""
  module, net = network(config, kind)
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), net.shapes())
  prefix = families.prefix_of(module, kind)
  table = module.names(net.arch, net.head)
  return module, net, dict(weights.export_tensors(params, table, base_prefix=prefix))


def load(module, net, config, tensors):
  return weights.load(
    source_of(config, tensors),
    module.names(net.arch, net.head),
    net.shapes(),
    base_prefix=module.BASE_PREFIX,
    ignored=module.IGNORED,
    tied=module.TIED,
  )


TINY = {**encoder_configs.PLAIN, "model_type": "bert"}


def test_a_missing_pooler_is_new_and_another_is_found():
  module, net, tensors = stored(TINY, "none")
  _, sequence = network(TINY, "sequence")
  _, report = load(module, sequence, TINY, tensors)
  assert set(report.new) == {"head/kernel", "head/bias"}
  bare = {name: x for name, x in tensors.items() if "pooler" not in name}
  _, report = load(module, sequence, TINY, bare)
  assert set(report.new) == {"head/kernel", "head/bias", "dense/kernel", "dense/bias"}
  _, token = network(TINY, "token")
  _, report = load(module, token, TINY, tensors)
  assert set(report.ignored) == {"pooler.dense.weight", "pooler.dense.bias"}
  del bare["embeddings.LayerNorm.bias"]
  with pytest.raises(JaxsftError, match=r"1 missing \(embeddings.LayerNorm.bias\)"):
    load(module, net, TINY, bare)


def test_older_spellings_and_duplicates():
  """gamma and beta; position_ids; a decoder that is tied, and the bias by its name alone."""
  module, net, tensors = stored(TINY, "masked_lm")
  table = tensors["bert.embeddings.word_embeddings.weight"]
  older = {}
  for name, x in tensors.items():
    name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
    older[name.replace("LayerNorm.bias", "LayerNorm.beta")] = x
  older["bert.embeddings.position_ids"] = np.arange(48)[None]
  older["cls.predictions.decoder.weight"] = table
  older["cls.seq_relationship.weight"] = np.ones((2, 24), np.float32)
  older["bert.pooler.dense.weight"] = np.ones((24, 24), np.float32)
  params, report = load(module, net, TINY, older)
  assert not report.new and len(report.ignored) == 4
  expected, _ = load(module, net, TINY, tensors)
  jax.tree.map(np.testing.assert_array_equal, params, expected)
  older["cls.predictions.decoder.bias"] = older.pop("cls.predictions.bias")
  params, report = load(module, net, TINY, older)
  assert not report.new
  jax.tree.map(np.testing.assert_array_equal, params, expected)
  with pytest.raises(JaxsftError, match=r"'cls.predictions.decoder.weight' .* to differ"):
    wrong = {**older, "cls.predictions.decoder.weight": table + 1}
    load(module, net, {**TINY, "tie_word_embeddings": True}, wrong)


def test_an_untied_decoder_is_a_leaf_of_its_own():
  config = {**TINY, "tie_word_embeddings": False}
  module, net, tensors = stored(config, "masked_lm")
  assert tensors["cls.predictions.decoder.weight"].shape == (61, 24)
  params, report = load(module, net, config, tensors)
  assert not report.new and params["lm_head"]["kernel"].shape == (61, 24)


@pytest.mark.parametrize(
  ("name", "change", "rates"),
  [  # (dropout before the dense layer, before the projection) of each head
    (
      "google-bert/bert-base-uncased",
      {},
      {"sequence": (0, 0.1), "token": (0, 0.1), "span": (0, 0)},
    ),
    (
      "google-bert/bert-base-uncased",
      {"classifier_dropout": 0.0},
      {"sequence": (0, 0), "token": (0, 0)},
    ),
    (
      "FacebookAI/roberta-base",
      {"classifier_dropout": 0.3},
      {"sequence": (0.3, 0.3), "token": (0, 0.3), "span": (0, 0), "masked_lm": (0, 0)},
    ),
    (
      "distilbert/distilbert-base-uncased",
      {"dropout": 0.3, "qa_dropout": 0.4},
      {"sequence": (0, 0.2), "token": (0, 0.3), "span": (0, 0.4)},
    ),
    ("google/electra-small-discriminator", {}, {"sequence": (0.1, 0.1), "token": (0, 0.1)}),
    (
      "albert/albert-base-v2",
      {"classifier_dropout_prob": 0.3},
      {"sequence": (0, 0.3), "token": (0, 0.3), "span": (0, 0)},
    ),
    (
      "answerdotai/ModernBERT-base",
      {"classifier_dropout": 0.3},
      {"sequence": (0, 0.3), "token": (0, 0.3), "span": (0, 0.3), "masked_lm": (0, 0)},
    ),
    (
      "microsoft/deberta-v2-xlarge",
      {"pooler_dropout": 0.3, "cls_dropout": 0.4},
      {"sequence": (0.3, 0.4), "token": (0, 0.1), "span": (0, 0)},
    ),
    ("microsoft/deberta-v3-base", {}, {"sequence": (0, 0.1)}),
  ],
)
def test_heads_drop_as_torch_does(name, change, rates):
  for kind, expected in rates.items():
    head = network({**PUBLISHED[name], **change}, kind)[1].head
    assert (head.dropout_in, head.dropout) == expected, kind
