"""What an export is told beside the weights."""

from types import SimpleNamespace

import pytest

from jaxsft import finish, tasks


@pytest.mark.parametrize(
  ("task", "expected"), [("chat", [2, 3, 7]), ("seq2seq", [2, 3, 7]), ("classify", [])]
)
def test_an_export_names_every_supervised_stop(task, expected):
  """Those of the checkpoint and of its tokenizer too: none of them stands for the others."""
  tokenizer = SimpleNamespace(eos_token_id=3)
  job = SimpleNamespace(
    base=SimpleNamespace(generation={"eos_token_id": [2]}, config={}, tokenizer=tokenizer),
    data=SimpleNamespace(
      task=tasks.TASKS[task],
      context=tasks.Context(tokenizer, 9, instruction="say ", languages=("en", "de")),
      train=SimpleNamespace(counts={"stop_ids": [7]}),
    ),
  )
  facts = finish.export_facts(job)
  assert facts["stop_ids"] == expected
  assert facts["instruction"] == "say " and facts["languages"] == ("en", "de")
