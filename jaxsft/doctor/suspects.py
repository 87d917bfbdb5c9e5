"""Rows whose label other rows speak against: confident learning (arXiv:1911.00068).

A plain classifier (TF-IDF of character and word n-grams, logistic regression) learns from four
fifths of the rows and gives probabilities for the rest, in turn. A row is a suspect where
another label is surer of it than that label is of its own rows on average.
"""

import hashlib
import heapq
import itertools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxsft import tasks
from jaxsft.data import words
from jaxsft.data.nearest import some
from jaxsft.doctor import parts
from jaxsft.doctor.codes import found

FOLDS = 5
ROWS = 10_000
"""Rows that are judged, chosen by a hash of their ids; or fewer, by the next three."""
CHARACTERS = 4_000_000
LONGEST = 2000
"""Characters of a text that are read."""
CELLS = 100_000
"""Rows x labels."""
FEWEST = 20
FEATURES = 20_000
"""N-grams of each kind, the most frequent ones."""
SHOWN = 50


class Suspect(NamedTuple):
  """One row, or one word of it, and the label that others would give it."""

  id: str
  set: str
  text: str
  given: str
  likely: str
  given_probability: float
  likely_probability: float


@dataclass(frozen=True)
class Judgement:
  """What became of the search; `suspects` the least plausible first."""

  judged: int
  total: int
  unit: str
  """What is judged: "rows" or "words"."""
  count: int
  suspects: tuple[Suspect, ...]
  """The first of them."""
  why: str = ""
  """Why nothing was judged; "" where it was."""


class _Item(NamedTuple):
  """One thing with one label."""

  id: str
  set: str
  text: str
  """Its characters are learnt from, in pieces of two to four."""
  around: str
  """Its words are learnt from, and pairs of them."""
  shown: str
  label: str
  group: str
  """Items of a group are learnt from together or judged together."""


def search(prepared):
  """`Judgement` of the labelled rows of a `prepare.Prepared`; None: the task has no labels.

  A pure function of the rows: what is sampled is chosen by their ids, never by time.
  """
  task, context = prepared.task, prepared.context
  if task is tasks.TASKS["classify"] and context.label_type == "single":
    return _judge(_of_rows(prepared), "rows", stratify=True)
  if task is tasks.TASKS["tag"]:
    return _judge(_of_words(prepared), "words", stratify=False)
  return None


def finding(judgement):
  """The findings of a `Judgement`, one or none."""
  if judgement is not None and judgement.count:
    first = [f"{s.id} says {s.given}, likely {s.likely}" for s in judgement.suspects[:3]]
    yield found(
      "label-suspects",
      f"{judgement.count:,} of {judgement.judged:,} {judgement.unit} judged have a label that "
      f"other rows speak against: {some(first, judgement.count)}; look at them, and correct "
      "those that are wrong",
      dict.fromkeys(one.id for one in judgement.suspects),
    )


def confident_learning(labels, probabilities):
  """[k] indices of label errors, the least plausible first.

  labels [N] int; probabilities [N, C], out of sample. Class j is confident of a row if its
  probability reaches the mean of p[j] over the rows labelled j; a row is an error if the most
  probable of the confident classes, and of all, is not its label (the off-diagonal of the
  confident joint). The rank is p[label] - max of the others, the normalised margin.
  """
  labels, p = np.asarray(labels), np.asarray(probabilities, np.float64)
  classes = p.shape[1]
  there = [j for j in range(classes) if (labels == j).any()]
  thresholds = np.full(classes, np.inf)
  thresholds[there] = [p[labels == j, j].mean() for j in there]
  sure = np.where(p >= thresholds - 1e-6, p, -1.0)
  best = np.where((sure >= 0).any(1), sure.argmax(1), labels)
  wrong = np.flatnonzero((best != labels) & (p.argmax(1) != labels))
  margin = p[np.arange(len(p)), labels] - np.where(np.eye(classes)[labels] > 0, -1, p).max(1)
  return wrong[np.argsort(margin[wrong], kind="stable")]


