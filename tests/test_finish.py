"""What an export is told beside the weights."""

from types import SimpleNamespace

import pytest

from jaxsft import finish, tasks


@pytest.mark.parametrize(("task", "expected"), [("chat", [2, 3, 7]), ("classify", [])])
def test_an_export_names_every_supervised_stop(task, expected):
  """Those of the checkpoint and of its tokenizer too: none of them stands for the others."""
  tokenizer = SimpleNamespace(eos_token_id=3)
  job = SimpleNamespace(
    config=SimpleNamespace(task=task),
    base=SimpleNamespace(generation={"eos_token_id": [2]}, config={}, tokenizer=tokenizer),
    data=SimpleNamespace(
      context=tasks.Context(None, 8),
      train=SimpleNamespace(counts={"stop_ids": [7]}),
    ),
  )
  assert finish.export_facts(job)["stop_ids"] == expected
