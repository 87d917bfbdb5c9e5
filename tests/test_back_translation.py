"""Copies that went through two models: once for every text, and only where all of it did."""

import json

import pytest

from jaxsft import back_translation, predict, sources, tasks
from jaxsft.config import Augment, Data
from jaxsft.errors import UsageError
from tests import tiny


@pytest.fixture
def asked(tmp_path, monkeypatch):
  """What models are asked, in the place of which stand others that answer at once."""
  monkeypatch.setenv("JAXSFT_CACHE", str(tmp_path / "cache"))
  found = []

  def predictor(model, batch_size):
    def answer(rows):
      texts = [row.fields["source"] for row in rows]
      found.append(texts)
      said = {"long": {"text": "x", "cut": True}, "none": {"text": " "}, "bad": {"error": "no"}}
      return [said.get(text, {"text": f"<{text}>"}) for text in texts]

    return answer

  monkeypatch.setattr(predict, "predictor", predictor)
  return found


@pytest.fixture(scope="module")
def models(tmp_path_factory):
  root = tmp_path_factory.mktemp("models")
  there, back = (tiny.checkpoint(root / name, "t5", seed=i) for i, name in enumerate("ab"))
  return str(there), str(back)


def test_there_and_back_once(asked, models):
  found, lost = back_translation.translated(["a", "b", "a", "long", "none", "bad"], models)
  assert found == {"a": "<<a>>", "b": "<<b>>"}
  assert lost == {
    "long": "too long for a model",
    "none": "answered with nothing",
    "bad": "refused by a model",
  }
  assert asked == [["a", "b", "bad", "long", "none"], ["<a>", "<b>"]]
  again, _ = back_translation.translated(["b", "c"], models)
  assert again == {"b": "<<b>>", "c": "<<c>>"} and asked[2:] == [["c"], ["<c>"]]
  back_translation.translated(["a"], models[::-1])
  assert asked[4:] == [["a"], ["<a>"]]  # each model has a memory of its own


def test_rows_get_copies_of_it(asked, models, tmp_path):
  path = tmp_path / "rows.jsonl"
  texts = ["good film", "long", "bad plot"]
  path.write_text("".join(json.dumps({"text": t, "label": t[:1]}) + "\n" for t in texts))
  rows = sources.read_data(Data(path=str(path), split=0.0), tasks.TASKS["classify"])
  settings = Augment(copies=1, back_translation=models, templates=("{{ text }}!",))
  found = sources.augmented(rows, tasks.TASKS["classify"], settings, 0)
  assert [r.fields for r in found.train[3:]] == [
    {"text": "<<good film>>!", "label": "g"},
    {"text": "long!", "label": "l"},
    {"text": "<<bad plot>>!", "label": "b"},
  ]
  assert [(c.what, c.rows) for c in found.changes] == [
    ("not translated: too long for a model", 1),
    ("copies made by augmentation", 3),
  ]


def test_a_model_that_reads_no_source_is_refused(asked, models, tmp_path):
  other = tiny.checkpoint(tmp_path / "bert", "bert", labels=("a", "b"))
  with pytest.raises(UsageError, match=r"config.augment.back_translation: .*bert is a Bert"):
    back_translation.translated(["a"], (models[0], str(other)))
