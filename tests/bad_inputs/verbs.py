"""Places that cannot be written, runs that cannot go on."""

import shutil

from jaxsft import log
from jaxsft.data import store
from tests import bad_inputs
from tests.bad_inputs.cases import QUERY, ROW, case


def _no_space(p):
  """The disk is full when checkpoints are written."""
  bad_inputs.limited_saves(p.patch)


def _damage(p):
  for file in p.root.glob("run/checkpoints/*/arrays/**/*"):
    if file.is_file() and file.stat().st_size:
      file.write_bytes(file.read_bytes()[:-1])


def _again(p, **settings):
  p.flags["workdir"] = "run"
  for key, value in settings.items():
    p.set(key.replace("__", "."), value)


def _foreign(p, name):
  p.path(name).mkdir()
  p.write(f"{name}/thesis.txt", "years of work")


RUNS = [
  case(
    "workdir is a file", "train", lambda p: p.write("out", "x"), 1, "--workdir=out", "directory"
  ),
  case(
    "workdir below a file",
    "train",
    lambda p: p.flags.update(workdir="rows.jsonl/out"),
    1,
    "--workdir=rows.jsonl/out",
    "directory",
  ),
  case(
    "cache is a file",
    "train",
    lambda p: (p.write("file", "x"), p.patch.setenv("JAXSFT_CACHE", "file/cache")),
    1,
    "file/cache",
    "JAXSFT_CACHE",
  ),
  case(
    "disk full at the token store",
    "train",
    lambda p: p.patch.setattr(store, "_sync", bad_inputs.disk_full),
    1,
    "the disk is full",
    "JAXSFT_CACHE",
  ),
  case(
    "disk full at a checkpoint", "train", _no_space, 1, "step 2", "was not saved", "--workdir"
  ),
  case(
    "disk full at the log",
    "train",
    lambda p: p.patch.setattr(log.Log, "_write", bad_inputs.disk_full),
    1,
    "No space left",
  ),
  case(
    "disk full at the export",
    "train",
    lambda p: p.patch.setattr("jaxsft.weights.safetensors_files._write", bad_inputs.disk_full),
    1,
    "out/export",
    "space",
  ),
  case(
    "resume with other settings",
    "train",
    lambda p: _again(p, seed=7),
    1,
    "another run",
    "seed: 0 then, 7 now",
    "--workdir",
  ),
  case(
    "resume with other rows",
    "train",
    lambda p: (_again(p), p.rows(count=25)),
    1,
    "another run",
    "the data",
    "--workdir",
  ),
  case(
    "resume with other weights",
    "train",
    lambda p: (_again(p), p.tensors("bert/model.safetensors", lambda t: t[QUERY].fill(0))),
    1,
    "another run",
    "base weights",
    "--workdir",
  ),
  case(
    "all checkpoints damaged",
    "train",
    lambda p: (_again(p), _damage(p)),
    1,
    "run/checkpoints",
    "damaged",
    "--workdir",
  ),
  case(
    "training that diverges",
    "train",
    lambda p: (
      p.set("optim.peak_lr", 1e38),
      p.set("steps", 9),
      p.set("optim.max_bad_steps", 3),
    ),
    1,
    "not finite",
    "config.optim.peak_lr",
  ),
]

