"""Entities and their scores against seqeval: live where it is installed, else as recorded."""

import importlib.util
import itertools
import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from jaxsft.errors import JaxsftError
from jaxsft.metrics import tagging
from tests.golden import make_seqeval

alone = importlib.util.find_spec("seqeval") is None
oracle = pytest.mark.skipif(alone, reason="needs seqeval, see tests/golden/make_seqeval.py")
STORED = json.loads(make_seqeval.FILE.read_text())
RENAMED = {"BMES": {"M": "I"}, "BMEWO": {"M": "I", "W": "S"}, "BILOU": {"L": "E", "U": "S"}}


def letters(scheme):
  return "".join(tagging._PREFIXES[scheme])


def tags(scheme):
  """Tags of a scheme in any order, some without a type."""
  types = st.sampled_from(["-PER", "-PER", "-LOC", "-creative-work", ""])
  tag = st.builds(lambda a, b: a + b, st.sampled_from(letters(scheme)), types)
  return st.lists(st.just("O") | tag | tag, max_size=9)


def pairs(scheme):
  """[(gold, predicted)] of equal lengths, half of the tags equal."""
  row = st.lists(st.tuples(tags(scheme), st.randoms()), min_size=1, max_size=4)

  def build(rows):
    gold = [g for g, _ in rows]
    pool = [t for g in gold for t in g] or ["O"]
    return gold, [[t if r.random() < 0.6 else r.choice(pool) for t in g] for g, r in rows]

  return row.map(build)


def check(result, expected):
  for average, start in (("micro", ""), ("macro", "macro_"), ("weighted", "weighted_")):
    if f"{average} avg" not in expected:
      assert f"{start}f1" not in result and "no entity" in result["undefined"][f"{start}f1"]
      continue
    names = [f"{start}{name}" for name in ("precision", "recall", "f1")]
    found = [result[name] for name in names]
    assert [*found, result["support"]] == pytest.approx(expected[f"{average} avg"], abs=1e-12)
  kinds = [name for name in expected if not name.endswith(" avg")]
  assert sorted(result["per_type"]) == sorted(kinds)
  for kind in kinds:
    row = result["per_type"][kind]
    found = [row[name] for name in ("precision", "recall", "f1", "support")]
    assert found == pytest.approx(expected[kind], abs=1e-12)


@pytest.mark.parametrize("case", make_seqeval.cases(), ids=lambda c: make_seqeval.name(*c))
def test_the_recorded_sequences_score_as_seqeval_says(case):
  scheme, _, strict = case
  stored = STORED[make_seqeval.name(*case)]
  found = [[list(e) for e in tagging.spans(x, scheme, strict)] for x in stored["gold"]]
  assert found == stored["entities"]
  check(tagging.scores(stored["predicted"], stored["gold"], scheme, strict), stored["scores"])


@oracle
@pytest.mark.filterwarnings("ignore")
def test_the_record_is_current():
  for case in make_seqeval.cases():
    assert make_seqeval.reference(*case) == STORED[make_seqeval.name(*case)]


def reference(function, *arguments):
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    return function(*arguments)


@oracle
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("scheme", ["IOB1", "IOB2", "IOBES"])
def test_any_sequences_score_as_seqeval_says(scheme, strict):
  @settings(deadline=None, max_examples=120)
  @given(pairs(scheme))
  def same(rows):
    gold, predicted = rows
    for sequence in gold:
      found = [list(e) for e in tagging.spans(sequence, scheme, strict)]
      assert found == reference(make_seqeval.entities, sequence, scheme, strict)
    if any(gold):
      expected = reference(make_seqeval.scores, gold, predicted, scheme, strict)
      check(tagging.scores(predicted, gold, scheme, strict), expected)

  same()


@oracle
@pytest.mark.parametrize("scheme", sorted(RENAMED))
def test_other_letters_are_read_as_iobes(scheme):
  @settings(deadline=None, max_examples=60)
  @given(tags(scheme))
  def same(sequence):
    renamed = [RENAMED[scheme].get(t[0], t[0]) + t[1:] for t in sequence]
    for strict in (False, True):
      found = [list(e) for e in tagging.spans(sequence, scheme, strict)]
      assert found == reference(make_seqeval.entities, renamed, "IOBES", strict)
    if scheme == "BILOU":
      assert found == reference(make_seqeval.entities, sequence, scheme, True)

  same()


@oracle
@given(pairs("IOB2").filter(lambda rows: any(rows[0])))
@settings(deadline=None, max_examples=40)
def test_token_accuracy_is_that_of_seqeval(rows):
  from seqeval import metrics

  gold, predicted = rows
  found = tagging.scores(predicted, gold)["accuracy"]
  assert found == pytest.approx(metrics.accuracy_score(gold, predicted))


