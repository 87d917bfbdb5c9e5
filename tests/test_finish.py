"""What an export is told beside the weights."""

import contextlib
from types import SimpleNamespace

import pytest

from jaxsft import evaluate, finish, tasks
from jaxsft.errors import JaxsftError


@pytest.mark.parametrize(
  ("task", "expected"), [("chat", [2, 3, 7]), ("seq2seq", [2, 3, 7]), ("classify", [])]
)
def test_an_export_names_every_supervised_stop(task, expected):
  """Those of the checkpoint and of its tokenizer too: none of them stands for the others."""
  tokenizer, named = SimpleNamespace(eos_token_id=3, chat_template=None), {"eos_token_id": [2]}
  job = SimpleNamespace(
    base=SimpleNamespace(generation=named, config={}, tokenizer=tokenizer, arch=None),
    data=SimpleNamespace(
      task=tasks.TASKS[task],
      context=tasks.Context(tokenizer, 9, instruction="say ", languages=("en", "de")),
      train=SimpleNamespace(counts={"stop_ids": [7]}),
    ),
  )
  facts = finish.export_facts(job)
  assert facts["stop_ids"] == expected
  assert facts["instruction"] == "say " and facts["languages"] == ("en", "de")


def test_a_metric_without_a_value_says_why(monkeypatch):
  found = {"accuracy": 1.0, "undefined": {"mcc": "every gold label is pos"}}
  job = SimpleNamespace(
    config=SimpleNamespace(evaluate=SimpleNamespace(generate=0, generate_every=None)),
    data=SimpleNamespace(
      task=SimpleNamespace(metrics=lambda *_: found),
      context=None,
      held_out=None,
      eval_plan=None,
      plan=SimpleNamespace(num_steps=4),
      sets={},
    ),
    logger=SimpleNamespace(pause=contextlib.nullcontext, evaluation=lambda *_: None),
    eval_step=None,
    mesh=None,
    network=None,
    metric="mcc",
  )
  monkeypatch.setattr(evaluate, "measure", lambda *_: [])
  state = SimpleNamespace(trainable={}, frozen={}, average={})
  with pytest.raises(
    JaxsftError, match=r"mcc=None \(every gold label is pos\), expected a finite"
  ):
    finish.evaluate_and_keep_best(job, state, {}, 2)
