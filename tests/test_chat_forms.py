"""Chats in other forms than messages, side by side, and a run on plain text."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import transformers

from jaxsft import finish, preflight, prepare, pretrained, train
from jaxsft.tasks import chat
from tests import tiny


@pytest.fixture
def model(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXSFT_CACHE", str(tmp_path / "cache"))
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
  tiny.on_devices(monkeypatch, 1)
  return tiny.checkpoint(tmp_path / "llama", "llama")


def config_of(model, data, **settings):
  settings = {"data__id": None, "data__split": 0.0, "steps": 1} | settings
  return tiny.config("llama", "chat", model, data, **settings)


def test_forms_side_by_side(model, tmp_path):
  rows = [
    {"text": "the end."},
    {"instruction": "a cat", "input": "says", "output": "meow", "text": "### a cat"},
    {"instruction": "a dog", "input": "says", "output": "woof", "text": ""},
    {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ok"}]},
    {"conversations": [{"from": "human", "value": "no"}, {"from": "gpt", "value": "ok"}]},
    {"text": " "},
    {"prompt": "hi", "completion": "ok"},
    {
      "prompt": [{"role": "user", "content": "a bird"}],
      "completion": [{"role": "assistant", "content": "tweet"}],
    },
  ]
  data = tmp_path / "rows.jsonl"
  data.write_text("".join(json.dumps(row) + "\n" for row in rows))
  config = config_of(model, data)
  found = prepare.prepare(config, pretrained.open_base(config.model), tiny.devices(1))
  assert (found.rows.read, found.rows.left_out) == (8, {"empty text": 1})
  report = preflight.report(found, config, {}, frozenset(), tiny.RULE)
  assert report.samples[0] == "t⟦he end.<|im_end|>⟧" and "⟦meow<|im_end|>⟧" in report.samples[1]
  assert any("1 conversational prompt and completion" in line for line in report.lines())
  assert report.duplicates == {}  # no two rows say the same, whatever fields they have
  job = SimpleNamespace(config=config, data=found)
  asked = [text for text, *_ in finish.samples(job)]
  assert asked == ["a cat\nsays", "a dog\nsays", "hi"]  # plain text asks for nothing


def test_a_run_on_plain_text_needs_no_template(model, tmp_path, capsys):
  tokenizer = transformers.AutoTokenizer.from_pretrained(model)
  tokenizer.chat_template = None
  (model / "chat_template.jinja").unlink()
  tokenizer.save_pretrained(model)
  lines = ["the end.", "", "it is so, they say.", "a cat of ours"]
  data = tmp_path / "book.txt"
  data.write_text("\n".join(lines))
  settings = {"evaluate__max_new_tokens": 1, "evaluate__prompts": ("the",)}
  run = train.finetune(config_of(model, data, **settings), tmp_path / "run")
  out = capsys.readouterr().out
  assert "4 read, 3 kept" in out and "1 left out: empty text" in out
  texts = [line for line in lines if line]
  # All but the first token of each, and its end.
  assert f"{sum(len(tokenizer(t)['input_ids']) for t in texts)} supervised tokens" in out
  generation = json.loads((run.export / "generation_config.json").read_text())
  assert tokenizer.eos_token_id in np.atleast_1d(generation["eos_token_id"])
  assert [example["prompt"] for example in run.result["examples"]] == ["the"]


def test_a_run_on_plain_text_has_no_talk_to_show():
  train = SimpleNamespace(rows=[SimpleNamespace(fields={"text": "a"})])
  context = SimpleNamespace(chat_template=None)
  job = SimpleNamespace(
    config=config_of("llama", "book.txt", evaluate__max_new_tokens=1),
    data=SimpleNamespace(held_out=None, train=train, context=context, task=chat),
    base=SimpleNamespace(limit=9),
  )
  assert finish.show_samples(job, None, "after training") == []
