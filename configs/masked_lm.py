"""Adapting an encoder to the texts of a domain before it is fine-tuned on few labels of it.

    python -m jaxsft.train --config=configs/masked_lm.py:texts.txt --workdir=runs/domain
    python -m jaxsft.train --config=configs/glue.py:rte --config.model.path=runs/domain \\
        --config.model.sha256=None --workdir=runs/rte

texts.txt has a text a line; JSONL, CSV, Parquet or `tfds:NAME/SPLIT` with a field `text` do as
well. Long texts are read in windows, nothing is left out. A twentieth of the texts is held out:
watch their loss and pseudo-perplexity, beside those of the model as it came, by

    python -m jaxsft.evaluate --runs google-bert/bert-base-uncased runs/domain \\
        --config=configs/masked_lm.py:texts.txt

Model: BERT base, uncased, from the Hugging Face hub, with the head of its pretraining. For a
checkpoint without one (MiniLM and other embedding models) add --config.model.new_head=True: the
head then has to be learnt first, from many more texts.
"""

from jaxsft.config import Config, Data, Evaluate, Model, Optim


def get_config(arg="texts.txt"):
  return Config(
    task="masked_lm",
    epochs=3,
    batch_size=64,
    model=Model(path="google-bert/bert-base-uncased"),
    data=Data(path=arg, split=0.05, whole_words=True),
    optim=Optim(peak_lr=1e-4, schedule="linear"),
    evaluate=Evaluate(every=500),
  )
