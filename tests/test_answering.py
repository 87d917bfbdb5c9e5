"""Which held-out rows are answered, with what prompts, and what is said of the answers."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from jaxsft import answering, families, job, models, prepare, pretrained, tasks, train
from jaxsft import config as config_lib
from jaxsft.data import read
from jaxsft.errors import JaxsftError, UsageError
from jaxsft.generation import stops, writing
from jaxsft.tasks import chat
from tests import tiny
from tests.generation import continued

ROOM = 8


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
  """A tiny chat model, loaded."""
  return pretrained.load(tiny.checkpoint(tmp_path_factory.mktemp("m") / "llama", "llama"))


def found(*conversations):
  """[tasks.Found] of conversations in (asked, answered, …)."""
  rows = []
  for i, said in enumerate(conversations):
    roles = ("user", "assistant") * len(said)
    messages = [{"role": r, "content": c} for r, c in zip(roles, said, strict=False)]
    rows.append(read.Row(f"c{i}", f"x:{i}", {"messages": messages}))
  return [tasks.Found(row, [], []) for row in rows]


def answered(model, rows, count, **rules):
  given = {"max_new_tokens": ROOM, "stop_ids": (1,), "batch_size": 4} | rules
  given["frame"] = answering.frame_of(model.base, model.context)
  return answering.answered(
    rows, model.network, model.params, chat, model.context, count=count, **given
  )


PAIRS = [pair for pair in tiny.CHATS for _ in range(2)]


def test_answers_are_those_of_the_model_to_the_last_question(llama):
  rows = found(*PAIRS[:3], ("2 plus 2", "four", "a cat", "meow"))
  said, counts = answered(llama, rows, -1)
  write = llama.tokenizer.apply_chat_template
  asked = [one.row.fields["messages"][:-1] for one in rows]
  ids = [write(messages, add_generation_prompt=True)["input_ids"] for messages in asked]
  new = continued.best_ids(
    llama.network,
    llama.params,
    ids,
    max_new_tokens=ROOM,
    stop_ids=(1,),
    vocab_limit=len(llama.tokenizer),
    batch_size=4,
  )
  expected = [llama.tokenizer.decode(one, skip_special_tokens=True) for one in new]
  assert [one.texts for one in said] == [(text,) for text in expected]
  full = sum(len(one) == ROOM for one in new)
  assert counts == {"answered": 4, "answers_at_limit": full} and full > 0


def test_an_evaluation_scores_what_predict_and_generate_write(llama, tmp_path):
  """What the checkpoint asks for is followed by all, unless the config says otherwise."""
  path = shutil.copytree(llama.base.path, tmp_path / "model")
  old = json.loads((path / "generation_config.json").read_text())
  (path / "generation_config.json").write_text(
    json.dumps(old | {"repetition_penalty": 1.9, "num_beams": 2})
  )
  model = pretrained.load(path)
  (row,) = found(("2 plus 2", "four"))
  wanted = config_lib.Evaluate(generate=-1, max_new_tokens=ROOM)
  rules = answering.settings(config_lib.Config(evaluate=wanted), model.base)
  ends = stops.stop_ids(model.base, model.context.chat_template)
  said = answered(model, [row], **rules, stop_ids=ends)[0][0].texts[0]
  assert said == model.generate("2 plus 2", ROOM)
  assert said == model.predict([{"prompt": "2 plus 2"}], max_new_tokens=ROOM)[0]["text"]
  assert said != llama.generate("2 plus 2", ROOM)
  greedy = config_lib.Config(evaluate=dataclasses.replace(wanted, num_beams=1))
  both = [answering.settings(c, model.base)["num_beams"] for c in (greedy, config_lib.Config())]
  assert both == [1, 2]


def test_which_rows_follow_from_their_ids_alone(llama):
  rows = found(*PAIRS)
  few, counts = answered(llama, rows, 3)
  chosen = {one.row.id for one in few if one.texts}
  assert len(chosen) == counts["answered"] == 3
  assert [one.row.id for one in few] == [one.row.id for one in rows]  # in their order
  turned, _ = answered(llama, rows[::-1], 3)
  said = {one.row.id: one.texts for one in few}
  assert {one.row.id: one.texts for one in turned} == said
  more, _ = answered(llama, rows, 5)
  assert chosen < {one.row.id for one in more if one.texts}
  fewer, _ = answered(llama, [one for one in rows if one.row.id in chosen], 9)
  assert {one.row.id: one.texts for one in fewer} == {i: said[i] for i in chosen}


def test_rows_that_cannot_be_answered_are_counted_and_replaced(llama):
  first = answering.by_hash([f"c{i}" for i in range(6)])
  said = [tiny.CHATS[0]] * 6
  said[first[0]] = ("2 plus 2", "four", "and now")  # nothing to compare with
  said[first[1]] = ("a cat " * 200, "meow")
  rows = found(*said)
  plain = read.Row("c9", "x:9", {"text": "a cat"})
  done, counts = answered(llama, rows, 2)
  assert counts["answered"] == 2 and counts["unanswerable"] == 2
  assert {i for i, one in enumerate(done) if one.texts} == {first[2], first[3]}
  with pytest.raises(JaxsftError, match="none of 2 held-out rows can be answered"):
    answered(llama, [rows[first[0]], tasks.Found(plain, [], [])], -1)


def test_what_would_end_the_first_evaluation_ends_before_the_first_update(llama):
  config = SimpleNamespace(evaluate=config_lib.Evaluate(generate=2, max_new_tokens=ROOM))
  context = dataclasses.replace(llama.context, text_metrics=("answer_accuracy",))
  rows = [one.row for one in found(("2 plus 2", "#### 4"), ("1 plus 1", "two"))]
  part = lambda rows: SimpleNamespace(rows=rows, taken=rows)

  def prepared(rows, **sets):
    held_out = part(rows)
    parts = {"held-out rows": held_out} | {name: part(more) for name, more in sets.items()}
    return SimpleNamespace(task=chat, context=context, held_out=held_out, evaluated=parts)

  data = prepared(rows)
  with pytest.raises(JaxsftError, match="the reference 'two' has no number"):
    answering.check(config, data, llama.network)
  answering.check(config, prepared(rows[:1]), llama.network)
  with pytest.raises(JaxsftError, match="the reference 'two' has no number"):
    answering.check(config, prepared(rows[:1], more=rows[1:]), llama.network)
  nothing = [read.Row("p", "x:9", {"text": "a cat"})]
  with pytest.raises(JaxsftError, match="none of 1 more can be answered"):
    answering.check(config, prepared(rows[:1], more=nothing), llama.network)
  none = SimpleNamespace(evaluate=config_lib.Evaluate())
  answering.check(none, data, llama.network)
  long = SimpleNamespace(evaluate=config_lib.Evaluate(generate=2, max_new_tokens=999))
  with pytest.raises(UsageError, match=r"max_new_tokens is 999, .* 512 positions"):
    answering.check(long, data, llama.network)


# --- in a run --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def worse(tmp_path_factory):
  """A run that gets worse with every update: the best is the first evaluation's."""
  root = tmp_path_factory.mktemp("worse")
  model, rows = tiny.checkpoint(root / "t5", "t5"), tiny.translations(root / "rows.jsonl")
  more = tiny.translations(root / "more.jsonl", 2)
  config = tiny.config(
    "t5",
    "seq2seq",
    model,
    rows,
    steps=4,
    optim__peak_lr=3.0,
    evaluate__every=1,
    evaluate__sets={"more": str(more)},
    evaluate__generate=3,
    evaluate__generate_every=3,
    evaluate__max_new_tokens=4,
    evaluate__text_metrics=("chrf",),
    evaluate__prompts=("a cat",),
  )
  with pytest.MonkeyPatch.context() as patch:
    tiny.on_devices(patch, 1)
    asked = []

    def texts(network, params, tokenizer, prompts, **rules):
      asked.append((prompts, rules))
      return [[writing.Answer("katze", 0.0, False)]] * len(prompts)

    patch.setattr(writing, "written", texts)
    run = train.finetune(config, root / "run")
  return run, asked


