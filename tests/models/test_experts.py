"""Mixtures of experts against a dense evaluation of all of them, on one device and on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft import families, models, sharding
from jaxsft.errors import JaxsftError
from jaxsft.models import experts
from tests.families import decoder_configs

D, F, E = 12, 20, 5


@pytest.fixture(autouse=True)
def highest():
  with jax.default_matmul_precision("highest"):
    yield


def mixture(per_token=2, normalise=True, count=E):
  record = experts.Experts(count, per_token, F, normalise, auxiliary=0.1)
  module = experts.Mixture(D, record, "silu", "float32", 0.5)
  rng = np.random.default_rng(0)
  x = rng.normal(size=(3, 7, D)).astype(np.float32)
  real = (np.arange(7) < np.array([[7], [4], [5]])).astype(np.int32)
  return module, module.init(jax.random.key(0), x, real)["params"], x, real


def dense(module, params, x):
  """Every expert for every token, weighted by 0 where it was not chosen."""
  record = module.experts
  p = jax.nn.softmax(x @ params["router"]["kernel"].T)
  least = jnp.sort(p, -1)[..., -record.per_token, None]
  weights = jnp.where(p >= least, p, 0)
  if record.normalise:
    weights = weights / jnp.sum(weights, -1, keepdims=True)
  kernel = lambda name: params["experts"][name]["kernel"]
  gate = jax.nn.silu(jnp.einsum("btd,efd->btef", x, kernel("gate")))
  up = jnp.einsum("btd,efd->btef", x, kernel("up"))
  return jnp.einsum("btef,edf,bte->btd", gate * up, kernel("down"), weights)


def near(ours, expected):
  """Of each leaf's own size."""
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=1e-4, atol=max(1e-6, 2e-5 * np.abs(b).max())
    ),
    ours,
    expected,
  )


def sums_of(f):
  """Value and gradients of something that no coordinate is equal in."""

  def run(params, x):
    y = f(params, x)
    return jnp.sum(jnp.sin(y) * jnp.arange(y.size).reshape(y.shape)), y

  return jax.jit(jax.grad(run, argnums=(0, 1), has_aux=True))


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize(
  ("per_token", "normalise"), [(2, True), (3, False), (E, True), (1, False)]
)
def test_it_is_the_dense_evaluation(monkeypatch, platform, per_token, normalise):
  """By blocks, and by the ragged products of a TPU, which XLA:CPU can imitate."""
  monkeypatch.setattr(sharding, "platform", lambda: platform)
  module, params, x, real = mixture(per_token, normalise)
  ours = sums_of(lambda p, x: module.apply({"params": p}, x, real)[0])(params, x)
  near(ours, sums_of(lambda p, x: dense(module, p, x))(params, x))


def test_no_token_is_dropped_where_all_want_one_expert():
  module, params, x, real = mixture(1, False)
  params["router"]["kernel"] = jnp.zeros((E, D)).at[3, 0].set(50.0)
  x = np.abs(x)
  ours, sums = module.apply({"params": params}, x, real)
  near(ours, dense(module, params, x))
  assert np.abs(ours).min(-1).max() > 0
  np.testing.assert_array_equal(sums["chosen"], [0, 0, 0, real.sum(), 0])


def test_fewer_tokens_than_experts():
  module, params, x, real = mixture(3, True, count=40)
  ours, _ = module.apply({"params": params}, x[:1, :1], real[:1, :1])
  near(ours, dense(module, params, x[:1, :1]))


def test_padding_does_not_count_for_the_balance():
  module, params, x, real = mixture()
  run = lambda x, real: module.apply({"params": params}, x, real)[1]
  other = np.where(real[..., None] != 0, x, 7.0)
  near(run(x, real), run(other, real))
  stacked = jax.tree.map(lambda leaf: leaf[None], run(x, real))
  total, weight = experts.balance(stacked, real)
  assert weight == real.sum()
  probabilities = np.asarray(jax.nn.softmax(x @ params["router"]["kernel"].T))[real != 0]
  chosen = np.argsort(probabilities, -1)[:, -2:]
  share = np.bincount(chosen.ravel(), minlength=E) / real.sum()
  np.testing.assert_allclose(total / weight, E * share @ probabilities.mean(0), rtol=1e-5)


