"""A source and a target become one example of two streams, as torch makes it of labels."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxsft import families, languages, tasks
from jaxsft.data import feed, read, store
from jaxsft.errors import JaxsftError, UsageError
from jaxsft.tasks import seq2seq
from tests import tiny
from tests.families import torch_encoder_decoders

OPTIONS = SimpleNamespace(label_smoothing=0.0, z_loss=0.0, chunk=64)


def row(source="2 plus 2", target="four", **more):
  return read.Row("a", "x.jsonl:3", {"source": source, "target": target} | more)


def context(tokenizer=None, **settings):
  given = {"too_long": "error", "max_target_length": 64, "decoder_start": 0} | settings
  return tasks.Context(tokenizer or tiny.source_tokenizer(), 64, **given)


def encoded(given=None, tokenizer=None, **settings):
  return seq2seq.encode(given or row(), context(tokenizer, **settings))


def test_what_is_read_and_what_is_learnt():
  found = encoded(instruction="to german: ")
  (example,), tokenizer = found.examples, tiny.source_tokenizer()
  assert example["source"].tolist() == tokenizer("to german: 2 plus 2")["input_ids"]
  target = tokenizer("four")["input_ids"]
  assert target[-1] == tokenizer.eos_token_id == 1
  assert example["targets"].tolist() == target
  assert example["inputs"].tolist() == [0, *target[:-1]]
  assert example["weights"].tolist() == [1.0] * len(target)
  assert found.note is None and found.stop_ids == {1}
  ((start, end),) = found.spans
  assert found.text == "to german: 2 plus 2\nfour" and found.text[start:end] == "four"


def test_a_target_begins_with_its_last_token_where_the_family_has_it_so():
  tokenizer = tiny.source_tokenizer("$A </s> <s>")
  (example,) = encoded(tokenizer=tokenizer, decoder_start=None).examples
  assert example["targets"].tolist()[-2:] == [1, 2]
  assert example["inputs"].tolist() == [2, *example["targets"].tolist()[:-1]]


def test_the_stop_token_is_supervised_once():
  plain = tiny.source_tokenizer("$A <unk>")  # a tokenizer that writes none
  (example,) = encoded(tokenizer=plain).examples
  assert example["targets"].tolist()[-2:] == [3, 1]
  for target in ("four</s> and more", "four</s>"):
    with pytest.raises(JaxsftError, match=r"x.jsonl:3: the text contains the control token"):
      encoded(row(target=target))
  twice = tiny.source_tokenizer("$A </s> </s>")
  with pytest.raises(JaxsftError, match=r"x.jsonl:3: the stop token '</s>' is 2 times"):
    encoded(tokenizer=twice)
  nameless = tiny.source_tokenizer()
  nameless.eos_token = None
  with pytest.raises(JaxsftError, match="has no eos_token"):
    encoded(tokenizer=nameless)


def test_a_long_source_is_cut_at_its_end_and_counted():
  long = row(source="one two three " * 20)
  found = encoded(long, too_long="truncate", instruction="de: ")
  (example,), tokenizer = found.examples, tiny.source_tokenizer()
  whole = tokenizer(f"de: {long.fields['source']}")["input_ids"]
  assert len(example["source"]) == 64 < len(whole) and found.note == "truncated: source"
  assert example["source"].tolist() == [*whole[:63], 1]
  dropped = encoded(long, too_long="drop")
  assert dropped.examples == () and dropped.note == "dropped: source too long"
  with pytest.raises(
    JaxsftError, match=r"x.jsonl:3: the source has \d+ tokens, the limit is 64"
  ):
    encoded(long)


def test_the_longest_that_fit():
  fits = len(encoded().examples[0]["source"]), len(encoded().examples[0]["targets"])
  limits = {"max_length": fits[0], "max_target_length": fits[1]}
  at = dataclasses.replace(context(), **limits)
  assert seq2seq.encode(row(), at).note is None
  for name in limits:
    with pytest.raises(JaxsftError, match=f"the limit is {limits[name] - 1}"):
      seq2seq.encode(row(), dataclasses.replace(at, **{name: limits[name] - 1}))


@pytest.mark.parametrize("too_long", ["drop", "truncate"])
def test_a_long_target_is_never_cut(too_long):
  found = encoded(row(target="eins zwei drei"), too_long=too_long, max_target_length=5)
  assert found.examples == () and found.note == "dropped: target too long"
  with pytest.raises(JaxsftError, match=r"x.jsonl:3: the target has .*a target is never cut"):
    encoded(row(target="eins zwei drei"), max_target_length=5)


def test_several_references_and_none():
  many = read.Row("a", "here", {"source": "no", "targets": ["nein", "nee"]})
  assert (
    encoded(many).examples[0]["targets"].tolist() == tiny.source_tokenizer()("nein").input_ids
  )
  assert seq2seq.references(many) == ("nein", "nee") and seq2seq.references(row()) == ("four",)
  bare = read.Row("a", "here", {"source": "no"})
  (example,) = encoded(bare).examples
  assert example.keys() == {"source", "inputs"} and example["inputs"].tolist() == [0]
  assert seq2seq.references(bare) == ()


def test_a_source_in_sentences():
  listed = row(source=["one two", "three"])
  assert encoded(listed).examples[0]["source"].tolist() == tiny.source_tokenizer()(
    "one two three"
  ).input_ids  # fmt: skip


def test_an_answer_is_generated_from_what_training_reads():
  for settings in ({}, {"instruction": "de: ", "too_long": "truncate"}):
    long = row(source="one two three " * (20 if settings else 1))
    (example,) = encoded(long, **settings).examples
    assert seq2seq.prompt(long, context(**settings)) == example["source"].tolist()
    assert seq2seq.whole(long, context(**settings)) == (not settings)


# --- languages -------------------------------------------------------------------------

SPECIAL = ("<pad>", "</s>", "<s>", "<unk>", "en_XX", "de_DE")


@pytest.mark.parametrize(
  ("form", "source", "target", "key"),
  [
    ("$A </s> en_XX", [1, 4], [1, 5], "decoder_start_token_id"),  # mBART
    ("en_XX $A </s>", [4, 1], [5, 1], "forced_bos_token_id"),  # mBART-50
  ],
)
def test_languages(form, source, target, key):
  tokenizer = tiny.source_tokenizer(form, SPECIAL)
  settings = {"languages": ("en_XX", "de_DE"), "decoder_start": None}
  (example,) = encoded(tokenizer=tokenizer, **settings).examples
  plain = tiny.source_tokenizer("$A", SPECIAL)
  at = slice(0, -2) if form[0] == "$" else slice(1, -1)
  assert example["source"].tolist()[at] == plain("2 plus 2").input_ids
  assert example["targets"].tolist()[at] == plain("four").input_ids
  ends = lambda ids: ids[-2:] if form[0] == "$" else [ids[0], ids[-1]]
  assert ends(example["source"].tolist()) == source
  assert ends(example["targets"].tolist()) == target
  assert example["inputs"][0] == example["targets"][-1]
  assert languages.frame(tokenizer, "de_DE") == {key: 5}
  languages.set_source(tokenizer, "de_DE")
  assert tokenizer("four").input_ids == example["targets"].tolist()
  again = languages.with_language(tokenizer("four").input_ids, tokenizer, "en_XX")
  assert ends(again) == source


def test_languages_that_are_none():
  tokenizer = tiny.source_tokenizer("$A </s> en_XX", SPECIAL)
  with pytest.raises(UsageError, match="has no token 'fr_XX', expected"):
    languages.set_source(tokenizer, "fr_XX")
  with pytest.raises(UsageError, match="expected a language code first or last"):
    languages.place(tiny.source_tokenizer())


def test_the_class_of_mbart_switches_by_itself():
  """What transformers' own tokenizer writes for a source and a target is what we write."""
  import transformers

  pieces = [*(f"▁{word}" for word in "four plus".split()), "▁2"]
  vocab = [(t, 0.0) for t in ("<s>", "<pad>", "</s>", "<unk>")] + [(p, -1.0) for p in pieces]
  theirs = transformers.MBartTokenizer(vocab=vocab, src_lang="ro_RO", tgt_lang="de_DE")
  languages.set_source(theirs, "en_XX")
  (example,) = encoded(
    tokenizer=theirs, languages=("en_XX", "de_DE"), decoder_start=None
  ).examples
  assert example["source"].tolist() == theirs("2 plus 2").input_ids
  assert theirs.convert_ids_to_tokens(example["source"])[-2:] == ["</s>", "en_XX"]
  assert example["targets"].tolist() == theirs(text_target="four").input_ids
  assert theirs.convert_ids_to_tokens(example["targets"]) == ["▁four", "</s>", "de_DE"]
  theirs.tgt_lang = "fr_XX"  # the tokenizer's own, where the config names none
  (example,) = encoded(tokenizer=theirs, decoder_start=None).examples
  assert theirs.convert_ids_to_tokens(example["targets"]) == ["▁four", "</s>", "fr_XX"]
  assert theirs.convert_ids_to_tokens(example["source"])[-1] == "en_XX"