def test_answers_at_their_evaluations_and_of_the_best(worse):
  run, asked = worse
  read = lambda name: map(json.loads, (run.directory / name).read_text().splitlines())
  scored = {
    line["step"]: "eval_chrf" in line
    for line in read("metrics.jsonl")
    if line["kind"] == "eval"
  }
  assert scored == {1: False, 2: False, 3: True, 4: True}
  assert run.result["best"]["step"] < 3
  assert run.result["metrics"]["answered"] == 3 and "bleu" not in run.result["metrics"]
  said = list(read("evaluation/predictions.jsonl"))
  assert sum("text" in line for line in said) == 3 < len(said)
  # before, after 3 and 4 updates and of the best (each with the two of the set), after
  assert [len(prompts) for prompts, _ in asked] == [1, 3, 2, 3, 2, 3, 2, 1]
  assert "more/chrf" in run.result["sets"]
  assert {tuple(map(tuple, prompts)) for prompts, _ in asked[1:6:2]} == {
    tuple(map(tuple, asked[1][0]))
  }
  assert all(rules["stop_ids"] == [1] for _, rules in asked)


def test_the_examples_of_the_last_page_are_answered_ones(worse):
  run, _ = worse
  assert len(run.result["examples"]) == 3
  for example in run.result["examples"]:
    assert set(example) == {"name", "source", "gold", "text"}


