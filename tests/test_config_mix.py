"""Settings of several data sets: a dict of groups in the settings tree."""

import pytest

from jaxsft import config as config_lib
from jaxsft.config import Config, Data, Model, Part
from jaxsft.errors import UsageError

FILE = """
from jaxsft.config import Config, Data, Model, Part
def get_config(arg=""):
  mix = {"web": Part(path="w.jsonl", weight=3), "own": Part(path="o.jsonl", weight=1.0)}
  return Config(model=Model(path="m"), data=Data(mix=mix))
"""
TWO = {"a": {"path": "a.jsonl"}, "b": {"path": "b.csv"}}


@pytest.fixture
def path(tmp_path):
  (tmp_path / "x.py").write_text(FILE)
  return tmp_path / "x.py"


def test_parts_by_file_by_json_and_by_override(path):
  data = config_lib.load_config(path).data
  assert list(data.mix) == ["web", "own"] and data.mix["web"] == Part("w.jsonl", weight=3)
  changes = {"data.mix.own.weight": "2.5", "data.mix.own.columns": '{"text": "t"}'}
  data = config_lib.load_config(path, changes).data
  assert data.mix["own"] == Part("o.jsonl", weight=2.5, columns={"text": "t"})
  assert data.mix["web"] == Part("w.jsonl", weight=3)
  text = '{"a": {"path": "a.jsonl", "epochs": 2}, "b": {"path": "b.csv", "limit": 5}}'
  changes = {"data.mix": text, "data.mix.b.limit": "7"}
  data = config_lib.load_config(path, changes).data
  assert data.mix == {"a": Part("a.jsonl", epochs=2), "b": Part("b.csv", limit=7)}
  assert config_lib.load_config(path, {"data.mix": TWO}).data.mix["b"] == Part("b.csv")
  alone = config_lib.load_config(path, {"data.mix": "None", "data.path": "x.jsonl"})
  assert alone.data == Data(path="x.jsonl")


def test_dict_round_trip_and_description(path):
  config = config_lib.load_config(path, {"data.mix.own.keep": "x > 0"})
  stored = config_lib.to_dict(config)
  assert stored["data"]["mix"]["own"]["keep"] == "x > 0"
  assert config_lib.from_dict(stored) == config
  lines = list(config_lib.describe(config))
  assert "config.data.mix.own.keep = 'x > 0'" in lines
  assert "config.data.mix.web.weight = 3" in lines
  assert "config.data.mix = None" in config_lib.describe(Config())