VERBS = [
  case(
    "export of no run",
    "export",
    lambda p: p.flags.update(run="bert"),
    1,
    "--run=bert",
    "expected a run directory",
  ),
  case(
    "export of a missing run",
    "export",
    lambda p: p.flags.update(run="runs/x"),
    1,
    "--run=runs/x",
  ),
  case(
    "export onto a foreign directory",
    "export",
    lambda p: _foreign(p, "out"),
    1,
    "out",
    "not an export of jaxsft",
    "another directory",
  ),
  case(
    "export onto a changed export",
    "export",
    lambda p: (
      shutil.copytree(p.path("run/export"), p.path("out")),
      p.write("out/README.md", "mine"),
    ),
    1,
    "README.md",
    "changed",
  ),
  case("export onto a file", "export", lambda p: p.write("out", "x"), 1, "out", "directory"),
  case(
    "export below a file",
    "export",
    lambda p: p.flags.update(out="rows.jsonl/out"),
    1,
    "rows.jsonl/out",
  ),
  case(
    "export with damaged checkpoints",
    "export",
    lambda p: (_damage(p), p.remove("run/best")),
    1,
    "run",
    "damaged",
  ),
  case(
    "export as an unknown type",
    "export",
    lambda p: p.flags.update(dtype="int3"),
    2,
    "--dtype",
    "int3",
    "bfloat16",
  ),
  case(
    "export in an unknown format",
    "export",
    lambda p: p.flags.update(format="onnx"),
    2,
    "--format",
    "onnx",
    "merged",
  ),
  case("missing flag", "export", lambda p: p.flags.pop("out"), 2, "--out", "missing"),
  case(
    "rows without text",
    "predict",
    lambda p: p.write("new.jsonl", [{"txt": "a"}, {"txt": "b"}]),
    1,
    "new.jsonl:1",
    "no text",
    "txt",
    "--columns",
  ),
  case(
    "rows with a number for text",
    "predict",
    lambda p: p.write("new.jsonl", [{"text": 5}, {"text": 6}]),
    1,
    "new.jsonl:1",
    "5",
    "text",
  ),
  case(
    "malformed row to predict",
    "predict",
    lambda p: p.write("new.jsonl", '{"text": "a"}\n{"text"\n'),
    1,
    "new.jsonl:2",
    "malformed JSON",
  ),
  case(
    "predict of a text that asks nothing",
    "predict",
    lambda p: p.flags.update(model="llama"),
    1,
    "new.jsonl:1",
    "asks nothing",
    "correct the row",
  ),
  case(
    "predict with a bare encoder",
    "predict",
    lambda p: p.flags.update(model="bert"),
    1,
    "bert",
    "has no head",
    "fine-tune",
  ),
  case(
    "predict into a missing directory",
    "predict",
    lambda p: p.flags.update(out="none/out.jsonl"),
    1,
    "none/out.jsonl",
    "--out",
  ),
  case(
    "columns that are no JSON",
    "predict",
    lambda p: p.flags.update(columns="{text: review}"),
    2,
    "--columns",
    "JSON",
  ),
  case(
    "columns that are a list",
    "predict",
    lambda p: p.flags.update(columns='["review"]'),
    2,
    "--columns",
    "review",
  ),
  case(
    "batches of nothing",
    "predict",
    lambda p: p.flags.update(batch_size=0),
    2,
    "--batch_size",
    "at least 1",
  ),
  case(
    "predict with a truncated model",
    "predict",
    lambda p: p.cut("run/export/model.safetensors", 2000),
    1,
    "run/export/model.safetensors",
    "truncated",
  ),
  case(
    "label names with a gap",
    "predict",
    lambda p: p.json("run/export/config.json", id2label={"0": "neg", "2": "pos"}),
    1,
    "config.json",
    "id2label",
  ),
  case(
    "run that never exported",
    "predict",
    lambda p: p.remove("run/export"),
    1,
    "run",
    "no export",
    "jaxsft.export",
  ),
  case(
    "generate with a classifier",
    "generate",
    lambda p: p.flags.update(model="run"),
    1,
    "BertForSequenceClassification",
    "jaxsft.predict",
  ),
  case(
    "generate without a prompt",
    "generate",
    lambda p: p.flags.pop("prompt"),
    2,
    "--prompt",
    "missing",
  ),
  case(
    "a word for a number",
    "generate",
    lambda p: p.flags.update(max_new_tokens="few"),
    2,
    "--max_new_tokens=few",
    "int",
  ),
  case(
    "evaluate a missing model",
    "evaluate",
    lambda p: p.flags.update(model="./runs/x"),
    1,
    "./runs/x",
  ),
  case(
    "evaluate a chat model as a classifier",
    "evaluate",
    lambda p: p.flags.update(model="llama"),
    2,
    "config.task",
    "'classify'",
    "LlamaForCausalLM",
    "'chat'",
  ),
  case(
    "evaluate with labels it never saw",
    "evaluate",
    lambda p: p.set("data.labels", {"low": "label == 'neg'", "high": "label == 'pos'"}),
    1,
    "rows.jsonl:",
    "unknown",
    "neg, pos",
  ),
  case(
    "evaluate numbers with a classifier",
    "evaluate",
    lambda p: (
      p.set("data.label_type", "number"),
      p.rows(*[{**ROW, "name": str(i), "label": i} for i in range(12)]),
    ),
    2,
    "config.data.label_type",
    "'number'",
    "'single'",
  ),
  case(
    "evaluate into a file",
    "evaluate",
    lambda p: p.write("measured", "mine"),
    1,
    "measured",
    "--out",
  ),
]
