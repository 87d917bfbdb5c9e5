"""Combinations of cleaning settings that cannot run; see rules.py."""

import json

STEPS = ("nfc", "nfkc", "control", "markup", "whitespace", "lower", "punctuation", "urls")
LISTED = "stop_words:"
DAMAGING = {
  "chat": ("whitespace", "lower", "punctuation", LISTED),
  "seq2seq": ("punctuation", LISTED),
}
"""Task -> steps that would teach its model to write damaged texts."""


def rules(c):
  """(broken?, sentence) for every combination that cannot run."""
  for group in (_steps, _kept, _overlap, _augmented):
    yield from group(c)


def _steps(c):
  for step in c.clean.text:
    name = step.removeprefix(LISTED)
    yield (
      step not in STEPS and (name == step or not name),
      f"config.clean.text: unknown step {step!r}, expected some of {', '.join(STEPS)}, "
      "'stop_words:english' or 'stop_words:FILE'",
    )
    yield (
      name != step and name.startswith("[") and not _words(name),
      f"config.clean.text: {step!r} has no words, expected a JSON list such as "
      '\'stop_words:["a", "the"]\'',
    )
    damaging = DAMAGING.get(c.task, ())
    yield (
      step.startswith(damaging) if damaging else False,
      f"config.clean.text: {step!r} has no place with task={c.task!r}, whose model would learn "
      "to write such texts; take it out",
    )
  yield (
    len(set(c.clean.text)) < len(c.clean.text),
    f"config.clean.text: found {c.clean.text}, expected every step once",
  )


def _words(name):
  try:
    found = json.loads(name)
  except ValueError:
    return False
  return isinstance(found, list) and all(isinstance(w, str) and w for w in found) and found


def _kept(c):
  r = c.clean
  for key in ("min_chars", "max_chars"):
    value = getattr(r, key)
    yield (
      value is not None and value < 1,
      f"config.clean.{key}: found {value}, expected at least 1, or None",
    )
  yield (
    r.min_chars is not None and r.max_chars is not None and r.min_chars > r.max_chars,
    f"config.clean.max_chars: found {r.max_chars}, expected config.clean.min_chars="
    f"{r.min_chars} or more",
  )
  near = r.near_duplicates
  yield (
    near is not None and not 0 < near <= 1,
    f"config.clean.near_duplicates: found {near}, expected a share above 0 and up to 1",
  )


def _overlap(c):
  r, d = c.clean, c.data
  held = d.split or d.folds is not None or d.eval_path is not None
  yield (
    r.overlap != "warn" and not held,
    f"config.clean.overlap: {r.overlap!r} has no effect where nothing is held out; set "
    "config.data.split or config.data.eval_path",
  )
  yield r.ngram < 1, f"config.clean.ngram: found {r.ngram}, expected at least 1 word"
  yield (
    r.ngram != type(r)().ngram and not r.benchmarks,
    "config.clean.ngram: has no effect without config.clean.benchmarks; name their files",
  )


PARTS = ("drop", "swap", "replace", "templates", "back_translation")


def _augmented(c):
  a = c.augment
  used = [key for key in PARTS if getattr(a, key) != getattr(type(a)(), key)]
  yield a.copies < 0, f"config.augment.copies: found {a.copies}, expected 0 or more"
  yield (
    a.copies == 0 and bool(used or a.synonyms),
    f"config.augment.{(*used, 'synonyms')[0]}: has no effect without copies; set "
    "config.augment.copies to at least 1",
  )
  yield (
    a.copies > 0 and not used,
    "config.augment.copies: nothing would change in them; set one of "
    f"{', '.join(f'config.augment.{key}' for key in PARTS)}",
  )
  yield (
    a.copies > 0 and c.task in ("chat", "masked_lm"),
    f"config.augment.copies: task={c.task!r} learns the texts themselves, and would learn "
    "damaged ones; set it to 0",
  )
  for key in ("drop", "swap", "replace"):
    value = getattr(a, key)
    yield (
      not 0 <= value < 1,
      f"config.augment.{key}: found {value}, expected a share from 0 to below 1",
    )
  yield (
    (a.replace > 0) != (a.synonyms is not None),
    "config.augment.replace: needs config.augment.synonyms, and that needs it; set both",
  )
  for key in ("templates", "back_translation"):
    yield (
      c.task in ("tag", "answer") and bool(getattr(a, key)),
      f"config.augment.{key}: spans cannot follow with task={c.task!r}; remove it",
    )
  yield (
    len(a.back_translation) not in (0, 2),
    f"config.augment.back_translation: found {a.back_translation}, expected two models",
  )
