"""What config.clean does to texts reaches everything that reads them: a whole run and after."""

import dataclasses
import json

import pytest

from jaxsft import evaluate, export, predict, prepare, pretrained, tasks, train
from jaxsft.config import Clean
from jaxsft.errors import UsageError
from tests import tiny

STEPS = ("markup", "lower", "punctuation")
NOISY, PLAIN = "<b>GOOD</b>, film!", "good film"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """(config, run directory) of a training on noisy rows."""
  root = tmp_path_factory.mktemp("clean")
  rows = tiny.sentences(root / "rows.jsonl", 24)
  lines = [json.loads(line) for line in rows.read_text().splitlines()]
  noisy = [r | {"text": f"<i>{r['text'].upper()}!</i>"} for r in lines]
  noisy += [noisy[0] | {"name": "again"}]
  rows.write_text("".join(json.dumps(r) + "\n" for r in noisy))
  model = tiny.checkpoint(root / "bert", "bert")
  with pytest.MonkeyPatch.context() as patch:
    tiny.on_devices(patch, 1)
    patch.setenv("JAXSFT_CACHE", str(root / "cache"))
    config = tiny.config(
      "bert", "classify", model, rows, steps=1, evaluate__sets={"more": str(rows)},
      clean__text=STEPS, clean__duplicates="drop",
    )  # fmt: skip
    train.finetune(config, root / "run")
  return config, root / "run"


def test_the_report_counts_it(run):
  data = json.loads((run[1] / "data.json").read_text())
  assert data["rows"]["left_out"] == {"duplicates": 1}
  assert [(c["what"], c["rows"]) for c in data["rows"]["changes"]] == [
    ("changed by markup", 25), ("changed by lower", 25), ("changed by punctuation", 25),
    ("left out: duplicates", 1),
  ]  # fmt: skip
  (line,) = [one for one in data["report"] if "25 changed by lower" in one]
  assert "→" in line and line.startswith("cleaning   25")
  assert "left out: duplicates" in "\n".join(data["report"])


def test_an_export_remembers_and_predictions_follow(run):
  model = pretrained.load(run[1] / "export")
  assert model.context.text_steps == STEPS
  noisy, plain = predict.predict(model, [{"text": NOISY}, {"text": PLAIN}])
  assert noisy == plain | {"read": {"text": PLAIN}}
  assert "read" not in plain


def test_the_verb_shows_what_was_read(run, tmp_path):
  rows = tmp_path / "new.jsonl"
  rows.write_text(json.dumps({"text": NOISY, "label": "pos"}) + "\n")
  predict.main(
    [f"--model={run[1] / 'export'}", f"--data={rows}", f"--out={tmp_path / 'o.jsonl'}"]
  )
  found = json.loads((tmp_path / "o.jsonl").read_text())
  assert (found["text"], found["gold"], found["read"]) == (NOISY, "pos", {"text": PLAIN})


def test_a_model_of_others_follows_the_config(run, tmp_path):
  model = pretrained.load(tiny.checkpoint(tmp_path / "other", "bert", labels=("neg", "pos")))
  assert model.context.text_steps == ()
  assert predict._as_config_says(model, run[0]).context.text_steps == STEPS


def test_evaluations_read_the_same(run):
  config, task = run[0], tasks.TASKS["classify"]
  places = evaluate.measured_on(config, task)
  texts = {place: [r.fields["text"] for r in rows] for place, (rows, _) in places.items()}
  assert all(text == text.lower().strip("!<>") for found in texts.values() for text in found)
  assert len(texts["more"]) == 25  # duplicates stay where rows are only measured
  assert places["more"][1] == {"changed": dict.fromkeys(STEPS, 25)}


