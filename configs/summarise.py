"""Summaries in a sentence of scientific abstracts (SciTLDR, arXiv:2004.15011), Flan-T5 small.

    python -m jaxsft.train --config=configs/summarise.py:DIR --workdir=runs/summarise

DIR holds train.jsonl (1,992 papers), dev.jsonl (619) and test.jsonl (618) of
https://github.com/allenai/scitldr/tree/master/SciTLDR-Data/SciTLDR-A, or the same as .jsonl.gz.
A source is a list of sentences; a paper has up to five summaries, of which the first trains and
the best counts in ROUGE. The test set is measured by

    python -m jaxsft.evaluate --model=runs/summarise --config=configs/summarise.py:DIR \
      --config.data.eval_path=DIR/test.jsonl

Summaries of your own, with fields "document" and "summary", take these keys:

    --config.data.path=mine.jsonl --config.data.eval_path=None --config.data.split=0.1
    --config.data.columns='{"source": "document", "target": "summary"}' --config.data.id=None

With 600 papers and two epochs: ROUGE-L 0.318 on 100 of dev.jsonl (0.129 before).
benchmarks/RESULTS.md has the run, and the Trainer's figure beside it.

Model: google/flan-t5-small (T5 1.1, 77M parameters), from the Hugging Face hub or a directory.
"""

import pathlib

from jaxsft.config import Config, Data, Evaluate, Model, Optim


def get_config(arg="scitldr"):
  return Config(
    task="seq2seq",
    epochs=4,
    batch_size=16,
    model=Model(path="google/flan-t5-small"),
    data=Data(
      path=rows(arg, "train"),
      eval_path=rows(arg, "dev"),
      split=0.0,
      columns={"source": "source", "targets": "target"},
      id="paper_id",
      instruction="summarize: ",
      max_length=512,
      too_long="truncate",
    ),
    optim=Optim(peak_lr=3e-4, schedule="linear"),
    evaluate=Evaluate(
      every=100,
      generate=-1,
      generate_every=0,  # the best parameters, at the end
      text_metrics=("rougeL", "rouge1", "rouge2"),
      max_new_tokens=96,
    ),
  )


def rows(directory, name):
  """The file of a part, which may be packed."""
  packed = pathlib.Path(directory) / f"{name}.jsonl.gz"
  return str(packed) if packed.exists() else f"{directory}/{name}.jsonl"
