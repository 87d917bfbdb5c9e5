"""Every encoder-decoder family against torch transformers, at fp32 and highest precision."""

import dataclasses
import functools
import json
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft import families, models
from jaxsft.generation import frames
from tests.families import compare, record, torch_encoder_decoders, torch_same
from tests.families import encoder_decoder_configs as configs
from tests.generation import continued

UNSEEN = ("['k']['bias']", "lm_head']['bias")  # softmax; a buffer
CASES = list(configs.CONFIGS)
QUICK = {"xla_backend_optimization_level": 0}  # compiling is most of the time


@pytest.fixture(autouse=True)
def highest():
  with jax.default_matmul_precision("highest"):
    yield


def module_of(case):
  return families.FAMILIES[configs.family_of(case)]


@functools.cache
def directory(case):
  """A directory with the case's random language model."""
  import torch

  held = tempfile.TemporaryDirectory()
  torch_encoder_decoders.saved(torch, case, held.name)
  kept.append(held)
  return pathlib.Path(held.name)


kept = []  # directories, until the tests end


FIRST = torch_encoder_decoders.FIRST


def nll(logits, rows):
  """Sum over the real tokens of the loss of random targets."""
  log_p = jax.nn.log_softmax(logits)
  picked = jnp.take_along_axis(log_p, rows["targets"][..., None], -1)[..., 0]
  return -jnp.sum(picked * (rows["segments"] != 0))


@functools.cache
def ours(case):
  """(network, params, rows, hidden, logits, gradients) of the language model."""
  with jax.default_matmul_precision("highest"):
    network, params = torch_encoder_decoders.read(directory(case), module_of(case))
    rows = torch_encoder_decoders.rows(network.arch)

    def loss(params):
      hidden = network.hidden(params, rows)
      logits = network.vocabulary_logits(params, hidden)
      return nll(logits, rows), (hidden, logits)

    run = jax.jit(jax.grad(loss, has_aux=True)).lower(params).compile(QUICK)
    grads, (hidden, logits) = run(params)
  return network, params, rows, np.asarray(hidden), np.asarray(logits), grads


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients(oracle, case):
  torch = oracle
  _, _, rows, _, logits, grads = ours(case)
  model, *_ = torch_encoder_decoders.opened(directory(case), module_of(case))
  worst, theirs = 0.0, []
  for row, real, out in torch_encoder_decoders.run(torch, model, rows):
    worst = max(worst, float(np.abs(logits[row, real] - out.detach().numpy()).max()))
    targets = torch.tensor(rows["targets"][row, real]).long()
    torch.nn.functional.cross_entropy(out, targets, reduction="sum").backward()
    theirs.append(out)
  assert np.abs(logits).max() < 200 and worst < 1e-4, worst
  theirs = torch_encoder_decoders.gradients(torch, model, module_of(case))
  difference = compare.same_gradients(grads, theirs, UNSEEN)
  print(f"{case}: logits {worst:.1e}, gradients {difference:.1e}")
  record.parity(configs.family_of(case), "tiny", logits=worst, gradients=difference)


@pytest.mark.parametrize("case", CASES)
def test_an_export_is_read_by_torch(oracle, case, tmp_path):
  torch = oracle
  network, params, rows, *_ = ours(case)
  module = module_of(case)
  out = torch_encoder_decoders.write(tmp_path, case, network, params)
  assert module.architecture(out) == network.arch
  mine, *_ = torch_encoder_decoders.opened(directory(case), module)
  theirs, *_ = torch_encoder_decoders.opened(tmp_path, module)
  torch_same.same_weights(torch, mine, theirs)
  run = torch_encoder_decoders.run
  with torch.no_grad():
    for (*_, a), (*_, b) in zip(run(torch, mine, rows), run(torch, theirs, rows), strict=True):
      torch_same.same_outputs(a, b)


SOURCES = [[5, 9, 4, 30, 8, 1], [7, 1], [44, 12, 3, 29, 51, 6, 33, 18, 20, 2, 1]]


