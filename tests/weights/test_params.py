import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxsft import families, weights
from jaxsft.errors import JaxsftError
from jaxsft.weights import params as params_lib

L, V, D, F = 3, 10, 8, 12


def name(hf, path, part="base", view=None):
  return families.Name(hf, path, part, view)


NAMES = [
  name("embed.weight", "embed/tokens/embedding"),
  name("layer.{i}.up.weight", "layers/mlp/up/kernel"),
  name("layer.{i}.LayerNorm.weight", "layers/mlp_norm/scale"),
  name("layer.{i}.LayerNorm.bias", "layers/mlp_norm/bias"),
  name("classifier.weight", "head/kernel", "head"),
  name("classifier.bias", "head/bias", "head"),
]
SHAPES = {
  "embed": {"tokens": {"embedding": (V, D)}},
  "layers": {
    "mlp": {"up": {"kernel": (L, F, D)}},
    "mlp_norm": {"scale": (L, D), "bias": (L, D)},
  },
  "head": {"kernel": (4, D), "bias": (4,)},
}
SHAPES = jax.tree.map(
  lambda s: jax.ShapeDtypeStruct(s, jnp.float32),
  SHAPES,
  is_leaf=lambda s: isinstance(s, tuple),
)


def tensors(prefix="toy."):
  rng = np.random.default_rng(0)
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  values = {f"{prefix}embed.weight": normal(V, D)}
  for i in range(L):
    values[f"{prefix}layer.{i}.up.weight"] = normal(F, D)
    values[f"{prefix}layer.{i}.LayerNorm.weight"] = normal(D)
    values[f"{prefix}layer.{i}.LayerNorm.bias"] = normal(D)
  return values | {"classifier.weight": normal(4, D), "classifier.bias": normal(4)}


def source(directory, values, config=None):
  directory.mkdir(exist_ok=True)
  (directory / "config.json").write_text(json.dumps(config or {"model_type": "toy"}))
  safetensors.numpy.save_file(values, directory / "model.safetensors")
  return weights.open_source(directory)


def load(opened, **changes):
  settings = {"base_prefix": "toy.", "ignored": (r"position_ids$",)} | changes
  return weights.load(opened, NAMES, SHAPES, **settings)


@pytest.mark.parametrize("prefix", ["toy.", ""])
def test_leaves_are_stacked_in_layer_order_with_and_without_prefix(tmp_path, prefix):
  values = tensors(prefix)
  params, report = load(source(tmp_path, values))
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, SHAPES)
  up = params["layers"]["mlp"]["up"]["kernel"]
  for i in range(L):
    np.testing.assert_array_equal(up[i], values[f"{prefix}layer.{i}.up.weight"])
    bias = params["layers"]["mlp_norm"]["bias"]
    np.testing.assert_array_equal(bias[i], values[f"{prefix}layer.{i}.LayerNorm.bias"])
  np.testing.assert_array_equal(params["head"]["kernel"], values["classifier.weight"])
  assert report == weights.Report(len(values), (), ())


def test_export_gives_back_what_was_loaded(tmp_path):
  values = tensors()
  params, _ = load(source(tmp_path, values))
  exported = dict(weights.export_tensors(params, NAMES, base_prefix="toy."))
  assert exported.keys() == values.keys()
  for name, value in values.items():
    np.testing.assert_array_equal(exported[name], value)
  bare = dict(weights.export_tensors(params, NAMES))
  assert "embed.weight" in bare and "classifier.weight" in bare


def test_older_names_of_layer_norms_are_read(tmp_path):
  values = tensors()
  for i in range(L):
    for new, old in (("weight", "gamma"), ("bias", "beta")):
      norm = f"toy.layer.{i}.LayerNorm."
      values[norm + old] = values.pop(norm + new)
  params, report = load(source(tmp_path, values))
  gamma = values["toy.layer.2.LayerNorm.gamma"]
  np.testing.assert_array_equal(params["layers"]["mlp_norm"]["scale"][2], gamma)
  assert report.loaded == len(values)


