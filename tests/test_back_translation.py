"""Copies that went through two models: once for every text, and only where all of it did."""

import json
import os

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from jaxsft import agreement, back_translation, predict, sources, tasks
from jaxsft.config import Augment, Data
from jaxsft.errors import JaxsftError, UsageError
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


def cached(tmp_path):
  return sorted((tmp_path / "cache" / "back_translation").iterdir())


def test_another_tokenizer_is_another_memory(asked, models, tmp_path):
  back_translation.translated(["a"], models)
  other = tiny.checkpoint(tmp_path / "t5", "t5", seed=0)
  tokenizer = json.loads((other / "tokenizer.json").read_text())
  tokenizer["normalizer"] = {"type": "Lowercase"}
  (other / "tokenizer.json").write_text(json.dumps(tokenizer))
  back_translation.translated(["a"], (str(other), models[1]))
  assert asked == [["a"], ["<a>"], ["a"]] and len(cached(tmp_path)) == 3


def test_half_a_character_is_not_translated(asked, models):
  found, lost = back_translation.translated(["a", "b\ud800"], models)
  assert found == {"a": "<<a>>"} and lost == {"b\ud800": "not Unicode"}


@pytest.mark.parametrize("left", [b"", b"{", b"[]", b"\xff", b'{"a": 1, "b": ["<b>", ""]}'])
def test_what_is_damaged_is_translated_again(asked, models, tmp_path, left):
  expected = back_translation.translated(["a", "b"], models)
  file = next(f for f in cached(tmp_path) if '"a"' in f.read_text())
  whole = file.read_bytes()
  file.write_bytes(left)
  del asked[:]
  assert back_translation.translated(["a", "b"], models) == expected
  assert asked == [["a"] if b"<b>" in left else ["a", "b"]]
  assert json.loads(file.read_bytes()) == json.loads(whole)
  assert len(cached(tmp_path)) == 2


def test_what_cannot_be_kept_or_read_is_said(asked, models, tmp_path, monkeypatch):
  def full(*paths):
    raise OSError(28, os.strerror(28))

  with monkeypatch.context() as patch:
    patch.setattr(os, "replace", full)
    with pytest.raises(
      JaxsftError, match=r"kept in .*back_translation: the disk is full; free"
    ):
      back_translation.translated(["a"], models)
  assert cached(tmp_path) == []
  back_translation.translated(["a"], models)
  for file in cached(tmp_path):
    file.unlink()
    file.mkdir()
  with pytest.raises(JaxsftError, match=r"cannot be read .Is a directory.; .*JAXSFT_CACHE"):
    back_translation.translated(["a"], models)


@pytest.fixture
def of_two(monkeypatch):
  """(What the other process has, for `agreement.same`) of two processes."""
  monkeypatch.setattr(jax, "process_count", lambda: 2)

  def given(other):
    gather = lambda own: np.stack(
      [own, own if other is None else agreement.digests({"": other})]
    )
    monkeypatch.setattr(multihost_utils, "process_allgather", gather)

  return given


def test_several_processes_read_what_one_has_translated(asked, models, of_two, monkeypatch):
  of_two(None)
  with pytest.raises(
    JaxsftError, match=r"the caches of the 2 processes .*jaxsft.inspect --conf"
  ):
    back_translation.translated(["a", "b\ud800"], models)
  assert asked == []  # none of them translates, so none waits for another
  monkeypatch.setattr(jax, "process_count", lambda: 1)
  expected = back_translation.translated(["a", "b\ud800", "none"], models)
  del asked[:]
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  assert back_translation.translated(["a", "b\ud800", "none"], models) == expected
  of_two([True, {"a": "another"}, {}])
  with pytest.raises(JaxsftError, match="do not all hold the same translations"):
    back_translation.translated(["a"], models)
  of_two(None)
  with pytest.raises(JaxsftError, match=r"rows \(.*nowhere"):  # and the others hear of it
    back_translation.translated(["a"], ("nowhere", models[1]))
  assert asked == []