BAD = [
  (
    {"data.mix.wab.weight": "1"},
    "config.data.mix.wab.weight: there is no 'wab'; did you mean 'w",
  ),
  ({"data.mix.web": "1"}, "config.data.mix.web: a group of keys; set one of path, sha256"),
  (
    {"data.mix.web.wait": "1"},
    "config.data.mix.web.wait: Part has no key 'wait'; did you mean",
  ),
  ({"data.mix.web.weight": "much"}, "config.data.mix.web.weight: found 'much', expected float"),
  (
    {"data.mix": {"a": {"pth": "x"}}},
    "config.data.mix.a.pth: unknown key; did you mean 'path'",
  ),
  (
    {"data.mix": {"a": "x.jsonl"}},
    "config.data.mix: found {'a': 'x.jsonl'}, expected dict of P",
  ),
  ({"data.mix": {"a": {"path": 3}}}, "config.data.mix.a.path: found 3, expected str"),
  ({"data.mix": "a.jsonl"}, "config.data.mix=a.jsonl: expected JSON"),
  ({"data.mix": "{}"}, "config.data.mix: is empty"),
  ({"data.mix": TWO, "data.path": "x"}, "config.data.path: is 'x' beside config.data.mix"),
  ({"data.mix": TWO, "data.sha256": "0" * 64}, "config.data.sha256: is"),
  ({"data.mix.web.path": ""}, "config.data.mix.web.path: is empty"),
  ({"data.mix.web.path": "pypi:x==1!f"}, "config.data.mix.web.sha256: missing"),
  (
    {"data.mix.web.weight": "0"},
    "config.data.mix.web.weight: found 0.0, expected a number abo",
  ),
  ({"data.mix.web.weight": "-1"}, "config.data.mix.web.weight: found -1.0"),
  ({"data.mix.web.weight": "inf"}, "config.data.mix.web.weight: found inf"),
  ({"data.mix.web.weight": "nan"}, "config.data.mix.web.weight: found nan"),
  ({"data.mix.web.weight": "None"}, "config.data.mix: 'own' has a weight and 'web' has none"),
  ({"data.mix.web.loss_weight": "0"}, "config.data.mix.web.loss_weight: found 0.0"),
  ({"data.mix.web.epochs": "2"}, "config.data.mix.web.epochs: stands beside weights"),
  ({"data.mix_temperature": "2"}, "temperature: is 2.0, but config.data.mix.web.weight says"),
  (
    {"data.mix": TWO, "data.mix.a.epochs": "2", "data.mix_temperature": "2"},
    "config.data.mix_temperature: is 2.0, but config.data.mix.a.epochs says",
  ),
  ({"data.mix": TWO, "data.mix.a.epochs": "0"}, "config.data.mix.a.epochs: found 0.0"),
  ({"data.mix": TWO, "data.mix_temperature": "0"}, "config.data.mix_temperature: found 0.0"),
  ({"data.mix": {"a/b": {"path": "x"}}}, "config.data.mix: the name 'a/b' cannot stand"),
  ({"data.mix": {"": {"path": "x"}}}, "config.data.mix: the name '' cannot stand"),
  ({"data.mix.web.prompt": '{"txt": "{{ a }}"}'}, "config.data.mix.web.prompt: nothing reads"),
  ({"data.mix.web.prompt": '{"text": "{{ a"}'}, "config.data.mix.web.prompt['text'], line 1:"),
  (
    {"data.mix.web.prompt": '{"text": "{{ a }}"}', "evaluate.sets": {"more": "x"}},
    "config.data.mix.web.prompt: rows of config.evaluate.sets and config.data.eval_path are",
  ),
  (
    {"data.mix.web.columns": '{"text": "t"}', "data.eval_path": "x", "data.split": "0"},
    "data.mix.web.columns: rows of config.evaluate.sets and config.data.eval_path are read by "
    "config.data.columns, which is None; set that too, to {} if",
  ),
  (
    {"data.mix.own.keep": "a > 1", "evaluate.sets": {"more": "x"}},
    "data.mix.own.keep: rows of config.evaluate.sets and config.data.eval_path are read by "
    "config.data.keep, which is None; set that too, to 'True' if",
  ),
  (
    {"data.mix.own.format": "tsv", "evaluate.sets": {"more": "x"}},
    "data.mix.own.format: rows of config.evaluate.sets and config.data.eval_path are read by "
    "config.data.format, which is 'auto'; set that too, to the format",
  ),
  ({"evaluate.sets": {"own": "x"}}, "the name 'own' cannot stand"),
  (
    {"data.mix": TWO, "data.balance": "classes"},
    "config.data.balance: 'classes' says how often",
  ),
]
NONE = {"data.mix": "None", "data.path": "x.jsonl"}
BAD += [
  (NONE | {"data.path": ""}, "config.data.path: is empty"),
  (
    NONE | {"data.mix_temperature": "2"},
    "config.data.mix_temperature: is 2.0, which has no eff",
  ),
  (NONE | {"data.mix.web.weight": "2"}, "config.data.mix.web.weight: 'mix' is a value"),
  (
    NONE | {"data.balance": "classes", "task": "tag"},
    "config.data.balance: has no effect with",
  ),
  (NONE | {"data.balance": "classes", "data.label_type": "multi"}, "needs one label a row"),
  (
    NONE | {"data.balance": "classes", "loss.class_weights": "balanced"},
    "config.data.balance: labels would be balanced twice",
  ),
]


@pytest.mark.parametrize(("overrides", "sentence"), BAD, ids=[str(b[0]) for b in BAD])
def test_bad_settings(path, overrides, sentence):
  with pytest.raises(UsageError) as error:
    config_lib.load_config(path, overrides)
  assert sentence in str(error.value)


@pytest.mark.parametrize(
  ("key", "own", "shared"),
  [
    ("columns", {"text": "t"}, {}),
    ("prompt", {"text": "{{ t }}"}, {}),
    ("keep", "a > 1", "True"),
    ("format", "tsv", "jsonl"),
  ],
)
def test_what_data_says_of_rows_beside_a_mixture(path, key, own, shared):
  """Then a set may be read in its own way; and where nothing else is measured."""
  changes = {f"data.mix.web.{key}": own}
  config_lib.load_config(path, changes)
  both = changes | {f"data.{key}": shared, "evaluate.sets": {"more": "x"}}
  assert getattr(config_lib.load_config(path, both).data, key) == shared


def test_a_mistyped_key_in_the_file(tmp_path):
  (tmp_path / "x.py").write_text(FILE.replace("weight=3", "wieght=3"))
  with pytest.raises(UsageError, match=r"x.py:4: Part has no key 'wieght'; did you mean 'weig"):
    config_lib.load_config(tmp_path / "x.py")


def test_a_group_in_place_of_parts_is_refused():
  wrong = Config(model=Model(path="m"), data=Data(mix={"a": Model(path="a")}))
  with pytest.raises(UsageError, match=r"config\.data\.mix: found .*expected dict of Part"):
    config_lib.check(wrong)
