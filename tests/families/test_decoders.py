"""Every decoder family against torch transformers, at fp32 and the highest precision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft import families
from jaxsft.models import heads
from tests.families import compare, decoder_configs, record, torch_decoders

UNSEEN = ("['k']['bias']",)  # no softmax sees those
CASES = list(decoder_configs.CONFIGS)
FIRST = [case for case in CASES if "-" not in case]  # one a family
LENGTH = torch_decoders.LENGTH


@pytest.fixture(autouse=True)
def highest():
  with jax.default_matmul_precision("highest"):
    yield


def module_of(case):
  return families.FAMILIES[decoder_configs.family_of(case)]


def far(case):
  return decoder_configs.FAR.get(case, 8200)


def nll(logits, rows):
  """Sum over the real tokens of the loss of random targets."""
  log_p = jax.nn.log_softmax(logits)
  picked = jnp.take_along_axis(log_p, rows["targets"][..., None], -1)[..., 0]
  return -jnp.sum(picked * (rows["segments"] != 0))


@functools.cache
def ours(case):
  """(torch model, network, params, rows, hidden, logits, gradients) of the language model."""
  import torch

  with jax.default_matmul_precision("highest"):
    model, network = torch_decoders.make(torch, case)
    params = torch_decoders.read(model, network, module_of(case))
    rows = torch_decoders.batch(network.arch.vocab, far(case))

    def loss(params):
      hidden = network.hidden(params, rows)
      logits = network.vocabulary_logits(params, hidden)
      return nll(logits, rows), (hidden, logits)

    grads, (hidden, logits) = jax.jit(jax.grad(loss, has_aux=True))(params)
  return model, network, params, rows, np.asarray(hidden), np.asarray(logits), grads


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients(oracle, case):
  torch = oracle
  _, network, _, rows, _, logits, grads = ours(case)
  model, _ = torch_decoders.make(torch, case)  # whose weights become its gradients
  worst = 0.0
  for row, columns, real, out in torch_decoders.run(torch, model, rows):
    theirs = out.logits[0]
    found = np.abs(logits[row, columns] - theirs.detach().numpy())[real].max()
    worst = max(worst, float(found))
    loss = torch.nn.functional.cross_entropy(
      theirs, torch.tensor(rows["targets"][row, columns]).long(), reduction="none"
    )
    (loss * torch.tensor(real)).sum().backward()
  assert worst < 1e-4
  theirs = torch_decoders.gradients(torch, model, network, module_of(case))
  apart = compare.same_gradients(grads, theirs, UNSEEN)
  record.parity(decoder_configs.family_of(case), "tiny", logits=worst, gradients=apart)


@pytest.mark.parametrize("case", CASES)
def test_an_export_is_read_by_torch(oracle, case, tmp_path):
  torch = oracle
  import transformers

  model, network, params, rows, *_ = ours(case)
  module = module_of(case)
  out = torch_decoders.write(tmp_path, case, network, params)
  assert module.architecture(out) == network.arch
  theirs, info = getattr(transformers, module.CLASSES["lm"]).from_pretrained(
    tmp_path, attn_implementation="eager", output_loading_info=True
  )
  assert not info["missing_keys"] and not info["unexpected_keys"], info
  pairs = zip(
    torch_decoders.run(torch, model, rows),
    torch_decoders.run(torch, theirs.eval(), rows),
    strict=True,
  )
  for (*_, mine), (*_, read) in pairs:
    np.testing.assert_allclose(mine.logits.detach(), read.logits.detach(), atol=1e-5)


@pytest.mark.parametrize("kind", ["sequence", "token", "span"])
@pytest.mark.parametrize("case", FIRST)
def test_heads_are_those_of_torch(oracle, case, kind, tmp_path):
  """The head of the family's own class; where there is none it comes back from its file."""
  torch = oracle
  base, _, lm_params, rows, hidden, *_ = ours(case)
  module = module_of(case)
  model, network = torch_decoders.make(torch, case, kind)
  trunk = lambda m: getattr(m, m.base_model_prefix, m)
  trunk(model).load_state_dict(trunk(base).state_dict())
  if kind not in module.CLASSES:
    own = heads.init(
      jax.random.key(0), network.head, network.arch.out_width, 1, network.arch.tied, 0.3
    )
    params = {k: v for k, v in lm_params.items() if k != "lm_head"} | own
    torch_decoders.write(tmp_path, case, network, params)
    again = torch_decoders.load(tmp_path, network, module)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    return
  params = torch_decoders.read(model, network, module)
  for row, columns, real, out in torch_decoders.run(torch, model, rows):
    if kind == "span":
      theirs = torch.stack([out.start_logits, out.end_logits], -1)[0].detach().numpy()
    else:
      theirs = out.logits[0].detach().numpy()
    x = hidden[row, columns][real]
    x = x[-1:] if kind == "sequence" else x
    theirs = theirs[None] if kind == "sequence" else theirs[real]
    found = heads.class_logits(params, jnp.asarray(x[None]), network.head)[0]
    np.testing.assert_allclose(found, theirs, atol=1e-4)
  torch_decoders.write(tmp_path, case, network, params)
  again, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
  assert not info["missing_keys"] and not info["unexpected_keys"], info
  state = model.state_dict()
  assert all(torch.equal(state[name], tensor) for name, tensor in again.state_dict().items())


@pytest.mark.parametrize("case", FIRST)
def test_decoding_is_the_full_forward(oracle, case):
  """Ragged prompts at once, then token by token beyond windows and rope lengths.

  A prompt of longrope is as long as its text will be, or stays short.
  """
  _, network, params, rows, hidden, *_ = ours(case)
  first = 13 if case == "phi3" else 3
  order, lengths = [0, 1], np.array([LENGTH, 11])
  inputs = rows["inputs"][order]
  step = jax.jit(lambda p, x, cache, s: network.decode(p, x, cache, segments=s))
  cache = network.empty_cache(params, 2, LENGTH + 2)
  prompt = (np.arange(first) < np.array([[first], [2]])).astype(np.int32)
  x, cache = step(params, inputs[:, :first], cache, prompt)
  live, seen = prompt[:, :1], np.array([first - 1, 1])
  for _ in range(LENGTH):
    held = np.asarray(cache["lengths"])
    now = np.asarray(x)[[0, 1], seen]
    going = live[:, 0] > 0
    np.testing.assert_allclose(now[going], hidden[order, held - 1][going], atol=1e-4)
    live = (held < lengths).astype(np.int32)[:, None]
    place = np.minimum(held, LENGTH - 1)[:, None]
    x, cache = step(params, np.take_along_axis(inputs, place, 1), cache, live)
    seen = np.array([0, 0])
  np.testing.assert_array_equal(cache["lengths"], lengths)


@pytest.mark.parametrize("case", ["mixtral", "qwen3_moe"])
def test_the_balance_of_experts_is_that_of_torch(oracle, case):
  """Of rows with padding on either side, as transformers adds it to the loss."""
  torch = oracle
  model, network, params, rows, *_ = ours(case)
  three = {name: value[:3] for name, value in rows.items()}
  out = model(
    torch.tensor(three["inputs"]).long(),
    attention_mask=torch.tensor(three["segments"]).long(),
    position_ids=torch.tensor(three["positions"]).long(),
    output_router_logits=True,
  )
  _, found = jax.jit(network.hidden_and_auxiliary)(params, three)
  coefficient = network.arch.experts.auxiliary
  assert coefficient == model.router_aux_loss_coef > 0
  np.testing.assert_allclose(found, coefficient * out.aux_loss.item(), rtol=1e-4)
