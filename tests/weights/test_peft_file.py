"""Adapter directories: what is read, and what is refused with a sentence."""

import functools
import json
import types

import numpy as np
import pytest

import jaxsft
from jaxsft import adapted, families, models, pretrained
from jaxsft.config import Lora, Model
from jaxsft.errors import JaxsftError
from jaxsft.tuning import lora
from jaxsft.weights import peft_file, peft_names
from tests import tiny
from tests.families import every

CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "base"}
UP = "model.layers.0.mlp.up_proj"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """A directory with a base model; adapters beside it name it by "../base"."""
  root = tmp_path_factory.mktemp("adapters")
  tiny.checkpoint(root / "base", "llama")
  return root


def adapter(root, name, tensors=None, **config):
  directory = root / name
  directory.mkdir()
  rng = np.random.default_rng(0)
  own = {f"{UP}.lora_A.weight": (2, 24), f"{UP}.lora_B.weight": (44, 2)}
  own = {name: rng.normal(size=shape).astype(np.float32) for name, shape in own.items()}
  peft_file.write(directory, CONFIG | {"base_model_name_or_path": "../base"} | config, own)
  if tensors is not None:
    peft_file.write(directory, CONFIG | config, own | tensors)
    text = json.dumps(CONFIG | {"base_model_name_or_path": "../base"} | config)
    (directory / peft_file.CONFIG).write_text(text)
  return directory


@pytest.mark.parametrize(
  ("config", "sentence"),
  [
    ({"peft_type": "IA3"}, "peft_type is 'IA3', expected 'LORA'"),
    ({"bias": "all"}, r"bias is 'all', expected one of \['none'\]"),
    ({"trainable_token_indices": [3]}, r"trainable_token_indices is \[3\]"),
    ({"init_lora_weights": "loftq"}, "init_lora_weights is 'loftq'"),
    ({"base_model_name_or_path": None}, "base_model_name_or_path is None, expected the dir"),
    ({"base_model_name_or_path": "../gone"}, "its base model '../gone' cannot be opened"),
  ],
)
def test_settings_that_are_not_known_are_refused(root, config, sentence):
  with pytest.raises(JaxsftError, match=sentence):
    pretrained.open_pretrained(str(adapter(root, f"a{abs(hash(sentence))}", **config)))


@pytest.mark.parametrize(
  ("tensors", "sentence"),
  [
    ({"model.embed_tokens.lora_embedding_A": (2, 53)}, "found model.embed_tokens.lora_emb"),
    (
      {"lm_head.lora_A.weight": (2, 24), "lm_head.lora_B.weight": (53, 2)},
      "found lm_head.l",
    ),
    ({"model.layers.7.mlp.up_proj.weight": (44, 24)}, "which is no adapter and no weight of"),
    ({f"{UP}.lora_B.weight": (40, 2)}, r"is \[2, 24\] and \[40, 2\], expected"),
    ({"lm_head.weight": (50, 24)}, r"lm_head.weight is \[50, 24\], expected \[53, 24\]"),
    ({f"{UP}.lora_magnitude_vector": (44,)}, "some layers of layers/mlp/up have a lora_mag"),
  ],
)
def test_tensors_that_fit_nothing_are_refused(root, tensors, sentence):
  made = {name: np.ones(shape, np.float32) for name, shape in tensors.items()}
  base = pretrained.open_pretrained(str(adapter(root, f"t{abs(hash(sentence))}", made)))
  with pytest.raises(JaxsftError, match=sentence):
    pretrained.load_params(base, base.network_of(base.kind))


def test_an_adapter_is_not_trained_on(root):
  directory = adapter(root, "trained")
  with pytest.raises(JaxsftError, match="is an adapter, expected a whole model to train"):
    pretrained.open_base(Model(path=str(directory)))


def test_a_saved_module_replaces_the_bases(root):
  head = np.arange(53 * 24, dtype=np.float32).reshape(53, 24)
  base = pretrained.open_pretrained(str(adapter(root, "head", {"lm_head.weight": head})))
  params, new = pretrained.load_params(base, base.network_of(base.kind))
  np.testing.assert_array_equal(params["lm_head"]["kernel"], head)
  up = params["layers"]["mlp"]["up"]
  assert new == () and np.any(up["lora_a"][0]) and not np.any(up["lora_a"][1])


@pytest.fixture(scope="module")
def tied(root):
  """Directory of a base whose token table is its projection to the vocabulary."""
  return tiny.checkpoint(root / "tied", "llama", tie_word_embeddings=True)


@pytest.mark.parametrize("names", [["model.embed_tokens"], ["lm_head", "model.embed_tokens"]])
def test_a_saved_table_that_is_tied_is_refused(root, tied, names):
  """PEFT computes with it at one place, with ensure_weight_tying at both."""
  saved = {f"{name}.weight": np.ones((53, 24), np.float32) for name in names}
  directory = adapter(root, f"tied{len(names)}", saved, base_model_name_or_path=str(tied))
  base = pretrained.open_pretrained(str(directory))
  assert base.network_of("lm").tied
  with pytest.raises(JaxsftError, match=r"uses its table more than once \(tied\), and PEFT"):
    pretrained.load_params(base, base.network_of("lm"))


def test_the_revision_of_the_base_is_the_one_that_is_opened(root):
  opened = []

  def open_base(*asked):
    opened.append(asked)
    return pretrained.open_pretrained(str(root / "base"))

  for path in ("org/name", str(root / "base")):
    own = {"base_model_name_or_path": path, "revision": "abc"}
    adapted.open_adapted(adapter(root, f"revision{len(opened)}", **own), open_base)
  assert opened == [("org/name", "abc"), (str(root / "base"), None)]