@st.composite
def entities(draw):
  """(spans, length) that do not overlap, neighbours often touching."""
  place, found = 0, []
  for _ in range(draw(st.integers(0, 5))):
    start = place + draw(st.sampled_from([0, 0, 1, 2]))
    place = start + draw(st.integers(1, 3))
    found.append(tagging.Span(draw(st.sampled_from(["PER", "LOC", "_", "a-b"])), start, place))
  return found, place + draw(st.integers(0, 2))


@pytest.mark.parametrize("scheme", list(tagging._PREFIXES))
@given(entities(), st.booleans())
def test_spans_are_spelt_and_read_again(scheme, drawn, strict):
  found, length = drawn
  spelt = tagging.tags_of(found, length, scheme)
  assert len(spelt) == length
  assert tagging.spans(spelt, scheme, strict) == found
  assert tagging.broken(spelt, scheme) == 0


@given(entities(), st.sampled_from(list(tagging._PREFIXES)))
def test_a_conversion_keeps_the_entities(drawn, target):
  iob1 = tagging.tags_of(*drawn, "IOB1")
  assert tagging.spans(tagging.convert(iob1, "IOB1", target), target, strict=True) == drawn[0]


def test_iob1_as_conll_2003_writes_it():
  iob1 = ["I-ORG", "O", "I-MISC", "B-MISC", "I-MISC", "I-LOC", "I-PER", "I-PER"]
  iob2 = ["B-ORG", "O", "B-MISC", "B-MISC", "I-MISC", "B-LOC", "B-PER", "I-PER"]
  assert tagging.scheme_of([iob1]) == "IOB1" and tagging.scheme_of([iob2]) == "IOB2"
  assert tagging.convert(iob1, "IOB1") == iob2
  assert tagging.convert(iob2, "IOB2", "IOB1") == iob1
  assert tagging.broken(iob1, "IOB2") == 4 and tagging.broken(iob2, "IOB1") == 4
  assert tagging.convert(iob2, "IOB2", "BILOU")[:5] == [
    "U-ORG",
    "O",
    "U-MISC",
    "B-MISC",
    "L-MISC",
  ]


@pytest.mark.parametrize(
  "sequences, scheme",
  [
    ([["B-A", "I-A", "O"]], "IOB2"),
    ([["O", "B-A"], ["B-A", "B-A"]], "IOB2"),
    ([["O", "I-A"], ["I-A", "I-B"]], "IOB1"),
    ([["I-A", "B-A"]], "IOB1"),
    ([["I-A", "B-A"], ["B-B", "O"]], "IOB2"),
    ([["B-A", "I-A", "O", "I-A"], ["B-B"]], "IOB2"),  # broken once
    ([["I", "B", "O", "I"]], "IOB1"),
    ([["B-A", "I-B", "I-A"]], "IOB1"),
    ([["I-A", "B-A"], ["I-A"], ["B-B", "O"]], "IOB1"),  # the train file of CoNLL-2003 has such
    ([["B-A", "E-A"]], "IOBES"),
    ([["S-A"]], "IOBES"),
    ([["B-A", "I-A", "E-A"], ["S-A"]], "IOBES"),
    ([["U-A"]], "BILOU"),
    ([["B-A", "L-A"]], "BILOU"),
    ([["B-A", "M-A", "E-A"], ["S-A"]], "BMES"),
    ([["B", "M", "E", "S", "S"]], "BMES"),
    ([["B-A", "E-A", "W-A"]], "BMEWO"),
    ([["W-A", "O"]], "BMEWO"),
    ([["B", "I", "O"]], "IOB2"),
    ([["NOUN", "O", "X"]], "plain"),
    ([["DT", "NN", "-LRB-"]], "plain"),
    ([["N-sg", "V-pl", "B"]], "plain"),
    ([["O", "O"]], "plain"),
    ([["I", "O"]], "plain"),
  ],
)
def test_the_scheme_is_recognised(sequences, scheme):
  assert tagging.scheme_of(sequences) == scheme


@pytest.mark.parametrize(
  "sequences, words",
  [
    ([], "no tag"),
    ([[]], "no tag"),
    ([["B-A", "NOUN"]], "'NOUN' has no prefix of a scheme although 'B-A'"),
    ([["I-A", "E-A"]], "prefixes E, I belong to no known scheme"),
    ([["B-A", "L-A", "E-A"]], "prefixes B, E, L belong"),
    (["B-A", "O"], "put it in a list"),
    ("BIO", "put it in a list"),
  ],
)
def test_no_scheme_is_said(sequences, words):
  with pytest.raises(JaxsftError, match=words):
    tagging.scheme_of(sequences)


def test_gold_as_prediction_scores_exactly_1():
  gold = [["B-A", "I-A", "O", "B-B"], ["O", "I-A"]]
  for scheme in ("IOB1", "IOB2", "plain"):
    result = tagging.scores(gold, gold, scheme)
    names = [n for n in tagging.DIRECTIONS if scheme != "plain" or "_" in n or n == "accuracy"]
    assert [result[name] for name in names] == [1.0] * len(names)
    assert result["undefined"] == {}
  assert tagging.scores(gold, gold, "IOB2")["broken"] == {"gold": 1, "predicted": 1}


