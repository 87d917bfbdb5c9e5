"""The rows of configs/chat_smollm2.py say what the running Python says."""

import builtins
import importlib
import inspect
import json
import os
import pathlib
import re
import runpy
import sys

import pytest

from jaxsft import config, tasks
from jaxsft.data import messages as conversations
from jaxsft.data import read
from jaxsft.errors import JaxsftError
from jaxsft.tasks import chat

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
SHA256 = "149542e75dd7"  # of the rows that 3.11, 3.12 and 3.13 make


@pytest.fixture(scope="module")
def facts():
  return runpy.run_path(str(CONFIGS / "data" / "python_facts.py"))


def function_of(row):
  owner, _, name = row["id"].partition("/")[0].rpartition(".")
  kind = getattr(builtins, owner, None)
  home = kind if isinstance(kind, type) else importlib.import_module(owner)
  return owner, name, getattr(home, name)


def test_every_answer_agrees_with_python_itself(facts):
  rows, missing = facts["rows"]()
  assert len(rows) > 800 and len(missing) < 20
  assert len({row["id"] for row in rows}) == len(rows)
  for row in rows:
    owner, name, function = function_of(row)
    answers = [m["content"] for m in row["messages"] if m["role"] == "assistant"]
    kind = row["id"].partition("/")[2]
    if kind == "what":
      assert answers[0] in " ".join(inspect.getdoc(function).split())
    elif kind == "where":
      place = "built in" if owner == "builtins" else f"`{owner}`"
      assert place in answers[0] and f"`{name}`" in answers[0]
    else:
      takes = [p for p in inspect.signature(function).parameters if p != "self"]
      assert re.findall("`(.*?)`", answers[0])[1:] == takes
      asked = re.search("`(.*?)`", row["messages"][2]["content"]).group(1)
      assert answers[1].startswith("Yes" if asked in takes else "No")


def test_both_answers_to_yes_or_no_are_common(facts):
  last = [row["messages"][-1]["content"] for row in facts["rows"]()[0]]
  said = [sum(text.startswith(word) for text in last) for word in ("Yes,", "No,")]
  assert min(said) > 100


@pytest.mark.skipif(sys.version_info[:2] > (3, 13), reason="not compared there")
def test_the_rows_do_not_depend_on_the_python_version(facts, tmp_path):
  assert SHA256 in facts["write"](tmp_path).name


def test_rows_are_written_once_and_are_what_the_name_says(facts, tmp_path):
  path = facts["write"](tmp_path / "new")
  stamp = path.stat().st_mtime_ns
  assert facts["write"](tmp_path / "new") == path and path.stat().st_mtime_ns == stamp
  assert [file.name for file in path.parent.iterdir()] == [path.name]
  lines = path.read_text(encoding="utf-8").splitlines()
  assert [json.loads(line) for line in lines] == facts["rows"]()[0]
  for line in lines:
    conversations.conversation(json.loads(line))
  facts["main"](tmp_path / "rows.jsonl")
  assert (tmp_path / "rows.jsonl").read_bytes() == path.read_bytes()


def test_the_config_makes_its_own_rows(monkeypatch, tmp_path):
  monkeypatch.setenv("JAXSFT_CACHE", str(tmp_path))
  found = config.load_config(CONFIGS / "chat_smollm2.py")
  assert found.task == "chat" and pathlib.Path(found.data.path).parent == tmp_path / "data"
  mine = {"data.path": "mine.jsonl"}
  assert config.load_config(CONFIGS / "chat_smollm2.py", mine).data.path == "mine.jsonl"


def test_a_cache_that_cannot_be_written_is_named(monkeypatch, tmp_path):
  (tmp_path / "file").write_text("")
  monkeypatch.setenv("JAXSFT_CACHE", str(tmp_path / "file"))
  with pytest.raises(JaxsftError, match=r"cannot be written.*JAXSFT_CACHE"):
    config.load_config(CONFIGS / "chat_smollm2.py")


@pytest.mark.full
def test_smollm2_supervises_exactly_the_answers(facts, tmp_path):
  import transformers

  path = pathlib.Path(os.environ["JAXSFT_CHECKPOINTS"]) / "smollm2-135m-instruct"
  tokenizer = transformers.AutoTokenizer.from_pretrained(path)
  context = tasks.Context(tokenizer, 512)
  for index, fields in enumerate(facts["rows"]()[0]):
    example = chat.encode(read.Row(str(index), f"rows:{index}", fields), context).examples[0]
    answers = [m["content"] for m in fields["messages"] if m["role"] == "assistant"]
    trained = tokenizer.decode(example["targets"][example["weights"] > 0])
    assert trained == "".join(answer + "<|im_end|>" for answer in answers)