def test_predictions_of_a_chat_model(llama):
  rows = [{"prompt": "2 plus 2"}, {"messages": found(("a cat",))[0].row.fields["messages"]}]
  said = llama.predict(rows, max_new_tokens=ROOM)
  for one, asked in zip(said, ("2 plus 2", "a cat"), strict=True):
    assert one["text"] == llama.generate(asked, max_new_tokens=ROOM)
  again = llama.predict(
    [{"prompt": "2 plus 2", "completion": "known already"}], max_new_tokens=ROOM
  )
  assert again == said[:1]
  assert any("cut" in one for one in llama.predict(rows, max_new_tokens=1))
  with pytest.raises(JaxsftError, match="row 0: asks nothing"):
    llama.predict([{"text": "a cat"}])
  with pytest.raises(JaxsftError, match=r"row 0: has \d+ tokens, with max_new_tokens"):
    llama.predict([{"prompt": "a cat " * 200}])


def test_floats_of_two_streams():
  """The operations of a token of either stream, by counting matrix products by hand."""
  arch = families.FAMILIES["t5"].architecture(tiny.T5 | {"vocab_size": 50})
  head = families.head_of(families.FAMILIES["t5"], arch, "lm", 0)
  network, (S, T) = models.Network(arch, head), (5, 3)
  D, N, F, V, E, K = 24, 30, 44, 50, 2, 1  # E, K: layers of the encoder and of the decoder
  source = E * (4 * D * N + 3 * D * F) + K * 2 * D * N
  target = K * (2 * D * N + 4 * D * N + 3 * D * F) + V * D
  shapes = network.shapes()
  chosen = job.select.choose(shapes, "all", stacks=network.stacks)
  counted = job.flops_per_token(network, shapes, chosen, np.array([[S, T]] * 7))
  attention = 12 * N * (E * S * S + K * (T * T / 2 + T * S))
  assert counted == pytest.approx((6 * (source * S + target * T) + attention) / (S + T))


def test_the_metrics_that_are_computed():
  """The task's own, those that are named, and always the one that "best" means."""
  make = lambda task, **wanted: config_lib.Config(
    task=task, evaluate=config_lib.Evaluate(**wanted)
  )
  assert prepare.text_metrics(make("seq2seq")) == ("bleu", "chrf", "rougeL", "exact_match")
  assert prepare.text_metrics(make("chat")) == ("exact_match",)
  assert prepare.text_metrics(make("chat", text_metrics=("chrf",))) == ("chrf",)
  assert prepare.text_metrics(make("chat", metric="bleu")) == ("exact_match", "bleu")
  assert prepare.text_metrics(make("chat", metric="exact_match")) == ("exact_match",)
  assert prepare.text_metrics(make("chat", metric="loss")) == ("exact_match",)
  assert prepare.text_metrics(make("classify")) == ()
