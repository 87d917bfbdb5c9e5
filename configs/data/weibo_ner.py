"""Weibo NER without the digit that its first column has behind every character.

    python configs/data/weibo_ner.py weiboNER_2nd_conll.train train.jsonl

The files of https://github.com/hltcoe/golden-horse say "科0", "技1": a character and its place
in its word. This writes {"id", "tokens", "tags"} a line, with "科", "技" as tokens.
"""

import json
import pathlib
import re
import sys

from jaxsft.data import read
from jaxsft.errors import JaxsftError


def rows(path):
  """{"id", "tokens", "tags"} of every sentence of a file."""
  settings = {"encoding": "utf-8", "header": None, "quoting": True, "columns": None, "id": None}
  for row in read.read_rows(path, format="conll", **settings):
    tokens = [re.fullmatch(r"(.+)\d", token, re.DOTALL) for token in row.fields["tokens"]]
    if None in tokens:
      token = row.fields["tokens"][tokens.index(None)]
      raise JaxsftError(
        f"{row.where}: the token {token!r} has no digit behind its character; is this a file "
        "of Weibo NER, second version?"
      )
    yield {"id": row.id, "tokens": [token[1] for token in tokens], "tags": row.fields["tags"]}


def main(path, out):
  lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows(path)]
  pathlib.Path(out).write_text("".join(lines), encoding="utf-8", newline="")
  print(f"{len(lines)} sentences in {out}")


if __name__ == "__main__":
  main(*sys.argv[1:])
