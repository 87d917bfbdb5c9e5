"""Masked language modelling: all is read once, the layout changes nothing, torch agrees."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from jaxsft import config, job, pretrained, tasks, train
from jaxsft import models as networks
from jaxsft.data import feed
from jaxsft.errors import JaxsftError
from jaxsft.tasks import masked_lm
from jaxsft.tuning import select
from tests import tiny
from tests.contract import build

KEY = jax.random.key(0)


class Row(NamedTuple):
  id: str
  where: str
  fields: dict[str, Any]


def row(text):
  return Row("a", "rows.jsonl:7", {"text": text})


def context(tokenizer=None, max_length=20, **settings):
  return tasks.Context(tokenizer or tiny.word_tokenizer(), max_length, **settings)


def options(place=None, **settings):
  """masked_lm.Options of a context and settings of the loss or of Options themselves."""
  loss = {k: v for k, v in settings.items() if k in ("weighting", "label_smoothing", "z_loss")}
  found = masked_lm.options(config.Loss(**loss), place or context())
  rest = {k: v for k, v in settings.items() if k not in loss}
  return dataclasses.replace(found, **rest)


# --- windows ---------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 17, 18, 19, 36, 100])
def test_windows_hold_every_token_once_and_in_order(length):
  place = context(max_length=20)
  words = [tiny.FILLERS[i % len(tiny.FILLERS)] for i in range(length)]
  encoded = masked_lm.encode(row(" ".join(words)), place)
  cls, sep = place.tokenizer.cls_token_id, place.tokenizer.sep_token_id
  inside = []
  for example in encoded.examples:
    ids = example["inputs"].tolist()
    assert ids[0] == cls and ids[-1] == sep and len(ids) <= 20
    assert example["weights"].tolist() == [0] + [1] * (len(ids) - 2) + [0]
    inside += ids[1:-1]
  assert inside == place.tokenizer(" ".join(words), add_special_tokens=False)["input_ids"]
  assert len(encoded.examples) == math.ceil(length / 18) and encoded.note is None
  assert all(len(e["inputs"]) == 20 for e in encoded.examples[:-1])


def test_special_and_unknown_tokens_are_never_hidden():
  example = masked_lm.encode(row("the [SEP] film zzz [MASK] was"), context()).examples[0]
  assert example["weights"].tolist() == [0, 1, 0, 1, 0, 0, 1, 0]


def test_what_has_nothing_to_hide_is_counted():
  encoded = masked_lm.encode(row("zzz yyy"), context())
  assert encoded.examples == () and encoded.note == "dropped: no token to hide"
  text = " ".join(["the"] * 18 + ["zzz"] * 18 + ["was"])
  encoded = masked_lm.encode(row(text), context())
  assert encoded.note == "cut by windows that have no token to hide"
  assert [len(e["inputs"]) for e in encoded.examples] == [20, 3]


def test_settings_that_leave_no_room_or_no_mask():
  with pytest.raises(
    JaxsftError, match=r"rows.jsonl:7: .*max_length is 2, .* 2 special tokens"
  ):
    masked_lm.encode(row("the film"), context(max_length=2))
  with pytest.raises(JaxsftError, match="no mask token"):
    masked_lm.encode(row("the film"), context(tiny.letter_tokenizer()))


def test_a_long_text_is_shown_in_part():
  encoded = masked_lm.encode(row("the " * 400), context())
  assert len(encoded.text) == 301 and encoded.spans == [(0, 301)]


# --- words -----------------------------------------------------------------------------


def wordpiece():
  pieces = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "un",
    "##happi",
    "##ness",
    "a",
    "##b",
    ".",
  ]
  backend = tokenizers.Tokenizer(
    models.WordPiece({p: i for i, p in enumerate([*pieces, "中", "文"])}, unk_token="[UNK]")
  )
  backend.normalizer = normalizers.BertNormalizer()
  backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  return backend


def byte_bpe():
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he")]
  vocab = {p: i for i, p in enumerate([*alphabet, *(a + b for a, b in merges)])}
  backend = tokenizers.Tokenizer(models.BPE(vocab, merges))
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = decoders.ByteLevel()
  backend.post_processor = processors.ByteLevel(trim_offsets=False)
  return backend


def unigram(split):
  """Sentencepiece's kind; without `split` it takes a text as one word, as some do."""
  pieces = ["▁", "▁un", "happi", "ness", "▁the", "中", "文", "e", "t", "h", "x", "。"]
  backend = tokenizers.Tokenizer(
    models.Unigram([(p, -float(i)) for i, p in enumerate(pieces)], 0)
  )
  steps = [pre_tokenizers.Metaspace(prepend_scheme="always", split=split)]
  backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
  return backend