def test_what_peft_cannot_hold_is_refused_before_training(root):
  base = pretrained.open_pretrained(str(root / "base"))
  span = base.network_of("lm")
  tied = types.SimpleNamespace(tied=True, head=span.head, arch=span.arch)
  seq2seq, untied = stand_in("t5-v1.1", "lm")
  assert not untied.tied
  for own, network in ((base, tied), (seq2seq, untied)):
    with pytest.raises(JaxsftError, match="cannot hold a token table that trains"):
      adapted.refuse_unwritable(own, network, {"embed/tokens/embedding"})
  adapted.refuse_unwritable(base, span, {"embed/tokens/embedding"})
  other = types.SimpleNamespace(tied=False, head=models.heads.Head("masked_lm"))
  with pytest.raises(JaxsftError, match="cannot hold a 'masked_lm' head on a llama"):
    adapted.refuse_unwritable(base, other, set())
  own, network = stand_in("bert", "masked_lm")
  with pytest.raises(JaxsftError, match="'peft' cannot hold what task='masked_lm' trains"):
    adapted.refuse_unwritable(own, network, {"lm_head/bias"})
  own, network = stand_in("gpt_neox", "lm")
  with pytest.raises(JaxsftError, match="calls embed_out and transformers 5 lm_head"):
    adapted.refuse_unwritable(own, network, {"lm_head/kernel"})
  adapted.refuse_unwritable(own, network, {"layers/attn/q/lora_a"})


def stand_in(name, kind):
  """(base, network) of one of the families' configs, without weights."""
  config = every.config(name)
  family = families.FAMILIES[config["model_type"]]
  arch = family.architecture(config)
  network = models.Network(arch, families.head_of(family, arch, kind, 0))
  return types.SimpleNamespace(family=family, config=config, arch=arch), network


@pytest.mark.parametrize(
  ("settings", "train", "sentence"),
  [
    (
      {"targets": ("attn/q",), "dora": True},
      (),
      "targets: transformer.h.0.attn.c_attn is several projections in one, of which only "
      "layers/attn/q would have a DoRA adapter; .* choose layers/attn/q, layers/attn/k, layers",
    ),
    (
      {"targets": ("attn/q",)},
      ("attn/k/bias",),
      "train: trains a part of transformer.h.0.attn.c_attn, in which layers/attn/q has an",
    ),
    ({"targets": ("attn/(q|k|v)",), "dora": True}, ("mlp/up",), None),
  ],
)
def test_parts_of_a_fused_module_that_peft_cannot_hold_are_refused_before_training(
  settings, train, sentence
):
  base, network = stand_in("gpt2", "lm")
  shapes = lora.shapes(network.shapes(), Lora(**settings))
  chosen = lora.choose(shapes, train, network.stacks)
  if sentence is None:
    return adapted.refuse_unwritable(base, network, chosen)
  with pytest.raises(JaxsftError, match=sentence):
    adapted.refuse_unwritable(base, network, chosen)


@pytest.mark.parametrize(
  ("tensor", "sentence"),
  [
    (
      "model.layers.1.mlp.up_proj.lora_B.weight",
      "adapter of layers/mlp/up to differ .* product",
    ),
    (f"{UP}.lora_magnitude_vector", "the adapter of .* same lengths"),
    ("lm_head.weight", "found lm_head/kernel to differ .* the same values"),
  ],
)
def test_what_was_written_is_compared_leaf_by_leaf(
  root, tmp_path, monkeypatch, tensor, sentence
):
  model = jaxsft.load(root / "base")
  params = lora.add(model.params, Lora(targets=("mlp/up",), dora=True), 0)
  params["layers"]["mlp"]["up"]["lora_b"] += 1.0
  chosen = {path for path, _ in lora.select.paths(params) if path.endswith(lora.TRAINED)}
  facts = {"base": "", "revision": None, "dropout": 0.0, "rslora": False}
  facts |= {"chosen": chosen | {"lm_head/kernel"}}
  store = functools.partial(
    adapted.store,
    tmp_path,
    base=model.base,
    network=model.network,
    params=params,
    adapter=facts,
  )
  store()
  write = peft_file.write

  def damaged(directory, config, tensors):
    write(directory, config, tensors | {tensor: tensors[tensor] * 1.01})

  monkeypatch.setattr(peft_file, "write", damaged)
  with pytest.raises(JaxsftError, match=sentence):
    store()


def test_ranks_and_alphas_are_written_so_that_peft_multiplies_alike():
  draw = lambda rank, scale: peft_names.Lora(
    np.ones((rank, 3)), np.ones((4, rank)), scale, None
  )
  done = {
    "a.q": draw(2, 8.0),
    "a.v": draw(2, 8.0),
    "b.q": draw(3, np.float32(32 / 3)),
    "c.q": draw(2, 1),
  }
  for rslora in (False, True):
    config = peft_names.config_of(done, [*done, "d.v"], rslora)
    assert config["r"] == 2 and config["rank_pattern"] == {"b.q": 3}
    for module, part in done.items():
      scale = peft_names.scale_of(config, module, len(part.a))
      np.testing.assert_allclose(scale, part.scale, rtol=1e-6)
    assert config["target_modules"] == ["a.q", "a.v", "b.q", "c.q"]
  assert peft_names.config_of({"x.a.q": draw(2, 1)}, ["x.a.q", "y.a.v"], False)[
    "target_modules"
  ] == ["q"]
