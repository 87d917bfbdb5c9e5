"""Logits and gradients against torch transformers, fp32 at the highest matmul precision."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import torch_weights


@pytest.fixture(autouse=True)
def highest():
  with jax.default_matmul_precision("highest"):
    yield


def tokens(vocab, lengths, seed=0):
  """Random ids [B,T] and segments: rows of the given lengths, padded to the right."""
  rng = np.random.default_rng(seed)
  T = max(lengths)
  segments = (np.arange(T) < np.array(lengths)[:, None]).astype(np.int32)
  ids = rng.integers(1, vocab, (len(lengths), T)).astype(np.int32)
  return ids * segments, segments


def same_gradients(ours, theirs):
  flat = lambda tree: jax.tree_util.tree_leaves_with_path(tree)
  assert len(flat(ours)) == len(flat(theirs))
  for (path, a), (_, b) in zip(flat(ours), flat(theirs), strict=True):
    name = jax.tree_util.keystr(path)
    np.testing.assert_allclose(a, b, atol=1e-3, rtol=1e-3, err_msg=name)
    assert np.abs(b).max() > 1e-4 or "'k'" in name, name  # a softmax ignores key biases


@pytest.mark.parametrize("lengths", [(7, 7), (5, 11, 2)], ids=["unpadded", "padded"])
def test_bert_logits_and_gradients(oracle, lengths):
  torch = oracle
  model, network, params, module, _ = torch_weights.make(torch, "bert", "sequence")
  ids, segments = tokens(network.arch.vocab, lengths)
  types = (np.arange(ids.shape[1]) > 2).astype(np.int32) * segments
  labels = np.arange(len(lengths)) % 3
  out = model(
    torch.tensor(ids).long(),
    attention_mask=torch.tensor(segments),
    token_type_ids=torch.tensor(types).long(),
    labels=torch.tensor(labels),
  )
  out.loss.backward()
  batch = {"inputs": ids, "segments": segments, "token_types": types}

  def loss(params):
    logits = network.logits(params, batch)[:, 0]
    log_p = jax.nn.log_softmax(logits)
    return -jnp.mean(log_p[np.arange(len(lengths)), labels]), logits

  (value, logits), grads = jax.value_and_grad(loss, has_aux=True)(params)
  np.testing.assert_allclose(logits, out.logits.detach(), atol=1e-4)
  np.testing.assert_allclose(value, out.loss.item(), atol=1e-5)
  same_gradients(grads, torch_weights.gradients(model, module, network))


def test_bert_hidden_states_and_token_head(oracle):
  torch = oracle
  model, network, params, _, _ = torch_weights.make(torch, "bert", "token")
  ids, segments = tokens(network.arch.vocab, (9, 4))
  inputs, mask = torch.tensor(ids).long(), torch.tensor(segments)
  hidden = model.bert(inputs, attention_mask=mask).last_hidden_state.detach().numpy()
  batch = {"inputs": ids, "segments": segments}
  real = segments == 1
  ours = np.asarray(network.hidden(params, batch))
  np.testing.assert_allclose(ours[real], hidden[real], atol=1e-4)
  theirs = model(inputs, attention_mask=mask).logits.detach().numpy()
  logits = np.asarray(network.logits(params, batch))
  np.testing.assert_allclose(logits[real], theirs[real], atol=1e-4)


@pytest.mark.parametrize(
  ("family", "change"),
  [
    ("bert", {"eps": 1e-12}),
    ("bert", {"activation": "gelu_new"}),
  ],
)
def test_parity_notices_a_feature_that_is_off(oracle, family, change):
  torch = oracle
  model, network, params, _, _ = torch_weights.make(torch, family, "sequence")
  off = dataclasses.replace(network, arch=dataclasses.replace(network.arch, **change))
  ids, _ = tokens(network.arch.vocab, (40,))
  theirs = model(torch.tensor(ids).long()).logits.detach().numpy()
  difference = lambda n: np.abs(n.logits(params, {"inputs": ids}) - theirs).max()
  assert difference(network) < 1e-4 < difference(off)