def test_what_is_added_to_the_experts_is_not_passed_over():
  module, params, x, real = mixture()
  params["experts"]["up"]["lora_a"] = jnp.zeros(3)
  with pytest.raises(JaxsftError, match="lora_a"):
    module.apply({"params": params}, x, real)


def network_of(case, **changes):
  config = {**decoder_configs.SIZES, **decoder_configs.CONFIGS[case][1], **changes}
  family = decoder_configs.family_of(case)
  module = families.FAMILIES[family]
  arch = module.architecture({**config, "model_type": family})
  return models.Network(arch, families.head_of(module, arch, "lm"))


BASE = {  # of both families
  "num_local_experts": 4,
  "num_experts": 4,
  "router_aux_loss_coef": 0.5,
  "decoder_sparse_step": 1,
}


@pytest.mark.parametrize(
  "sizes", [{"expert": 4, "data": 2}, {"expert": 2, "tensor": 2, "fsdp": 2}], ids=str
)
@pytest.mark.parametrize("case", ["mixtral", "qwen3_moe"])
def test_eight_devices_give_the_result_of_one(case, sizes):
  network = network_of(case, **BASE)
  params = network.init(jax.random.key(0))
  rng = np.random.default_rng(0)
  batch = {
    "inputs": rng.integers(1, 61, (8, 6)).astype(np.int32),
    "segments": (np.arange(6) < rng.integers(2, 7, (8, 1))).astype(np.int32),
  }

  def run(params, batch):
    def loss(params):
      x, auxiliary = network.hidden_and_auxiliary(params, batch)
      logits = jax.nn.log_softmax(network.vocabulary_logits(params, x))[..., 3]
      return -jnp.mean(logits * (batch["segments"] != 0)) + auxiliary

    return jax.value_and_grad(loss)(params)

  expected = jax.jit(run)(params, batch)
  mesh = sharding.make_mesh(**{"data": 1, **sizes})
  with jax.set_mesh(mesh):
    spread = jax.device_put(params, sharding.shardings_for(params, mesh))
    held = spread["layers"]["mlp"]["experts"]["up"]["kernel"].addressable_shards[0].data
    assert held.shape[1] == 4 // sizes["expert"]
    ours = jax.jit(run)(spread, sharding.put_batch(batch, mesh))

  near(ours, expected)
  assert np.abs(expected[1]["layers"]["mlp"]["router"]["kernel"]).max() > 1e-4


@pytest.mark.parametrize("expert", [1, 2])
def test_fewer_rows_than_devices(expert):
  """As where one prompt is read on a mesh: values and gradients are those of one device."""
  module, params, x, real = mixture(count=6)
  run = sums_of(lambda params, x: module.apply({"params": params}, x, real)[0])
  alone = run(params, x)
  with jax.set_mesh(sharding.make_mesh(-1, expert=expert)):
    near(run(params, x), alone)


def test_the_experts_of_an_axis_that_does_not_divide_them_are_copied():
  network = network_of("mixtral", num_local_experts=5, router_aux_loss_coef=0.0)
  params = network.init(jax.random.key(0))
  batch = {"inputs": np.arange(1, 49, dtype=np.int32).reshape(8, 6)}
  expected = jax.jit(network.logits)(params, batch)
  mesh = sharding.make_mesh(data=2, expert=4)
  with jax.set_mesh(mesh):
    spread = jax.device_put(params, sharding.shardings_for(params, mesh))
    ours = jax.jit(network.logits)(spread, sharding.put_batch(batch, mesh))
  np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_blocks_hold_every_entry_once():
  rng = np.random.default_rng(0)
  for m, E, strangers in ((1, 1, 0), (40, 3, 1), (500, 7, 2), (64, 128, 0), (300, 2, 5)):
    chosen = jnp.asarray(rng.integers(0, E + strangers, m))
    chosen = jnp.where(chosen < E, chosen, E)
    source, place, product = experts._blocks(chosen, E)
    known = np.asarray(chosen) < E
    np.testing.assert_array_equal(
      np.asarray(source)[np.asarray(place)[known]], np.arange(m)[known]
    )
    assert (np.asarray(place)[~known] >= len(source)).all()
    kernel = jnp.arange(E, dtype=jnp.float32).reshape(E, 1, 1)
    rows = product(jnp.ones((len(source), 1)), kernel)
    np.testing.assert_array_equal(
      np.asarray(rows)[np.asarray(place)[known], 0], np.asarray(chosen)[known]
    )
