"""Masked language modelling beside torch's AutoModelForMaskedLM, and what becomes of heads."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from jaxsft import job, pretrained, train
from jaxsft import models as networks
from jaxsft.data import feed
from jaxsft.errors import JaxsftError
from jaxsft.tasks import masked_lm
from jaxsft.tuning import select
from tests import tiny
from tests.contract import build
from tests.tasks.masking import drawn, hidden, options

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  """(directory, pretrained.Model) of a tiny BertForMaskedLM."""
  path = tiny.checkpoint(tmp_path_factory.mktemp("masked"), "bert", kind="masked_lm")
  return path, pretrained.load(path)


@pytest.fixture(scope="module")
def theirs(model, oracle):
  return transformers.AutoModelForMaskedLM.from_pretrained(model[0]).eval()


def packed():
  return drawn([[1] * 12 + [2] * 9 + [0] * 3, [1] * 7 + [2] * 4 + [3] * 13])


def parts(batch):
  """(row, columns) of each segment."""
  for r, line in enumerate(np.asarray(batch["segments"])):
    for m in sorted(set(line.tolist()) - {0}):
      yield r, np.flatnonzero(line == m)


def ratio(pair):
  return pair[0] / pair[1]


def losses_of_torch(theirs, oracle, inputs, labels):
  """Summed cross-entropy of one text, by torch's own loss (ignored labels are -100)."""
  labels = oracle.tensor(labels).long()[None]
  mean = theirs(oracle.tensor(inputs).long()[None], labels=labels).loss
  return mean * (labels != -100).sum()


@pytest.mark.parametrize("weighting", ["token", "example"])
def test_the_loss_is_torch_s_on_the_same_masks(model, theirs, oracle, weighting):
  ours, batch = model[1], packed()
  settings = options(rate=0.3, weighting=weighting)
  network = networks.with_dropout(ours.network, 0.0)
  run = jax.jit(
    jax.value_and_grad(
      lambda params: ratio(masked_lm.loss(network, params, batch, settings, KEY)["loss"])
    )
  )
  value, gradient = run(ours.params)
  masked, inputs = hidden(batch, settings)
  total, weight = 0.0, 0
  for r, columns in parts(batch):
    labels = np.where(masked[r], np.asarray(batch["inputs"])[r], -100)[columns]
    one = losses_of_torch(theirs, oracle, inputs[r, columns], labels)
    count = int((labels != -100).sum())
    total = total + (one if weighting == "token" else one / count)
    weight += count if weighting == "token" else 1
  expected = total / weight
  theirs.zero_grad()
  expected.backward()
  assert float(value) == pytest.approx(float(expected.detach()), rel=1e-5)
  table = theirs.bert.embeddings.word_embeddings.weight.grad.numpy()  # tied: input and output
  np.testing.assert_allclose(gradient["embed"]["tokens"]["embedding"], table, atol=1e-5)
  bias = theirs.cls.predictions.bias.grad.numpy()
  np.testing.assert_allclose(gradient["lm_head"]["bias"], bias, atol=1e-5)
  assert np.abs(table).max() > 1e-2 < np.abs(bias).max()


def test_every_token_is_hidden_once_behind_the_mask(model, theirs, oracle):
  ours, batch = model[1], packed()
  settings = options(rate=0.3)  # 4 passes
  ids = np.full((2, 3), -1, np.int32)
  batch |= {"example_ids": jnp.asarray(ids)}
  found = jax.jit(lambda p: masked_lm.predict(ours.network, p, batch, settings))(ours.params)
  able, inputs = np.asarray(batch["weights"]) > 0, np.asarray(batch["inputs"])
  mask_id, places = settings.mask_id, {}
  for r, columns in parts(batch):
    nll, right, seen = 0.0, 0, np.zeros(len(columns), int)
    for k in range(4):
      out = able[r, columns] & (np.arange(len(columns)) % 4 == k)
      seen += out
      given = np.where(out, mask_id, inputs[r, columns])
      with oracle.no_grad():
        logits = theirs(oracle.tensor(given).long()[None]).logits[0]
      log_p = oracle.log_softmax(logits, -1).numpy()[out]
      gold = inputs[r, columns][out]
      nll -= log_p[np.arange(len(gold)), gold].sum()
      right += (log_p.argmax(-1) == gold).sum()
    assert seen.tolist() == able[r, columns].astype(int).tolist()
    m = places[r] = places.get(r, -1) + 1
    assert float(found["nll"][r, m]) == pytest.approx(nll, rel=1e-5)
    assert (int(found["tokens"][r, m]), int(found["right"][r, m])) == (seen.sum(), right)
  assert float(found["tokens"][0, 2]) == 0


