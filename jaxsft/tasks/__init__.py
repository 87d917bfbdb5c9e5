"""What the rows mean: one file a task, all with the same five functions.

`encode` makes the examples of one row, `loss` and `predict` run on the device, `decode` and
`metrics` on the host. An evaluation is `predict` on labelled batches and then `metrics`: every
number is computed once, in float64, from what was found for each example.

A task module also says:
  FIELDS          fields that its rows must have
  GOLD            fields that hold the answer, absent where it is to be predicted; (): a part of
                  a field does, which `own_answer` finds, if the task has that
  TEXTS           fields with the texts that it reads, which config.clean changes
  AUGMENTED       those of them whose words may differ in copies, which config.augment makes
  HEAD            the head it needs (see models.heads.Head)
  SOURCE          whether it needs an encoder-decoder
  SEEDED          true where `loss` draws by `seeds` [R,M] uint32, a hash of update and example
                  that training batches then have; by it, `loss` weighs examples itself
  OUTPUTS         what `predict` speaks of: each "segment" [R,M,…] or "token" [R,T,…]
  options         (settings, context) -> what `loss` and `predict` get, where they need more
                  than the config's `loss` group (see `options_of`)
  METRICS         name -> "max" or "min", the direction in which it is better; or such a dict
                  for each kind of labels: data.label_type, or what `kind(context)` says
  DEFAULT_METRIC  what "best" means unless evaluate.metric says otherwise
  label_names     (rows, labels of a trained head) -> the labels of rows in id order, where the
                  task has labels
  settled         (rows, context) -> labelled rows as `encode` takes them, where that needs all
and has `row_loss(found, context)`, how wrong the answer to one row is, and
`measured(found, context)`, the metrics.statistics.Measured of which intervals, slices and
comparisons are made, the main one first. A task whose answers are texts has
  TEXT_METRICS    metrics of generated answers that are computed unless the config names others
  prompt(row, context)    ids that an answer is generated from; None: the row asks for none
  asked(row)              what people are shown of it
  own_answer(row)         the text that answers already, inside a field; None: there is none
  whole(row, context)     whether the prompt holds all of the source, where it has one
  references(row)         texts that an answer is compared with
"""

from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Context:
  """What a task needs to know besides the row: plain values, no config."""

  tokenizer: Any
  max_length: int
  """Longest example in tokens."""
  too_long: str = "error"
  """As config.data.too_long."""
  on_empty: str = "error"
  """"error" or "drop": what becomes of a row with nothing to learn."""
  labels: tuple[str, ...] = ()
  """Label names in id order; () where the task has none."""
  label_type: str = "single"
  """"single" (one of `labels`), "multi" (any of them) or "number"."""
  chat_template: str | None = None
  """Jinja text that replaces the tokenizer's own template."""
  train_on: str = "all"
  """"all" assistant turns, only the "last", or "each" in an example of its own."""
  train_on_tools: bool = True
  """Whether assistant turns that only call tools train."""
  unwritten: str = "refuse"
  """As config.data.unwritten."""
  control_tokens: str = "refuse"
  """"refuse" rows with control tokens, or "escape" these."""
  stride: int = 0
  """Tokens that neighbouring windows of a text longer than `max_length` share."""
  max_answer_length: int = 30
  """Tokens of the longest answer that is looked for."""
  n_best: int = 20
  """Starts and ends of each window that answers are made of."""
  null_threshold: float | None = None
  """Odds of no answer above which none is given; None: one is always given."""
  mask_rate: float = 0.15
  """Share of the tokens, or words, that are hidden."""
  whole_words: bool = False
  """Whether words are hidden as a whole."""
  class_weights: tuple[float, ...] | None = None
  """Weight in the loss of each of `labels`, in their order; None: 1 for all."""
  threshold: float | tuple[float, ...] = 0.5
  """label_type "multi": probability above which a label is given, of all or of each."""
  temperature: float = 1.0
  """What logits are divided by before they become the scores of `decode`."""

  pairs: bool = False
  """Whether every text that a classifier was trained on has a second one."""
  text_steps: tuple[str, ...] = ()
  """What was done to every text before it was read: data.cleaning.text.program."""

  instruction: str = ""
  """Text before every source."""
  max_target_length: int = 0
  """Longest target in tokens, where examples have a source; `max_length` is of the source."""
  languages: tuple[str, str] | None = None
  """Codes of the source's and the target's language, for tokenizers that write them."""
  decoder_start: int | None = None
  """First input of an encoder-decoder's decoder; None: the last token of its target."""
  text_metrics: tuple[str, ...] = ()
  """Of generated answers: names of metrics.generated.DIRECTIONS."""
  bleu_tokenizer: str = "13a"
  """Of metrics.text.TOKENIZERS."""
  rouge_stemmer: bool = False
  """See metrics.text.rouge_rows."""


