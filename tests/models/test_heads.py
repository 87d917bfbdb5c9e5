import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft import sharding
from jaxsft.models import heads

B, T, D, V = 3, 13, 10, 37
OPTIONS = [
  {},
  {"label_smoothing": 0.1},
  {"z_loss": 0.01},
  {"softcap": 2.0},
  {"bias": True, "softcap": 3.0, "label_smoothing": 0.2, "z_loss": 0.02},
]


@pytest.fixture(autouse=True)
def highest():
  with jax.default_matmul_precision("highest"):
    yield


def problem(B=B, T=T, seed=0):
  rng = np.random.default_rng(seed)
  hidden = rng.normal(size=(B, T, D)).astype(np.float32)
  kernel = rng.normal(size=(V, D)).astype(np.float32)
  bias = rng.normal(size=V).astype(np.float32)
  guesses = rng.integers(0, V, (B, T))
  targets = np.where(rng.random((B, T)) < 0.5, guesses, (hidden @ kernel.T).argmax(-1))
  targets = targets.astype(np.int32)  # half of them are hits
  weights = rng.choice([0, 0, 1, 0.5], (B, T)).astype(np.float32)
  return hidden, kernel, bias, targets, weights


def dense(hidden, kernel, bias, targets, weights, *, softcap, label_smoothing, z_loss):
  logits = hidden @ kernel.T + (0 if bias is None else bias)
  logits = logits if softcap is None else softcap * jnp.tanh(logits / softcap)
  log_p = jax.nn.log_softmax(logits)
  goal = jax.nn.one_hot(targets, V) * (1 - label_smoothing) + label_smoothing / V
  loss = -jnp.sum(goal * log_p, -1) + z_loss * jax.nn.logsumexp(logits, -1) ** 2
  hits = (jnp.argmax(logits, -1) == targets) & (weights > 0)
  return jnp.sum(loss * weights), jnp.sum(hits)


def settings(options):
  defaults = {"softcap": None, "label_smoothing": 0.0, "z_loss": 0.0}
  return {**defaults, **{k: v for k, v in options.items() if k != "bias"}}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("chunk", [1, 7, 12, 10_000])
def test_chunked_is_dense(options, chunk):
  hidden, kernel, bias, targets, weights = problem()
  bias = bias if options.get("bias") else None

  def ours(hidden, kernel, bias):
    sums = heads.cross_entropy(
      hidden, kernel, targets, weights, bias=bias, chunk=chunk, **settings(options)
    )
    return 0.7 * sums["loss"][0], sums

  def theirs(hidden, kernel, bias):
    loss, hits = dense(hidden, kernel, bias, targets, weights, **settings(options))
    return 0.7 * loss, hits

  wrt = (0, 1) if bias is None else (0, 1, 2)
  (loss, sums), grads = jax.value_and_grad(ours, wrt, has_aux=True)(hidden, kernel, bias)
  (expected, hits), other = jax.value_and_grad(theirs, wrt, has_aux=True)(hidden, kernel, bias)
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  assert sums["accuracy"] == (hits, (weights > 0).sum())
  assert sums["loss"][1] == weights.sum()
  for a, b in zip(grads, other, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)
  value_only = ours(hidden, kernel, bias)
  np.testing.assert_allclose(value_only[0], loss, rtol=1e-6)
  assert value_only[1]["accuracy"] == sums["accuracy"]


