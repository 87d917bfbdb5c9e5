"""The configs of translation, summaries and chats read the files that their makers give out."""

import gzip
import json
import pathlib

import pytest

from jaxsft import config as config_lib
from jaxsft import prepare, sources, tasks

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


def read(name, argument, **overrides):
  """The first training and the first held-out row of a config, as its task understands them."""
  config = config_lib.load_config(CONFIGS / f"{name}.py:{argument}", overrides)
  task = tasks.TASKS[config.task]
  rows = sources.read_data(config.data, task)
  assert prepare.text_metrics(config)
  return [(task.asked(one), task.references(one)) for one in (rows.train[0], rows.held_out[0])]


def test_multi30k(tmp_path):
  for part in ("train", "val"):
    for side, text in (("en", "A cat."), ("de", "Eine Katze.")):
      with gzip.open(tmp_path / f"{part}.{side}.gz", "wt", encoding="utf-8") as file:
        file.write(f"{text}\n" * 2)
  found = read("multi30k_en_de", tmp_path)
  assert found == [("A cat.", ("Eine Katze.",))] * 2


@pytest.mark.parametrize("packed", [False, True])
def test_summarise(tmp_path, packed):
  row = {"paper_id": "x", "source": ["We show A.", "It is B."], "source_labels": [0, 1]}
  for part, targets in (("train", ["A is B."]), ("dev", ["A is B.", "It is B."])):
    text = json.dumps(row | {"paper_id": part, "target": targets}) + "\n"
    file = tmp_path / f"{part}.jsonl{'.gz' if packed else ''}"
    file.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
  first, held_out = read("summarise", tmp_path)
  assert first == ("We show A. It is B.", ("A is B.",))
  assert held_out[1] == ("A is B.", "It is B.")


def test_gsm8k(tmp_path):
  for part in ("train", "test"):
    row = {"question": f"How many in {part}?", "answer": "<<1+1=2>>2\n#### 2"}
    (tmp_path / f"{part}.jsonl").write_text(json.dumps(row) + "\n")
  assert read("gsm8k_chat", tmp_path)[1] == ("How many in test?", ("<<1+1=2>>2\n#### 2",))


def test_alpaca(tmp_path):
  rows = [{"instruction": f"Add {i}.", "input": "1", "output": f"{i + 1}"} for i in range(60)]
  (tmp_path / "alpaca_data.json").write_text(json.dumps(rows))
  assert read("alpaca_chat", tmp_path / "alpaca_data.json")[0] == ("Add 0.\n1", ("1",))