WORDS = [
  (wordpiece, "un unhappiness, a", [["un"], ["un", "##happi", "##ness"], ["[UNK]"], ["a"]]),
  (wordpiece, "ab中文 a.", [["a", "##b"], ["中"], ["文"], ["a"], ["."]]),
  (byte_bpe, "xt the  he", [["x", "t"], ["Ġthe"], ["Ġ"], ["Ġ", "he"]]),
  (byte_bpe, "中t", [["ä", "¸", "Ń", "t"]]),
  (
    lambda: unigram(True),
    "unhappiness the x",
    [["▁un", "happi", "ness"], ["▁the"], ["▁", "x"]],
  ),
  (
    lambda: unigram(False),
    "unhappiness the x",
    [["▁un", "happi", "ness"], ["▁the"], ["▁", "x"]],
  ),
  (lambda: unigram(False), "the中文。the", [["▁the"], ["中"], ["文", "。", "t", "h", "e"]]),
]


@pytest.mark.parametrize(("make", "text", "expected"), WORDS)
def test_words_of_tokenizers(make, text, expected):
  encoding = make().encode(text)
  words = masked_lm.words_of(text, encoding.offsets, encoding.word_ids)
  found = [
    [t for t, w in zip(encoding.tokens, words, strict=True) if w == i]
    for i in range(words[-1] + 1)
  ]
  assert found == expected
  assert (np.diff(words) >= 0).all() and words.dtype == np.int32


def test_words_are_stored_with_their_windows():
  backend = wordpiece()
  backend.post_processor = processors.TemplateProcessing(
    single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
  )
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend,
    **{f"{k}_token": f"[{k.upper()}]" for k in ("pad", "unk", "cls", "sep", "mask")},
  )
  place = context(tokenizer, max_length=6, whole_words=True)
  first, second = masked_lm.encode(row("a unhappiness ab"), place).examples
  assert first["words"].tolist() == [0, 1, 2, 2, 2, 3]
  assert second["words"].tolist() == [0, 1, 1, 2]
  assert "words" not in masked_lm.encode(row("a"), context(tokenizer)).examples[0]


# --- what is hidden ----------------------------------------------------------------------


def drawn(segments, words=False, vocab=60, seed=0, **weights):
  """A batch of random tokens with segments [R,T] (0: padding) and seeds of their own."""
  rng, segments = np.random.default_rng(seed), np.asarray(segments, np.int32)
  positions = np.zeros_like(segments)
  for r, line in enumerate(segments):
    for m in set(line.tolist()) - {0}:
      positions[r, line == m] = np.arange((line == m).sum())
  able = (segments > 0) & (positions > 0)  # the first is special
  batch = {
    "inputs": rng.integers(4, vocab, segments.shape).astype(np.int32),
    "segments": segments,
    "positions": positions,
    "weights": able.astype(np.float32),
    "seeds": rng.integers(0, 2**32, (len(segments), segments.max()), np.uint32),
  }
  if words:
    batch["words"] = positions // 3
  return {k: jnp.asarray(v) for k, v in batch.items()}


