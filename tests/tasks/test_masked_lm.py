"""Masked language modelling: all is read once, and the layout changes nothing."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from jaxsft import tasks
from jaxsft.data import feed
from jaxsft.errors import JaxsftError
from jaxsft.tasks import masked_lm
from tests import tiny
from tests.tasks.masking import context, drawn, hidden, options, row

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
  example = masked_lm.encode(row("the [UNK] film zzz was"), context()).examples[0]
  assert example["weights"].tolist() == [0, 1, 0, 1, 0, 1, 0]


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


@pytest.mark.parametrize(
  ("text", "alone"),
  [
    ("中文", True),
    ("かな", True),
    ("ไทย", True),
    ("བོད", True),
    ("ㄅㄆ", True),
    ("한국", False),
  ],
)
def test_tokens_of_scripts_without_spaces_are_words(text, alone):
  """Those that metrics of texts count so, too; Korean puts spaces between words."""
  offsets = [(i, i + 1) for i in range(len(text))]
  words = masked_lm.words_of(text, offsets, [0] * len(text))
  assert words.tolist() == (list(range(len(text))) if alone else [0] * len(text))


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


# --- numbers -------------------------------------------------------------


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