def test_a_missing_head_is_reported_and_ignored_tensors_are_named(tmp_path):
  values = tensors("")
  del values["classifier.weight"], values["classifier.bias"]
  values["embed.position_ids"] = np.arange(5)
  params, report = load(source(tmp_path, values))
  assert "head" not in params
  assert report.new == ("head/kernel", "head/bias")
  assert report.ignored == ("embed.position_ids",)


def missing(values):
  del values["toy.layer.1.up.weight"], values["toy.embed.weight"]


def extra(values):
  values["toy.layer.3.up.weight"] = values["toy.layer.2.up.weight"]


def transposed(values):
  values["toy.layer.0.up.weight"] = np.zeros((D, F), np.float32)


def integers(values):
  values["toy.layer.0.up.weight"] = np.zeros((F, D), np.int8)


def other_head(values):
  values["classifier.bias"] = np.zeros(2, np.float32)


def nan(values):
  values["toy.layer.1.up.weight"][3, 2] = np.nan


def many(values):
  for i in range(6):
    values[f"toy.strange.{i}"] = np.zeros(1, np.float32)


@pytest.mark.parametrize(
  ("spoil", "sentence"),
  [
    (missing, r"2 missing \(toy.embed.weight, toy.layer.1.up.weight\)"),
    (extra, r"1 not part of this model \(toy.layer.3.up.weight\)"),
    (transposed, r"toy.layer.0.up.weight is \[8, 12\], expected \[12, 8\]"),
    (integers, "toy.layer.0.up.weight is int8, expected one of float64, float32"),
    (other_head, r"classifier.bias is \[2\], expected \[4\]"),
    (nan, "1 values of 'toy.layer.1.up.weight' that are not finite"),
    (many, r"6 not part of this model \(toy.strange.0, .* and 2 more\)"),
  ],
)
def test_what_does_not_fit_is_named(tmp_path, spoil, sentence):
  values = tensors()
  spoil(values)
  with pytest.raises(JaxsftError, match=sentence):
    load(source(tmp_path, values))


def test_all_kinds_of_misfit_are_named_at_once(tmp_path):
  values = tensors()
  for spoil in (missing, extra, transposed):
    spoil(values)
  with pytest.raises(JaxsftError, match=r"missing.*not part of this model.*do not fit"):
    load(source(tmp_path, values))


def test_half_a_stack_is_missing_even_in_the_head(tmp_path):
  names = [*NAMES[:-2], name("dense.{i}.weight", "head/kernel", "head"), NAMES[-1]]
  values = tensors()
  del values["classifier.weight"]
  values["dense.0.weight"] = np.zeros(D, np.float32)
  with pytest.raises(JaxsftError, match=r"3 missing \(dense.1.weight"):
    weights.load(source(tmp_path, values), names, SHAPES, base_prefix="toy.")


def test_the_table_and_the_tree_must_agree(tmp_path):
  opened = source(tmp_path, tensors())
  with pytest.raises(JaxsftError, match=r"1 unknown \(head/bias\)"):
    weights.load(opened, NAMES[:-1], SHAPES, base_prefix="toy.")
  params, _ = load(opened)
  params["head"]["lora_a"] = params["head"]["bias"]
  with pytest.raises(JaxsftError, match=r"1 unknown \(head/lora_a\).*merge adapters"):
    list(weights.export_tensors(params, NAMES))
  del params["head"]
  with pytest.raises(JaxsftError, match=r"2 missing \(head/bias, head/kernel\)"):
    list(weights.export_tensors(params, NAMES))


def test_dtypes_are_cast_and_overflow_is_an_error(tmp_path):
  values = {k: v.astype(ml_dtypes.bfloat16) for k, v in tensors().items()}
  values["classifier.bias"][0] = 1e5
  params, _ = load(source(tmp_path, values))
  up = params["layers"]["mlp"]["up"]["kernel"]
  assert up.dtype == jnp.float32
  np.testing.assert_array_equal(up[1], values["toy.layer.1.up.weight"].astype("f4"))
  params16, _ = load(source(tmp_path, values), dtype=jnp.bfloat16)
  assert params16["head"]["bias"].dtype == jnp.bfloat16
  with pytest.raises(JaxsftError, match=r"'classifier.bias' .*not finite in float16"):
    list(weights.export_tensors(params, NAMES, dtype=np.float16))