NOT_ENCODED = (
  "tokenizer",
  "mask_rate",
  "class_weights",
  "threshold",
  "temperature",
  "max_answer_length",
  "n_best",
  "text_metrics",
  "bleu_tokenizer",
  "rouge_stemmer",
  "pairs",
)
"""Fields of Context that `encode` does not read, or that are hashed elsewhere."""


ANSWERING = ("max_length", "stride", "max_answer_length", "n_best", "null_threshold")
ANSWERING += ("pairs", "text_steps", "control_tokens", "unwritten")
"""Fields of Context by which rows are read and answered; an export keeps them."""


class Encoded(NamedTuple):
  """What `encode` makes of one row."""

  examples: tuple[dict, ...]
  """Arrays for the store, one dict an example; (): the row is left out."""
  note: str | None
  """None, "truncated" or "dropped: too long"; the caller counts them."""
  text: str
  """What the tokens stand for."""
  spans: list[tuple[int, int]]
  """(start, end) in characters of `text`: what is supervised."""
  stop_ids: frozenset
  """Ids that end the supervised parts."""
  said: str = ""
  """What is learnt at the spans, where they do not say it themselves."""


class Found(NamedTuple):
  """All that is known of one row after an evaluation or a prediction."""

  row: Any
  """data.read.Row."""
  examples: list[dict]
  """What `encode` made of it, in order."""
  outputs: list[dict]
  """For each example what `predict` found: name -> […] of its segment, [T,…] of its tokens."""
  texts: tuple[str, ...] = ()
  """Generated answers, the best first; () where none was asked for."""


def joined(*notes):
  """One note of several, of which some may be None."""
  return ", ".join(filter(None, notes)) or None


def without_parts(count):
  """The note of a row of which so many parts were left out, since nothing in them trains."""
  return f"without {count} parts that have nothing to learn" if count else None


def options_of(task, settings, context):
  """The `options` of a task's `loss` and `predict`.

  settings: the config's `loss` group, which it is where the task has no `options`.
  """
  return task.options(settings, context) if hasattr(task, "options") else settings


def answering(context):
  """{name: value} of the fields ANSWERING of a Context."""
  return {name: getattr(context, name) for name in ANSWERING}


def kind_of(task, context):
  """The key of METRICS and DEFAULT_METRIC where these differ by what the labels are."""
  return task.kind(context) if hasattr(task, "kind") else context.label_type


def given_and_gold(row, task):
  """({field: value} of all but the answer, {"gold": the answer, or its fields}) of a row.

  An answer inside of a field (of a conversation the last one) is in both.
  """
  if hasattr(task, "own_answer"):
    own = task.own_answer(row)
    return dict(row.fields), {} if own is None else {"gold": own}
  gold = {name: row.fields[name] for name in task.GOLD if name in row.fields}
  given = {name: value for name, value in row.fields.items() if name not in gold}
  value = next(iter(gold.values())) if len(gold) == 1 else gold
  return given, {"gold": value} if gold else {}


from jaxsft.tasks import (  # noqa: E402  they use what is above
  answer,
  chat,
  classify,
  masked_lm,
  seq2seq,
  tag,
)

TASKS = {
  "answer": answer,
  "chat": chat,
  "classify": classify,
  "masked_lm": masked_lm,
  "seq2seq": seq2seq,
  "tag": tag,
}
