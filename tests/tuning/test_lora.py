"""Low-rank adapters: where they go, what they compute, what trains, what is merged."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft import job as jobs
from jaxsft import sharding, step
from jaxsft.config import Lora
from jaxsft.errors import UsageError
from jaxsft.models import layers
from jaxsft.tuning import lora, merge, select
from tests import tiny
from tests.contract import build
from tests.models import tiny as networks

LLAMA = ("llama", "chat")


@pytest.fixture(scope="module")
def llama():
  """(network, params) of three layers without a head of the task."""
  return networks.network("llama", "lm")


def flat(tree):
  return dict(select.paths(tree))


def with_b(params, seed=1):
  """The parameters with B drawn at random, so that adapters have an effect."""
  keys = iter(jax.random.split(jax.random.key(seed), 99))
  draw = lambda leaf: 0.3 * jax.random.normal(next(keys), leaf.shape)
  found = flat(params).items()
  return lora.weights.params.nest(
    {path: draw(leaf) if path.endswith("lora_b") else leaf for path, leaf in found}
  )


# --- the seam --------------------------------------------------------------------------


def leaves_of(rng, out, width, rank, **more):
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  own = {"kernel": draw(out, width), "lora_a": draw(rank, width), "lora_b": draw(out, rank)}
  return own | {"lora_scale": jnp.float32(0.7)} | more


def test_a_projection_adds_the_adapter_to_its_product():
  rng = np.random.default_rng(0)
  leaves = leaves_of(rng, 7, 5, 2, bias=jnp.arange(7.0))
  x = jnp.asarray(rng.normal(size=(2, 3, 5)), jnp.float32)
  whole = leaves["kernel"] + 0.7 * leaves["lora_b"] @ leaves["lora_a"]
  np.testing.assert_allclose(
    layers.linear(leaves, x, "float32"), x @ whole.T + leaves["bias"], rtol=1e-4, atol=1e-5
  )
  leaves["lora_magnitude"] = jnp.arange(1.0, 8.0)
  turned = whole * (leaves["lora_magnitude"] / jnp.linalg.norm(whole, axis=1))[:, None]
  np.testing.assert_allclose(
    layers.linear(leaves, x, "float32"), x @ turned.T + leaves["bias"], rtol=1e-4, atol=1e-5
  )


def test_adapters_of_one_input_are_one_product_and_the_same():
  rng = np.random.default_rng(1)
  parts = {"q": leaves_of(rng, 7, 5, 2), "k": leaves_of(rng, 4, 5, 3), "v": {"kernel": 0}}
  x = jnp.asarray(rng.normal(size=(2, 3, 5)), jnp.float32)
  low = layers.together(parts, ("q", "k", "v"), x, "float32")
  assert set(low) == {"q", "k"}
  for name in low:
    np.testing.assert_allclose(
      layers.linear(parts[name], x, "float32", low[name]),
      layers.linear(parts[name], x, "float32"),
      rtol=1e-5,
    )
  parts["q"]["lora_drop"] = jnp.zeros(3, jnp.uint32)
  assert layers.together(parts, ("q", "k", "v"), x, "float32") == {}


def test_dropout_is_of_the_adapters_input_alone_and_keeps_its_mean():
  rng = np.random.default_rng(2)
  leaves, x = leaves_of(rng, 7, 400, 2), jnp.ones((50, 4, 400))
  drop = jnp.array([3, 4, layers.share_of(0.25)], jnp.uint32)
  low = lambda leaves: layers.linear(leaves | {"kernel": leaves["kernel"] * 0}, x, "float32")
  plain, dropped = low(leaves), low(leaves | {"lora_drop": drop})
  assert np.std(dropped) > 10 * np.std(plain - plain.mean((0, 1)))
  error = np.abs(dropped.mean((0, 1)) - plain.mean((0, 1)))
  assert np.all(error < 4 * np.std(dropped, (0, 1)) / 200**0.5)
  base = leaves | {"lora_a": leaves["lora_a"] * 0, "lora_drop": drop}  # the rest is not dropped
  np.testing.assert_array_equal(
    layers.linear(base, x, "float32"), layers.linear({"kernel": base["kernel"]}, x, "float32")
  )


def test_no_gradient_has_the_shape_of_a_frozen_weight(llama):
  network, params = llama
  params = lora.add(params, Lora(rank=2), 0)
  trainable, frozen = select.split(params, lora.choose(params, (), {"layers": 0}))
  batch = networks.packed(networks.rows(61, (7, 5)))
  loss = lambda t: jnp.sum(network.logits(step.merge(t, frozen), batch) ** 2)
  text = str(jax.make_jaxpr(jax.grad(loss))(trainable))
  made = [line for line in text.splitlines() if "dot_general" in line]
  assert len(made) > 20
  kernels = {leaf.shape[-2:] for path, leaf in flat(frozen).items() if path.endswith("kernel")}
  shapes = {
    tuple(map(int, s.split(","))) for s in re.findall(r"f32\[(\d+,\d+)\] = dot_general", text)
  }
  both = {s for k in kernels for s in (k, k[::-1])}
  assert not shapes & both, shapes & both


# --- where they go ---------------------------------------------------------------------


def test_all_linear_is_every_projection_of_attention_and_mlp(llama):
  own = set(lora.plan(llama[1], Lora()))
  names = ("attn/q", "attn/k", "attn/v", "attn/o", "mlp/up", "mlp/gate", "mlp/down")
  assert own == {f"layers/{name}" for name in names}


def test_patterns_choose_targets_ranks_and_scales(llama):
  settings = Lora(
    rank=4,
    alpha=8.0,
    targets=("attn/(q|v)", "down"),
    rank_pattern={"q$": 2},
    alpha_pattern={"v": 1.0},
  )
  plan = lora.plan(llama[1], settings)
  assert {p: (a.rank, a.scale) for p, a in plan.items()} == {
    "layers/attn/q": (2, 4.0),
    "layers/attn/v": (4, 0.25),
    "layers/mlp/down": (4, 2.0),
  }
  root = lora.plan(llama[1], dataclasses.replace(settings, rslora=True))
  assert root["layers/mlp/down"].scale == 4.0


@pytest.mark.parametrize(
  ("settings", "sentence"),
  [
    (
      {"targets": ("embed",)},
      "targets: 'embed' matches only embed/tokens/embedding, expected proj",
    ),
    ({"targets": ("attn/x",)}, "targets: 'attn/x' matches nothing; there are expected proj"),
    ({"targets": ("(",)}, r"targets: '\(' is no valid pattern"),
    ({"rank_pattern": {"attn/x": 2}}, "rank_pattern: 'attn/x' matches nothing"),
    (
      {"targets": ("attn/q",), "rank_pattern": {"attn/v": 4}},
      "rank_pattern: 'attn/v' matches no projection that gets an adapter, .* layers/attn/q;",
    ),
    (
      {"targets": ("attn/q",), "alpha_pattern": {"attn/v": 4.0}},
      "alpha_pattern: 'attn/v' matches no projection that gets",
    ),
    ({"init": "pissa", "rank": 40}, "rank: found 40 with init='pissa', expected at most"),
  ],
)
def test_what_cannot_be_adapted_is_refused(llama, settings, sentence):
  with pytest.raises(UsageError, match=sentence):
    lora.add(llama[1], Lora(**settings), 0)


def test_experts_are_refused():
  tree = {"layers": {"mlp": {"experts": {"up": {"kernel": np.ones((2, 3, 4, 5))}}}}}
  tree["layers"]["attn"] = {"q": {"kernel": np.ones((2, 4, 5))}}
  with pytest.raises(UsageError, match="experts of a mixture"):
    lora.plan(tree, Lora())
  assert set(lora.plan(tree, Lora(targets=("attn/",)))) == {"layers/attn/q"}


def test_a_head_and_named_leaves_train_beside_adapters():
  network, _ = networks.network("bert", "sequence")
  tree = lora.shapes(network.shapes(), Lora(targets=("attn/",)))
  own = lora.choose(tree, ("layers.1/mlp_norm",), network.stacks)
  assert own.masks == {
    f"layers/mlp_norm/{leaf}": (False, True, False) for leaf in ("scale", "bias")
  }
  own = own.paths
  assert {p for p in own if "lora" not in p} == {
    *(f"{name}/{leaf}" for name in ("head", "dense") for leaf in ("kernel", "bias")),
    *(f"layers/mlp_norm/{leaf}" for leaf in ("scale", "bias")),
  }
  assert not any(path.endswith("lora_scale") for path in own)
  with pytest.raises(UsageError, match="has an adapter"):
    lora.choose(tree, ("layers/attn/q",), network.stacks)


# --- what they compute -----------------------------------------------------------------


FULL = pytest.mark.full


@pytest.mark.parametrize(
  "settings",
  [
    {"dora": True, "rslora": True},
    pytest.param({}, marks=FULL),
    pytest.param({"init": "pissa"}, marks=FULL),
  ],
)
def test_new_adapters_change_nothing_and_merged_ones_compute_the_same(llama, settings):
  network, params = llama
  start = lora.add(params, Lora(rank=3, alpha=1.0, **settings), 0)
  shapes = lora.shapes(network.shapes(), Lora(rank=3, alpha=1.0, **settings))
  assert jax.tree.map(lambda x: x.shape, start) == jax.tree.map(lambda x: x.shape, shapes)
  batch = networks.packed(networks.rows(61, (7, 5)))
  logits = jax.jit(network.logits)
  near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  near(logits(start, batch), logits(params, batch))
  moved = with_b(start)
  whole, error = merge.merged(network, moved, "float32")
  assert set(flat(whole)) == set(flat(params)) and error < 1e-5
  assert np.abs(logits(moved, batch) - logits(params, batch)).max() > 0.1
  near(logits(whole, batch), logits(moved, batch))
  assert 1e-4 < merge.merged(network, moved, "bfloat16")[1] < 0.1


def test_rows_of_zeros_stay_zeros(llama):
  """An adapter of a smaller rank in a stack is padded: that must not train."""
  network, params = llama
  params = flat(with_b(lora.add(params, Lora(rank=3), 0)))
  path = "layers/attn/q/lora_"
  params[f"{path}a"] = params[f"{path}a"].at[1, 2].set(0)
  params[f"{path}b"] = params[f"{path}b"].at[1, :, 2].set(0)
  batch = networks.packed(networks.rows(61, (7, 5)))
  loss = lambda p: jnp.sum(network.logits(lora.weights.params.nest(p), batch) ** 2)
  slope = jax.jit(jax.grad(loss))(params)
  assert not np.any(slope[f"{path}a"][1, 2]) and not np.any(slope[f"{path}b"][1, :, 2])
  assert np.all(slope[f"{path}a"][0, 2]) and np.all(slope[f"{path}b"][0, :, 2])


# --- a run -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  root = tmp_path_factory.mktemp("lora")
  tiny.rows(root / "chat.jsonl", "chat")
  return tiny.checkpoint(root / "llama", "llama"), root / "chat.jsonl"


def settings(files, **more):
  return tiny.config(*LLAMA, *files, tune__method="lora", tune__lora__rank=3, **more)


def test_adapters_move_alone(files):
  """Two updates with dropout: frozen leaves keep every bit, all adapters move."""
  config = settings(files, steps=2, tune__lora__dropout=0.2)
  job = build.job(config, tiny.devices(1))
  with jax.set_mesh(job.mesh):
    state = build.state(job)
    before = build.host(step.merge(state.trainable, state.frozen))
    for batch in jobs_batches(job):
      state, metrics = job.train_step(state, batch)
  after = build.host(step.merge(state.trainable, state.frozen))
  for path in before:
    same = np.array_equal(before[path], after[path])
    assert same == (path.rpartition("/")[2] not in lora.TRAINED), path
  assert metrics["penalty"] < 1e-8  # nothing that decays trains


@pytest.mark.full
def test_eight_devices_give_the_adapters_of_one(files):
  config = settings(files, steps=3, tune__lora__dropout=0.2, tune__lora__plus=4.0)
  after = build.updates(build.job(config, tiny.devices(1)))[0]
  eight = build.updates(build.job(config, tiny.devices(8, fsdp=2, tensor=2)))[0]
  for path, leaf in eight.items():
    np.testing.assert_allclose(leaf, after[path], rtol=1e-3, atol=2e-4, err_msg=path)


def jobs_batches(job):
  from jaxsft import train

  return train.batches(job, 0)


def test_the_rate_of_b_is_that_of_a_times_plus(files):
  """By optim.Rule, whose factors tests/test_step.py looks at."""
  job = build.job(settings(files, tune__lora__plus=4.0), tiny.devices(1))
  assert job.rule.rates == {p: 4.0 for p in job.chosen.paths if p.endswith("lora_b")} != {}
  assert build.job(settings(files), tiny.devices(1)).rule.rates == {}


def test_a_bfloat16_base_is_held_as_such_and_exported_from_the_original(files, tmp_path):
  config = settings(files, steps=1, tune__base_dtype="bfloat16")
  job = build.job(config, tiny.devices(1))
  frozen = flat(build.state(job).frozen)
  kinds = {path: leaf.dtype.name for path, leaf in frozen.items()}
  assert kinds["layers/attn/q/kernel"] == kinds["embed/tokens/embedding"] == "bfloat16"
  assert kinds["norm/scale"] == kinds["layers/attn/q/lora_scale"] == "float32"
  trainable = select.split(build.params(job), job.chosen)[0]
  whole = jobs.trained_params(config, job.base, job.network, job.chosen, trainable)
  left = flat(whole)["layers/attn/q/kernel"]
  assert left.dtype == "float32" and np.any(left != frozen["layers/attn/q/kernel"])


def test_no_leaf_of_an_adapter_is_left_without_a_rule_of_sharding(llama):
  tree = lora.shapes(llama[0].shapes(), Lora(dora=True))
  places = flat(sharding.shardings_for(tree, tiny.devices(8, fsdp=2, tensor=2)))
  spec = lambda path: tuple(places[path].spec)
  assert (
    spec("layers/attn/q/lora_a")[2] == "fsdp" and spec("layers/attn/q/lora_b")[1] == "tensor"
  )
  assert (
    spec("layers/attn/o/lora_a")[2] == "tensor" and spec("layers/attn/o/lora_b")[1] == "fsdp"
  )


def test_remat_keeps_the_sums_and_not_their_parts(llama):
  """Else adapters would need more memory than the gradients that they spare."""
  network = dataclasses.replace(llama[0], remat="dots")
  batch = networks.packed(networks.rows(61, (7, 5)))

  def kept(params, choice):
    """Numbers that the loop over layers hands to the backward pass."""
    trainable, frozen = select.split(params, choice)
    loss = lambda t: jnp.sum(network.logits(step.merge(t, frozen), batch) ** 2)
    loops = [
      e for e in jax.make_jaxpr(jax.grad(loss))(trainable).eqns if e.primitive.name == "scan"
    ]
    return sum(v.aval.size for v in loops[0].outvars)

  plain = kept(llama[1], select.choose(llama[1], "all", stacks={"layers": 0}))
  adapted = lora.add(llama[1], Lora(rank=1), 0)
  low = 3 * batch["inputs"].size * 7  # [L,B,T,R] of seven projections
  assert kept(adapted, lora.choose(adapted, (), {"layers": 0})) <= plain + low
