"""What the doctor can find: stable names, their grades, and what to do about each."""

from collections.abc import Iterable
from typing import NamedTuple

GRADES = ("refuses", "warns", "notes")
"""A run does not start; it starts and says so; only the doctor says so."""
SHOWN = 20
"""Rows that a finding names."""


class Finding(NamedTuple):
  """One thing that is to be known of the data before a run."""

  grade: str
  """Of GRADES."""
  code: str
  """Of CODES."""
  text: str
  """What was found, where, and what to change."""
  rows: tuple[str, ...] = ()
  """Ids of the first rows that show it."""


class Code(NamedTuple):
  """What one kind of finding means."""

  grade: str
  meaning: str
  remedy: str


CODES = {
  # refuses to train
  "unreadable": Code(
    "refuses",
    "The rows cannot be read or encoded; the sentence is the one that training would end with.",
    "what the sentence names",
  ),
  "too-many-dropped": Code(
    "refuses",
    "More than `data.max_dropped` of a set's rows, 1 % unless it says otherwise, would be left "
    "out by the encoder, most often for length.",
    "`data.max_length`, `data.too_long`, `data.keep`, `data.max_dropped`",
  ),
  "nothing-supervised": Code(
    "refuses",
    "Examples from which nothing is learnt: every token is context.",
    "`data.max_length`, `data.train_on`, `data.columns`",
  ),
  "overlapping-ids": Code(
    "refuses", "An id is both trained on and held out.", "`data.id`, `data.eval_path`"
  ),
  # warns
  "truncated": Code(
    "warns",
    "Rows lose a part of their text, or their oldest turns, to the length limit.",
    "`data.max_length`, or `data.too_long`",
  ),
  "odd-rows": Code(
    "warns",
    "Rows that are used but not as they stand: words without a token, answers that are whole "
    "in no window, messages of a developer that are written as the system's.",
    "`data.stride`, `data.max_length`, or the rows",
  ),
  "unwritten": Code(
    "warns",
    "With `data.unwritten='leave_out'`, rows of whose tools, or of whose thoughts before "
    "answers, nothing is learnt, since the chat template does not write them.",
    "`data.chat_template`, or the rows",
  ),
  "many-left-out": Code(
    "warns",
    "More than 5 % of the rows read have an empty field.",
    "`data.columns`, `data.keep`, or the rows",
  ),
  "repeated-ids": Code("warns", "Training examples share an id with another.", "`data.id`"),
  "leakage": Code(
    "warns",
    "Evaluated rows say the same as training rows (case and spaces aside), so their numbers "
    "are too good.",
    "`clean.overlap`, `clean.benchmarks`, or `data.split_by`",
  ),
  "ids-in-a-set": Code(
    "warns",
    "Rows of `evaluate.sets` have an id (`data.id`) that a training row has.",
    "the files, or `data.id`",
  ),
  "near-leakage": Code(
    "warns",
    "Evaluated rows differ from training rows only in punctuation, case or spaces "
    "(doctor only).",
    "the files, `clean.near_duplicates`, or `data.split_by`",
  ),
  "label-conflicts": Code(
    "warns",
    "Training rows with the same text have different labels.",
    "the rows, or `data.keep`",
  ),
  "cleaning": Code(
    "warns",
    "What `clean` met but could not settle: rows with the text of another and another answer, "
    "training rows that nearly equal held-out ones, texts of benchmarks too short to look for.",
    "the rows, `clean.overlap`, `clean.ngram`",
  ),
  "unseen-labels": Code(
    "warns",
    "Held-out labels that training never shows.",
    "`data.split`, `data.labels`, or the rows",
  ),
  "unused-labels": Code(
    "warns", "Labels of the head that no row has.", "`data.labels`, or the rows"
  ),
  "imbalance": Code(
    "warns",
    "The most frequent label has 20 times as many rows as the rarest, and all count the same.",
    "`loss.class_weights`, `data.balance`, `evaluate.metric`",
  ),
  "one-label-held-out": Code(
    "warns",
    "All held-out rows have the same label, so no metric tells labels apart.",
    "`data.split`, `data.eval_path`",
  ),
  "constant-number": Code(
    "warns", "All training rows have the same number as their label.", "`data.columns`"
  ),
  "little-supervised": Code(
    "warns", "Less than 1 % of the tokens are learnt from.", "`data.columns`, `data.train_on`"
  ),
  "unknown-tokens": Code(
    "warns",
    "More than 1 % of the tokens are ones that the tokenizer does not know.",
    "`model.path`, `data.encoding`",
  ),
  "batch-larger-than-data": Code(
    "warns", "One batch holds more than all the data.", "`batch_size`"
  ),
  "few-updates": Code(
    "warns", "Fewer than 10 updates: hardly enough to learn from.", "`epochs`, `batch_size`"
  ),
  "warmup-covers-run": Code(
    "warns", "Warmup lasts as long as the run, which ends at the peak rate.", "`optim.warmup`"
  ),
  "patience-without-effect": Code(
    "warns",
    "There are too few evaluations for the run to stop early.",
    "`evaluate.every`, `evaluate.patience`",
  ),
  "much-padding": Code(
    "warns", "Less than half of the places of a batch hold tokens.", "`data.packing`"
  ),
  # notes
  "some-dropped": Code("notes", "At most 1 % of a set's rows are left out.", "`data.too_long`"),
  "duplicates": Code(
    "notes",
    "Training rows say the same (case and spaces aside).",
    "`clean.duplicates`, `clean.near_duplicates`",
  ),
  "near-duplicates": Code(
    "notes",
    "Training rows differ only in punctuation, case or spaces (doctor only).",
    "`clean.near_duplicates`",
  ),
  "rare-labels": Code("notes", "Labels with fewer than 10 training rows.", "the rows"),
  "number-outliers": Code(
    "notes",
    "Numbers more than six standard deviations from the mean, which squared errors follow.",
    "the rows, or `data.keep`",
  ),
  "no-held-out": Code(
    "notes", "Nothing is held out, so nothing measures the run.", "`data.split`"
  ),
  "few-held-out": Code(
    "notes", "Fewer than 50 held-out rows: their numbers are rough.", "`data.split`"
  ),
  "mixed-system": Code(
    "notes", "Some conversations have a system message and others do not.", "the rows"
  ),
  "max-length-far-above": Code(
    "notes", "The length limit is four times the longest example or more.", "`data.max_length`"
  ),
  "pad-is-eos": Code(
    "notes",
    "The tokenizer pads with its end-of-text token. This is fine: padding is known by length.",
    "nothing",
  ),
  "label-suspects": Code(
    "notes",
    "Rows whose label other rows speak against, by confident learning (doctor only).",
    "the rows, after a look at them",
  ),
}


def found(code: str, text: str, rows: Iterable[str] = ()) -> Finding:
  """A `Finding` of the grade of its code."""
  return Finding(CODES[code].grade, code, text, tuple(rows)[:SHOWN])
