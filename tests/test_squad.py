"""configs/squad.py reads what its makers give out, and every answer of SQuAD is found again."""

import json
import os
import pathlib

import numpy as np
import pytest

from jaxsft import config as config_lib
from jaxsft import sources, tasks, tokenizer
from jaxsft.data.read import read_rows
from jaxsft.errors import UsageError
from jaxsft.tasks import answer

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "squad.py"
PARAGRAPH = {
  "context": "The Normans came in 1066.",
  "qas": [
    {"id": "a", "question": "Who?", "answers": [{"text": "The Normans", "answer_start": 0}]},
    {"id": "b", "question": "When?", "answers": [{"text": "1066", "answer_start": 20}] * 3},
  ],
}


@pytest.mark.parametrize("version", ["1.1", "2.0"])
def test_squad_s_own_files(tmp_path, version):
  paragraph = json.loads(json.dumps(PARAGRAPH))
  if version == "2.0":
    for asked in paragraph["qas"]:
      asked["is_impossible"] = False
    wrong = [{"text": "1066", "answer_start": 20}]
    more = {"id": "c", "question": "Why?", "answers": [], "is_impossible": True}
    paragraph["qas"].append(more | {"plausible_answers": wrong})
  whole = {"version": version, "data": [{"title": "N", "paragraphs": [paragraph]}]}
  for part in ("train", "dev"):
    (tmp_path / f"{part}-v{version}.json").write_text(json.dumps(whole))
  config = config_lib.load_config(f"{CONFIG}:{version},{tmp_path}")
  rows = sources.read_data(config.data, answer)
  assert [row.id for row in rows.train] == [row.id for row in rows.held_out]
  assert [row.id for row in rows.train] == ["a", "b", "c"][: 2 + (version == "2.0")]
  assert [row.fields["impossible"] for row in rows.train][2:] == [True] * (version == "2.0")
  assert (config.evaluate.null_threshold is None) == (version == "1.1")


@pytest.mark.parametrize("version", ["1.1", "2.0"])
def test_the_names_of_tfds(version):
  squad = pytest.importorskip("tensorflow_datasets.datasets.squad.squad_dataset_builder")
  config = config_lib.load_config(f"{CONFIG}:{version}")
  assert f"v{version}" in [known.name for known in squad.Builder.BUILDER_CONFIGS]
  assert config.data.path == f"tfds:squad/v{version}/train"
  assert config.data.eval_path == f"tfds:squad/v{version}/validation"


def test_an_unknown_version_is_told():
  with pytest.raises(UsageError, match=r"squad.py:3: no such version, expected 1.1 or 2.0"):
    config_lib.load_config(f"{CONFIG}:3")


def rows_of(name):
  root = os.environ.get("JAXSFT_DATA")
  if not root:
    pytest.skip("needs JAXSFT_DATA")
  settings = {"format": "auto", "encoding": "utf-8", "header": None, "quoting": True}
  return list(read_rows(os.path.join(root, name), columns=None, id="id", **settings))


def context_of(name):
  root = os.environ.get("JAXSFT_CHECKPOINTS")
  if not root:
    pytest.skip("needs JAXSFT_CHECKPOINTS")
  words = tokenizer.load_tokenizer(pathlib.Path(root, name))
  return tasks.Context(words, 384, stride=128, max_answer_length=99, null_threshold=0.0)


def told(row, context):
  """The Found of a model that says what the row says."""
  encoded = answer.encode(row, context)
  assert encoded.note is None
  outputs = []
  for example in encoded.examples:
    logits = np.zeros((len(example["inputs"]), 2), np.float32)
    logits[example["start"], 0] = logits[example["end"], 1] = 9 if example["start"] else 1
    outputs.append({"logits": logits})
  return tasks.Found(row, list(encoded.examples), outputs)


@pytest.mark.full
@pytest.mark.parametrize(
  ("name", "inside"),
  [
    ("all-minilm-l6-v2", 32),
    ("granite-embedding-30m-english", 107),
    ("smollm2-135m-instruct", 99),
    ("gemma3-270m", 100),
  ],
)
def test_every_answer_of_the_development_set_is_found_again(name, inside):
  """But where it begins or ends inside a word-piece: "gold" in "golden", "4" in "49"."""
  context, cut = context_of(name), 0
  rows = rows_of("squad_v1_dev/dev-v1.1.json.gz")
  for row in rows:
    one = told(row, context)
    said, gold = answer.decode(one, context), row.fields["answers"][0]
    end = gold["start"] + len(gold["text"])
    if (said["answer"], said["start"], said["end"]) == (gold["text"], gold["start"], end):
      continue
    cut += 1
    assert said["start"] <= gold["start"] and end <= said["end"]
    within = lambda at, one=one: any(
      ((e["start_char"] < at) & (at < e["end_char"])).any() for e in one.examples
    )
    assert within(gold["start"]) or within(end), gold
  assert len(rows) == 10570 and cut == inside


@pytest.mark.full
def test_no_answer_is_told_from_answers():
  """SQuAD 2.0 questions, a model that knows all; its answers lie on word-pieces."""
  context = context_of("all-minilm-l6-v2")
  rows = rows_of("squad_v2_cs224n/dev-v2.0.json")
  numbers = answer.metrics([told(row, context) for row in rows], context)
  assert numbers["total"] == 6078 and numbers["no_answer_total"] == 3168
  names = [f"{part}{name}" for part in ("", "has_answer_", "no_answer_", "best_")
           for name in ("f1", "exact_match")]  # fmt: skip
  assert {numbers[name] for name in names} == {100.0}
