"""Tags: learnt at the first token of each word, counted over all words, read back as spans."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft import tasks
from jaxsft.data import words
from jaxsft.data.read import Row
from jaxsft.errors import JaxsftError
from jaxsft.metrics import significance
from jaxsft.tasks import tag
from tests.tasks import questions as made

NAMES = ("O", "B-LOC", "B-PER", "I-LOC", "I-PER")
SOME = ("the", "normans", "William", "hastings", "müller", "don't", "北京", "🤗", "20°C", "w7")
KEY = jax.random.key(0)


def context(name="wordpiece", **settings):
  settings = {"max_length": 500, "labels": NAMES} | settings
  return tasks.Context(made.make(name), **settings)


def row(**fields):
  return Row("a", "rows.jsonl:7", fields)


def drawn(rng, count, labels=NAMES):
  """A row of `count` words, some of which the tokenizer drops, with any tags."""
  tokens = [str(w) for w in rng.choice((*SOME, "\u200b"), count)]
  return row(tokens=tokens, tags=[str(t) for t in rng.choice(labels, count)])


def found(one, place, said=None, seed=0):
  """tasks.Found of a row whose words are said to have the tags `said`, noise elsewhere."""
  rng, made_of = np.random.default_rng(seed), tag.encode(one, place).examples
  outputs = []
  for example in made_of:
    size = len(example["word"])
    label = rng.integers(0, len(place.labels), size).astype(np.int32)
    for t in np.flatnonzero(example["word"] >= 0) if said is not None else ():
      label[t] = place.labels.index(said[example["word"][t]])
    score, nll = (rng.random(size).astype(np.float32) for _ in range(2))
    outputs.append({"label": label, "score": score, "nll": nll})
  return tasks.Found(one, list(made_of), outputs)


# --- encode ------------------------------------------------------------------------------


def test_tags_stand_at_the_first_token_of_their_words():
  place = context()
  one = row(
    tokens=["\u200b", "William", "took", "\u200d", "muller"], tags=[*NAMES[1:4], "O", "I-PER"]
  )
  encoded = tag.encode(one, place)
  (example,) = encoded.examples
  said = place.tokenizer.convert_ids_to_tokens(example["inputs"].tolist())
  assert said == ["[CLS]", "will", "##iam", "took", "mul", "##ler", "[SEP]"]
  assert example["word"].tolist() == [-1, 1, -1, 2, 4, -1, -1]
  assert example["targets"].tolist() == [0, 2, 0, 3, 4, 0, 0]
  assert example["weights"].tolist() == [0, 1, 0, 1, 1, 0, 0]
  assert {k: v.dtype.name for k, v in example.items()} == {
    "inputs": "int32", "token_types": "int32", "word": "int32", "targets": "int32",
    "weights": "float32",
  }  # fmt: skip
  assert encoded.note == "with words that the tokenizer maps to nothing"
  shown = [encoded.text[start:end] for start, end in encoded.spans]
  assert shown == ["\u200b", "William", "took", "muller"]


@pytest.mark.parametrize("name", list(made.MAKE))
def test_every_word_that_has_a_token_is_learnt_once(name):
  place, rng = context(name), np.random.default_rng(0)
  for _ in range(20):
    one = drawn(rng, int(rng.integers(1, 9)))
    encoded = tag.encode(one, place)
    whole = words.read(one.fields, place.tokenizer)
    learnt = {}
    for example in encoded.examples:
      assert not example["targets"][example["weights"] == 0].any()
      assert ((example["weights"] > 0) == (example["word"] >= 0)).all()
      assert example["inputs"].tolist() == whole.inputs.tolist()
      for t in np.flatnonzero(example["weights"]):
        learnt[int(example["word"][t])] = place.labels[example["targets"][t]]
    assert len(learnt) == len(one.fields["tags"]) - whole.lost
    assert all(one.fields["tags"][word] == label for word, label in learnt.items())
    assert bool(encoded.examples) == bool(learnt)


def test_rows_without_tags_have_no_targets():
  for fields in ({"tokens": ["red", "hill"]}, {"text": "red hill"}):
    (example,) = tag.encode(row(**fields), context()).examples
    assert set(example) == {"inputs", "token_types", "word"}
    assert example["word"].tolist() == [-1, 0, 1, -1]


def test_a_row_of_which_nothing_is_left():
  encoded = tag.encode(row(tokens=["\u200b"], tags=["O"]), context())
  assert encoded.examples == () and encoded.note.startswith("dropped: no word")
  empty = tag.encode(row(tokens=[], tags=[]), context())
  assert empty.examples == () and empty.note == "dropped: no words"
  (example,) = tag.encode(row(tokens=["\u200b"]), context()).examples  # it has to be answered
  assert example["word"].tolist() == [-1, -1]


LONG = {"tokens": ["red", "William", "hill", "muller", "oak"], "tags": ["O", *NAMES[1:]]}


def test_what_is_longer_than_the_limit():
  at = lambda **settings: context(max_length=6, **settings)  # 9 tokens, of which 2 around
  with pytest.raises(JaxsftError, match=r"^rows.jsonl:7: 9 tokens, the limit is 6; .*windows"):
    tag.encode(row(**LONG), at())
  encoded = tag.encode(row(**LONG), at(too_long="drop"))
  assert encoded.examples == () and encoded.note == "dropped: too long"
  encoded = tag.encode(row(**LONG), at(too_long="truncate"))
  (example,) = encoded.examples
  assert encoded.note == "truncated" and len(example["inputs"]) == 6
  said = made.make("wordpiece").convert_ids_to_tokens(example["inputs"].tolist())
  assert said == ["[CLS]", "red", "will", "##iam", "hill", "[SEP]"]
  assert example["word"].tolist() == [-1, 0, 1, -1, 2, -1]
  assert tag.encode(row(**LONG), context(max_length=9)).note is None
  with pytest.raises(JaxsftError, match="2 stand around the text and 3 are what windows share"):
    tag.encode(row(**LONG), dataclasses.replace(at(too_long="windows", stride=3), max_length=5))
  with pytest.raises(JaxsftError, match="2 stand around the text; raise"):
    tag.encode(row(**LONG), dataclasses.replace(at(too_long="truncate"), max_length=2))


@pytest.mark.parametrize("name", ["wordpiece", "plain"])
@pytest.mark.parametrize(("length", "stride"), [(4, 0), (5, 1), (9, 3), (12, 8)])
def test_windows_read_every_word_once(name, length, stride):
  rng = np.random.default_rng(1)
  for _ in range(10):
    place = context(name)
    one = drawn(rng, int(rng.integers(1, 12)))
    whole = tag.encode(one, place).examples
    special = 2 if name == "wordpiece" else 0
    if not whole or length - special <= stride:
      continue
    cut = dataclasses.replace(place, max_length=length, too_long="windows", stride=stride)
    encoded = tag.encode(one, cut)
    learnt = [
      (int(e["word"][t]), int(e["targets"][t]))
      for e in encoded.examples
      for t in np.flatnonzero(e["weights"])
    ]
    assert sorted(learnt) == sorted(
      (int(whole[0]["word"][t]), int(whole[0]["targets"][t]))
      for t in np.flatnonzero(whole[0]["weights"])
    )
    assert all(len(e["inputs"]) <= length and e["weights"].any() for e in encoded.examples)
    if special:
      assert all(e["inputs"][0] == 2 and e["inputs"][-1] == 3 for e in encoded.examples)
    assert (
      tag._said(found(one, cut, one.fields["tags"]), len(one.fields["tags"]), cut)[0]
      == (tag._said(found(one, place, one.fields["tags"]), len(one.fields["tags"]), place)[0])
    )


@pytest.mark.parametrize(
  ("fields", "parts"),
  [
    ({"tokens": ["a", "b"], "tags": ["O"]}, ["1 tags for 2 tokens"]),
    ({"text": "a b", "tags": ["O", "O"]}, ["tags but no tokens"]),
    ({"tokens": ["a", "b"], "tags": ["O", "B-ORG"]}, ["'B-ORG' of 'b'", "B-LOC", "labels"]),
    ({"text": "red", "entities": [[0, 3, "ORG"]]}, ["'B-ORG' of 'red'"]),
    ({"text": "red", "entities": [[0, 2, "PER"]]}, ["part of the word 'red'"]),
    ({"label": "x"}, ["no field 'tokens' or 'text'"]),
  ],
)  # fmt: skip
def test_rows_that_cannot_be_read(fields, parts):
  with pytest.raises(JaxsftError) as error:
    tag.encode(row(**fields), context())
  assert str(error.value).startswith("rows.jsonl:7: ")
  assert all(part in str(error.value) for part in parts), str(error.value)


# --- spans of characters -----------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["IOB2", "IOBES"])
@pytest.mark.parametrize("name", list(made.MAKE))
def test_entities_come_back_as_they_were(name, scheme):
  """A model that says every gold tag says every gold entity, by its characters."""
  letters = "BI" if scheme == "IOB2" else "BIES"
  labels = ("O", *(f"{x}-{kind}" for x in letters for kind in ("LOC", "PER")))
  place, rng, seen = context(name, labels=labels), np.random.default_rng(2), 0
  for _ in range(30):
    text = "  ".join(str(w) for w in rng.choice(SOME, int(rng.integers(2, 8))))
    spans = words.read({"text": text}, place.tokenizer).words
    at, entities = 0, []
    while at < len(spans):
      size = int(rng.integers(1, 4))
      if rng.random() < 0.5 and at + size <= len(spans):
        start, end = spans[at][0], spans[at + size - 1][1]
        label = str(rng.choice(["LOC", "PER"]))
        entities.append({"start": start, "end": end, "label": label, "text": text[start:end]})
      at += size
    one = row(text=text, entities=entities)
    gold = tag.gold_tags(one.fields, spans, text, place)
    said = tag.decode(found(one, place, gold), place)
    assert [
      {k: e[k] for k in ("start", "end", "label", "text")} for e in said["entities"]
    ] == entities
    assert said["tags"] == gold and said["tokens"] == [text[a:b] for a, b in spans]
    again = row(text=text, entities=said["entities"])  # what is said can be learnt from
    assert tag.gold_tags(again.fields, spans, text, place) == gold
    seen += len(entities)
  assert seen > 30


def test_entities_of_tokens_are_spans_of_the_joined_text():
  one = row(tokens=["\u200b", "William", "muller", "took", "北京"])
  place = context()
  outputs = found(one, place, ["I-PER", "B-PER", "I-PER", "O", "I-LOC"])
  said = tag.decode(outputs, place)
  assert said["tags"] == ["O", "B-PER", "I-PER", "O", "I-LOC"] and set(said) == {
    "tags",
    "entities",
  }
  text = " ".join(one.fields["tokens"])
  assert [(e["text"], e["label"]) for e in said["entities"]] == [
    ("William muller", "PER"), ("北京", "LOC"),
  ]  # fmt: skip
  assert all(text[e["start"] : e["end"]] == e["text"] for e in said["entities"])
  example, output = outputs.examples[0], outputs.outputs[0]
  first, second = (int(np.flatnonzero(example["word"] == w)[0]) for w in (1, 2))
  assert said["entities"][0]["score"] == pytest.approx(output["score"][[first, second]].mean())


def test_plain_tags_have_scores_and_no_entities():
  place = context(labels=("NN", "VB"))
  said = tag.decode(found(row(text="William took"), place, ["NN", "VB"]), place)
  assert said["tags"] == ["NN", "VB"] and said["tokens"] == ["William", "took"]
  assert set(said) == {"tags", "tokens", "scores"} and len(said["scores"]) == 2
  said = tag.decode(found(row(tokens=["\u200b", "took"]), place, ["NN", "VB"]), place)
  assert said["tags"] == ["O", "VB"] and said["scores"][0] is None


# --- numbers -----------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["error", "truncate", "windows"])
def judged(request):
  """(found, context, [predicted tags], [gold tags], counts): of all words, by hand."""
  rng = np.random.default_rng(3)
  limits = {} if request.param == "error" else {"max_length": 9, "stride": 3}
  place = context(too_long=request.param, **limits)
  answers, predicted, gold, counts = [], [], [], {"all": 0, "cut": 0, "no token": 0}
  while len(answers) < 40:
    one = drawn(rng, int(rng.integers(1, 9)))
    if not tag.encode(one, place).examples:
      continue
    right = rng.random(len(one.fields["tags"])) < 0.7
    said = [
      t if ok else str(rng.choice(NAMES))
      for t, ok in zip(one.fields["tags"], right, strict=True)
    ]
    answers.append(found(one, place, said, seed=len(answers)))
    tokens = [
      place.tokenizer(t, add_special_tokens=False)["input_ids"] for t in one.fields["tokens"]
    ]
    behind = np.cumsum([0, *map(len, tokens)])
    room = 7 if request.param == "truncate" else 10**6
    state = [
      "no token" if not t else "cut" if b >= room else ""
      for t, b in zip(tokens, behind, strict=False)
    ]
    for name in counts:
      counts[name] += len(state) if name == "all" else state.count(name)
    predicted.append(["O" if s else t for s, t in zip(state, said, strict=True)])
    gold.append(one.fields["tags"])
  return answers, place, predicted, gold, counts


def test_numbers_are_seqevals_over_all_words(judged):
  seqeval = pytest.importorskip("seqeval.metrics")
  answers, place, predicted, gold, counts = judged
  numbers = tag.metrics(answers, place)
  assert numbers["words"] == counts and counts["no token"] > 3
  assert (counts["cut"] > 3) == (place.too_long == "truncate")
  for name, ours in (
    ("f1_score", "f1"), ("precision_score", "precision"), ("recall_score", "recall"),
    ("accuracy_score", "accuracy"),
  ):  # fmt: skip
    assert numbers[ours] == pytest.approx(getattr(seqeval, name)(gold, predicted)), name
  macro = seqeval.f1_score(gold, predicted, average="macro")
  assert numbers["macro_f1"] == pytest.approx(macro)
  report = seqeval.classification_report(gold, predicted, output_dict=True)
  for kind in ("LOC", "PER"):
    one = numbers["per_type"][kind]
    assert (one["f1"], one["support"]) == (
      pytest.approx(report[kind]["f1-score"]),
      report[kind]["support"],
    )
  assert set(tag.METRICS["entities"]) <= set(numbers)


def test_loss_and_what_intervals_are_made_of(judged):
  answers, place, *_ = judged
  numbers = tag.metrics(answers, place)
  pairs = [pair for one in answers for pair in zip(one.examples, one.outputs, strict=True)]
  nll = np.concatenate([o["nll"][e["word"] >= 0].astype(np.float64) for e, o in pairs])
  assert numbers["loss"] == pytest.approx(nll.mean())
  one = answers[0]
  own = [o["nll"][e["word"] >= 0] for e, o in zip(one.examples, one.outputs, strict=True)]
  assert tag.row_loss(one, place) == pytest.approx(np.concatenate(own).mean())
  found_ = {m.name: m for m in tag.measured(answers, place)}
  assert list(found_) == ["f1", "macro_f1", "accuracy"]
  for name, measured in found_.items():
    assert measured.score == pytest.approx(numbers[name]), name
    assert tag.METRICS["entities"][name] == measured.direction
  assert significance.interval(found_["f1"])["low"] < numbers["f1"]


def test_gold_tags_score_one_and_no_tags_nothing(judged):
  answers, place, *_ = judged
  whole = [a for a in answers if tag.encode(a.row, place).note is None]
  perfect = [found(a.row, place, a.row.fields["tags"]) for a in whole]
  numbers = tag.metrics(perfect, place)
  assert [numbers[k] for k in ("f1", "accuracy", "macro_f1")] == [1.0, 1.0, 1.0]
  silent = [found(a.row, place, ["O"] * len(a.row.fields["tags"])) for a in whole]
  assert tag.metrics(silent, place)["f1"] == 0.0


def test_plain_tags_are_scored_one_by_one():
  place = context(labels=("NN", "VB"))
  assert tag.kind(place) == "plain" and tag.kind(context()) == "entities"
  one = row(tokens=["red", "\u200b", "hill", "took"], tags=["NN", "NN", "VB", "VB"])
  answers = [found(one, place, ["NN", "NN", "NN", "VB"])]
  numbers = tag.metrics(answers, place)
  assert numbers["accuracy"] == 0.5  # the second was not read, the third is wrong
  assert numbers["words"] == {"all": 4, "cut": 0, "no token": 1}
  assert set(tag.METRICS["plain"]) <= set(numbers) and "f1" not in numbers
  found_ = {m.name: m.score for m in tag.measured(answers, place)}
  assert found_ == {"accuracy": 0.5, "macro_f1": pytest.approx(numbers["macro_f1"])}
  assert tag.DEFAULT_METRIC["plain"] == "accuracy" and tag.DEFAULT_METRIC["entities"] == "f1"


def test_without_any_entity_f1_is_undefined_and_said_so():
  place = context()
  answers = [found(row(tokens=["the", "w7"], tags=["O", "O"]), place, ["O", "O"])]
  numbers = tag.metrics(answers, place)
  assert numbers["entities"] == {"right": 0, "predicted": 0, "support": 0}
  assert numbers["accuracy"] == 1 and "f1" not in numbers
  assert numbers["undefined"]["f1"] == "there is no entity, gold or predicted"


# --- loss and predictions ----------------------------------------------------------------


def options(**settings):
  return SimpleNamespace(
    **{"label_smoothing": 0.0, "z_loss": 0.0, "focal": 0.0, "class_weights": None} | settings
  )


@pytest.fixture
def batch():
  rng = np.random.default_rng(4)
  weights = (rng.random((2, 6)) < 0.6).astype(np.float32)
  targets = np.where(weights > 0, rng.integers(0, 3, (2, 6)), 0).astype(np.int32)
  return (3 * rng.normal(size=(2, 6, 3))).astype(np.float32), targets, weights


@pytest.mark.parametrize("smooth", [0.0, 0.1])
@pytest.mark.parametrize("by_class", [None, (0.5, 2.0, 1.25)])
@pytest.mark.parametrize("training", [True, False])
def test_loss_is_that_of_torch_at_the_words(oracle, batch, smooth, by_class, training):
  logits, targets, weights = batch

  def mean(logits):
    network = SimpleNamespace(logits=lambda params, batch, key: logits)
    given = {"targets": jnp.asarray(targets), "weights": jnp.asarray(weights)}
    terms = options(label_smoothing=smooth, class_weights=by_class)
    sums = tag.loss(network, None, given, terms, KEY if training else None)
    return sums["loss"][0] / sums["loss"][1], sums

  (value, sums), gradient = jax.value_and_grad(mean, has_aux=True)(jnp.asarray(logits))
  x = oracle.tensor(logits, requires_grad=True)
  wanted = oracle.tensor(np.where(weights > 0, targets, -100)).long()
  use = training and by_class is not None
  criterion = oracle.nn.CrossEntropyLoss(
    weight=oracle.tensor(by_class) if use else None, label_smoothing=smooth * training
  )
  theirs = criterion(x.reshape(-1, 3), wanted.reshape(-1))
  theirs.backward()
  assert float(value) == pytest.approx(theirs.item(), rel=1e-5)
  np.testing.assert_allclose(gradient, x.grad.numpy(), atol=1e-6)
  assert not gradient[weights == 0].any() and gradient[weights > 0].any(-1).all()
  hits, count = sums["accuracy"]
  assert (hits, count) == (
    ((logits.argmax(-1) == targets) & (weights > 0)).sum(),
    weights.sum(),
  )


def test_z_loss_and_weights_by_example(batch):
  logits, targets, weights = batch
  network = SimpleNamespace(logits=lambda params, batch, key: jnp.asarray(logits))
  given = {"targets": jnp.asarray(targets), "weights": jnp.asarray(weights / 4)}
  plain = tag.loss(network, None, given, options(), KEY)
  more = tag.loss(network, None, given, options(z_loss=0.01), KEY)
  log_z = np.log(np.exp(logits.astype(np.float64)).sum(-1))
  extra = 0.01 * (log_z**2 * weights / 4).sum()
  assert float(more["loss"][0] - plain["loss"][0]) == pytest.approx(extra, rel=1e-3)
  assert plain["loss"][1] == weights.sum() / 4 and plain["accuracy"][1] == weights.sum() / 4


def test_what_is_predicted_of_each_token(batch):
  logits, targets, _ = batch
  logits[0, 0] = [1.0, 2.0, 2.0]
  network = SimpleNamespace(logits=lambda params, batch: jnp.asarray(logits))
  said = tag.predict(network, None, {"targets": jnp.asarray(targets)}, options())
  p = np.exp(logits.astype(np.float64))
  p /= p.sum(-1, keepdims=True)
  np.testing.assert_array_equal(said["label"], logits.argmax(-1))
  assert said["label"].dtype == np.int32 and said["label"][0, 0] == 1
  np.testing.assert_allclose(said["score"], p.max(-1), rtol=1e-5)
  wanted = -np.log(np.take_along_axis(p, targets[..., None], -1))[..., 0]
  np.testing.assert_allclose(said["nll"], wanted, rtol=1e-4, atol=1e-6)
  assert set(tag.predict(network, None, {}, options())) == {"label", "score"}