def hidden(batch, settings):
  masked, inputs = jax.jit(lambda b: masked_lm.hide(b, settings))(batch)
  return np.asarray(masked), np.asarray(inputs)


def test_shares_of_what_is_hidden_and_of_what_stands_for_it():
  batch = drawn(np.ones((40, 500)))
  settings = options(rate=0.2)
  masked, inputs = hidden(batch, settings)
  before = np.asarray(batch["inputs"])
  able = np.asarray(batch["weights"]) > 0
  count, n = masked.sum(), able.sum()
  near = lambda found, share, total: abs(found - share * total) < 5 * math.sqrt(share * total)
  assert near(count, 0.2, n) and not masked[~able].any()
  assert (inputs == before)[~masked].all()
  there = inputs[masked]
  mask_id = tiny.word_tokenizer().mask_token_id
  assert near((there == mask_id).sum(), 0.8, count)
  other = there[(there != mask_id) & (there != before[masked])]
  assert near(len(other), 0.1 * 55 / 56, count)
  special = set(tiny.word_tokenizer().all_special_ids)
  assert len(special) == 5 and not special & set(other.tolist())
  assert set(other.tolist()) == set(range(61)) - special  # each of them somewhere
  columns = masked.mean(0)[1:]  # no position is preferred
  assert columns.max() < 0.5 and columns.min() > 0.02


def test_other_tokens_when_many_are_special():
  """Both ways to leave out the special ones, beside NumPy's."""
  draw = np.random.default_rng(0).integers(0, 2**32, (1, 4000), np.uint32)
  for special in ((0, 1, 5, 59), tuple(range(0, 60, 2)), tuple(range(3, 50))):
    settings = options(special=special, size=60)
    usable = np.setdiff1d(np.arange(60), special)
    found = np.asarray(masked_lm._ordinary(jnp.asarray(draw), settings))
    np.testing.assert_array_equal(found, usable[draw % len(usable)])


def test_every_segment_has_something_to_learn():
  segments = np.repeat(np.arange(1, 101), 3)[None]
  masked, _ = hidden(drawn(segments), options(rate=1e-6))
  per = [masked[0, segments[0] == m].sum() for m in range(1, 101)]
  assert per == [1] * 100


def test_words_are_hidden_as_a_whole():
  batch = drawn(np.ones((4, 90)), words=True)
  masked, _ = hidden(batch, options(rate=0.3, by_word=True))
  able = np.asarray(batch["weights"]) > 0
  words = np.asarray(batch["words"])
  shares = [masked[r, able[r] & (words[r] == w)].mean() for r in range(4) for w in range(30)]
  assert set(shares) == {0.0, 1.0} and 0.15 < np.mean(shares) < 0.45
  by_token, _ = hidden(batch, options(rate=0.3))
  assert (by_token != masked).any()