TIED = (("lm_head.weight", "embed.weight"),)


def test_a_tied_head_must_equal_the_embedding(tmp_path, monkeypatch):
  monkeypatch.setattr(params_lib, "BLOCK", 3)
  values = tensors()
  values["lm_head.weight"] = values["toy.embed.weight"].copy()
  config = {"model_type": "toy", "tie_word_embeddings": True}
  opened = source(tmp_path, values, config)
  assert load(opened, tied=TIED)[1].ignored == ("lm_head.weight",)
  with pytest.raises(JaxsftError, match=r"not part of this model \(lm_head.weight\)"):
    load(opened)
  values["lm_head.weight"][-1, 3] += 1
  with pytest.raises(JaxsftError, match=r"'lm_head.weight' .*differ from 'toy.embed.w"):
    load(source(tmp_path, values, config), tied=TIED)
  assert load(source(tmp_path / "untied", values), tied=TIED)  # another task's head
  values["lm_head.weight"] = values["lm_head.weight"][:5].copy()
  with pytest.raises(JaxsftError, match=r"differ from 'toy.embed.weight'"):
    load(source(tmp_path, values, config), tied=TIED)


def counting(opened):
  """The source, and a list of how many values each read returned."""
  counts = []

  def read_slice(name, index):
    values = opened.read_slice(name, index)
    counts.append(values.size)
    return values

  fields = (opened.path, opened.config, opened.tensors)
  return weights.Source(*fields, read_slice), counts


def test_shards_are_read_once_and_only_their_slices(tmp_path):
  values = tensors()
  mesh = jax.make_mesh((2, 4), ("fsdp", "tensor"))
  spec = {
    "embed": {"tokens": {"embedding": P("fsdp", "tensor")}},
    "layers": {
      "mlp": {"up": {"kernel": P(None, "tensor", "fsdp")}},
      "mlp_norm": {"scale": P(), "bias": P(None, "tensor")},
    },
    "head": {"kernel": P("tensor"), "bias": P()},
  }
  shardings = jax.tree.map(lambda s: NamedSharding(mesh, s), spec)
  opened, counts = counting(source(tmp_path, values))
  params, _ = load(opened, shardings=shardings)
  assert sum(counts) == sum(value.size for value in values.values())
  assert max(counts) == F // 4 * D // 2  # the largest part, of one layer's tensor
  one, _ = load(opened)
  for sharded, whole, sharding in zip(
    *map(jax.tree.leaves, (params, one, shardings)), strict=True
  ):
    assert sharded.sharding == sharding
    np.testing.assert_array_equal(sharded, whole)
  exported = dict(weights.export_tensors(params, NAMES, base_prefix="toy."))
  for name, value in values.items():
    np.testing.assert_array_equal(exported[name], value)


def test_a_sharded_layer_axis_reads_its_own_layers(tmp_path):
  values = tensors()
  mesh = jax.make_mesh((3,), ("stage",), devices=jax.devices()[:3])
  layered = NamedSharding(mesh, P("stage"))
  shardings = jax.tree.map(lambda _: NamedSharding(mesh, P()), SHAPES)
  shardings["layers"]["mlp"]["up"]["kernel"] = layered
  params, _ = load(source(tmp_path, values), shardings=shardings)
  up = params["layers"]["mlp"]["up"]["kernel"]
  assert up.sharding == layered
  for i in range(L):
    np.testing.assert_array_equal(up.addressable_data(i)[0], np.asarray(up)[i])
    np.testing.assert_array_equal(np.asarray(up)[i], values[f"toy.layer.{i}.up.weight"])


def test_leaves_come_one_by_one_on_the_host(tmp_path):
  values = tensors()
  opened = source(tmp_path, values)
  leaves = weights.leaves(opened, NAMES, SHAPES, base_prefix="toy.")
  params, _ = load(opened)
  flat = params_lib.flatten(params)
  assert leaves.keys() == flat.keys()
  for path, leaf in ((path, read()) for path, read in leaves.items()):
    assert isinstance(leaf, np.ndarray)
    np.testing.assert_array_equal(leaf, flat[path])