def test_one_at_a_time_is_the_pseudo_perplexity_of_salazar(model, theirs, oracle):
  """Hiding single tokens, as the paper does: a text no longer than the number of passes."""
  text = "the film was good"
  said = model[1].predict([{"text": text}])[0]
  ids = np.array(model[1].tokenizer(text)["input_ids"])
  assert len(ids) <= math.ceil(1 / 0.15)
  nll = 0.0
  for at in range(1, len(ids) - 1):
    given = ids.copy()
    given[at] = model[1].tokenizer.mask_token_id
    with oracle.no_grad():
      logits = theirs(oracle.tensor(given)[None]).logits[0, at]
    nll -= float(oracle.log_softmax(logits, -1)[ids[at]])
  assert said["tokens"] == 4
  assert said["pseudo_perplexity"] == pytest.approx(math.exp(nll / 4), rel=1e-5)


class Words:
  """A network that sees single words; it remembers what it was asked."""

  def __init__(self):
    self.asked = []
    self.kernel = jax.random.normal(KEY, (61, 61))

  def hidden(self, params, batch, key=None):
    remember = lambda x: self.asked.append(np.asarray(x))
    jax.debug.callback(remember, batch["inputs"], ordered=True)
    return jax.nn.one_hot(batch["inputs"], 61)

  def to_vocabulary(self, params, x, key=None):
    return x, self.kernel, None, None


def test_words_of_a_pass_are_hidden_as_a_whole():
  """With whole words, the tokens of a word are all hidden in one pass: none tells another."""
  batch = packed() | {"example_ids": jnp.zeros((2, 3), jnp.int32)}
  batch["words"] = batch["positions"] // 2
  settings, network = options(rate=0.4, by_word=True), Words()
  jax.jit(lambda batch: masked_lm.predict(network, None, batch, settings))(batch)
  jax.effects_barrier()
  assert len(network.asked) == 3
  able, words = np.asarray(batch["weights"]) > 0, np.asarray(batch["words"])
  for k, inputs in enumerate(network.asked):
    expected = able & (words % 3 == k)
    assert ((inputs == settings.mask_id) == expected).all()


def test_smoothing_and_z_loss_train_but_do_not_measure():
  batch = packed()

  def value(key, **changes):
    settings = options(rate=0.3, **changes)
    run = lambda batch: ratio(masked_lm.loss(Words(), None, batch, settings, key)["loss"])
    return float(jax.jit(run)(batch))

  plain = value(KEY)
  assert value(None) == plain
  for change in ({"label_smoothing": 0.1}, {"z_loss": 1e-2}):
    assert abs(value(KEY, **change) - plain) > 1e-3 and value(None, **change) == plain


def test_a_missing_head_is_drawn_only_where_it_is_asked_for(tmp_path):
  base = pretrained.open_pretrained(tiny.checkpoint(tmp_path / "base", "bert"))
  network = base.network("masked_lm")
  with pytest.raises(JaxsftError, match=r"no tensor for .*lm_head/bias.*model.new_head=True"):
    pretrained.load_params(base, network)
  params, new = pretrained.load_params(base, network, new_head=True)
  names = {"lm_head/bias", "dense/kernel", "dense/bias", "dense_norm/scale", "dense_norm/bias"}
  assert set(new) == names and params["dense"]["kernel"].shape == (24, 24)


def test_a_trained_head_is_kept_and_its_model_is_a_base_for_others(model, tmp_path):
  base = pretrained.open_pretrained(model[0])
  assert base.task == "masked_lm" and base.kind == "masked_lm"
  made = tiny.config("bert", "masked_lm", model[0], tmp_path, model__new_head=False)
  assert not job.new_head(made, base)
  assert job.new_head(
    dataclasses.replace(made, model=dataclasses.replace(made.model, new_head=True)), base
  )
  network = base.network("classify", ("a", "b"))
  params, new = pretrained.load_params(base, network, new_head=True)
  assert "head/kernel" in new
  np.testing.assert_array_equal(
    params["layers"]["attn"]["q"]["kernel"], model[1].params["layers"]["attn"]["q"]["kernel"]
  )


def test_the_head_alone_can_train(model):
  shapes = model[1].network.shapes()
  chosen = select.choose(shapes, "head", stacks={})
  assert chosen.paths == {
    "dense/bias", "dense/kernel", "dense_norm/bias", "dense_norm/scale", "lm_head/bias"
  }  # fmt: skip


def test_every_update_hides_something_else(model, tmp_path, monkeypatch):
  """Two epochs of the same rows: the seeds of each example differ from update to update."""
  monkeypatch.setenv("JAXSFT_CACHE", str(tmp_path / "cache"))
  rows = tiny.sentences(tmp_path / "rows.jsonl", 8)
  settings = {"model__new_head": False, "data__split": 0.0, "steps": 4, "accumulate": 2}
  made = build.job(
    tiny.config("bert", "masked_lm", model[0], rows, **settings), tiny.devices(1)
  )
  seen = [np.asarray(batch["seeds"]) for batch in train.batches(made, 0)]
  used = [np.sort(s[s != feed.seeds(np.array([-1]), 0, i)[0]]) for i, s in enumerate(seen)]
  assert [len(u) for u in used] == [8] * 4
  assert len(set(np.concatenate(used).tolist())) == 32
  expected = [np.sort(feed.seeds(np.arange(8, dtype=np.int32), 0, i)) for i in range(4)]
  np.testing.assert_array_equal(used, expected)
