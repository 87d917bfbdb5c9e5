"""The verb `predict` with models that write: how their texts are written, and by whom."""

import json
import shutil

import pytest

from jaxsft import predict, pretrained, row_file
from jaxsft.errors import UsageError
from jaxsft.generation import choices
from tests import tiny

ROOM = 8
ASKED = ("2 plus 2", "a cat", "say it", "2 plus 2")
GIVEN = {  # of every choice a value that is not the default
  "max_new_tokens": 5,
  "temperature": 0.9,
  "top_k": 9,
  "top_p": 0.8,
  "min_p": 0.01,
  "repetition_penalty": 1.7,
  "no_repeat_ngram_size": 2,
  "min_new_tokens": 3,
  "num_beams": 3,
  "length_penalty": 2.0,
  "early_stopping": "never",
  "stop": "e",
  "num_return": 2,
  "seed": 4,
}
BESIDE = {  # what it needs to mean anything
  **{name: {"temperature": 0.9} for name in ("top_k", "top_p", "min_p", "seed")},
  **{name: {"num_beams": 3} for name in ("early_stopping", "num_return")},
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
  """A tiny chat model, loaded."""
  return pretrained.load(tiny.checkpoint(tmp_path_factory.mktemp("m") / "llama", "llama"))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
  path = tmp_path_factory.mktemp("m") / "bert"
  return pretrained.load(tiny.checkpoint(path, "bert", labels=("neg", "pos")))


@pytest.fixture
def rows(tmp_path):
  path = tmp_path / "asked.jsonl"
  path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ASKED))
  return path


def run(model, rows, out, **flags):
  argv = [f"--model={model.base.path}", f"--data={rows}", f"--out={out}"]
  predict.main([*argv, *(f"--{name}={value}" for name, value in flags.items())])
  return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.parametrize(
  "settings",
  [
    {"temperature": 1.5, "top_k": 9, "seed": 3, "num_return": 3},
    {"temperature": 1.5, "top_p": 0.9, "min_p": 0.02, "length_penalty": 0.5},
    {"num_beams": 3, "num_return": 2, "early_stopping": True, "length_penalty": 2.0},
    {"repetition_penalty": 1.9, "no_repeat_ngram_size": 2, "min_new_tokens": ROOM},
    {"stop": ["nowhere", "z"]},
  ],
)
def test_texts_are_those_of_generate(llama, rows, tmp_path, settings):
  """Flags, Python and `generate` say the same."""
  flags = {
    k: json.dumps(v) if k in ("stop", "early_stopping") else v for k, v in settings.items()
  }
  said = run(llama, rows, tmp_path / "out.jsonl", max_new_tokens=ROOM, **flags)
  count = settings.get("num_return", 1)
  ask = {"num_return": 1, "max_new_tokens": ROOM, **settings}
  expected = [llama.n_best(text, **ask) for text in ASKED]
  assert [row["text"] for row in said] == [best[0].text for best in expected]
  if count > 1:
    for row, best in zip(said, expected, strict=True):
      assert row["texts"] == [
        {"text": one.text, "score": pytest.approx(one.score, abs=1e-4)} for one in best
      ]
      assert len(row["texts"]) == count
  else:
    assert not any("texts" in row for row in said)
  plain = [llama.generate(text, ROOM) for text in ASKED]
  assert [row["text"] for row in said] != plain
  again = llama.predict([{"prompt": text} for text in ASKED], **ask)
  assert [one["text"] for one in again] == [row["text"] for row in said]
  assert [one.get("cut") for one in again] == [row.get("cut") for row in said]


def test_a_temperature_is_of_the_drawing_or_of_the_scores(llama, classifier):
  """By what the model is for, in Python as on the command line; never both."""
  asked = [{"prompt": text} for text in ASKED]
  plain, cold = (
    llama.predict(asked, max_new_tokens=ROOM, **t) for t in ({}, {"temperature": 0})
  )
  assert plain == cold  # 0 is no calibration
  drawn = llama.predict(asked, max_new_tokens=ROOM, temperature=1.5, seed=1)
  assert drawn != plain and drawn[0] == drawn[3]
  assert drawn[0]["text"] == llama.generate(ASKED[0], ROOM, temperature=1.5, seed=1)
  (warm,), (usual,) = (
    classifier.predict([{"text": "good film"}], temperature=t) for t in (4.0, None)
  )
  assert warm["label"] == usual["label"] and 0.5 < warm["score"] < usual["score"]
  with pytest.raises(UsageError, match="temperature is 0, expected a number above 0"):
    classifier.predict([{"text": "good film"}], temperature=0)


