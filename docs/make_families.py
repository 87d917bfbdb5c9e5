"""Writes jaxsft/families/parity.json and README's table of families from a test run.

  JAXSFT_RECORD=DIR pytest -m 'full or not full' tests/families
  python docs/make_families.py DIR

Without DIR only the table is written, from the parity.json that is there. A test compares
the table with that file and with the families that exist.
"""

import json
import pathlib
import sys

from jaxsft import families

ROOT = pathlib.Path(__file__).parent.parent
PARITY = pathlib.Path(families.__file__).with_name("parity.json")
START, END = "<!-- families: made by docs/make_families.py -->\n", "<!-- end of families -->"
GROUPS = {
  "encoder": families.ENCODERS,
  "decoder": families.DECODERS,
  "encoder-decoder": families.ENCODER_DECODERS,
}
SHORT = {
  "lm": "language model",
  "masked_lm": "masked LM",
  "sequence": "sentences",
  "token": "tokens",
  "span": "spans",
}


def collect(directory):
  """{family: {part: {"logits": …, "gradients": …}}}, the largest of all processes."""
  found = {}
  for path in sorted(pathlib.Path(directory).glob("*+*+*.json")):
    family, part, _ = path.stem.split("+")
    known = found.setdefault(family, {}).setdefault(part, {})
    for name, value in json.loads(path.read_text("utf-8")).items():
      known[name] = max(value, known.get(name, 0.0))
  return found


def table(parity):
  """README's table: a row a family, by architecture."""
  lines = [
    "| architecture | `model_type` | heads with a class in `transformers` | random models: "
    "logits, gradients | real checkpoint: logits |",
    "|---|---|---|---|---|",
  ]
  for group, members in GROUPS.items():
    for name, family in members.items():
      heads = ", ".join(SHORT[kind] for kind in SHORT if kind in family.CLASSES)
      parts = dict(parity.get(name, {}))
      tiny = parts.pop("tiny", {})
      shown = ", ".join(f"{tiny[key]:.0e}" for key in ("logits", "gradients") if key in tiny)
      real = "; ".join(f"{part} {numbers['logits']:.0e}" for part, numbers in parts.items())
      lines.append(f"| {group} | `{name}` | {heads} | {shown or '–'} | {real or '–'} |")
  return "\n".join(lines) + "\n"


def with_table(text, parity):
  """README's text with the table between its marks."""
  before, rest = text.split(START)
  return before + START + table(parity) + END + rest.split(END)[1]


def main(argv):
  if argv:
    merged = json.loads(PARITY.read_text("utf-8")) if PARITY.is_file() else {}
    for family, parts in collect(argv[0]).items():
      merged[family] = merged.get(family, {}) | parts
    PARITY.write_text(json.dumps(merged, indent=1, sort_keys=True) + "\n", encoding="utf-8")
  readme = ROOT / "README.md"
  parity = json.loads(PARITY.read_text("utf-8"))
  readme.write_text(with_table(readme.read_text("utf-8"), parity), encoding="utf-8")


if __name__ == "__main__":
  main(sys.argv[1:])
