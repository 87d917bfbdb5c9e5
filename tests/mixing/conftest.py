"""The files of two data sets and of conversations."""

import csv
import json

import pytest

from tests import tiny


def as_csv(path, found, names):
  with open(path, "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(names.values())
    writer.writerows([row[name] for name in names] for row in found)


@pytest.fixture(scope="session")
def place(tmp_path_factory):
  """JSONL of 40 sentences, CSV of 24 others with columns of its own; conversations."""
  root = tmp_path_factory.mktemp("mixing")
  tiny.sentences(root / "a.jsonl", 40)
  tiny.sentences(root / "b.jsonl", 24, seed=1)
  found = [json.loads(line) for line in (root / "b.jsonl").read_text().splitlines()]
  as_csv(root / "b.csv", found, {"name": "name", "text": "review", "label": "stars"})
  tiny.chats(root / "chats.jsonl", 24)
  tiny.chats(root / "short.jsonl", 12, turns=False)
  return root
