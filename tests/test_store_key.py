"""A store is found again by all that shaped it, and by nothing else: see encoding.encode."""

import copy
import dataclasses
import json
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from jaxsft import encoding, tasks
from jaxsft import tokenizer as tokenizer_lib
from jaxsft.data import store
from jaxsft.data.read import Row
from jaxsft.tasks import classify
from tests import tiny

ROWS = [Row(f"r{i}", f"rows:{i}", {"text": "a film", "label": "a"}) for i in range(3)]
# Field of Context -> another value
OTHER = {
  "max_length": 9,
  "too_long": "truncate",
  "on_empty": "drop",
  "labels": ("a", "c"),
  "label_type": "multi",
  "chat_template": "{{ messages }}",
  "train_on": "last",
  "train_on_tools": False,
  "unwritten": "leave_out",
  "control_tokens": "escape",
  "stride": 3,
  "max_answer_length": 7,
  "n_best": 3,
  "null_threshold": 0.5,
  "mask_rate": 0.3,
  "whole_words": True,
  "class_weights": (1.0, 2.0),
  "threshold": 0.7,
  "temperature": 2.0,
  "pairs": True,
  "text_steps": ("lower",),
  "instruction": "say: ",
  "max_target_length": 5,
  "languages": ("en", "de"),
  "decoder_start": 4,
  "text_metrics": ("chrf",),
  "bleu_tokenizer": "char",
  "rouge_stemmer": True,
}


@pytest.fixture
def asked(tmp_path, monkeypatch):
  """The rows that are encoded; whatever the context, as the same example."""
  monkeypatch.setenv("JAXSFT_CACHE", str(tmp_path / "cache"))
  found, example = [], {"inputs": np.array([2, 5], np.int32), "label_weight": np.float32(1)}

  def encode(row, context):
    found.append(row.id)
    return tasks.Encoded((example,), None, "", [], frozenset())

  monkeypatch.setattr(classify, "encode", encode)
  return found


@pytest.fixture(scope="module")
def words():
  return tiny.word_tokenizer()


def context(words, **changes):
  return tasks.Context(words, **({"max_length": 8, "labels": ("a", "b")} | changes))


def stored(place, rows=ROWS):
  """The name of the store of rows."""
  return encoding.encode(rows, classify, place).store.directory.name


def test_the_same_is_found_again_and_nothing_is_encoded(asked, words):
  first = stored(context(words))
  assert asked == ["r0", "r1", "r2"]
  again = [Row(r.id, "other:1", dict(r.fields)) for r in ROWS]  # wherever it was read from
  assert stored(context(copy.deepcopy(words)), again) == first and len(asked) == 3
  words("a film", truncation=True, max_length=3)  # leaves its limit in the backend
  assert stored(context(words)) == first and len(asked) == 3


@pytest.mark.parametrize(
  "row",
  [
    ROWS[2]._replace(id="r3"),
    ROWS[2]._replace(fields={"text": "a film", "label": "b"}),
    ROWS[2]._replace(fields={"text": "a  film", "label": "a"}),
  ],
)
def test_other_rows(asked, words, row):
  assert stored(context(words), [*ROWS[:2], row]) != stored(context(words))
  assert len(asked) == 6


@pytest.mark.parametrize(
  "of", [np.asarray, jnp.asarray, lambda x: {"deep": [x.astype(object)]}]
)
def test_arrays_are_told_apart_by_all_that_they_hold(of):
  """The repr of more than a thousand values shows six of them."""

  def hashed(values):
    return encoding.rows_hash([Row("r", "rows:1", {"tokens": of(values)})])

  many = np.arange(5000)
  other = many.copy()
  other[2500] = -1
  assert hashed(many) != hashed(other) and hashed(many) == hashed(many.copy())
  assert hashed(many) != hashed(many.reshape(50, 100))


def test_every_field_of_the_context_is_flipped_here():
  fields = {field.name for field in dataclasses.fields(tasks.Context)}
  assert {*OTHER, "tokenizer"} == fields


@pytest.mark.parametrize("field", OTHER)
def test_another_field_of_the_context(asked, words, field):
  changed = context(words, **{field: OTHER[field]})
  assert changed != context(words)
  same = stored(changed) == stored(context(words))
  assert same == (field in tasks.NOT_ENCODED)
  assert len(asked) == (3 if same else 6)


def one_letter(state):
  vocabulary = state["model"]["vocab"]
  vocabulary["filn"] = vocabulary.pop("film")


def lower_case_off(state):
  state["normalizer"] = None


def another_frame(state):
  state["post_processor"]["single"].pop()


@pytest.mark.parametrize("change", [one_letter, lower_case_off, another_frame])
def test_one_bit_of_the_tokenizer_s_file(asked, words, change):
  other = copy.deepcopy(words)
  state = json.loads(other.backend_tokenizer.to_str())
  change(state)
  other._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(state))
  assert stored(context(other)) != stored(context(words))


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("chat_template", "{{ messages[0] }}"),
    ("truncation_side", "left"),
    ("padding_side", "left"),
    ("mask_token", "[UNK]"),
    ("split_special_tokens", True),
  ],
)
def test_one_setting_of_the_tokenizer(asked, words, name, value):
  other = copy.deepcopy(words)
  setattr(other, name, value)
  assert stored(context(other)) != stored(context(words))


@pytest.mark.parametrize("file", ["chat.py", "words.py", "new.py", "new/deep/inside.py"])
def test_code_below_data(asked, words, tmp_path, monkeypatch, file):
  """A file changed or added, in a folder or below one."""
  data = shutil.copytree(pathlib.Path(store.__file__).parent, tmp_path / "data")
  before = stored(context(words))
  monkeypatch.setattr(store, "__file__", str(data / "store.py"))
  assert stored(context(words)) == before  # the same code, wherever it lies
  (data / file).parent.mkdir(parents=True, exist_ok=True)
  with (data / file).open("a") as stream:
    stream.write("# changed\n")
  assert stored(context(words)) != before


@pytest.mark.parametrize("module", [tokenizer_lib, tasks, classify, encoding], ids=str)
def test_code_of_the_tokenizer_of_tasks_and_of_encoding(
  asked, words, tmp_path, monkeypatch, module
):
  before = stored(context(words))
  own = pathlib.Path(module.__file__)
  other = tmp_path / own.name
  other.write_bytes(own.read_bytes())
  monkeypatch.setattr(module, "__file__", str(other))
  assert stored(context(words)) == before
  other.write_bytes(own.read_bytes() + b"#")
  assert stored(context(words)) != before


@pytest.mark.parametrize("library", ["transformers", "tokenizers", "jinja2"])
def test_another_version_of_a_library(asked, words, monkeypatch, library):
  before, known = stored(context(words)), encoding.metadata.version
  later = lambda name: known(name) + (".1" if name == library else "")
  monkeypatch.setattr(encoding.metadata, "version", later)
  assert stored(context(words)) != before


def test_another_unicode(asked, words, monkeypatch):
  before = stored(context(words))
  monkeypatch.setattr(encoding.unicodedata, "unidata_version", "99.0")
  assert stored(context(words)) != before
