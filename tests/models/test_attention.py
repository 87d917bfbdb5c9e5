import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft import sharding
from jaxsft.errors import JaxsftError
from jaxsft.models import attention, layers

B, T, N, K, H = 2, 24, 6, 2, 8
SEGMENTS = np.array([[1] * 9 + [2] * 10 + [0] * 5, [1] * 20 + [0] * 4], np.int32)
RULES = [(True, None), (False, None), (True, 4), (False, 4)]


@pytest.fixture(autouse=True)
def highest(monkeypatch):
  monkeypatch.setattr(attention, "BLOCK", 7)  # several blocks, the last one short
  with jax.default_matmul_precision("highest"):
    yield


def qkv(seed=0, T=T):
  shapes = [(B, T, N, H), (B, T, K, H), (B, T, K, H)]
  keys = jax.random.split(jax.random.key(seed), 3)
  return [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]


def dense(q, k, v, causal, window, segments=SEGMENTS, *, scale=H**-0.5, cap=None, bias=0):
  """The rule written out with loops, and plain attention with repeated heads."""
  ok = np.zeros((B, q.shape[1], q.shape[1]), bool)
  for b, t, s in np.ndindex(ok.shape):
    same = segments[b, t] == segments[b, s] != 0
    near = window is None or abs(t - s) < window
    ok[b, t, s] = same and near and (s <= t or not causal)
  k, v = (jnp.repeat(x, N // K, axis=2) for x in (k, v))
  scores = jnp.einsum("BTNH,BSNH->BNTS", q, k) * scale
  scores = (scores if cap is None else cap * jnp.tanh(scores / cap)) + bias
  p = jax.nn.softmax(jnp.where(ok[:, None], scores, -1e30))
  out = jnp.einsum("BNTS,BSNH->BTNH", p, v)
  return jnp.where(ok.any(-1)[..., None, None], out, 0)


def rule(causal, window):
  return attention.Rule(SEGMENTS, SEGMENTS, causal, window)


@pytest.mark.parametrize(("causal", "window"), RULES)
def test_xla_is_plain_attention_with_gradients(causal, window):
  def run(f):
    loss = lambda *x: jnp.sum(jnp.sin(f(*x)))
    return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*qkv())

  value, grads = run(lambda *x: attention.attend(*x, rule(causal, window), backend="xla"))
  expected, theirs = run(lambda *x: dense(*x, causal, window))
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  for ours, his in zip(grads, theirs, strict=True):
    np.testing.assert_allclose(ours, his, atol=1e-5)


@pytest.mark.parametrize("rows", [1, B], ids=["shared", "own"])
@pytest.mark.parametrize("cap", [None, 0.7])
def test_scores_are_scaled_bent_and_shifted(rows, cap):
  """Values and gradients of scale, softcap and bias, also of the bias itself."""
  bias = jax.random.normal(jax.random.key(4), (rows, N, T, T))

  def run(f):
    loss = lambda *x: jnp.sum(jnp.sin(f(*x)))
    return jax.value_and_grad(loss, (0, 1, 2, 3))(*qkv(), bias)

  def ours(q, k, v, bias):
    its_rule = rule(True, None)
    return attention.attend(q, k, v, its_rule, scale=0.9, softcap=cap, bias=bias, backend="xla")

  value, grads = run(ours)
  expected, theirs = run(
    lambda q, k, v, bias: dense(q, k, v, True, None, scale=0.9, cap=cap, bias=bias)
  )
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  for ours, his in zip(grads, theirs, strict=True):
    np.testing.assert_allclose(ours, his, atol=1e-5)
    assert np.abs(np.asarray(his)).max() > 1e-2


def test_splash_bends_scores():
  segments = np.repeat(SEGMENTS, 16, axis=1)[:, :256]
  q, k, v = (3 * x for x in qkv(T=256))
  its_rule, real = attention.Rule(segments, segments, True), (segments != 0)[..., None, None]
  bent = attention._splash(q * H**-0.5, k, v, its_rule, 2.0, interpret=True)
  xla = lambda cap: attention.attend(q, k, v, its_rule, softcap=cap, backend="xla")
  np.testing.assert_allclose(bent * real, xla(2.0) * real, atol=1e-5)
  assert np.abs((bent - xla(None)) * real).max() > 1e-2


@pytest.mark.parametrize(("causal", "window"), RULES)
def test_splash_keeps_the_rule(causal, window):
  segments = np.repeat(SEGMENTS, 128 // 8, axis=1)[:, : 128 * 2]
  T, real = segments.shape[1], (segments != 0)[..., None, None]
  window = window and 40
  q, k, v = qkv(T=T)
  its_rule = attention.Rule(segments, segments, causal, window)
  splash = attention._splash(q * H**-0.5, k, v, its_rule, interpret=True)
  xla = attention.attend(q, k, v, its_rule, backend="xla")
  np.testing.assert_allclose(splash * real, xla * real, atol=1e-5)


def backends():
  """What can run here, "splash" through Pallas' interpreter."""
  return ["xla", "splash"]


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("causal", [True, False])
def test_nobody_sees_what_the_rule_forbids(backend, causal):
  segments = np.repeat(SEGMENTS, 16, axis=1)[:, :256]
  q, k, v = qkv(T=256)
  its_rule = attention.Rule(segments, segments, causal)

  def run(k, v):
    if backend == "splash":
      return attention._splash(q, k, v, its_rule, interpret=True)
    return attention.attend(q, k, v, its_rule, backend="xla")

  before, place = run(k, v), 100
  after = run(k.at[:, place].add(3.0), v.at[:, place].add(3.0))
  changed = np.abs(np.asarray(after - before)).max((2, 3)) > 0
  allowed = np.array(attention.allowed(its_rule)[:, :, place])
  real = segments != 0
  np.testing.assert_array_equal(changed & real, allowed & real)
  assert allowed.any() and not allowed[real].all()


def test_padding_is_zero_and_finite_everywhere():
  q, k, v = qkv()
  run = lambda *x: attention.attend(*x, rule(True, None), backend="xla")
  out, pull = jax.vjp(run, q, k, v)
  assert not np.asarray(out)[SEGMENTS == 0].any()
  for grad in pull(jnp.ones_like(out)):
    assert np.isfinite(grad).all()
    assert not np.asarray(grad)[SEGMENTS == 0].any()


def test_dropout_drops_its_share_keeps_the_mean_and_matches_its_gradient():
  q, k, v = qkv()
  seed, its_rule = layers.seed_of(jax.random.key(3), 0), rule(True, None)
  ones = jnp.ones_like(v)

  def run(v, seed, rate=0.5):
    return attention.attend(q, k, v, its_rule, backend="xla", rate=rate, seed=seed)

  seeds = [layers.seed_of(jax.random.key(i), 0) for i in range(200)]
  many = jax.vmap(lambda s: run(ones, s))(jnp.stack(seeds))
  real = SEGMENTS != 0
  np.testing.assert_allclose(np.asarray(many.mean(0))[real], 1, atol=0.35)
  assert 0.4 < (np.asarray(many)[:, 0, 0] == 0).mean() < 0.6  # the first sees one key
  # Linear in v: the gradient is exact only if the backward drops the same places.
  direction = jax.random.normal(jax.random.key(9), v.shape)
  value, tangent = run(v, seed), run(direction, seed)
  pulled = jax.vjp(lambda v: run(v, seed), v)[1](value)[0]
  np.testing.assert_allclose(jnp.sum(pulled * direction), jnp.sum(tangent * value), rtol=1e-4)
  both = lambda q: jnp.sum(
    jnp.sin(attention.attend(q, k, v, its_rule, backend="xla", rate=0.5, seed=seed))
  )
  step = 1e-2 * jax.random.normal(jax.random.key(5), q.shape)
  slope = (both(q + step) - both(q - step)) / 2
  np.testing.assert_allclose(jnp.sum(jax.grad(both)(q) * step), slope, rtol=2e-2)


def test_dropout_does_not_depend_on_the_blocks(monkeypatch):
  seed = layers.seed_of(jax.random.key(3), 0)
  run = lambda: attention.attend(*qkv(), rule(True, None), backend="xla", rate=0.3, seed=seed)
  small = run()
  monkeypatch.setattr(attention, "BLOCK", 512)
  np.testing.assert_allclose(small, run(), atol=1e-6)


def test_a_backend_that_cannot_is_refused():
  q, k, v = qkv()
  with pytest.raises(JaxsftError, match="'cudnn' cannot honour the platform cpu"):
    attention.attend(q, k, v, rule(True, None), backend="cudnn")
  with pytest.raises(JaxsftError, match="'splash' cannot honour the platform cpu"):
    attention.attend(q, k, v, rule(True, None), backend="splash")
  with pytest.raises(JaxsftError, match="'flash', expected auto, xla, cudnn or splash"):
    attention.attend(q, k, v, rule(True, None), backend="flash")


@pytest.mark.parametrize(
  ("platform", "dtype", "T", "dropping", "expected"),
  [
    ("tpu", "float32", 256, False, "splash"),
    ("tpu", "float32", 250, False, "xla"),
    ("tpu", "float32", 256, True, "xla"),
    ("gpu", "bfloat16", 250, False, "cudnn"),
    ("gpu", "float32", 250, False, "xla"),
    ("gpu", "bfloat16", 250, True, "xla"),
    ("cpu", "bfloat16", 256, False, "xla"),
  ],
)
def test_auto_takes_what_the_platform_can(monkeypatch, platform, dtype, T, dropping, expected):
  monkeypatch.setattr(sharding, "platform", lambda: platform)
  q = jnp.zeros((1, T, N, H), dtype)
  its_rule = attention.Rule(jnp.ones((1, T)), jnp.ones((1, T)), True)
  extras = ["attention dropout"] if dropping else []
  assert attention._pick(q, q[:, :, :K], its_rule, None, extras) == expected
  bent = "xla" if expected == "cudnn" else expected  # cuDNN knows no softcap
  assert attention._pick(q, q[:, :, :K], its_rule, 30.0, extras) == bent


def test_no_square_of_probabilities_is_stored():
  """Residuals of the backward pass stay linear in T."""
  shapes = [x.shape for x in qkv(T=512)]
  segments = np.ones((B, 512), np.int32)

  def loss(q, k, v):
    its_rule = attention.Rule(segments, segments, True)
    return jnp.sum(attention.attend(q, k, v, its_rule, backend="xla") ** 2)

  _, pull = jax.eval_shape(
    lambda *x: jax.vjp(loss, *x), *(jax.ShapeDtypeStruct(s, "float32") for s in shapes)
  )
  saved = sum(leaf.size for leaf in jax.tree.leaves(pull))
  assert saved < 8 * B * 512 * N * H
