"""Texts put into another language and back by two models, for copies of training rows.

As in Sennrich et al., arXiv:1511.06709, though here a copy of the row keeps its label. What was
translated once lies in the cache, under the models, their settings and the text.
"""

import hashlib
import json
import os

from jaxsft import predict, pretrained
from jaxsft.data import fetch, read
from jaxsft.errors import UsageError

BATCH = 16
BLOCK = 256
"""Texts that are translated between two savings of the cache."""
KEY = "config.augment.back_translation"


def translated(texts, models):
  """({text: what it has become}, {text: why it has become nothing}) of distinct texts.

  models: paths of the model into the other language, and of the one back. A text that a model
  saw only the beginning of, or answered with a text that was cut or empty, becomes nothing.
  Raises UsageError for a model that reads no source.
  """
  found, lost = {text: text for text in dict.fromkeys(texts)}, {}
  for path in models:
    said = _by_model(path, sorted(set(found.values())))
    lost |= {first: said[now][1] for first, now in found.items() if said[now][0] is None}
    found = {first: said[now][0] for first, now in found.items() if said[now][0] is not None}
  return found, lost


def _by_model(path, texts):
  """{text: (its translation or None, why it has none)}."""
  base = pretrained.open_pretrained(path)
  if base.task != "seq2seq":
    raise UsageError(
      f"{KEY}: {path} is a {base.config['architectures'][0]}, expected a model that reads a "
      "source and writes a text, such as Marian or T5"
    )
  settings = json.dumps([base.identity(), base.generation], sort_keys=True)
  name = hashlib.sha256(settings.encode()).hexdigest()
  file = fetch.cache_directory() / "back_translation" / f"{name}.json"
  known = json.loads(file.read_text("utf-8")) if file.is_file() else {}
  missing = [text for text in texts if text not in known]
  answer = predict.predictor(pretrained.model_of(base), BATCH) if missing else None
  for start in range(0, len(missing), BLOCK):
    block = missing[start : start + BLOCK]
    rows = [read.Row(str(i), KEY, {"source": text}) for i, text in enumerate(block)]
    known |= {text: _judged(said) for text, said in zip(block, answer(rows), strict=True)}
    _keep(file, known)
  return {text: tuple(known[text]) for text in texts}


def _judged(said):
  """[translation or None, why it is none] of what a model answers."""
  if "error" in said:
    return [None, "refused by a model"]
  if said.get("cut") or said.get("source_cut"):
    return [None, "too long for a model"]
  text = said["text"].strip()
  return [text, ""] if text else [None, "answered with nothing"]


def _keep(file, known):
  file.parent.mkdir(parents=True, exist_ok=True)
  temporary = file.with_name(f".{file.name}.{os.getpid()}")
  temporary.write_text(json.dumps(known, ensure_ascii=False), encoding="utf-8")
  os.replace(temporary, file)
