"""Fused and transposed tensors, experts and shared layers, against NumPy's definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxsft import weights
from jaxsft.errors import JaxsftError
from jaxsft.families import Name, View
from jaxsft.weights import params as params_lib
from jaxsft.weights import views

L, E, D, N, K, H, F = 3, 2, 10, 4, 2, 6, 16


def normal(*shape, seed=[0]):  # noqa: B006  another one each time
  seed[0] += 1
  return np.random.default_rng(seed[0]).normal(size=shape).astype(np.float32)


def gpt2():
  """Conv1D [in, out]: q, k and v side by side, biases as vectors."""
  names, file, leaves = [], {}, {}
  for place, x in enumerate("qkv"):
    view = View(place * D, (place + 1) * D, 3 * D, transposed=True)
    names.append(Name("h.{i}.attn.c_attn.weight", f"layers/attn/{x}/kernel", "base", view))
    names.append(Name("h.{i}.attn.c_attn.bias", f"layers/attn/{x}/bias", "base", view))
  view = View(0, D, D, transposed=True)
  names.append(Name("h.{i}.mlp.c_proj.weight", "layers/mlp/down/kernel", "base", view))
  for i in range(L):
    file[f"h.{i}.attn.c_attn.weight"] = normal(D, 3 * D)
    file[f"h.{i}.attn.c_attn.bias"] = normal(3 * D)
    file[f"h.{i}.mlp.c_proj.weight"] = normal(F, D)
  stack = lambda end, cut: np.stack([cut(file[f"h.{i}.{end}"]) for i in range(L)])
  for place, x in enumerate("qkv"):
    part = slice(place * D, (place + 1) * D)
    kernel = stack("attn.c_attn.weight", lambda w, part=part: w[:, part].T)
    leaves[f"layers/attn/{x}/kernel"] = kernel
    leaves[f"layers/attn/{x}/bias"] = stack("attn.c_attn.bias", lambda b, part=part: b[part])
  leaves["layers/mlp/down/kernel"] = stack("mlp.c_proj.weight", np.transpose)
  return names, file, leaves


def neox():
  """q, k and v of a head together."""
  hf, names, leaves = "layers.{i}.attention.query_key_value.", [], {}
  file = {hf.replace("{i}", str(i)) + "weight": normal(N * 3 * H, D) for i in range(L)}
  file |= {hf.replace("{i}", str(i)) + "bias": normal(N * 3 * H) for i in range(L)}
  for place, x in enumerate("qkv"):
    view = View(place * H, (place + 1) * H, 3 * H, groups=N)
    for kind, path in (("weight", "kernel"), ("bias", "bias")):
      names.append(Name(hf + kind, f"layers/attn/{x}/{path}", "base", view))
      whole = np.stack([file[hf.replace("{i}", str(i)) + kind] for i in range(L)])
      cut = whole.reshape(L, N, 3, H, -1)[:, :, place].reshape(L, N * H, -1)
      leaves[names[-1].path] = cut if kind == "weight" else cut[..., 0]
  return names, file, leaves


def phi3():
  """q, k and v one after another, of unequal sizes; gate above up."""
  names, file, leaves = [], {}, {}
  for hf, paths, sizes in (
    ("layers.{i}.self_attn.qkv_proj.weight", "qkv", (N * H, K * H, K * H)),
    ("layers.{i}.mlp.gate_up_proj.weight", ("gate", "up"), (F, F)),
  ):
    tensors = [normal(sum(sizes), D) for i in range(L)]
    file |= {hf.replace("{i}", str(i)): tensor for i, tensor in enumerate(tensors)}
    cuts = np.split(np.stack(tensors), np.cumsum(sizes)[:-1], axis=1)
    for path, size, cut, end in zip(paths, sizes, cuts, np.cumsum(sizes), strict=True):
      view = View(int(end) - size, int(end), sum(sizes))
      names.append(Name(hf, f"layers/{path}/kernel", "base", view))
      leaves[names[-1].path] = cut
  return names, file, leaves


def mixtral():
  """A tensor for every layer and expert."""
  hf = "layers.{i}.block_sparse_moe.experts.{e}.w1.weight"
  name = lambda i, e: hf.replace("{i}", str(i)).replace("{e}", str(e))
  leaf = normal(L, E, F, D)
  names = [Name(hf, "layers/experts/gate/kernel", "base")]
  file = {name(i, e): leaf[i, e] for i in range(L) for e in range(E)}
  router = normal(L, E, D)
  names.append(Name("layers.{i}.block_sparse_moe.gate.weight", "layers/router/kernel", "base"))
  file |= {f"layers.{i}.block_sparse_moe.gate.weight": router[i] for i in range(L)}
  leaves = {"layers/experts/gate/kernel": leaf, "layers/router/kernel": router}
  return names, file, leaves


def shared():
  """ALBERT's one layer and T5's one relative bias beside what is stacked."""
  names = [
    Name("block.{i}.q.weight", "layers/attn/q/kernel", "base"),
    Name("block.0.relative_attention_bias.weight", "layers/attn/relative/embedding", "base"),
    Name("albert_layers.0.qv.weight", "shared/q/kernel", "base", View(0, 4, 9)),
    Name("albert_layers.0.qv.weight", "shared/v/kernel", "base", View(4, 9, 9)),
    Name("experts.{e}.weight", "shared/experts/kernel", "base"),
  ]
  q, experts = normal(L, F, D), normal(E, F, D)
  file = {f"block.{i}.q.weight": q[i] for i in range(L)}
  file |= {f"experts.{e}.weight": experts[e] for e in range(E)}
  file["block.0.relative_attention_bias.weight"] = normal(7, N)
  file["albert_layers.0.qv.weight"] = normal(9, D)
  leaves = {
    "layers/attn/q/kernel": q,
    "layers/attn/relative/embedding": file["block.0.relative_attention_bias.weight"],
    "shared/q/kernel": file["albert_layers.0.qv.weight"][:4],
    "shared/v/kernel": file["albert_layers.0.qv.weight"][4:],
    "shared/experts/kernel": experts,
  }
  return names, file, leaves


CASES = (gpt2, neox, phi3, mixtral, shared)


def tree(leaves, of=lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32)):
  out = {}
  for path, leaf in leaves.items():
    params_lib._set(out, path, of(leaf))
  return out


def write(directory, file):
  (directory / "config.json").write_text('{"model_type": "toy"}')
  prefixed = {f"toy.{name}": np.ascontiguousarray(value) for name, value in file.items()}
  safetensors.numpy.save_file(prefixed, directory / "model.safetensors")
  return weights.open_source(directory)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_leaves_are_their_parts_and_export_puts_them_together(tmp_path, case):
  names, file, leaves = case()
  source = write(tmp_path, file)
  params, report = weights.load(source, names, tree(leaves), base_prefix="toy.")
  assert report == weights.Report(len(file), (), ())
  flat = params_lib.flatten(params)
  assert flat.keys() == leaves.keys()
  on_host = weights.leaves(source, names, tree(leaves), base_prefix="toy.")
  for path, read in on_host.items():
    np.testing.assert_array_equal(read(), leaves[path], err_msg=path)
    np.testing.assert_array_equal(flat[path], leaves[path], err_msg=path)
  exported = list(weights.export_tensors(params, names, base_prefix="toy."))
  assert sorted(name for name, _ in exported) == sorted(f"toy.{name}" for name in file)
  for name, value in exported:
    assert value.flags.c_contiguous
    np.testing.assert_array_equal(value, file[name.removeprefix("toy.")])
  half = dict(weights.export_tensors(params, names, dtype=jnp.bfloat16))
  for name, value in half.items():
    np.testing.assert_array_equal(value, file[name].astype(jnp.bfloat16))


def spec(leaf):
  """Split by two over the last axis and by four or eight over the one before."""
  axes = ("b",) if leaf.ndim == 1 else ("a", "b")
  return P(*(None,) * (leaf.ndim - len(axes)), *axes)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_shards_read_only_their_rows_of_the_tensor(tmp_path, case):
  names, file, leaves = case()
  source, sizes = write(tmp_path, file), []

  def read_slice(name, index):
    values = source.read_slice(name, index)
    sizes.append(values.size)
    return values

  counted = weights.Source(source.path, source.config, source.tensors, read_slice)
  mesh = jax.make_mesh((2, 2), ("a", "b"), devices=jax.devices()[:4])
  fits = lambda leaf: all(
    n % 2 == 0 for n, axis in zip(leaf.shape, spec(leaf), strict=False) if axis
  )
  sharding = lambda leaf: NamedSharding(mesh, spec(leaf) if fits(leaf) else P())
  shardings = tree(leaves, sharding)
  loaded, _ = weights.load(
    counted, names, tree(leaves), base_prefix="toy.", shardings=shardings
  )
  for path, leaf in params_lib.flatten(loaded).items():
    np.testing.assert_array_equal(leaf, leaves[path])
    assert leaf.sharding == sharding(leaves[path])
  assert sum(sizes) == sum(value.size for value in file.values())
  exported = dict(weights.export_tensors(loaded, names))
  for name, value in file.items():
    np.testing.assert_array_equal(exported[name], value)


@pytest.mark.parametrize("view", [View(2, 5, 7, groups=4), View(1, 4, 5), View(0, 3, 3, 2)])
@pytest.mark.parametrize("transposed", [False, True])
def test_every_slice_of_a_view(view, transposed):
  view = view._replace(transposed=transposed)
  whole = np.arange(view.groups * view.of * 3).reshape(-1, 3)
  rows = [g * view.of + r for g in range(view.groups) for r in range(view.start, view.stop)]
  leaf, file = whole[rows], whole.T if transposed else whole
  source = lambda name, index: file[index]
  for start in range(len(rows)):
    for stop in range(start + 1, len(rows) + 1):
      for columns in (slice(None), slice(1, 3)):
        index = (slice(start, stop), columns)
        got = views.read(source, "t", view, leaf.shape, index)
        np.testing.assert_array_equal(got, leaf[index])
  np.testing.assert_array_equal(views.read(source, "t", view, leaf.shape, ()), leaf)


def test_a_tensor_of_another_shape_than_the_views_say_is_named_once(tmp_path):
  names, file, leaves = gpt2()
  file["h.1.attn.c_attn.weight"] = file["h.1.attn.c_attn.weight"].T
  sentence = r"1 that do not fit \(toy.h.1.attn.c_attn.weight is \[30, 10\], expected \[10, 30"
  with pytest.raises(JaxsftError, match=sentence):
    weights.load(write(tmp_path, file), names, tree(leaves), base_prefix="toy.")
  del file["h.1.attn.c_attn.weight"]
  with pytest.raises(JaxsftError, match=r"1 missing \(toy.h.1.attn.c_attn.weight\)"):
    weights.load(write(tmp_path, file), names, tree(leaves), base_prefix="toy.")


def test_a_missing_expert_and_one_too_many_are_named(tmp_path):
  names, file, leaves = mixtral()
  expert = "layers.2.block_sparse_moe.experts.{}.w1.weight"
  file[expert.format(2)] = file.pop(expert.format(1))
  with pytest.raises(JaxsftError, match=r"1 missing \(toy.*experts.1.*1 not part.*experts.2"):
    weights.load(write(tmp_path, file), names, tree(leaves), base_prefix="toy.")


@pytest.mark.parametrize(
  ("changes", "sentence"),
  [
    ({0: View(0, 3, 9)}, "a gap or an overlap between the views of 'albert"),
    ({0: View(0, 5, 9)}, "a gap or an overlap"),
    ({1: View(4, 8, 9)}, "a gap or an overlap"),
    ({0: View(1, 4, 9)}, "a gap or an overlap"),
    ({0: View(0, 4, 9, groups=2)}, "views of one kind"),
    ({0: View(0, 4, 9, transposed=True)}, "views of one kind"),
    ({0: None}, "one leaf of the whole tensor"),
    ({0: View(0, 6, 9), 1: View(6, 9, 9)}, r"shared/q/kernel to be \[4, 10\]; expected 6"),
  ],
)
def test_views_must_be_the_whole_tensor_once(tmp_path, changes, sentence):
  names, file, leaves = shared()
  for place, view in changes.items():
    names[2 + place] = names[2 + place]._replace(view=view)
  with pytest.raises(JaxsftError, match=sentence):
    weights.load(write(tmp_path, file), names, tree(leaves), base_prefix="toy.")
  with pytest.raises(JaxsftError, match=sentence):
    list(weights.export_tensors(tree(leaves, lambda leaf: leaf), names))


def test_parts_of_one_tensor_must_have_one_shape():
  names, _, leaves = shared()
  leaves["shared/v/kernel"] = normal(5, D + 1)
  with pytest.raises(JaxsftError, match=r"shapes \[\(9, 10\), \(9, 11\)\]"):
    list(weights.export_tensors(tree(leaves, lambda leaf: leaf), names))


def test_a_new_head_of_views_is_reported_whole(tmp_path):
  names, file, leaves = shared()
  names[2:4] = [name._replace(part="head") for name in names[2:4]]
  del file["albert_layers.0.qv.weight"]
  params, report = weights.load(write(tmp_path, file), names, tree(leaves), base_prefix="toy.")
  assert report.new == ("shared/q/kernel", "shared/v/kernel")
  assert "q" not in params["shared"]
