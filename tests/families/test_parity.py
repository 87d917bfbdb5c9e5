"""Logits and gradients against torch transformers, fp32 at the highest matmul precision."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import torch_weights

LLAMA_CASES = {
  "tied": {},
  "untied": {"tie_word_embeddings": False},
  "biases": {"attention_bias": True, "mlp_bias": True},
  "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}},
  "dynamic": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 4.0}},
  "llama3": {"rope_parameters": torch_weights.LLAMA3},
}


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


@pytest.mark.parametrize("case", LLAMA_CASES)
@pytest.mark.parametrize("lengths", [(8, 8), (5, 13)], ids=["unpadded", "padded"])
def test_llama_logits_and_gradients(oracle, case, lengths):
  torch = oracle
  changes = LLAMA_CASES[case]
  model, network, params, module, _ = torch_weights.make(torch, "llama", "lm", **changes)
  ids, segments = tokens(network.arch.vocab, lengths)
  targets = np.roll(ids, -1, 1)
  weights = segments * (np.arange(ids.shape[1]) < np.array(lengths)[:, None] - 1)
  theirs = model(torch.tensor(ids).long(), attention_mask=torch.tensor(segments)).logits
  nll = torch.nn.functional.cross_entropy(
    theirs.flatten(0, 1), torch.tensor(targets).long().flatten(), reduction="none"
  )
  (nll * torch.tensor(weights).flatten()).sum().backward()
  batch = {"inputs": ids, "segments": segments}

  def loss(params):
    log_p = jax.nn.log_softmax(network.logits(params, batch))
    picked = jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0]
    return -jnp.sum(picked * weights)

  logits, real = np.asarray(network.logits(params, batch)), segments == 1
  np.testing.assert_allclose(logits[real], theirs.detach().numpy()[real], atol=1e-4)
  grads = jax.grad(loss)(params)
  same_gradients(grads, torch_weights.gradients(model, module, network))


@pytest.mark.parametrize("case", ["tied", "linear", "llama3"])
@pytest.mark.parametrize("start", [0, 100, 4000, 8200])
def test_llama_at_far_positions(oracle, case, start):
  torch = oracle
  changes = LLAMA_CASES[case]
  model, network, params, _, _ = torch_weights.make(torch, "llama", "lm", **changes)
  ids, _ = tokens(network.arch.vocab, (12,))
  # Distances as far as the positions: the first token stands at 0.
  positions = np.concatenate([[0], np.arange(start + 1, start + 12)])[None]
  inputs, places = torch.tensor(ids).long(), torch.tensor(positions)
  mask = torch.ones(1, 1, 12, 12).tril().log()
  out = model(inputs, position_ids=places, attention_mask=mask)
  batch = {"inputs": ids, "positions": positions.astype(np.int32)}
  logits = network.logits(params, batch)
  np.testing.assert_allclose(logits, out.logits.detach(), atol=1e-4)


def test_llama_sequence_head(oracle):
  torch = oracle
  model, network, params, _, _ = torch_weights.make(torch, "llama", "sequence")
  ids, segments = tokens(network.arch.vocab, (9, 4))
  out = model(torch.tensor(ids).long(), attention_mask=torch.tensor(segments))
  logits = network.logits(params, {"inputs": ids, "segments": segments})[:, 0]
  np.testing.assert_allclose(logits, out.logits.detach(), atol=1e-4)


@pytest.mark.parametrize(
  ("family", "change"),
  [
    ("llama", {"eps": 1e-5}),
    ("llama", {"rope": "default"}),
    ("llama", {"activation": "relu"}),
    ("bert", {"eps": 1e-12}),
    ("bert", {"activation": "gelu_new"}),
  ],
)
def test_parity_notices_a_feature_that_is_off(oracle, family, change):
  torch = oracle
  changes = {"rope_parameters": torch_weights.LLAMA3} if family == "llama" else {}
  kind = {"llama": "lm", "bert": "sequence"}[family]
  model, network, params, _, _ = torch_weights.make(torch, family, kind, **changes)
  if change.get("rope"):
    change = {"rope": dataclasses.replace(network.arch.rope, kind="default")}
  off = dataclasses.replace(network, arch=dataclasses.replace(network.arch, **change))
  ids, _ = tokens(network.arch.vocab, (40,))
  theirs = model(torch.tensor(ids).long()).logits.detach().numpy()
  difference = lambda n: np.abs(n.logits(params, {"inputs": ids}) - theirs).max()
  assert difference(network) < 1e-4 < difference(off)
