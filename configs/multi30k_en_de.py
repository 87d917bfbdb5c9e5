"""English to German on captions of pictures (Multi30k, arXiv:1605.00459) with Flan-T5 small.

    python -m jaxsft.train --config=configs/multi30k_en_de.py:DIR --workdir=runs/multi30k

DIR holds the files of https://github.com/multi30k/dataset/tree/master/data/task1/raw:
train.en.gz and train.de.gz (29,000 pairs), val.en.gz and val.de.gz (1,014). The test set of
2016 is measured by

    python -m jaxsft.evaluate --model=runs/multi30k --config=configs/multi30k_en_de.py:DIR \
      --config.data.eval_path='DIR/test_2016_flickr.{en,de}.gz'

BLEU is sacrebleu's of whole, cased texts (13a), of greedy answers; beams are those of
--config.evaluate.num_beams=4.
Other pairs of languages and other models take a few keys:

    --config.data.columns='{"source": "de", "target": "en"}'
    --config.data.instruction='translate German to English: '
    --config.model.path=google-t5/t5-base

With 3,000 pairs and two epochs: BLEU 17.0 on 300 captions of val (1.7 before).
benchmarks/RESULTS.md has the run, and the Trainer's figure beside it.

Model: google/flan-t5-small (T5 1.1, 77M parameters), from the Hugging Face hub or a directory.
"""

from jaxsft.config import Config, Data, Evaluate, Loss, Model, Optim


def get_config(arg="multi30k"):
  return Config(
    task="seq2seq",
    epochs=3,
    batch_size=64,
    model=Model(path="google/flan-t5-small"),
    data=Data(
      path=f"{arg}/train.{{en,de}}.gz",
      eval_path=f"{arg}/val.{{en,de}}.gz",
      split=0.0,
      columns={"source": "en", "target": "de"},
      instruction="translate English to German: ",
    ),
    loss=Loss(label_smoothing=0.1),
    optim=Optim(peak_lr=5e-4, schedule="linear"),
    evaluate=Evaluate(
      every=200,
      generate=-1,
      generate_every=0,  # the best parameters, at the end
      text_metrics=("bleu", "chrf"),
      max_new_tokens=96,
    ),
  )