def test_tags_without_a_type_stay_so():
  assert tagging.tags_of([("A", 2, 3), ("_", 0, 2)], 4) == ["B", "I", "B-A", "O"]
  assert tagging.broken(["B", "I", "O"], "IOB2") == 0


def test_broken_sequences_are_read_as_stated():
  broken = ["I-A", "I-B", "O", "I-A"]
  spans = [("A", 0, 1), ("B", 1, 2), ("A", 3, 4)]
  assert tagging.spans(broken) == spans
  assert tagging.spans(broken, strict=True) == []
  unfinished = ["B-A", "I-A", "O", "S-A"]
  assert tagging.spans(unfinished, "IOBES") == [("A", 0, 2), ("A", 3, 4)]
  assert tagging.spans(unfinished, "IOBES", strict=True) == [("A", 3, 4)]
  assert tagging.broken(broken, "IOB2") == 3 and tagging.broken(unfinished, "IOBES") == 1


@pytest.mark.parametrize("seed", range(3))
def test_plain_tags_score_as_in_scikit_learn(seed):
  rng = np.random.default_rng(seed)
  names = np.array(["NOUN", "VERB", "O", "B-x"])
  gold = [names[rng.integers(0, 3, n)].tolist() for n in (4, 9, 1)]
  predicted = [[t if rng.random() < 0.6 else names[rng.integers(4)] for t in x] for x in gold]
  flat = [list(itertools.chain(*x)) for x in (gold, predicted)]
  result = tagging.scores(predicted, gold, "plain")
  assert result["accuracy"] == pytest.approx(sk.accuracy_score(*flat))
  for average in ("macro", "weighted"):
    expected = sk.precision_recall_fscore_support(*flat, average=average, zero_division=0)
    found = [result[f"{average}_{name}"] for name in ("precision", "recall", "f1")]
    assert found == pytest.approx(expected[:3])
  each = sk.precision_recall_fscore_support(*flat, zero_division=0)
  found = [
    [row[k] for row in result["per_type"].values()] for k in ("precision", "recall", "f1")
  ]
  assert np.allclose(found, each[:3])
  assert list(result["per_type"]) == sorted(set(flat[0]) | set(flat[1]))
  assert not {"f1", "precision", "recall", "broken"} & set(result)


def test_counts_are_of_each_sequence():
  gold = [["B-A", "O", "B-B"], ["O"], ["B-A"]]
  predicted = [["B-A", "B-A", "O"], ["O"], ["B-B"]]
  assert tagging.counts(predicted, gold) == [
    {"A": (1, 2, 1), "B": (0, 0, 1)},
    {},
    {"A": (0, 0, 1), "B": (0, 1, 0)},
  ]


def test_no_entity_at_all_leaves_accuracy_alone():
  result = tagging.scores([["O", "O"]], [["O", "O"]])
  assert result["accuracy"] == 1.0 and "f1" not in result
  assert set(result["undefined"]) == set(tagging.DIRECTIONS) - {"accuracy"}
  assert result["broken"] == {"gold": 0, "predicted": 0}
  result = tagging.scores([["B-A", "O"]], [["O", "O"]])
  assert [result[k] for k in ("precision", "recall", "f1", "weighted_f1")] == [0.0] * 4


def test_bad_input_is_named():
  for call, words in (
    (lambda: tagging.scores([["O"]], [["O"], ["O"]]), "1 predicted sequences for 2 gold"),
    (lambda: tagging.scores([["O"], ["O"]], [["O"], ["O", "O"]]), "sequence 1 has 1 predicted"),
    (lambda: tagging.scores([], []), "no token"),
    (lambda: tagging.scores([[]], [[]]), "no token"),
    (lambda: tagging.scores(["O"], [["O"]]), "put it in a list"),
    (lambda: tagging.spans(["O", "E-A"], "IOB2"), r"tag 1 is 'E-A', expected O or .* \(BI\)"),
    (lambda: tagging.spans(["B-"], "IOB2"), "tag 0 is 'B-'"),
    (lambda: tagging.spans(["NOUN"], "IOB2"), "tag 0 is 'NOUN'"),
    (lambda: tagging.spans(["B-A"], "BIO2"), "scheme 'BIO2'"),
    (lambda: tagging.spans(["B-A"], "plain"), "scheme 'plain' has no entities"),
    (lambda: tagging.tags_of([("A", 0, 3)], 2), "in 2 tokens"),
    (lambda: tagging.tags_of([("A", 1, 1)], 2), "do not overlap"),
    (lambda: tagging.tags_of([("A", 0, 2), ("B", 1, 3)], 4), "after \\('A', 0, 2\\)"),
  ):
    with pytest.raises(JaxsftError, match=words):
      call()
