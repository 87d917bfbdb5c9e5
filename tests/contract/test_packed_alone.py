"""Several examples a row or one: each has the same loss and gradient, by every attention.

XLA's attention runs as it is; splash attention through Pallas' interpreter; of cuDNN's, which
needs its GPU, the call is the same with XLA in the kernel's place.
"""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft import pretrained
from jaxsft.data import feed, store
from jaxsft.models import attention
from jaxsft.tasks import chat
from tests import tiny

LENGTHS, T = (37, 20, 50), 128  # splash attention wants multiples of 128 tokens
OPTIONS = types.SimpleNamespace(label_smoothing=0.0, z_loss=0.0, chunk=64)


def run_here(monkeypatch, backend):
  """Lets a backend of another platform run on this one."""
  monkeypatch.setattr(attention, "_limits", lambda *_: None)
  if backend == "splash":
    splash = functools.partial(attention._splash, interpret=True)
    monkeypatch.setattr(attention, "_splash", splash)
  if backend == "cudnn":
    dense = jax.nn.dot_product_attention
    monkeypatch.setattr(
      attention.jax.nn,
      "dot_product_attention",
      lambda *a, implementation, **k: dense(*a, implementation="xla", **k),
    )


def examples(rng):
  kept = store.in_memory(
    (
      f"e{i}",
      {
        "inputs": rng.integers(4, 40, n),
        "targets": rng.integers(4, 40, n),
        "weights": (rng.random(n) < 0.6).astype(np.float32),
      },
    )
    for i, n in enumerate(LENGTHS)
  )
  together = feed.batch(kept, [[2, 0, 1]], row_length=T, segments=3)
  alone = feed.batch(kept, [[2], [0], [1]], row_length=T, segments=1)
  return together, alone


def losses_and_gradients(network, params, batch):
  """The summed loss [3] of each example, and its gradient by the parameters."""

  def loss(params, which):
    at = (batch["segments"] == which + 1) if len(batch["inputs"]) == 1 else None
    chosen = np.arange(3)[:, None] == which if at is None else at
    mine = batch | {"weights": jnp.where(chosen, batch["weights"], 0.0)}
    return chat.loss(network, params, mine, OPTIONS)["loss"][0]

  one = jax.jit(jax.value_and_grad(loss))
  found = [one(params, which) for which in range(3)]
  return [float(value) for value, _ in found], [grads for _, grads in found]


@pytest.mark.parametrize("backend", ["xla", "splash", "cudnn"])
def test_each_example_has_the_loss_and_the_gradient_it_has_alone(
  backend, tmp_path, monkeypatch
):
  run_here(monkeypatch, backend)
  base = pretrained.open_pretrained(tiny.checkpoint(tmp_path / "llama", "llama"))
  network = base.network("chat", attention=backend)
  params, _ = pretrained.load_params(base, network)
  together, alone = examples(np.random.default_rng(0))
  losses, grads = losses_and_gradients(network, params, together)
  expected, theirs = losses_and_gradients(network, params, alone)
  np.testing.assert_allclose(losses, expected, rtol=1e-5)
  for found, wanted in zip(grads, theirs, strict=True):
    for ours, his in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
      scale = float(jnp.abs(his).max())
      np.testing.assert_allclose(ours, his, rtol=0, atol=1e-5 * scale + 1e-7)
  assert min(expected) > 1