def out_of_fold(texts, arounds, labels, folds):
  """[N, C] probabilities of each item by the classifier that has not seen its fold."""
  import scipy.sparse  # late: only the doctor needs scikit-learn here
  from sklearn import linear_model, multiclass
  from sklearn.feature_extraction.text import TfidfVectorizer

  kinds = (
    {"analyzer": "char_wb", "ngram_range": (2, 4), "token_pattern": None},
    {"analyzer": "word", "ngram_range": (1, 2), "token_pattern": r"\S+"},
  )
  make = lambda kind: TfidfVectorizer(sublinear_tf=True, max_features=FEATURES, **kind)
  seen = [make(kind).fit_transform(x) for kind, x in zip(kinds, (texts, arounds), strict=True)]
  features = scipy.sparse.hstack(seen, "csr")
  probabilities = np.zeros((len(texts), labels.max() + 1))
  for fold in range(FOLDS):
    rest, here = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
    if not len(here) or len(known := np.unique(labels[rest])) < 2:
      probabilities[here, labels[here]] = 1.0  # nothing to compare with
      continue
    one = linear_model.LogisticRegression(
      C=10.0, solver="liblinear", dual=True, tol=1e-2, random_state=0
    )
    model = multiclass.OneVsRestClassifier(one)  # many labels take no longer than many rows
    model.fit(features[rest], labels[rest])
    probabilities[np.ix_(here, known)] = model.predict_proba(features[here])
  return probabilities


def folds_of(groups, strata):
  """[N] int: the fold of each item, the same for a group, even within each stratum.

  In the order of the groups' sha256; a group is of the stratum of its first item.
  """
  first = {}
  for group, stratum in zip(groups, strata, strict=True):
    first.setdefault(group, stratum)
  taken, fold = {}, {}
  for group in sorted(first, key=_hash):
    fold[group] = taken.get(first[group], 0) % FOLDS
    taken[first[group]] = taken.get(first[group], 0) + 1
  return np.array([fold[group] for group in groups])


def _judge(items, unit, stratify):
  names, kept, total = _sample(items)
  if len(names) < 2 or len(kept) < FEWEST:
    why = f"{len(kept)} {unit} with {len(names)} labels are too few to judge by"
    return Judgement(0, total, unit, 0, (), why)
  number = {name: n for n, name in enumerate(names)}
  labels = np.array([number[item.label] for item in kept])
  folds = folds_of([i.group for i in kept], labels if stratify else np.zeros(len(kept), int))
  p = out_of_fold([item.text for item in kept], [item.around for item in kept], labels, folds)
  wrong = confident_learning(labels, p)
  suspects = []
  for i in wrong[:SHOWN]:
    item, likely = kept[i], int(p[i].argmax())
    at = float(p[i, labels[i]]), float(p[i, likely])
    suspects.append(Suspect(item.id, item.set, item.shown, item.label, names[likely], *at))
  return Judgement(len(kept), total, unit, len(wrong), tuple(suspects))


def _sample(items):
  """(the labels, sorted; some items in their order; how many there are in all).

  As many as ROWS, CELLS and CHARACTERS allow, by a hash of their ids.
  """
  names, total = set(), itertools.count()

  def ranked():
    for item in items:
      names.add(item.label)
      yield _hash(item.id), next(total), item

  kept = heapq.nsmallest(ROWS, ranked(), key=lambda one: one[:2])
  kept = kept[: CELLS // max(len(names), 1)]
  size = np.cumsum([len(item.around) for *_, item in kept])
  kept = kept[: int(np.searchsorted(size, CHARACTERS, side="right"))]
  in_order = [item for *_, item in sorted(kept, key=lambda one: one[1])]
  return sorted(names), in_order, next(total)


def _rows(prepared):
  """(set, its rows) of those that are trained on or held out, without the copies that
  augmentation made, which say nothing new.
  """
  for name, part in parts.examples_of(prepared).items():
    if name in prepared.sets:
      continue
    copies = prepared.rows.copies if name == "train" else 0
    yield name, itertools.islice(part.rows, len(part.rows) - copies)


def _of_rows(prepared):
  for name, rows in _rows(prepared):
    for row in rows:
      said = [row.fields[n] for n in parts.CONTENT if row.fields.get(n) is not None]
      text = " | ".join(map(str, said))[:LONGEST]
      yield _Item(row.id, name, text, text, text, row.fields["label"], text.casefold())


def _of_words(prepared):
  """The words of a row with their neighbours, of which two stand on each side."""
  context = prepared.context
  for name, rows in _rows(prepared):
    for row in rows:
      read = words.read(row.fields, context.tokenizer)
      tags = tasks.TASKS["tag"].gold_tags(row.fields, read.words, read.text, context)
      said = [read.text[start:end] for start, end in read.words]
      for n, (word, tag) in enumerate(zip(said, tags, strict=True)):
        before, after = said[max(0, n - 2) : n], said[n + 1 : n + 3]
        around = " ".join([*(f"{w}‹" for w in before), word, *(f"›{w}" for w in after)])
        shown = " ".join([*before, f"⟦{word}⟧", *after])
        yield _Item(row.id, name, word, around, shown, tag, row.id)


def _hash(text):
  return hashlib.sha256(text.encode(errors="surrogatepass")).digest()