@pytest.mark.parametrize("name", sorted(set(GIVEN) - {"temperature"}))
def test_a_classifier_is_not_told_how_to_write(classifier, name):
  with pytest.raises(UsageError, match=f"^{name}=.*: the model writes no text; leave it out"):
    classifier.predict([{"text": "good"}], **{name: GIVEN[name]})


def test_a_model_that_writes_is_not_told_how_to_choose_labels(llama):
  words = "^threshold=0.5: the model writes texts and gives no labels; leave it out"
  with pytest.raises(UsageError, match=words):
    llama.predict([{"prompt": "a cat"}], threshold=0.5)
  with pytest.raises(UsageError, match="the setting num_beam; did you mean 'num_beams'"):
    llama.predict([{"prompt": "a cat"}], num_beam=2)


def test_flags_are_refused_before_the_weights_are_read(llama, rows, tmp_path, monkeypatch):
  monkeypatch.setattr(pretrained, "load_params", lambda *_: pytest.fail("weights were read"))
  for flags, sentence in (
    ({"threshold": 0.5}, "--threshold=0.5: the model writes texts"),
    ({"top_p": 0.5}, "top_p is 0.5 with temperature 0"),
    ({"max_new_tokens": 0}, "max_new_tokens is 0, expected"),
    ({"fsdp": 3}, "--fsdp=3 --tensor=1: split a model into 3 parts, found 8 devices"),
    ({"tensor": 0}, "--tensor=0: expected at least 1"),
  ):
    with pytest.raises(UsageError, match=sentence):
      run(llama, rows, tmp_path / "out.jsonl", **flags)


def test_every_choice_begins_anew(llama, rows, tmp_path, monkeypatch):
  """Each is part of what a stopped run has to share with the one that goes on."""
  seen, opened = [], row_file.RowFile
  monkeypatch.setattr(predict.row_file, "RowFile", lambda o, i: seen.append(i) or opened(o, i))
  monkeypatch.setattr(predict, "predictor", lambda *_, **__: lambda r: [{"text": ""}] * len(r))
  assert set(GIVEN) == set(choices.CHOICES)
  out = tmp_path / "out.jsonl"
  tried = [{}, {"temperature": 0.9}, {"num_beams": 3}]
  tried += [BESIDE.get(name, {}) | {name: GIVEN[name]} for name in GIVEN if name in BESIDE]
  tried += [{name: GIVEN[name]} for name in GIVEN if name not in (*BESIDE, "temperature")]
  for flags in tried:
    run(llama, rows, out, **flags)
  assert len(set(seen)) == len(tried) - 1  # num_beams is among them twice
  for flags in ({"batch_size": 2}, {"fsdp": 2}):  # these change no answer
    run(llama, rows, out, **flags)
    assert seen[-1] == seen[0]


def test_what_is_drawn_goes_on_after_a_stop(llama, rows, tmp_path, monkeypatch):
  flags = {"temperature": 1.5, "seed": 2, "num_return": 2, "max_new_tokens": ROOM}
  whole = run(llama, rows, tmp_path / "whole.jsonl", **flags)
  monkeypatch.setattr(predict, "WRITTEN", 1)
  original = predict.predictor

  def stopping(*args, **rules):
    answer, blocks = original(*args, **rules), []
    return lambda block: blocks.append(1) or (answer(block) if len(blocks) < 2 else 1 / 0)

  monkeypatch.setattr(predict, "predictor", stopping)
  with pytest.raises(ZeroDivisionError):
    run(llama, rows, tmp_path / "out.jsonl", batch_size=3, **flags)
  monkeypatch.setattr(predict, "predictor", original)
  again = run(llama, rows, tmp_path / "out.jsonl", batch_size=3, **flags)
  texts = lambda said: [(row["text"], [one["text"] for one in row["texts"]]) for row in said]
  assert texts(again) == texts(whole) and len(again) == len(ASKED)


