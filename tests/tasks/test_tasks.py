"""What every task module says and does, so that nothing else need know which runs."""

import inspect
import typing

import pytest

from jaxsft import config, tasks

FUNCTIONS = {
  "encode": ["row", "context"],
  "loss": ["network", "params", "batch", "options", "key"],
  "predict": ["network", "params", "batch", "options"],
  "decode": ["found", "context"],
  "metrics": ["found", "context"],
  "row_loss": ["one", "context"],
  "measured": ["found", "context"],
}


@pytest.mark.parametrize("name", tasks.TASKS)
def test_a_task_has_all_that_is_asked_of_it(name):
  task = tasks.TASKS[name]
  for function, arguments in FUNCTIONS.items():
    assert list(inspect.signature(getattr(task, function)).parameters) == arguments, function
  assert task.OUTPUTS in ("segment", "token") and isinstance(task.SOURCE, bool)
  assert task.HEAD in ("sequence", "token", "span", "lm", "masked_lm")
  assert set(task.GOLD) <= {
    "answers",
    "entities",
    "impossible",
    "label",
    "tags",
    "target",
    "targets",
  }
  many = isinstance(task.DEFAULT_METRIC, dict)
  for kind, default in task.DEFAULT_METRIC.items() if many else [(None, task.DEFAULT_METRIC)]:
    directions = task.METRICS[kind] if many else task.METRICS
    assert default in directions and set(directions.values()) <= {"max", "min"}


def test_every_task_can_be_asked_for():
  assert set(tasks.TASKS) == set(typing.get_args(typing.get_type_hints(config.Config)["task"]))
  assert list(tasks.TASKS) == sorted(tasks.TASKS)


def test_the_answer_of_a_row_is_told_from_what_is_given():
  row = _Row({"text": "a", "label": "b", "n": 1})
  assert tasks.given_and_gold(row, tasks.TASKS["classify"]) == (
    {"text": "a", "n": 1},
    {"gold": "b"},
  )
  assert tasks.given_and_gold(_Row({"text": "a"}), tasks.TASKS["classify"]) == (
    {"text": "a"},
    {},
  )
  answers = {"question": "q", "context": "c", "answers": [], "impossible": True}
  assert tasks.given_and_gold(_Row(answers), tasks.TASKS["answer"])[1] == {
    "gold": {"answers": [], "impossible": True}
  }


ASKED, SAID = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
  ("fields", "gold"),
  [
    ({"messages": [ASKED, SAID]}, {"gold": "a"}),
    ({"messages": [ASKED, SAID, ASKED, {**SAID, "content": "b"}]}, {"gold": "b"}),
    ({"messages": [ASKED, SAID, ASKED]}, {}),
    ({"messages": [ASKED, {**SAID, "content": "", "tool_calls": [{"name": "f"}]}]}, {}),
    ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "a"),
    ({"prompt": "q", "completion": "a"}, {"gold": "a"}),
    ({"prompt": "q"}, {}),
    ({"instruction": "q", "output": "a", "n": 1}, {"gold": "a"}),
    ({"text": "plain"}, {}),
    ({"messages": "nonsense"}, {}),
    ({"other": 1}, {}),
  ],
)
def test_the_answer_inside_of_a_conversation_is_its_last(fields, gold):
  """It stays where it stands: the fields are the row's own."""
  gold = {"gold": gold} if isinstance(gold, str) else gold
  assert tasks.given_and_gold(_Row(fields), tasks.TASKS["chat"]) == (fields, gold)


class _Row(typing.NamedTuple):
  fields: dict