def theirs_generated(torch, model, limit, **settings):
  """New token ids of each source by torch, with the token that ends them."""
  longest = max(map(len, SOURCES))
  ids = torch.tensor(
    [row + [model.config.pad_token_id] * (longest - len(row)) for row in SOURCES]
  )
  mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in SOURCES])
  rows = model.generate(
    ids, attention_mask=mask, max_new_tokens=limit, num_beams=1, do_sample=False, **settings
  )
  return [row[1:].tolist() for row in rows]


@pytest.mark.parametrize("case", CASES)
def test_greedy_generation_is_that_of_torch(oracle, case):
  """Token by token, from the cache; also between a forced first, a forced last token and
  words that are never chosen."""
  model, network, params = torch_encoder_decoders.opened(directory(case), module_of(case))
  start, stop = model.config.decoder_start_token_id, model.config.eos_token_id
  # Without a penalty a random model says one word.
  plain = {"decoder_start_token_id": start, "eos_token_id": stop, "repetition_penalty": 3.0}
  model.generation_config.update(**plain, forced_eos_token_id=None)
  framed = {"forced_bos_token_id": 7, "forced_eos_token_id": stop}
  settings = {"max_new_tokens": 9, "stop_ids": [stop], "repetition_penalty": 3.0}
  seen = set()
  for frame, more in (
    (frames.Frame(start), {}),
    (frames.Frame(start, 7, (stop,)), framed),
  ):
    if seen:
      frame = dataclasses.replace(frame, banned=tuple(seen))
      more = more | {"bad_words_ids": [[i] for i in seen]}
    expected = theirs_generated(oracle, model, 9, **more)
    expected = [row[: row.index(stop)] if stop in row else row for row in expected]
    found = continued.best_ids(network, params, SOURCES, frame=frame, **settings)
    assert found == expected
    seen |= {token for row in expected for token in row} - {7}
  assert len(seen) > 8


@pytest.mark.parametrize("kind", ["sequence", "token", "span"])
@pytest.mark.parametrize("case", [case for case in CASES if case != "marian-separate"])
def test_heads_are_those_of_torch(oracle, case, kind, tmp_path):
  """Those of the family's own class; where there is none they come back from their file."""
  torch, module = oracle, module_of(case)
  if kind not in module.CLASSES:
    arch = module.architecture(json.loads(configs.config_of(case).to_json_string()))
    network = models.Network(arch, families.head_of(module, arch, kind, 3))
    params = network.init(jax.random.key(0))
    torch_encoder_decoders.write(tmp_path, case, network, params)
    again = torch_encoder_decoders.read(tmp_path, module, kind)[1]
    jax.tree.map(np.testing.assert_array_equal, again, params)
    return
  torch_encoder_decoders.saved(torch, case, tmp_path / "theirs", kind)
  model, network, params = torch_encoder_decoders.opened(tmp_path / "theirs", module, kind)
  rng, segments = np.random.default_rng(0), (np.arange(9) < [[9], [6]]).astype(np.int32)
  ids = rng.integers(FIRST, network.arch.vocab, (2, 9)).astype(np.int32)
  ids[0, 8] = ids[1, 5] = model.config.eos_token_id
  ids = np.where(segments, ids, model.config.pad_token_id)
  found = np.asarray(jax.jit(network.logits)(params, {"inputs": ids, "segments": segments}))

  def theirs(model):
    with torch.no_grad():
      out = model(torch.tensor(ids).long(), attention_mask=torch.tensor(segments).long())
    if kind == "sequence":
      return out.logits[:, None].numpy()
    return torch.stack([out.start_logits, out.end_logits], -1).numpy()

  expected = theirs(model)
  real = np.s_[:] if kind == "sequence" else segments == 1
  np.testing.assert_allclose(found[real], expected[real], atol=1e-4)
  assert np.abs(expected).max() > 0.05
  torch_encoder_decoders.write(tmp_path, case, network, params)
  again, *_ = torch_encoder_decoders.opened(tmp_path, module, kind)
  torch_same.same_weights(torch, model, again)
  torch_same.same_outputs(expected, theirs(again))
