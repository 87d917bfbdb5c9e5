"""config.json of decoders: published files are read, exports are read by transformers."""

import json
import math
import pathlib

import jax
import pytest

from jaxsft import families, models
from jaxsft.errors import JaxsftError
from jaxsft.models import decoder
from tests.families import decoder_configs

FILE = pathlib.Path(__file__).with_name("published_decoders.json")
PUBLISHED = {  # name -> (config.json of a well-known checkpoint, millions of its parameters)
  name: (one["config"], one["millions"]) for name, one in json.loads(FILE.read_text()).items()
}


def network_of(config, kind="lm"):
  module = families.FAMILIES[config["model_type"]]
  arch = module.architecture(config)
  return module, models.Network(arch, families.head_of(module, arch, kind, 2))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_their_sizes(name):
  config, millions = PUBLISHED[name]
  _, network = network_of(config)
  count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(network.shapes()))
  assert abs(count / 1e6 - millions) < 0.06


@pytest.mark.parametrize("name", PUBLISHED)
def test_exports_are_read_back(oracle, name):
  """By us, and by the config classes of transformers, whose own files we read too."""
  import transformers

  config, _ = PUBLISHED[name]
  for kind in ("lm", "sequence"):
    module, network = network_of(config, kind)
    labels = ["bad", "good"] if kind == "sequence" else []
    out = module.export_config({**config}, network.arch, network.head, labels, "float32")
    out = json.loads(json.dumps(out))
    assert module.architecture(out) == network.arch
    theirs = transformers.AutoConfig.for_model(**out)
    assert module.architecture(json.loads(theirs.to_json_string())) == network.arch
    assert families.kind_of(module, out) == kind
    for spelling in ("rope_parameters", "rope_scaling"):  # each major finds what it reads
      if spelling == "rope_scaling":
        without = {k: v for k, v in out.items() if k not in OLD}
      else:
        without = {k: v for k, v in out.items() if k != spelling}
      assert module.architecture(without) == network.arch


OLD = ("rope_scaling", "rope_theta", "rope_local_base_freq", "rotary_emb_base")


@pytest.mark.parametrize("case", decoder_configs.CONFIGS)
def test_the_name_table_has_every_leaf_once(oracle, case):
  config = json.loads(decoder_configs.config_of(case).to_json_string())
  for kind in ("none", "lm", "sequence", "token", "span"):
    module, network = network_of(config, kind)
    leaves = jax.tree_util.tree_leaves_with_path(network.shapes())
    paths = ["/".join(key.key for key in path) for path, _ in leaves]
    table = module.names(network.arch, network.head)
    assert sorted(paths) == sorted(name.path for name in table)


CHANGES = [
  ("Mistral 7B v0.1", {"sliding_window": ...}, "no 'sliding_window', for which null"),
  ("Mistral 7B v0.1", {"attention_bias": True}, "found attention_bias = True"),
  ("Qwen 2.5 0.5B", {"use_sliding_window": True, "sliding_window": ...}, "sliding_window"),
  ("Qwen 2.5 0.5B", {"layer_types": ["full_attention"]}, "layer_types is"),
  ("Qwen 3 0.6B", {"head_dim": ...}, "no 'head_dim'"),
  ("Gemma 2B", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
  ("Gemma 2B", {"head_dim": ...}, "no 'head_dim'"),
  ("Gemma 2 2B", {"attn_logit_softcapping": ...}, "no 'attn_logit_softcapping'"),
  ("Gemma 3 1B", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
  ("Gemma 3 1B", {"rope_local_base_freq": ...}, "no 'rope_local_base_freq'"),
  ("Gemma 3 1B", {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "expected"),
  ("GPT-2", {"add_cross_attention": True}, "add_cross_attention is True"),
  ("GPT-2", {"n_head": 7}, "n_embd 768 is not a multiple of n_head 7"),
  ("Pythia 160M", {"rope_theta": 500.0, "rope_parameters": {"rope_theta": 5.0}}, "disagree"),
  ("OPT 350M", {"layer_norm_elementwise_affine": False}, "is False, which is not supported"),
  ("OPT 350M", {"layerdrop": 0.1}, "layerdrop is 0.1"),
  (
    "Phi 3.5 mini",
    {"rope_scaling": {"type": "longrope", "short_factor": [1.0]}},
    "long_factor",
  ),
  ("SmolLM3 3B", {"no_rope_layers": [1, 0]}, "expected 0 or 1 for each of 36 layers"),
  ("Granite 3.0 2B", {"residual_multiplier": ...}, "no 'residual_multiplier'"),
  ("GLM-4 9B 0414", {"attention_bias": ...}, "no 'attention_bias'"),
  ("Mixtral 8x7B", {"router_jitter_noise": 0.1}, "router_jitter_noise is 0.1"),
  ("Qwen 3 30B A3B", {"mlp_only_layers": [0]}, "mlp_only_layers is"),
  ("Qwen 3 30B A3B", {"norm_topk_prob": ...}, "no 'norm_topk_prob'"),
  ("Llama 3.2 1B", {"qk_norm": True}, "found qk_norm = True"),
]


@pytest.mark.parametrize(("name", "change", "sentence"), CHANGES)
def test_what_is_not_understood_is_refused(name, change, sentence):
  config = {**PUBLISHED[name][0], **change}
  config = {k: v for k, v in config.items() if v is not ...}
  with pytest.raises(JaxsftError, match=sentence):
    families.FAMILIES[config["model_type"]].architecture(config)


def test_alternating_layers():
  kinds = lambda name: network_of(PUBLISHED[name][0])[1].arch.kinds
  assert [kind.window for kind in kinds("Gemma 2 2B")[:3]] == [4096, None, 4096]
  assert [kind.window for kind in kinds("Gemma 3 1B")[4:7]] == [512, None, 512]
  assert [kind.rope for kind in kinds("Gemma 3 1B")[4:7]] == [1, 0, 1]
  assert [kind.rope for kind in kinds("SmolLM3 3B")[:5]] == [0, 0, 0, None, 0]
  assert {kind.window for kind in kinds("Qwen 2.5 0.5B")} == {None}


def test_longrope_may_not_grow_over_its_original_length():
  arch = network_of(PUBLISHED["Phi 3.5 mini"][0])[1].arch
  for prompt, new in ((100, 3997), (4096, 1), (4097, 5000)):
    assert decoder.crossing(arch, prompt, new) is None
  for prompt, most in ((4000, 97), (4096, 1)):
    assert f"at most {most} new tokens" in decoder.crossing(arch, prompt, most + 1)
  assert not decoder.crossing(network_of(PUBLISHED["Llama 2 7B"][0])[1].arch, 4000, 10**6)
