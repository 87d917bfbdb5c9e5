"""Questions about a context: windows, places of answers, an exact loss, SQuAD's decoding."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft import tasks
from jaxsft.data import feed, store
from jaxsft.data.read import Row
from jaxsft.errors import JaxsftError
from jaxsft.tasks import answer
from tests.golden import make_answers
from tests.tasks import tokenizers_of_answers as tokenizers

OPTIONS = types.SimpleNamespace(label_smoothing=0.0, z_loss=0.0, chunk=4)
NAMES = tuple(tokenizers.MAKE)
ASKED = "who was it"


def row(passage, *answers, question=ASKED, **fields):
  """A row whose answers are pieces of the context or (piece, first character)."""
  made = []
  for one in answers:
    text, start = one if isinstance(one, tuple) else (one, passage.index(one))
    made.append({"text": text, "start": start})
  fields = {"question": question, "context": passage, "answers": made, **fields}
  return Row("a", "squad.json:a", fields)


def context(name="wordpiece", max_length=1000, **settings):
  return tasks.Context(tokenizers.make(name), max_length, **settings)


def sure(encoded, height=9.0):
  """Outputs of a model that is sure of what it was taught."""
  outputs = []
  for example in encoded.examples:
    logits = np.zeros((len(example["inputs"]), 2), np.float32)
    logits[example["start"], 0] = logits[example["end"], 1] = height
    outputs.append({"logits": logits})
  return outputs


def found(given, place, outputs=None):
  encoded = answer.encode(given, place)
  return tasks.Found(given, list(encoded.examples), outputs or sure(encoded))


# --- the answer as tokens and back -----------------------------------------------------

PASSAGE = "In  1066 the Normans, led by William, took\tHastings"
PIECES = {
  "the beginning": (PASSAGE, "In"),
  "the end": (PASSAGE, "Hastings"),
  "the whole context": (PASSAGE, PASSAGE),
  "case and spaces": (PASSAGE, "In  1066 the Normans"),
  "across a tab": (PASSAGE, "took\tHastings"),
  "punctuation": (PASSAGE, "Normans,"),
  "accents": ("Zoë Café and Müller", "Café and Müller"),
  "combining accents": ("a Cafe\u0301 here", "Cafe\u0301"),
  "Chinese": ("北京是中国的首都。", "中国"),
  "Chinese, whole": ("北京是中国的首都。", "北京是中国的首都。"),
  "emoji": ("I saw 🦜 and 👍🏽 there", "🦜"),
  "two emoji": ("I saw 🦜 and 👍🏽 there", "🦜 and 👍🏽"),
  "emoji at the end": ("it was 👍🏽", "👍🏽"),
  "twice, the second": ("red hill, red oak", ("red", 10)),
  "no-break space": ("a\u00a0red oak", "red"),
}


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("name", NAMES)
def test_a_sure_model_gives_the_answer_as_it_stands(name, piece):
  passage, gold = PIECES[piece]
  given, place = row(passage, gold), context(name, max_answer_length=99)
  text, start = (gold, passage.index(gold)) if isinstance(gold, str) else gold
  said = answer.decode(found(given, place), place)
  assert (said["answer"], said["start"], said["end"]) == (text, start, start + len(text))
  assert said["score"] > 0.99 and said["null_odds"] == -18


@pytest.mark.parametrize("name", NAMES)
def test_the_question_first_then_the_context(name):
  place = context(name)
  example = answer.encode(row(PASSAGE, "Normans"), place).examples[0]
  expected = place.tokenizer(ASKED, PASSAGE, return_token_type_ids=True)
  assert example["inputs"].tolist() == expected["input_ids"]
  assert example["token_types"].tolist() == expected["token_type_ids"]
  mine = np.array(expected.sequence_ids(0)) == 1
  assert (example["end_char"] != answer.OUTSIDE).tolist() == mine.tolist()
  assert ((example["start_char"] == -1) == ~mine).all() and not mine[0]
  types_of = {key: values.dtype for key, values in example.items()}
  assert types_of.pop("label_weight") == np.float32 and set(types_of.values()) == {
    np.dtype(np.int32)
  }


def test_a_tokenizer_that_pads_left_has_the_question_first_too():
  place = context("plain")
  place.tokenizer.padding_side = "left"
  example = answer.encode(row(PASSAGE, "Normans"), place).examples[0]
  assert place.tokenizer.decode(example["inputs"]).lower().startswith(ASKED)


@pytest.mark.parametrize("name", NAMES)
def test_places_are_those_of_the_tokenizers_library(name):
  """Its char_to_token, for every word and every pair of words."""
  place = context(name)
  words = PASSAGE.split()
  for i in range(len(words)):
    for j in range(i, len(words)):
      start = PASSAGE.index(words[i])
      end = PASSAGE.index(words[j]) + len(words[j])
      given = row(PASSAGE, (PASSAGE[start:end], start))
      example = answer.encode(given, place).examples[0]
      tokens = place.tokenizer(ASKED, PASSAGE)
      assert example["start"] == tokens.char_to_token(0, start, sequence_index=1)
      assert example["end"] == tokens.char_to_token(0, end - 1, sequence_index=1)


def test_an_answer_inside_a_token_takes_all_of_it():
  place = context()
  said = answer.decode(found(row("the kings came", "king"), place), place)
  assert said["answer"] == "kings"  # [UNK] is one token


def test_rows_without_answers_have_no_targets():
  given = Row("a", "rows.jsonl:1", {"question": ASKED, "context": PASSAGE})
  encoded = answer.encode(given, context())
  assert set(encoded.examples[0]) == {"inputs", "token_types", "start_char", "end_char"}
  assert encoded.spans == [] and encoded.note is None


def test_the_first_of_several_answers_is_learnt_and_shown():
  given = row(PASSAGE, "William", "the Normans")
  encoded = answer.encode(given, context())
  start, end = encoded.spans[0]
  assert encoded.text[start:end] == "William" and len(encoded.spans) == 1
  assert encoded.text == f"{ASKED} | {PASSAGE}"
  example = encoded.examples[0]
  assert example["start_char"][example["start"]] == PASSAGE.index("William")


# --- windows ---------------------------------------------------------------------------

LONG = " ".join(f"w{i}" for i in range(40))


@pytest.mark.parametrize("limit", [12, 13, 17, 30, 45, 46, 47, 60])
@pytest.mark.parametrize("stride", [0, 1, 5])
@pytest.mark.parametrize("name", ["wordpiece", "bytes", "metaspace"])
def test_windows_are_those_of_the_tokenizers_library(name, stride, limit):
  if name != "wordpiece":
    limit *= 3
  place = context(name, limit, stride=stride)
  encoded = answer.encode(row(LONG, "w7"), place)
  theirs = tokenizers.make(name)(
    ASKED,
    LONG,
    truncation="only_second",
    max_length=limit,
    stride=stride,
    return_overflowing_tokens=True,
    return_token_type_ids=True,
    return_offsets_mapping=True,
  )
  ours = encoded.examples
  assert [e["inputs"].tolist() for e in ours] == theirs["input_ids"]
  if name != "metaspace":  # where a template gives 0 to both texts, their overflow has 1
    assert [e["token_types"].tolist() for e in ours] == theirs["token_type_ids"]
  for i, example in enumerate(ours):
    mine = np.array(theirs.sequence_ids(i)) == 1
    offsets = np.array(theirs["offset_mapping"][i])[mine]
    assert example["start_char"][mine].tolist() == offsets[:, 0].tolist()
    assert example["end_char"][mine].tolist() == offsets[:, 1].tolist()


@pytest.mark.parametrize("over", [-1, 0, 1])
def test_a_context_at_the_limit_is_one_window(over):
  """[CLS] who was it [SEP] and [SEP] are six tokens beside the forty of the context."""
  encoded = answer.encode(row(LONG, "w39"), context(max_length=46 - over, stride=4))
  assert [len(e["inputs"]) for e in encoded.examples] == ([46] if over < 1 else [45, 11])
  assert encoded.note is None  # nothing is cut


@pytest.mark.parametrize("words", [1, 2, 4, 5])
def test_targets_are_where_the_answer_is_whole(words):
  """Every place of it: among 10 tokens of context, of which neighbours share 4."""
  place, pieces = context(max_length=16, stride=4), LONG.split()
  for first in range(len(pieces) - words + 1):
    gold = " ".join(pieces[first : first + words])
    start = len(" ".join([*pieces[:first], ""]))
    encoded = answer.encode(row(LONG, (gold, start)), place)
    ids = place.tokenizer(gold, add_special_tokens=False)["input_ids"]
    whole = 0
    for example in encoded.examples:
      a, b = int(example["start"]), int(example["end"])
      seen = " ".join(LONG[a:b] for a, b in spans_of(example))
      if f"{gold} " in f"{seen} ":
        whole += 1
        assert example["inputs"][a : b + 1].tolist() == ids
      else:
        assert (a, b) == (0, 0)
      assert example["label_weight"] == 1
    assert whole >= 1


def spans_of(example):
  inside = example["end_char"] >= 0
  columns = (example[name][inside].tolist() for name in ("start_char", "end_char"))
  return list(zip(*columns, strict=True))


def test_an_answer_that_no_window_holds_is_counted():
  pieces = LONG.split()
  gold = " ".join(pieces[5:12])  # windows hold words 0 to 9, 6 to 15 …
  encoded = answer.encode(row(LONG, gold), context(max_length=16, stride=4))
  assert encoded.note == "truncated: answer longer than what windows share, whole in none"
  assert {int(e["start"]) for e in encoded.examples} == {0}
  assert answer.encode(row(LONG, gold), context(max_length=16, stride=6)).note is None


def test_only_the_context_is_ever_cut():
  place = context(max_length=16, stride=4)
  for example in answer.encode(row(LONG, "w3"), place).examples:
    assert example["inputs"][:5].tolist() == place.tokenizer(ASKED)["input_ids"]
    assert example["inputs"][-1] == place.tokenizer.sep_token_id


def test_the_likelier_window_answers():
  place = context(max_length=16, stride=4)
  given = row(LONG, "w7")  # in the first two
  one = found(given, place)
  assert [e["start"] > 0 for e in one.examples][:3] == [True, True, False]
  for output in one.outputs[2:]:
    output["logits"][0] = 5.0
  start = int(one.examples[1]["start"])
  one.outputs[1]["logits"][start + 1, 1] = 30.0
  said = answer.decode(one, place)
  assert said["answer"] == "w7 w8" and said["null_odds"] == 0 - 39  # first token: 0 there


# --- what does not fit ------------------------------------------------------------------


def refused(given, place, *parts):
  with pytest.raises(JaxsftError) as error:
    answer.encode(given, place)
  assert str(error.value).startswith("squad.json:a: ")
  for part in parts:
    assert part in str(error.value)


@pytest.mark.parametrize(("limit", "room"), [(10, 4), (6, 0), (3, 0)])
def test_a_question_without_room_for_a_context(limit, room):
  given = row(LONG, "w7")
  said = (f"room for {room} of 40 tokens", "config.data.stride", "config.data.max_length")
  refused(given, context(max_length=limit, stride=4), *said)
  refused(given, context(max_length=limit, stride=4, too_long="truncate"), *said)
  encoded = answer.encode(given, context(max_length=limit, stride=4, too_long="drop"))
  assert encoded.examples == () and encoded.note == "dropped: question too long"
  assert len(answer.encode(given, context(max_length=11, stride=4)).examples) == 36


def test_a_short_context_needs_no_stride():
  assert len(answer.encode(row("w1", "w1"), context(max_length=7, stride=4)).examples) == 1


def test_no_answer_must_be_allowed():
  refused(row(PASSAGE), context(), "config.evaluate.null_threshold", "config.data.keep")
  (example,) = answer.encode(row(PASSAGE), context(null_threshold=0.0)).examples
  assert (example["start"], example["end"], example["label_weight"]) == (0, 0, 1)


def test_an_answer_that_is_not_there():
  refused(row(PASSAGE, ("Normans", 12)), context(), "'Normans' at character 12", "at 13")


def test_texts_without_tokens():
  refused(row("the \u200b\u200b king", "\u200b\u200b"), context(), "characters 4 to 6")
  refused(row("\u200b", "\u200b"), context(), "no token of the context")
  refused(row(PASSAGE, "took", question=""), context("plain"), "no token of the question")


# --- the loss ---------------------------------------------------------------------------


def batch_of(place, *given, **settings):
  """One row of a batch with the windows of all of them, and a second row that is empty."""
  examples = [e for one in given for e in answer.encode(one, place).examples]
  named = [(str(i), e | {"row": np.int32(i)}) for i, e in enumerate(examples)]
  made = store.in_memory(named)
  length, most = int(made.lengths.sum()) + 3, len(examples) + 1
  order = list(range(len(examples)))[::-1]
  return examples, feed.batch(made, [order, []], row_length=length, segments=most, **settings)


def network_of(logits):
  return types.SimpleNamespace(logits=lambda params, batch, key: params["logits"])


def by_hand(logits, batch, smoothing=0.0, z_loss=0.0):
  """Mean over the segments, each by itself in float64."""
  total, right, count = 0.0, 0, 0
  for r, m in np.argwhere(batch["example_ids"] >= 0):
    mine = logits[r][batch["segments"][r] == m + 1].astype(np.float64)
    both = True
    for side, name in enumerate(("starts", "ends")):
      scores, gold = mine[:, side], batch[name][r, m]
      log_z = np.log(np.sum(np.exp(scores)))
      share = np.full(len(scores), smoothing / len(scores))
      share[gold] += 1 - smoothing
      total += (np.sum(share * (log_z - scores)) + z_loss * log_z**2) / 2
      both = both and scores.argmax() == gold
    right += both
    count += 1
  return total, right, count


def sums(logits, batch, key=None, **options):
  options = types.SimpleNamespace(**vars(OPTIONS) | options)
  run = lambda x: answer.loss(network_of(x), {"logits": x}, batch, options, key)
  (loss, weight), gradient = run(jnp.asarray(logits))["loss"], None
  gradient = jax.grad(lambda x: run(x)["loss"][0])(jnp.asarray(logits))
  return float(loss), float(weight), run(jnp.asarray(logits))["accuracy"], gradient


@pytest.fixture
def packed():
  place = context(max_length=16, stride=4, null_threshold=0.0)
  examples, batch = batch_of(place, row(LONG, "w7 w8"), row(PASSAGE, "William"), row("a b"))
  logits = np.random.default_rng(0).normal(size=(*batch["inputs"].shape, 2)) * 3
  return len(examples), batch, logits.astype(np.float32)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2}, {"z_loss": 0.01}], ids=str)
def test_the_loss_is_that_of_each_window_alone(packed, options):
  count, batch, logits = packed
  assert (batch["starts"] > 0).sum() >= 3 and count == batch["label_weights"].sum()
  loss, weight, _, gradient = sums(logits, batch, jax.random.key(0), **options)
  values = {name.removeprefix("label_"): value for name, value in options.items()}
  expected, _, number = by_hand(logits, batch, **values)
  assert weight == number == count
  assert loss == pytest.approx(expected, rel=1e-6)
  assert np.isfinite(gradient).all()
  assert not gradient[batch["segments"] == 0].any()  # nothing of what lies beside a segment
  plain = by_hand(logits, batch)[0]
  assert sums(logits, batch, None, **options)[0] == pytest.approx(plain, rel=1e-6)


def test_it_is_the_loss_of_torch(packed, oracle):
  """Cross-entropy as AutoModelForQuestionAnswering computes it, of every window alone."""
  _, batch, logits = packed
  total = 0.0
  for r, m in np.argwhere(batch["example_ids"] >= 0):
    mine = oracle.tensor(logits[r][batch["segments"][r] == m + 1])[None]
    for side, name in enumerate(("starts", "ends")):
      gold = oracle.tensor([int(batch[name][r, m])])
      total += float(oracle.nn.functional.cross_entropy(mine[..., side], gold)) / 2
  assert sums(logits, batch)[0] == pytest.approx(total, rel=1e-6)


def test_accuracy_counts_windows_with_both_places_right(packed):
  count, batch, logits = packed
  assert sums(logits, batch)[2][0] == by_hand(logits, batch)[1]
  told = np.zeros_like(logits)
  for r, m in np.argwhere(batch["example_ids"] >= 0):
    places = np.flatnonzero(batch["segments"][r] == m + 1)
    told[r, places[batch["starts"][r, m]], 0] = 50
    told[r, places[batch["ends"][r, m]], 1] = 50
  loss, weight, right, _ = sums(told, batch)
  assert loss / weight < 1e-6 and right == (count, count)
  assert sums(np.roll(told, 1, axis=1), batch)[0] / weight > 20
  assert sums(told[..., ::-1], batch)[2][0] < count  # starts are not ends


@pytest.mark.parametrize("key", ["starts", "ends"])
@pytest.mark.parametrize("value", [-1, 16])
def test_the_feed_refuses_a_place_outside_its_window(packed, key, value):
  _, batch, _ = packed
  feed.validate(batch, 100, 64, None)
  batch[key][0, 1] = value
  with pytest.raises(JaxsftError, match=rf"{key} {value} in example \d, expected a token"):
    feed.validate(batch, 100, 64, None)


# --- decoding ---------------------------------------------------------------------------

GOLDEN = json.loads(make_answers.FILE.read_text("utf-8"))


def golden(one):
  """(Found, Context) of a recorded case."""
  size, _, n_best, longest, threshold = make_answers.CASES[one["case"]]
  words = make_answers.WORDS[:size]
  starts = np.cumsum([0, *(len(word) + 1 for word in words)])
  examples, outputs = [], []
  for _, mine, logits in make_answers.draw(one["case"], one["seed"]):
    places = [(int(starts[w]), int(starts[w + 1]) - 1) if w >= 0 else (-1, -1) for w in mine]
    columns = np.array(places, np.int32).T
    examples.append(dict(zip(("start_char", "end_char"), columns, strict=True)))
    outputs.append({"logits": logits.astype(np.float32)})
  given = Row("q", "squad.json:q", {"question": ASKED, "context": " ".join(words)})
  settings = {"n_best": n_best, "max_answer_length": longest, "null_threshold": threshold}
  return tasks.Found(given, examples, outputs), tasks.Context(None, 0, **settings)


@pytest.mark.parametrize("one", GOLDEN, ids=lambda one: f"{one['case']}-{one['seed']}")
def test_decoding_is_that_of_the_squad_reference(one):
  given, place = golden(one)
  ranked, odds = answer.n_best(given, place)
  said = answer.decode(given, place)
  if one["answer"] == "empty":  # what it says where no start and end go together
    assert said["answer"] and said["start"] is not None
    return
  assert said["answer"] == one["answer"]
  assert [text.text for text, _ in ranked] == [text for text, _ in one["n_best"]]
  expected = [score for _, score in one["n_best"]]
  np.testing.assert_allclose([score for _, score in ranked], expected, rtol=1e-9)
  assert said["score"] == pytest.approx(dict(one["n_best"])[one["answer"]])
  if one["null_odds"] is not None:
    assert odds == said["null_odds"] == one["null_odds"]
  silent = one["answer"] == ""
  assert (said["start"] is None) == (said["end"] is None) == silent
  if not silent:
    assert given.row.fields["context"][said["start"] : said["end"]] == one["answer"]


def test_the_golden_cases_have_everything():
  answers = [one["answer"] for one in GOLDEN]
  assert {"", "empty"} <= set(answers) and len(set(answers)) > 15
  odds = [o for one in GOLDEN if (o := one["null_odds"]) is not None]
  assert min(odds) < 0 < max(odds)


@pytest.mark.full
def test_the_golden_cases_are_current():
  pytest.importorskip("transformers.data.metrics.squad_metrics")  # of transformers 4
  assert GOLDEN == [make_answers.reference(one["case"], one["seed"]) for one in GOLDEN]


@pytest.mark.parametrize("name", NAMES)
def test_only_the_context_answers(name):
  """Whatever the question and the special tokens are thought to be."""
  place = context(name, n_best=2)
  one = found(row(PASSAGE, "William"), place)
  one.outputs[0]["logits"][one.examples[0]["end_char"] < 0] = 40.0
  assert answer.decode(one, place)["answer"] == "William"


def test_spaces_are_no_answer():
  place, passage = context("plain", max_answer_length=1), "x    y"
  one = found(row(passage, "y"), place)
  example, blank = one.examples[0], 0
  for i, (a, b) in enumerate(zip(example["start_char"], example["end_char"], strict=True)):
    if a >= 0 and not passage[a:b].strip():
      one.outputs[0]["logits"][i], blank = 30.0, blank + 1
  assert blank >= 2
  said = answer.decode(one, place)
  assert (said["answer"], said["start"]) == ("y", 5)


def test_answers_of_at_most_so_many_tokens():
  given = row(LONG, "w3 w4 w5")
  for longest, expected in ((3, "w3 w4 w5"), (2, "w3")):
    place = context(max_answer_length=longest)
    one = found(given, place)
    one.outputs[0]["logits"][one.examples[0]["start"], 1] = 1.0
    assert answer.decode(one, place)["answer"] == expected


# --- numbers ----------------------------------------------------------------------------


def measured(count, place, height, wrong=()):
  """Rows, each fourth without answer, of a model that is wrong at some."""
  rng, many = np.random.default_rng(1), []
  for i in range(count):
    words = LONG.split()
    at = int(rng.integers(0, 38))
    gold = " ".join(words[at : at + 2])
    start = len(" ".join([*words[:at], ""]))
    given = row(LONG, *([] if i % 4 == 3 else [(gold, start), ("w0", 0)]))
    one = found(given, place)
    for example, output in zip(one.examples, one.outputs, strict=True):
      output["logits"] += rng.normal(size=output["logits"].shape).astype(np.float32)
      if i in wrong:
        output["logits"][[example["start"], example["end"]], [0, 1]] -= height
    many.append(one)
  return many


def test_gold_answers_score_100():
  place = context(max_length=24, stride=8, null_threshold=0.0)
  numbers = answer.metrics(measured(20, place, 30.0), place)
  names = [f"{part}{name}" for part in ("", "has_answer_", "no_answer_", "best_")
           for name in ("f1", "exact_match")]  # fmt: skip
  assert {name: numbers[name] for name in names} == dict.fromkeys(names, 100.0)
  assert (numbers["total"], numbers["has_answer_total"], numbers["no_answer_total"]) == (
    20,
    15,
    5,
  )


def test_the_numbers_are_of_what_is_decoded():
  """Counted by hand, from the decoded answers; the threshold found is one to set."""
  import dataclasses

  place = context(max_length=24, stride=8, null_threshold=-2.0)
  many = measured(40, place, 8.0, wrong=range(0, 40, 3))
  numbers = answer.metrics(many, place)
  assert 30 < numbers["f1"] < 90 and numbers["best_f1"] > numbers["f1"]

  def exact(place):
    said = [answer.decode(one, place)["answer"] for one in many]
    gold = [[a["text"] for a in one.row.fields["answers"]] or [""] for one in many]
    return 100 * np.mean([text in texts for text, texts in zip(said, gold, strict=True)])

  assert numbers["exact_match"] == pytest.approx(exact(place))
  for name in ("f1", "exact_match"):
    at = dataclasses.replace(place, null_threshold=numbers[f"best_{name}_threshold"])
    again = answer.metrics(many, at)
    assert again[name] == pytest.approx(numbers[f"best_{name}"])
  assert numbers["best_exact_match"] == pytest.approx(exact(at))


def test_where_silence_is_best_the_threshold_is_below_all_odds():
  place = context(null_threshold=0.0)
  many = [found(row(LONG), place, [{"logits": np.random.default_rng(i).normal(size=(46, 2))}])
          for i in range(5)]  # fmt: skip
  numbers = answer.metrics(many, place)
  odds = [answer.decode(one, place)["null_odds"] for one in many]
  assert numbers["best_f1"] == 100 and numbers["best_f1_threshold"] < min(odds) < 0


def test_without_threshold_every_question_is_answered():
  place = context()
  one = found(row(LONG, "w3", "w4"), place)
  one.outputs[0]["logits"][0] = 99.0
  numbers = answer.metrics([one], place)
  assert numbers["exact_match"] == 100 and "best_f1" not in numbers
  assert "no_answer_f1" not in numbers and answer.decode(one, place)["null_odds"] > 150


def test_the_loss_is_the_mean_over_windows():
  place = context(max_length=24, stride=8, null_threshold=0.0)
  many = measured(6, place, 3.0)
  total, count = 0.0, 0
  for one in many:
    for example, output in zip(one.examples, one.outputs, strict=True):
      batch = {
        "example_ids": np.zeros((1, 1)),
        "segments": np.ones((1, len(example["inputs"]))),
      }
      batch |= {"starts": example["start"][None, None], "ends": example["end"][None, None]}
      total += by_hand(output["logits"][None], batch)[0]
      count += 1
  assert answer.metrics(many, place)["loss"] == pytest.approx(total / count) and count > 12