def test_what_is_hidden_goes_by_example_and_place_alone():
  """Three texts in one row, and each in a row of its own, elsewhere and in another order."""
  lengths = (7, 12, 5)
  packed = drawn(np.repeat([1, 2, 3, 0], [*lengths, 4])[None])
  for words in (False, True):
    if words:
      packed = packed | {"words": packed["positions"] // 2}
    settings = options(rate=0.3, by_word=words)
    masked, inputs = hidden(packed, settings)
    for m, length in enumerate(lengths, 1):
      mine = np.asarray(packed["segments"])[0] == m
      alone = {k: np.zeros((2, 15), v.dtype) for k, v in packed.items() if k != "seeds"}
      for name in alone:
        alone[name][1, :length] = np.asarray(packed[name])[0, mine]
      alone["segments"][1, :length] = 1
      alone["seeds"] = np.array([[99], [int(packed["seeds"][0, m - 1])]], np.uint32)
      ours, theirs = hidden({k: jnp.asarray(v) for k, v in alone.items()}, settings)
      assert (ours[1, :length] == masked[0, mine]).all()
      assert (theirs[1, :length] == inputs[0, mine]).all()


def test_seeds_differ_by_update_example_and_seed():
  ids = np.arange(-1, 999, dtype=np.int32).reshape(10, 100)
  found = feed.seeds(ids, 0, 0)
  assert found.dtype == np.uint32 and found.shape == ids.shape
  others = [feed.seeds(ids, 1, 0), feed.seeds(ids, 0, 1), feed.seeds(ids, 0, 2)]
  every = np.stack([found, *others]).ravel()
  assert len(set(every.tolist())) > 0.999 * every.size  # chance: some 0.002 pairs
  assert abs(np.mean(every / 2**32) - 0.5) < 0.03
  assert (feed.seeds(ids[3:4, 7:9], 0, 0) == found[3:4, 7:9]).all()  # of the ids alone


# --- beside torch ------------------------------------------------------------------------


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


def test_words_of_a_pass_are_hidden_as_a_whole():
  """With whole words, the tokens of a word are all hidden in one pass: none tells another."""
  batch = packed() | {"example_ids": jnp.zeros((2, 3), jnp.int32)}
  batch["words"] = batch["positions"] // 2
  asked = []

  class Network:
    def hidden(self, params, batch, key=None):
      jax.debug.callback(lambda x: asked.append(np.asarray(x)), batch["inputs"], ordered=True)
      return jax.nn.one_hot(batch["inputs"], 61)

    def to_vocabulary(self, params, x, key=None):
      return x, jnp.eye(61), None, None

  settings = options(rate=0.4, by_word=True)
  masked_lm.predict(Network(), None, batch, settings)
  jax.effects_barrier()
  assert len(asked) == 3
  able, words = np.asarray(batch["weights"]) > 0, np.asarray(batch["words"])
  for k, inputs in enumerate(asked):
    expected = able & (words % 3 == k)
    assert ((inputs == settings.mask_id) == expected).all()


def test_smoothing_and_z_loss_train_but_do_not_measure(model):
  network, batch = networks.with_dropout(model[1].network, 0.0), packed()
  value = lambda key, **s: float(
    ratio(masked_lm.loss(network, model[1].params, batch, options(rate=0.3, **s), key)["loss"])
  )
  plain = value(KEY)
  assert value(None) == plain
  for change in ({"label_smoothing": 0.1}, {"z_loss": 1e-2}):
    assert abs(value(KEY, **change) - plain) > 1e-3 and value(None, **change) == plain


# --- numbers, heads, exports -------------------------------------------------------------


def found_of(*windows):
  """tasks.Found of one text with windows of (nll, tokens, right)."""
  names = ("nll", "tokens", "right")
  return tasks.Found(None, [], [dict(zip(names, w, strict=True)) for w in windows])


def test_numbers_are_means_over_all_tokens():
  found = [found_of((6.0, 3.0, 1.0), (1.0, 1.0, 1.0)), found_of((1.0, 4.0, 0.0))]
  metrics = masked_lm.metrics(found, None)
  assert metrics == pytest.approx(
    {"loss": 1.0, "pseudo_perplexity": math.e, "token_accuracy": 0.25}
  )
  assert set(metrics) == set(masked_lm.METRICS)
  assert masked_lm.row_loss(found[0], None) == 7 / 4
  for one in masked_lm.measured(found, None):
    assert one.score == pytest.approx(metrics[one.name])
    assert masked_lm.METRICS[one.name] == one.direction
  assert masked_lm.decode(found[0], None) == {
    "pseudo_perplexity": pytest.approx(math.exp(7 / 4)),
    "tokens": 4,
  }
  assert math.isfinite(
    masked_lm.metrics([found_of((1e5, 1.0, 0.0))], None)["pseudo_perplexity"]
  )


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
  chosen = select.trainable_paths(shapes, "head", ())
  assert chosen == {
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