@pytest.mark.parametrize(
  ("clean", "said"),
  [
    ({"text": ("lower",)}, "texts by lower, but"),
    ({}, "no text, but"),
    (
      {"text": STEPS, "secrets": "mask"},
      "texts by markup, mask:secrets, lower, punctuation, but",
    ),
  ],
)
def test_texts_are_measured_and_answered_as_they_were_trained(run, tmp_path, clean, said):
  """A config that changes them otherwise is refused before anything is measured."""
  config = dataclasses.replace(run[0], clean=Clean(**clean))
  own = "was trained on texts changed by markup, lower, punctuation; set"
  export, answers = run[1] / "export", tmp_path / "o.jsonl"
  file = tiny.write_config(tmp_path / "c.py", config)
  plain = tiny.checkpoint(tmp_path / "other", "bert", labels=("neg", "pos"))
  for verb, argv in (
    (evaluate, [f"--model={export}"]),
    (evaluate, ["--runs", str(plain), str(run[1]), f"--out={tmp_path / 'out'}"]),
    (predict, [f"--model={export}", f"--data={run[0].data.path}", f"--out={answers}"]),
  ):
    with pytest.raises(UsageError, match=f"config.clean changes {said} .*export {own}"):
      verb.main([*argv, f"--config={file}"])
  assert not (tmp_path / "out").exists() and not answers.exists()
  with pytest.raises(UsageError, match=said):
    evaluate.evaluate(pretrained.load(export), config)


def test_a_model_of_others_is_measured_as_the_config_says(run, tmp_path, capsys):
  plain = tiny.checkpoint(tmp_path / "other", "bert", labels=("neg", "pos"))
  file = tiny.write_config(tmp_path / "c.py", run[0])
  evaluate.main([f"--config={file}", "--runs", str(plain), str(run[1])])
  said = json.loads(capsys.readouterr().out)
  assert said["held out"][str(plain)]["changed"] == said["held out"][str(run[1])]["changed"]


def test_a_saved_model_still_knows(run, tmp_path):
  model = pretrained.load(run[1] / "export")
  export.save(model, tmp_path / "saved")
  assert pretrained.load(tmp_path / "saved").context.text_steps == STEPS


def test_a_model_that_writes_remembers_too(tmp_path):
  model = pretrained.load(tiny.checkpoint(tmp_path / "llama", "llama"))
  steps = ("nfkc", 'stop_words:["a"]')
  context = dataclasses.replace(model.context, text_steps=steps)
  export.save(dataclasses.replace(model, context=context), tmp_path / "saved")
  found = json.loads((tmp_path / "saved" / "config.json").read_text())
  assert found["jaxsft_answers"] == {"text_steps": list(steps)}
  assert pretrained.load(tmp_path / "saved").context.text_steps == steps
  export.save(model, tmp_path / "plain")
  assert "jaxsft_answers" not in json.loads((tmp_path / "plain" / "config.json").read_text())


def test_another_step_is_another_store(run):
  config, base = run[0], pretrained.open_base(run[0].model)
  seen = []
  for steps in (STEPS, STEPS[:2]):
    changed = dataclasses.replace(config, clean=Clean(text=steps))
    seen.append(prepare.make_context(changed, base, ("neg", "pos")).text_steps)
  assert seen == [STEPS, STEPS[:2]]


def test_a_prompt_is_read_as_texts_were(tmp_path, monkeypatch):
  """Of a model that writes: what `generate` is asked is normalised too."""
  from jaxsft.generation import writing

  model = pretrained.load(tiny.checkpoint(tmp_path / "llama", "llama"))
  asked = []
  monkeypatch.setattr(
    writing, "n_best", lambda n, p, t, prompts, **rules: [asked.append(prompts)]
  )
  context = dataclasses.replace(model.context, text_steps=("nfkc", "control"))
  for prompt in ("ﬁne\x00", [{"role": "user", "content": "ﬁne\x00"}]):
    writing.answers_of(dataclasses.replace(model, context=context), prompt, 1)
  assert asked == [["fine"], [[{"role": "user", "content": "fine"}]]]
