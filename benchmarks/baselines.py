"""Two baselines on exactly the rows of the quickstart: majority class, TF-IDF + regression.

    python benchmarks/baselines.py [--config=configs/quickstart.py --config.a.b=v …]

Reads the training and held-out rows as the config says, with jaxsft's own reader, and
prints the accuracy of always saying the most frequent training label, and of scikit-learn's
TF-IDF (words and pairs of words) with logistic regression, on the held-out rows.
"""

import collections
import json
import pathlib
import sys

from jaxsft import command, sources
from jaxsft.tasks import TASKS

QUICKSTART = pathlib.Path(__file__).resolve().parent.parent / "configs" / "quickstart.py"


def accuracies(rows):
  """{"rows": …, "majority": …, "tfidf_logistic_regression": …} of `sources.Rows`."""
  from sklearn import feature_extraction, linear_model, pipeline

  texts, labels = ([r.fields[name] for r in rows.train] for name in ("text", "label"))
  new, gold = ([r.fields[name] for r in rows.held_out] for name in ("text", "label"))
  common = collections.Counter(labels).most_common(1)[0][0]
  model = pipeline.make_pipeline(
    feature_extraction.text.TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
    linear_model.LogisticRegression(C=10, max_iter=1000),
  ).fit(texts, labels)
  return {
    "train": len(texts),
    "held_out": len(gold),
    "majority": sum(label == common for label in gold) / len(gold),
    "tfidf_logistic_regression": float(model.score(new, gold)),
  }


def main(argv):
  config, _ = command.parse([f"--config={QUICKSTART}", *argv], {})  # the last one counts
  print(json.dumps(accuracies(sources.read_data(config.data, TASKS[config.task])), indent=2))


if __name__ == "__main__":
  command.run(main, sys.argv[1:])
