"""Texts put into another language and back by two models, for copies of training rows.

As in Sennrich et al., arXiv:1511.06709, though here a copy of the row keeps its label. What was
translated once lies in the cache, under the models, their tokenizers and settings, the versions
of the libraries, and the text. Several processes of a run only read it: one alone translates.
"""

import contextlib
import hashlib
import json
import os
import secrets

import jax

from jaxsft import agreement, encoding, predict, pretrained
from jaxsft.data import fetch, read
from jaxsft.errors import JaxsftError, UsageError, is_full

BATCH = 16
BLOCK = 256
"""Texts that are translated between two savings of the cache."""
KEY = "config.augment.back_translation"


def translated(texts, models):
  """({text: what it has become}, {text: why it has become nothing}) of distinct texts.

  models: paths of the model into the other language, and of the one back. A text that a model
  saw only the beginning of, or answered with a text that was cut or empty, becomes nothing, and
  so does one with half of a surrogate pair, which is no character. Raises UsageError for a
  model that reads no source; JaxsftError, in every process, where there are several and the
  caches that they read do not hold the same translations of all texts.
  """
  distinct, several = dict.fromkeys(texts), jax.process_count() > 1
  found = {text: text for text in distinct if _is_unicode(text)}
  lost = {text: "not Unicode" for text in distinct if text not in found}
  whole, failed = True, ""
  try:
    for path in models:
      said = _by_model(path, sorted(set(found.values())), ask=not several)
      whole &= None not in said.values()
      said = {text: one or [None, "not translated yet"] for text, one in said.items()}
      lost |= {first: said[now][1] for first, now in found.items() if said[now][0] is None}
      found = {first: said[now][0] for first, now in found.items() if said[now][0] is not None}
  except JaxsftError as error:
    if not several:
      raise
    failed = f" ({error})"
  here = whole and not failed
  if not agreement.same([here, found, lost]) or not here:
    raise JaxsftError(
      f"{KEY}: the caches of the {jax.process_count()} processes of this run do not all hold "
      f"the same translations of the rows{failed}; have them made once by one process, with "
      "python -m jaxsft.inspect --config=…, and give all processes that cache (JAXSFT_CACHE)"
    )
  return found, lost


def _is_unicode(text):
  return not any(0xD800 <= ord(c) < 0xE000 for c in text)


def _by_model(path, texts, ask):
  """{text: [its translation or None, why it has none]}; None for one that the cache lacks and
  that the model, as ask is false, is not asked for.
  """
  base = pretrained.open_pretrained(path)
  if base.task != "seq2seq":
    raise UsageError(
      f"{KEY}: {path} is a {base.config['architectures'][0]}, expected a model that reads a "
      "source and writes a text, such as Marian or T5"
    )
  file = fetch.cache_directory() / "back_translation" / f"{_name(base)}.json"
  known = _kept(file)
  missing = [text for text in texts if text not in known] if ask else []
  answer = predict.predictor(pretrained.model_of(base), BATCH) if missing else None
  for start in range(0, len(missing), BLOCK):
    block = missing[start : start + BLOCK]
    rows = [read.Row(str(i), KEY, {"source": text}) for i, text in enumerate(block)]
    known |= {text: _judged(said) for text, said in zip(block, answer(rows), strict=True)}
    _keep(file, known)
  return {text: known.get(text) for text in texts}


def _name(base):
  """A hash of all that decides what a model makes of a text."""
  settings = {
    "weights": base.identity(),
    "generation": base.generation,
    "tokenizer": encoding.tokenizer_hash(base.tokenizer),
    "versions": encoding.versions(),
  }
  return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _judged(said):
  """[translation or None, why it is none] of what a model answers."""
  if "error" in said:
    return [None, "refused by a model"]
  if said.get("cut") or said.get("source_cut"):
    return [None, "too long for a model"]
  text = said["text"].strip()
  return [text, ""] if text else [None, "answered with nothing"]


def _kept(file):
  """{text: what `_judged` said} of a file; what of it is damaged is translated again."""
  try:
    found = json.loads(file.read_bytes())
  except (FileNotFoundError, ValueError):
    return {}
  except OSError as error:
    raise JaxsftError(
      f"{KEY}: {file} cannot be read ({error.strerror}); correct its permissions, or set "
      "JAXSFT_CACHE to another directory"
    ) from error
  found = found if isinstance(found, dict) else {}
  return {text: said for text, said in found.items() if _is_judged(said)}


def _is_judged(said):
  match said:
    case [str(text), ""]:
      return bool(text)
    case [None, str(why)]:
      return bool(why)
  return False


def _keep(file, known):
  """Writes a file whole or not at all."""
  temporary = file.with_name(f".{file.name}.{os.getpid()}-{secrets.token_hex(4)}")
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_text(json.dumps(known, ensure_ascii=False), encoding="utf-8")
    os.replace(temporary, file)
  except OSError as error:
    what = "the disk is full" if is_full(error) else error.strerror
    raise JaxsftError(
      f"{KEY}: the translations cannot be kept in {file.parent}: {what}; free some space there "
      "or set JAXSFT_CACHE to another directory"
    ) from error
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)