def test_a_config_says_how_texts_are_written_and_flags_say_more(llama, rows, tmp_path):
  config = tmp_path / "c.py"
  config.write_text(
    "from jaxsft.config import Config, Data, Evaluate, Model\n"
    "def get_config(arg=''):\n"
    "  return Config(task='chat', model=Model(path='m'), data=Data(path='d'),\n"
    "    evaluate=Evaluate(num_beams=3, max_new_tokens=4))\n"
  )
  said = run(llama, rows, tmp_path / "a.jsonl", config=config)
  expected = [llama.generate(text, 4, num_beams=3) for text in ASKED]
  assert [row["text"] for row in said] == expected
  flags = {"max_new_tokens": 6, "num_return": 2}
  said = run(llama, rows, tmp_path / "b.jsonl", config=config, **flags)
  expected = [llama.n_best(text, 2, 6, num_beams=3) for text in ASKED]
  assert [row["texts"][1]["text"] for row in said] == [best[1].text for best in expected]
  with pytest.raises(UsageError, match=r"temperature is 0\.5 and num_beams 3"):
    run(llama, rows, tmp_path / "c.jsonl", config=config, temperature=0.5)


def test_a_config_of_another_task_says_how_rows_are_read_alone(llama, tmp_path):
  path, rows = shutil.copytree(llama.base.path, tmp_path / "model"), tmp_path / "rows.jsonl"
  asks = json.loads((path / "generation_config.json").read_text()) | {"max_new_tokens": 3}
  (path / "generation_config.json").write_text(json.dumps(asks))
  rows.write_text(json.dumps({"asked": "a cat"}) + "\n")
  config = tmp_path / "c.py"
  config.write_text(
    "from jaxsft.config import Config, Data, Model\n"
    "def get_config(arg=''):\n"
    "  return Config(model=Model(path='m'), data=Data(path='d', columns={'prompt': 'asked'}))\n"
  )
  (row,) = run(pretrained.load(path), rows, tmp_path / "out.jsonl", config=config)
  assert row["text"] == llama.generate("a cat", 3)


def test_a_conversation_keeps_its_own_answer(llama, tmp_path):
  """Under "gold", beside what the model says; a row that cannot be answered has it too."""
  path = tmp_path / "asked.jsonl"
  turns = [{"role": "user", "content": "a cat"}, {"role": "assistant", "content": "meow"}]
  lines = [{"messages": turns}, {"messages": turns[:1]}, {"prompt": "a", "completion": "b"}]
  lines += [{"messages": [{"role": "user", "content": "cat " * 300}, turns[1]]}, {"text": "a"}]
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  said = run(llama, path, tmp_path / "out.jsonl", max_new_tokens=2)
  assert [row.get("gold") for row in said] == ["meow", None, "b", "meow", None]
  assert ["error" in row for row in said] == [False, False, False, True, True]
  assert [row["text"] for row in said[:2]] == [llama.generate("a cat", 2)] * 2
  assert all(line.items() <= row.items() for line, row in zip(lines, said, strict=True))
  path.write_text(json.dumps(lines[0] | {"gold": 1}) + "\n")
  with pytest.raises(UsageError, match="the row has a field 'gold'"):
    run(llama, path, tmp_path / "other.jsonl", max_new_tokens=2)


def test_a_row_with_a_field_of_that_name_is_refused(llama, tmp_path):
  path = tmp_path / "asked.jsonl"
  path.write_text(json.dumps({"prompt": "a cat", "texts": []}) + "\n")
  assert run(llama, path, tmp_path / "out.jsonl", max_new_tokens=2)[0]["texts"] == []
  with pytest.raises(UsageError, match="the row has a field 'texts'"):
    run(llama, path, tmp_path / "o.jsonl", max_new_tokens=2, num_beams=2, num_return=2)
