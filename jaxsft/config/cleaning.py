"""Settings of what is changed in texts, which rows are left out, and what is made of others."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Clean:
  """Texts normalised and rows left out: every rule is off unless named, and counted."""

  text: tuple[str, ...] = ()
  """Steps over all texts that a model reads, in their order, also in evaluations and
  predictions: "nfc", "nfkc", "control" (control and zero-width characters), "markup" (tags of
  HTML, closed comments, scripts and styles; entities, read once), "whitespace", "lower",
  "punctuation", "urls", "stop_words:english", "stop_words:FILE" (one word a line) or
  "stop_words:["a", …]". The arguments of calls of tools stay as they are."""
  secrets: Literal["keep", "mask", "drop", "error"] = "keep"
  """Keys, tokens and passwords, told by their form: as they are, placeholders such as [AWS_KEY]
  in their place (also in evaluations and predictions), rows left out, or an error. Looked for
  in all that a model reads: thoughts, calls of tools, their results and descriptions too."""
  personal: Literal["keep", "mask", "drop", "error"] = "keep"
  """The same for e-mail addresses, phone and card numbers, IBANs, and IP addresses."""
  min_chars: int | None = None
  """Leave out rows whose texts have fewer characters together."""
  max_chars: int | None = None
  """Leave out rows whose texts have more characters together."""
  language: str | None = None
  """Leave out rows in another language than this code of ISO 639-1; needs jaxsft[clean]."""
  duplicates: Literal["keep", "drop"] = "keep"
  """Leave out rows that an earlier one equals to the letter in all that a model reads and
  learns: texts, roles, calls of tools and these, labels and targets. Rows that have the text of
  another, but not its answer, stay and are named."""
  near_duplicates: float | None = None
  """Leave out rows of whose runs of five words a share of this, or more, is an earlier row's
  (Jaccard index; characters where a script has no spaces), case and spaces aside, where both
  have the same label, tools and question; needs jaxsft[clean]."""
  overlap: Literal["warn", "drop", "error"] = "warn"
  """Training rows that say what a held-out row says, case and spaces aside, or nearly by
  `near_duplicates`: said in the report, left out, or an error."""
  benchmarks: tuple[str, ...] = ()
  """Files of texts, in any format of rows, of which training rows must hold no run of words."""
  ngram: int = 13
  """How many words in a row make a training row one of the benchmarks (arXiv:2005.14165,
  appendix C)."""


@dataclass(frozen=True)
class Augment:
  """Changed copies of training rows, drawn by seed, row and copy: never of rows to measure on.

  Names and answers that a row points at stay as they are, and so do labels and targets.
  """

  copies: int = 0
  """Copies of every training row, with ids such as "ID~1"; those in which nothing changed are
  left out, and counted."""
  drop: float = 0.0
  """Share of the words that a copy lacks."""
  swap: float = 0.0
  """Share of the words that change places with the next one."""
  synonyms: str | None = None
  """File of words and what may stand for them: JSON {"word": ["other", …]}, or TSV."""
  replace: float = 0.0
  """Share of the words of `synonyms` that another takes the place of."""
  templates: tuple[str, ...] = ()
  """classify, seq2seq: Jinja texts such as "Review: {{ text }}", one of which, drawn, is put
  around a copy's text; they see the row's other fields too."""
  back_translation: tuple[str, ...] = ()
  """classify, seq2seq: two models, of another language and back, through which the texts of
  copies go first. Several processes read what one has translated into JAXSFT_CACHE before."""
