"""What cleaning and augmentation cannot do, or must not do quietly."""

from tests.bad_inputs.cases import ROW, case, rows, settings

KEY = "AKIA" + "IOSFODNN7EXAMPLE"


def _twice(p):
  """The first row again, in a file of rows to measure on."""
  p.write("held.jsonl", p.path("rows.jsonl").read_text().splitlines()[0] + "\n")
  for key, value in (("data.eval_path", "held.jsonl"), ("data.split", 0.0)):
    p.set(key, value)
  p.set("clean.overlap", "error")


CLEANING = [
  rows(
    "a secret in a row", ROW | {"text": f"the key {KEY}"}, 1, "rows.jsonl:12",
    "holds secrets (AWS_KEY)", "[AWS_KEY]", "config.clean.secrets", clean__secrets="error",
  ),
  settings(
    "a list of stop words that is not there", 2, "config.clean.text", "'stop_words:none.txt'",
    "No such file", "one word a line", clean__text='["stop_words:none.txt"]',
  ),
  settings(
    "a language of no name", 2, "config.clean.language", "'klingon'", "ISO 639-1",
    clean__language="klingon",
  ),
  settings(
    "rules that leave no row", 1, "config.clean leaves none of 30 rows",
    "30 fewer than 500 characters", "change its settings", clean__min_chars=500,
  ),
  settings(
    "a benchmark that is not there", 1, "clean.benchmarks", "none.txt",
    clean__benchmarks='["none.txt"]',
  ),
  case(
    "a row that is measured on too", "train", _twice, 1, "1 training rows are held out too",
    "rows.jsonl:1", "held.jsonl:1", "config.clean.overlap",
  ),
  settings(
    "synonyms that are not there", 2, "config.augment.synonyms", "none.json", "cannot be read",
    augment__copies=1, augment__replace=0.5, augment__synonyms="none.json",
  ),
  rows(
    "the id of a copy", ROW | {"name": "s0~1"}, 1, "rows.jsonl:1", "'s0~1' of another row",
    "config.augment.copies", augment__copies=1, augment__drop=0.5, data__split=0.0,
  ),
]  # fmt: skip