# --- torch -----------------------------------------------------------------------------

BART = ("<s>", "<pad>", "</s>", "<unk>", "en_XX", "de_DE")
FORMS = {  # case of encoder_decoder_configs -> how its tokenizer writes a text
  "t5-v1.1": ("$A </s>", SPECIAL),
  "bart": ("<s> $A </s>", BART),
  "mbart": ("$A </s> en_XX", BART),
  "marian": ("$A </s>", SPECIAL),
}


@pytest.mark.parametrize(
  "case",
  [
    case if case in ("t5-v1.1", "mbart") else pytest.param(case, marks=pytest.mark.full)
    for case in FORMS
  ],
)
def test_the_loss_is_that_of_torch_with_labels(oracle, case, tmp_path):
  """Four examples packed into rows, against torch's own shift of padded labels."""
  import transformers

  torch_encoder_decoders.saved(oracle, case, tmp_path)
  module = families.FAMILIES[case.split("-")[0]]
  theirs = getattr(transformers, module.CLASSES["lm"]).from_pretrained(tmp_path).eval()
  network, params = torch_encoder_decoders.read(tmp_path, module)
  given = context(
    tiny.source_tokenizer(*FORMS[case]),
    decoder_start=network.arch.decoder_start,
    languages=("en_XX", "de_DE") if case == "mbart" else None,
  )
  pairs = tiny.TRANSLATED[:3] + tiny.TRANSLATED[4:5]
  examples = [seq2seq.encode(row(*pair), given).examples[0] for pair in pairs]
  built = store.in_memory(enumerate_ids(examples))
  batch = feed.batch(built, [[0, 2], [1, 3]], row_length=(48, 40), segments=2)

  def both(params, batch):
    loss = seq2seq.loss(network, params, batch, OPTIONS)["loss"]
    return loss, seq2seq.predict(network, params, batch, OPTIONS)

  with jax.default_matmul_precision("highest"):
    (loss, weight), found = jax.jit(both)(params, batch)
  pad = theirs.config.pad_token_id
  longest = {key: max(len(e[key]) for e in examples) for key in ("source", "targets")}
  fill = lambda key, value: oracle.tensor(
    np.array([[*e[key], *[value] * (longest[key] - len(e[key]))] for e in examples])
  ).long()
  source, labels = fill("source", pad), fill("targets", -100)
  mask = fill("source", -1) >= 0
  with oracle.no_grad():
    out = theirs(input_ids=source, attention_mask=mask.long(), labels=labels)
  assert int(weight) == int((labels >= 0).sum())
  assert float(loss / weight) == pytest.approx(float(out.loss), rel=1e-5)
  each = oracle.nn.functional.cross_entropy(
    out.logits.transpose(1, 2), labels, reduction="none", ignore_index=-100
  ).sum(1)
  ours = np.asarray(found["nll"])[[0, 1, 0, 1], [0, 0, 1, 1]]
  np.testing.assert_allclose(ours, each.numpy(), rtol=2e-5)


def enumerate_ids(examples):
  return ((f"row {i}", example) for i, example in enumerate(examples))