@pytest.mark.parametrize("chunk", [1, 7, 10_000])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_losses_of_single_tokens(chunk, softcap):
  hidden, kernel, bias, targets, weights = problem()
  nll, right = heads.token_losses(
    hidden, kernel, targets, weights, bias=bias, softcap=softcap, chunk=chunk
  )
  logits = hidden @ kernel.T + bias
  logits = logits if softcap is None else softcap * np.tanh(logits / softcap)
  log_p = jax.nn.log_softmax(logits)
  expected = -np.take_along_axis(np.asarray(log_p), targets[..., None], -1)[..., 0]
  used = weights > 0
  np.testing.assert_allclose(nll, np.where(used, expected, 0), rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(right, used & (logits.argmax(-1) == targets))


def test_loss_needs_the_right_shift():
  """Targets that the hidden states point at cost nothing, others a lot."""
  kernel = 30 * np.eye(V, dtype=np.float32)
  targets = np.arange(T, dtype=np.int32)[None]
  oracle = np.eye(V, dtype=np.float32)[targets]
  weights = np.ones((1, T), np.float32)
  loss = lambda t: heads.cross_entropy(oracle, kernel, t, weights, chunk=4)["loss"][0]
  assert loss(targets) < 1e-3 < 100 < loss(targets + 1)


def test_unsupervised_targets_and_states_do_not_matter():
  hidden, kernel, _, targets, weights = problem()
  run = jax.value_and_grad(
    lambda h, t: heads.cross_entropy(h, kernel, t, weights, chunk=5)["loss"][0]
  )
  (loss, grad), off = run(hidden, targets), weights == 0
  (other, _) = run(np.where(off[..., None], 9.0, hidden), np.where(off, 0, targets))
  assert loss == other
  assert not np.asarray(grad)[off].any() and np.asarray(grad)[~off].any()


def test_equal_logits_are_answered_by_the_first():
  hidden, kernel = np.zeros((1, 4, D), np.float32), np.ones((V, D), np.float32)
  targets = np.array([[0, 1, 2, 0]], np.int32)
  sums = heads.cross_entropy(hidden, kernel, targets, np.ones((1, 4)), chunk=4)
  assert sums["accuracy"] == (2, 4)


def test_no_supervised_token_at_all():
  hidden, kernel, _, targets, weights = problem()
  loss = lambda h: heads.cross_entropy(h, kernel, targets, 0 * weights, chunk=5)["loss"][0]
  value, grad = jax.value_and_grad(loss)(hidden)
  assert value == 0 and not np.asarray(grad).any()


def test_memory_is_bounded_by_the_chunk():
  T, vocab, chunk = 512, 4096, 32
  shapes = [(2, T, D), (vocab, D), (2, T), (2, T)]
  args = [jax.ShapeDtypeStruct(s, "float32") for s in shapes]

  def temp(chunk):
    def loss(h, k, t, w):
      return heads.cross_entropy(h, k, t.astype(jnp.int32), w, chunk=chunk)["loss"][0]

    step = jax.jit(jax.value_and_grad(loss, (0, 1)))
    return step.lower(*args).compile().memory_analysis().temp_size_in_bytes

  logits = 4 * 2 * T * vocab
  assert temp(chunk) < logits / 4 < logits < temp(2 * T)


def test_evaluation_and_frozen_kernels_do_no_gradient_work():
  hidden, kernel, _, targets, weights = problem()
  loss = lambda h, k: heads.cross_entropy(h, k, targets, weights, chunk=99)["loss"][0]
  products = lambda f: str(jax.make_jaxpr(f)(hidden, kernel)).count("dot_general")
  assert products(loss) == 1
  assert products(jax.grad(loss, 0)) == 2  # a frozen kernel (adapters) gets no gradient
  assert products(jax.grad(loss, (0, 1))) == 3


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2), (1, 4, 2)])
def test_eight_devices_give_the_result_of_one(shape):
  hidden, kernel, _, targets, weights = problem(B=8)

  def run(*args):
    loss = lambda h, k: heads.cross_entropy(h, k, *args[2:], chunk=16)["loss"][0]
    return jax.value_and_grad(loss, (0, 1))(*args[:2])

  value, grads = jax.jit(run)(hidden, kernel, targets, weights)
  mesh = sharding.make_mesh(*shape)
  single = lambda *args: heads.token_losses(*args, chunk=16)
  alone = jax.jit(single)(hidden, kernel, targets, weights)
  with jax.set_mesh(mesh):
    placed = sharding.put_batch({"h": hidden, "t": targets, "w": weights}, mesh)
    spec = sharding.spec_for("lm_head/kernel", kernel.shape, mesh)
    table = jax.device_put(kernel, jax.sharding.NamedSharding(mesh, spec))
    other, spread = jax.jit(run)(placed["h"], table, placed["t"], placed["w"])
    together = jax.jit(single)(placed["h"], table, placed["t"], placed["w"])
  for a, b in zip(alone, together, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
  np.testing.assert_allclose(value, other, rtol=1e-5)
  for a, b in zip(grads, spread, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_segments_are_read_at_their_first_or_last_token():
  segments = jnp.array([[1, 1, 1, 2, 3, 3, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1]])
  first = [[0, 3, 4, 0], [0, 0, 0, 0]]
  last = [[2, 3, 5, 0], [7, 0, 0, 0]]
  np.testing.assert_array_equal(heads.segment_places(segments, 4, "first"), first)
  np.testing.assert_array_equal(heads.segment_places(segments, 4, "last"), last)
