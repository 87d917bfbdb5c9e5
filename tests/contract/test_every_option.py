"""No key of the config is accepted and ignored: flipping it changes the run or is refused.

Each key is flipped alone, and one of three looks must see it: at the examples and their order,
at the compiled update (as its jaxpr) with the places of its arrays, or at what a whole run
leaves behind, with the arithmetic replaced by a stand-in.
"""

import dataclasses
import hashlib
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft import config as config_lib
from jaxsft import evaluate, start, step, train
from jaxsft import job as jobs
from jaxsft.config import values
from jaxsft.data import feed
from jaxsft.errors import JaxsftError
from jaxsft.generation import writing
from tests import tiny
from tests.contract import build, odd_rows

CLASSIFY, CHAT, MULTI = ("bert", "classify"), ("llama", "chat"), ("bert", "multi")
MASKED = ("bert", "masked_lm")
TEXTS = ("t5", "seq2seq")
SCORED = {"evaluate__generate": 2, "evaluate__max_new_tokens": 4, "evaluate__every": 2}
ANSWER = ("bert", "answer")
NOISY = {"augment__copies": 1, "augment__drop": 0.1}
SYNONYMS = {"augment__copies": 1, "augment__replace": 0.9, "augment__synonyms": "SYNONYMS"}
ODD = {"data__path": "ODD ROWS"}  # with what cleaning leaves out or hides
CALLING = (
  "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
  "{% for call in m.tool_calls or [] %}{{ call.name }}{% endfor %}<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MIX = {"a": {"path": "DATA OF classify"}, "b": {"path": "CSV"}}
MIXED = {"data__path": "", "data__mix": MIX}
WEIGHED = {f"data__mix__{name}__weight": 1.0 for name in MIX}

# key -> (look, pair, the other value, settings of both runs)
FLIPS = {
  "task": ("data", CLASSIFY, "chat", {}),
  "seed": ("data", CLASSIFY, 1, {}),
  "epochs": ("data", CLASSIFY, 2.0, {"steps": None}),
  "steps": ("data", CLASSIFY, 5, {}),
  "batch_size": ("data", CLASSIFY, 4, {}),
  "batch_unit": ("data", CHAT, "rows", {"batch_size": 2}),
  "accumulate": ("data", CLASSIFY, 2, {}),
  "model.path": ("data", CLASSIFY, "MODEL OF llama", {}),
  "model.sha256": ("data", CLASSIFY, "0" * 64, {}),
  "model.revision": ("data", CLASSIFY, "main", {}),
  "model.allow_pytorch_bin": (
    "data",
    CLASSIFY,
    True,
    {"model__path": "MODEL IN A PICKLE", "!refused": True},
  ),
  "model.new_head": (
    "data",
    CLASSIFY,
    True,
    {"model__path": "MODEL WITH A HEAD", "data__labels": ("a", "neg", "pos"), "!refused": True},
  ),
  "model.dtype": ("step", CLASSIFY, "bfloat16", {}),
  "model.dropout": ("step", CLASSIFY, None, {}),
  "model.remat": ("step", CLASSIFY, "full", {}),
  "model.unroll": ("step", CHAT, 2, {}),
  "model.attention": ("step", CLASSIFY, "splash", {}),
  "data.path": ("data", CLASSIFY, "DATA OF number", {}),
  "data.mix": ("data", CLASSIFY, MIX, {"data__path": "", "!refused": True}),
  "data.mix.NAME.path": ("data", CLASSIFY, "DATA OF number", MIXED),
  "data.mix.NAME.sha256": ("data", CLASSIFY, "0" * 64, MIXED),
  "data.mix.NAME.format": ("data", CLASSIFY, "csv", MIXED),
  "data.mix.NAME.columns": ("data", CLASSIFY, {"text": "name"}, MIXED),
  "data.mix.NAME.prompt": ("data", CLASSIFY, {"text": "{{ text }} a"}, MIXED),
  "data.mix.NAME.keep": ("data", CLASSIFY, "label == 'pos' or len(text) > 30", MIXED),
  "data.mix.NAME.limit": ("data", CLASSIFY, 30, MIXED),
  "data.mix.NAME.weight": ("data", CLASSIFY, 3.0, MIXED | WEIGHED),
  "data.mix.NAME.epochs": ("data", CLASSIFY, 2.0, MIXED),
  "data.mix.NAME.loss_weight": ("data", CLASSIFY, 2.0, MIXED),
  "data.mix_temperature": ("data", CLASSIFY, 2.0, MIXED | {"data__mix__a__limit": 30}),
  "data.balance": ("data", CLASSIFY, "classes", {}),
  "data.sha256": ("data", CLASSIFY, "0" * 64, {}),
  "data.format": ("data", CLASSIFY, "csv", {}),
  "data.encoding": ("data", CLASSIFY, "utf-16", {}),
  "data.header": ("data", CLASSIFY, False, {"data__path": "CSV"}),
  "data.quoting": ("data", CLASSIFY, False, {"data__path": "CSV"}),
  "data.columns": ("data", CLASSIFY, {"text": "name"}, {}),
  "data.prompt": ("data", CLASSIFY, {"text": "see: {{ text }}"}, {}),
  "data.keep": ("data", CLASSIFY, "label == 'pos' or len(text) > 30", {}),
  "data.labels": ("data", CLASSIFY, ("pos", "neg"), {}),
  "data.label_type": ("data", CLASSIFY, "number", {}),
  "data.label_separator": ("data", MULTI, ";", {}),
  "data.mask_rate": ("step", MASKED, 0.2, {}),
  "data.whole_words": ("data", MASKED, True, {}),
  "data.id": ("data", CLASSIFY, None, {}),
  "data.split": ("data", CLASSIFY, 0.4, {}),
  "data.split_by": ("data", CLASSIFY, "text", {"data__split": 0.4}),
  "data.stratify": ("data", CLASSIFY, True, {"data__split": 0.4}),
  "data.folds": ("data", CLASSIFY, 3, {"data__split": 0.0}),
  "data.fold": ("data", CLASSIFY, 1, {"data__split": 0.0, "data__folds": 2}),
  "data.eval_path": ("data", CLASSIFY, "DATA OF classify", {"data__split": 0.0}),
  "data.eval_sha256": (
    "data",
    CLASSIFY,
    "0" * 64,
    {"data__split": 0.0, "data__eval_path": "DATA OF classify"},
  ),
  "data.limit": ("data", CLASSIFY, 30, {}),
  "data.max_length": ("data", CLASSIFY, 6, {}),
  "data.too_long": ("data", CLASSIFY, "drop", {"data__max_length": 6, "!refused": True}),
  "data.max_dropped": (
    "run",
    CLASSIFY,
    1.0,
    {"data__max_length": 6, "data__too_long": "drop", "!refused": True},
  ),
  "data.on_empty": ("data", CHAT, "drop", {"data__path": "SILENT", "!refused": True}),
  "data.stride": ("data", ANSWER, 4, {}),
  "data.packing": ("data", CLASSIFY, "none", {}),
  "data.instruction": ("data", TEXTS, "to german: ", {}),
  "data.languages": ("data", TEXTS, ("en_XX", "de_DE"), {}),
  "data.max_target_length": ("data", TEXTS, 4, {}),
  "data.train_on": ("data", CHAT, "last", {}),
  "data.train_on_tools": (
    "data",
    CHAT,
    False,
    {"data__path": "CALLS", "data__chat_template": CALLING},
  ),
  "data.unwritten": (
    "data",
    CHAT,
    "leave_out",
    {"data__path": "THOUGHTS", "!refused": True},
  ),
  "data.control_tokens": (
    "data",
    CHAT,
    "escape",
    {"data__path": "CONTROL TOKENS", "!refused": True},
  ),
  "data.chat_template": ("data", CHAT, "TEMPLATE", {}),
  "data.template_date": (
    "data",
    CHAT,
    "2026-01-31",
    {"data__chat_template": "DATED TEMPLATE", "!refused": True},
  ),
  "data.prefetch": ("run", CLASSIFY, 2, {}),
  "clean.text": ("data", CLASSIFY, ("stop_words:english",), {}),
  "clean.secrets": ("data", CLASSIFY, "mask", ODD),
  "clean.personal": ("data", CLASSIFY, "drop", ODD),
  "clean.min_chars": ("data", CLASSIFY, 25, {}),
  "clean.max_chars": ("data", CLASSIFY, 40, {}),
  "clean.language": ("data", CLASSIFY, "de", ODD),
  "clean.duplicates": ("data", CLASSIFY, "drop", ODD),
  "clean.near_duplicates": ("data", CLASSIFY, 0.5, ODD),
  "clean.overlap": ("data", CLASSIFY, "drop", ODD | {"data__split": 0.4}),
  "clean.benchmarks": ("data", CLASSIFY, ("BENCHMARK",), ODD),
  "clean.ngram": ("data", CLASSIFY, 4, ODD | {"clean__benchmarks": ("BENCHMARK",)}),
  "augment.copies": ("data", CLASSIFY, 2, NOISY),
  "augment.drop": ("data", CLASSIFY, 0.3, NOISY),
  "augment.swap": ("data", CLASSIFY, 0.3, NOISY),
  "augment.replace": ("data", CLASSIFY, 0.5, SYNONYMS),
  "augment.synonyms": ("data", CLASSIFY, "OTHER SYNONYMS", SYNONYMS),
  "augment.templates": ("data", CLASSIFY, ("{{ text }} {{ text }}",), NOISY),
  "augment.back_translation": ("data", CLASSIFY, ("MODEL OF t5", "MODEL OF t5"), NOISY),
  "tune.method": ("step", CLASSIFY, "head", {}),
  "tune.train": (
    "step",
    CLASSIFY,
    ("layers/mlp",),
    {"tune__method": "regex", "!refused": True},
  ),
  "loss.weighting": ("data", CHAT, "example", {}),
  "loss.label_smoothing": ("step", CLASSIFY, 0.1, {}),
  "loss.z_loss": ("step", CHAT, 1e-3, {}),
  "loss.chunk": ("step", CHAT, 64, {}),
  "loss.class_weights": ("step", CLASSIFY, "balanced", {}),
  "loss.focal": ("step", CLASSIFY, 2.0, {}),
  "optim.name": ("step", CLASSIFY, "lion", {}),
  "optim.peak_lr": ("step", CLASSIFY, 2e-2, {}),
  "optim.end_lr": ("step", CLASSIFY, 1e-3, {"optim__schedule": "linear"}),
  "optim.schedule": ("step", CLASSIFY, "cosine", {}),
  "optim.warmup": ("step", CLASSIFY, 2.0, {}),
  "optim.decay": ("step", CLASSIFY, 0.6, {"optim__schedule": "wsd"}),
  "optim.b1": ("step", CLASSIFY, 0.8, {}),
  "optim.b2": ("step", CLASSIFY, 0.9, {}),
  "optim.eps": ("step", CLASSIFY, 1e-6, {}),
  "optim.weight_decay": ("step", CLASSIFY, 0.1, {}),
  "optim.clip": ("step", CLASSIFY, 0.0, {}),
  "optim.penalty": ("step", CLASSIFY, "l2_squared", {}),
  "optim.penalty_weight": ("step", CLASSIFY, 1e-3, {}),
  "optim.max_bad_steps": ("run", CLASSIFY, 2, {"steps": 12}),
  "mesh.data": ("step", CLASSIFY, 2, {"mesh__fsdp": -1, "mesh__data": 8}),
  "mesh.fsdp": ("step", CLASSIFY, 2, {}),
  "mesh.tensor": ("step", CLASSIFY, 2, {}),
  "mesh.context": ("data", CLASSIFY, 2, {}),
  "mesh.expert": ("step", CLASSIFY, 2, {}),
  "evaluate.every": ("run", CLASSIFY, 2, {}),
  "evaluate.metric": ("run", CLASSIFY, "loss", {"evaluate__every": 1}),
  "evaluate.mode": (
    "run",
    CLASSIFY,
    "max",
    {"evaluate__every": 1, "evaluate__metric": "loss"},
  ),
  "evaluate.patience": ("run", CLASSIFY, 1, {"evaluate__every": 1, "steps": 6}),
  "evaluate.batch_size": ("data", CLASSIFY, 2, {}),
  "evaluate.threshold": ("run", MULTI, 0.9, {"evaluate__every": 1}),
  "evaluate.prompts": ("run", CHAT, ("a cat",), {"evaluate__max_new_tokens": 4}),
  "evaluate.generate": ("run", CHAT, 3, SCORED),
  "evaluate.generate_every": ("run", CHAT, 4, SCORED),
  "evaluate.text_metrics": ("run", CHAT, ("chrf",), SCORED),
  "evaluate.bleu_tokenizer": (
    "run",
    CHAT,
    "char",
    {**SCORED, "evaluate__text_metrics": ("bleu",)},
  ),
  "evaluate.rouge_stemmer": (
    "run",
    CHAT,
    True,
    {**SCORED, "evaluate__text_metrics": ("rougeL",)},
  ),
  "evaluate.num_beams": ("run", CHAT, 2, SCORED),
  "evaluate.length_penalty": ("run", CHAT, 2.0, {**SCORED, "evaluate__num_beams": 2}),
  "evaluate.max_new_tokens": ("run", CHAT, 4, {"evaluate__max_new_tokens": 8}),
  "evaluate.sets": ("run", CLASSIFY, {"more": "DATA OF classify"}, {}),
  "evaluate.slices": ("run", CLASSIFY, ("length",), {}),
  "evaluate.max_answer_length": ("run", ANSWER, 1, {}),
  "evaluate.n_best": ("run", ANSWER, 2, {}),
  "evaluate.null_threshold": ("run", ANSWER, -9.0, {}),
  "checkpoint.every": ("run", CLASSIFY, 1, {}),
  "checkpoint.keep": ("run", CLASSIFY, 3, {"checkpoint__every": 1}),
  "export.format": ("run", CLASSIFY, "none", {}),
  "export.dtype": ("run", CLASSIFY, "bfloat16", {}),
  "log.every": ("run", CLASSIFY, 2, {}),
  "log.tensorboard": ("run", CLASSIFY, True, {}),
}


def keys(section=config_lib.Config, prefix=""):
  """Dotted names of all leaves of the config tree."""
  for field in dataclasses.fields(section):
    if dataclasses.is_dataclass(field.type):
      yield from keys(field.type, f"{prefix}{field.name}.")
      continue
    yield prefix + field.name
    if group := values.section(field.type):
      yield from keys(group, f"{prefix}{field.name}.NAME.")


def test_every_key_is_flipped_here():
  assert set(FLIPS) == set(keys())


def digest(*values):
  return hashlib.sha256(repr(values).encode()).hexdigest()


def at_data(config, work):
  """Everything about the examples, their order and their arrays."""
  job = build.job(config, tiny.devices(1))
  data, parts = job.data, []
  for part, plan in ((data.train, data.plan), (data.held_out, data.eval_plan)):
    if part is None:
      continue
    layout = [plan.batch(k) for k in range(plan.num_steps)]
    shapes = [plan.shape(k) for k in range(plan.num_steps)]
    parts.append((part.store.ids, part.store.fingerprint, layout, shapes))
  first = next(iter(train.batches(job, 0)))
  arrays = {k: np.asarray(v).tolist() for k, v in sorted(first.items())}
  return digest(parts, data.context.labels, job.base.identity(), arrays)


def at_step(config, work):
  """The update as the tracer sees it, constants and all, and where its arrays lie."""
  job = build.job(config, start.mesh_of(config.mesh))
  shapes = job.network.shapes()
  halves = train.select.split(shapes, job.chosen)
  state = jax.eval_shape(lambda *a: step.init_state(*a, job.tx), *halves)
  places = train.sharding.shardings_for(state, job.mesh)
  with jax.set_mesh(job.mesh):
    first = next(iter(train.batches(job, 0)))
    traced = str(job.train_step.trace(state, first).jaxpr)
  rates = [float(job.schedule(i)) for i in range(20)]
  return digest(re.sub(r"0x[0-9a-f]+", "", traced), str(places), rates)


class StandIn:
  """In the place of a compiled function."""

  seconds, bytes, count = 0.0, 0, 0

  def __init__(self, function):
    self._function = function

  def __call__(self, *args):
    return self._function(*args)


def at_run(config, work):
  """What a run leaves behind and asks for; updates and evaluations only pretend."""
  asked, calls = [], []

  def update(state, batch):
    now = jax.tree.map(lambda x: x + 0.01, state.trainable)
    done = int(state.step) + 1
    metrics = {"loss": 1 / done, "grad_norm": 1.0, "lr": 0.1, "weight": 8.0, "skipped": 0}
    metrics = {k: jnp.float32(v) for k, v in metrics.items()}
    metrics["bad"] = jnp.int32(min(3, done) if config.steps == 12 else 0)
    return dataclasses.replace(state, step=state.step + 1, trainable=now), metrics

  def look(params, batch):
    calls.append(1)
    places, shape = {"example_ids": batch["example_ids"]}, batch["example_ids"].shape
    if config.task == "chat":
      found = {"nll": len(calls) * 1.0, "tokens": 1.0, "right": 0.5 + 0.1 * (len(calls) == 2)}
      return {name: jnp.full(shape, x) for name, x in found.items()}, places
    if config.task == "answer":
      x = batch["inputs"] * 1.7 + batch["positions"]
      places |= {name: batch[name] for name in ("segments", "positions")}
      return {"logits": jnp.stack([jnp.sin(x), jnp.cos(x)], -1)}, places
    tilt = len(calls) * (1.0 if len(calls) in (2, 4) else -1.0)
    logits = tilt * jnp.arange(3 if config.data.label_type == "multi" else 2, dtype=float)
    return {"logits": jnp.broadcast_to(logits, (*shape, len(logits)))}, places

  def texts(network, params, tokenizer, prompts, *, max_new_tokens, **rules):
    chosen = {name: rules.get(name) for name in ("num_beams", "length_penalty")}
    asked.append((prompts, max_new_tokens, chosen))
    return [[writing.Answer("it is sevens meows woofs", 0.0, False)]] * len(prompts)

  deliver = feed.batches

  def batches(make, first, stop, prefetch):
    asked.append(prefetch)
    return deliver(make, first, stop, prefetch)

  with pytest.MonkeyPatch.context() as patch:
    tiny.on_devices(patch, 1)
    patch.setattr(jobs, "make_train_step", lambda *_: StandIn(update))
    patch.setattr(evaluate, "make_eval_step", lambda *_: StandIn(look))
    patch.setattr(writing, "written", texts)
    patch.setattr(feed, "batches", batches)
    result = train.finetune(config, work).result
  timed = ("train_seconds", "tokens_per_second", "examples_per_second")
  lines = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
  lines = [{k: v for k, v in line.items() if k not in timed} for line in lines]
  files = sorted(
    re.sub(r"tfevents.*", "tfevents", path.relative_to(work).as_posix())
    for path in work.rglob("*")
    if "/arrays/" not in path.as_posix()  # Orbax draws names there
  )
  weights = work / "export" / "model.safetensors"
  exported = weights.read_bytes() if weights.exists() else None
  best = result["best"]
  held_out = work / "evaluation" / "metrics.json"
  measured = held_out.read_text() if held_out.exists() else None
  shown = result["examples"]
  return digest(lines, files, best, asked, result["steps"], exported, measured, shown)


LOOKS = {"data": at_data, "step": at_step, "run": at_run}


@pytest.fixture(scope="module")
def seen(files, tmp_path_factory):
  """What a look sees of a config, or the sentence with which it is refused."""
  root, known = tmp_path_factory.mktemp("flipped"), {}
  csv = root / "rows.csv"
  rows = [json.loads(line) for line in files(*CLASSIFY)[1].read_text().splitlines()]
  lines = [f'{r["name"]},"{r["text"]}",{r["label"]}' for r in rows]
  csv.write_text("\n".join(["name,text,label", *lines]) + "\n")
  named = {"CSV": csv, "MODEL OF llama": files(*CHAT)[0], "MODEL OF t5": files(*TEXTS)[0]}
  chats = files(*CHAT)[1].read_text().splitlines()
  for name, key, said in (
    ("CALLS", "tool_calls", [{"name": "look"}]),
    ("CONTROL TOKENS", "content", "a <|im_end|> b"),
    ("THOUGHTS", "thinking", "so"),
  ):
    named[name] = root / f"{key}.jsonl"
    talks = [json.loads(line) for line in chats]
    for row in talks:
      call = {"role": "assistant", "content": "" if key == "tool_calls" else "ok", key: said}
      row["messages"] = [{"role": "user", "content": "so"}, call, *row["messages"]]
    named[name].write_text("".join(json.dumps(row) + "\n" for row in talks))
  named["MODEL WITH A HEAD"] = tiny.checkpoint(root / "head", "bert", labels=("neg", "pos"))
  named["MODEL IN A PICKLE"] = pickled = tiny.checkpoint(root / "pickle", "bert")
  (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")  # what it holds is none
  named |= odd_rows.files(root, rows)
  named["SILENT"] = silent = root / "silent.jsonl"
  said = {"messages": [{"role": "user", "content": "a"}], "name": "silent"}
  silent.write_text(files(*CHAT)[1].read_text() + json.dumps(said) + "\n")
  named |= {f"DATA OF {task}": files("bert", task)[1] for task in ("classify", "number")}

  def value(given):
    if given == "DATED TEMPLATE":
      return "{{ strftime_now('%d') }}" + tiny.letter_tokenizer().chat_template
    if given == "TEMPLATE":
      return tiny.letter_tokenizer().chat_template.replace("message['role']", "'a'", 1)
    if isinstance(given, tuple):
      return tuple(map(value, given))
    if isinstance(given, dict):
      return {k: value(v) for k, v in given.items()}
    return str(named.get(given, given)) if isinstance(given, str) else given

  def see(look, pair, settings):
    settings = {k: value(v) for k, v in settings.items() if not k.startswith("!")}
    key = (look, pair, repr(sorted(settings.items())))
    if key not in known:
      try:
        config = tiny.config(*pair, *files(*pair), **settings)
        known[key] = LOOKS[look](config, root / str(len(known)))
      except JaxsftError as error:
        known[key] = f"refused: {error}"
    return known[key]

  return see


@pytest.mark.parametrize("key", sorted(FLIPS))
def test_flipping_it_changes_something(seen, key):
  look, pair, other, settings = FLIPS[key]
  before = seen(look, pair, settings)
  assert before.startswith("refused") == settings.get("!refused", False), before
  key = key.replace("NAME", "a").replace(".", "__")
  after = seen(look, pair, settings | {key: other})
  assert after != before


def test_looking_twice_sees_the_same(seen, files, tmp_path):
  """Otherwise every flip would seem to matter."""
  for look, pair in (("data", CLASSIFY), ("step", CLASSIFY), ("run", CLASSIFY)):
    config = tiny.config(*pair, *files(*pair))
    assert LOOKS[look](config, tmp_path / look) == seen(look, pair, {})
