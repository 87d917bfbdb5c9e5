"""Writes docs/doctor.md from jaxsft/doctor: python docs/make_doctor.py

Every finding with its grade and what to change; a test compares the page with the code.
"""

import pathlib

from jaxsft.doctor import codes

HEAD = """# The doctor: look before you train

    python -m jaxsft.inspect --config=x.py [--config.a.b=v …] [--html=FILE] [--json=FILE]

reads, cleans, splits, encodes and packs the rows exactly as training would, reads no weights,
and prints what it finds. `--html` writes one page that opens anywhere, without scripts: some
examples and rows of the first batch with every token coloured by whether it is learnt, is
context or is padding, its id and position on hover; lengths, labels, packing; and rows whose
label others speak against. `--json` writes the same for machines. Exit codes: 0 training would
start, 1 it would not, 2 wrong usage.

Findings have three grades. What **refuses** ends `train` with the same sentence; what **warns**
is printed by `train` too, and kept in `data.json`; what it **notes** only the doctor says.
Codes do not change their names. This page is made by `python docs/make_doctor.py`.
"""
FOOT = """
## Label suspects

For `classify` with one label a row, and for the words of `tag`: a logistic regression on TF-IDF
n-grams learns from four fifths of the rows and judges the rest, in turn. By confident learning
([arXiv:1911.00068](https://arxiv.org/abs/1911.00068)) a row is a suspect where another label is
surer of it than it is of its own rows on average; the least plausible come first. Where rows,
texts or labels are many, a sample is judged, chosen by a hash of the ids and said; the same
rows give the same suspects. In the tests one label of ten is flipped, and at least nine of ten
suspects are flipped ones, and nine of ten flipped ones are suspects. A suspect is a reason to
look, not an error: nothing is changed or left out.

## JSON

| key | what it holds |
|---|---|
| `version` | 1; it changes with the keys |
| `task`, `model`, `data` | as the config has them |
| `counts` | findings of each grade |
| `findings` | a list of `grade`, `code`, `text`, `rows` (ids, at most 20) |
| `rows`, `duplicates`, `plan` | as in `data.json` |
| `sets` | the same, with `histograms`, `numbers`, `of_parts` of a mixture |
| `report` | the same as lines |
| `suspects` | `judged` of `total`, `count`, and the first 50; null: no labels to judge |
| `examples` | tokens of the examples that the page shows |

Where the rows cannot be read, only the first three lines are there, with one finding.
"""


def page():
  lines = [HEAD]
  for grade in codes.GRADES:
    lines += [f"## {grade}\n", "| code | what was found | what to change |", "|---|---|---|"]
    for name, code in codes.CODES.items():
      if code.grade == grade:
        lines.append(f"| `{name}` | {code.meaning} | {code.remedy} |")
    lines.append("")
  return "\n".join(lines) + FOOT


if __name__ == "__main__":
  path = pathlib.Path(__file__).with_name("doctor.md")
  path.write_text(page(), encoding="utf-8")
