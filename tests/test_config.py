"""The settings tree: every wrong key, type or combination ends in a sentence."""

import ast
import dataclasses
import inspect
import typing

import pytest

from jaxsft import config as config_lib
from jaxsft.config import Config, Data, Model, values
from jaxsft.errors import UsageError

FILE = """
from jaxsft.config import Config, Data, Model
def get_config(arg=""):
  return Config(model=Model(path=arg or "m"), data=Data(path="rows.jsonl"))
"""


@pytest.fixture
def path(tmp_path):
  (tmp_path / "x.py").write_text(FILE)
  return tmp_path / "x.py"


def test_defaults_argument_and_overrides(path):
  config = config_lib.load_config(
    f"{path}:other", {"optim.peak_lr": "3e-4", "steps": "7", "data.labels": '["a", "b"]'}
  )
  assert config.model.path == "other"
  assert config.optim.peak_lr == 3e-4
  assert config.steps == 7
  assert config.data.labels == ("a", "b")
  assert config_lib.load_config(path, {"steps": "None"}).steps is None
  assert config_lib.load_config(path, {"epochs": 2}).epochs == 2


LORA = {"tune.method": "lora"}
BAD = [
  (
    {"optim.peek_lr": "1"},
    "config.optim.peek_lr: Optim has no key 'peek_lr'; did you mean 'peak_lr'?",
  ),
  ({"optim.peak_lr": "fast"}, "config.optim.peak_lr: found 'fast', expected float"),
  ({"optim": "1"}, "config.optim: a group of keys; set one of name, peak_lr"),
  ({"seed.x": "1"}, "config.seed.x: 'seed' is a value"),
  ({"task": "clasify"}, "did you mean 'classify'?"),
  ({"batch_size": "3.5"}, "config.batch_size: found '3.5', expected int"),
  ({"batch_size": "0"}, "config.batch_size: found 0, expected at least 1"),
  ({"batch_size": True}, "config.batch_size: found True, expected int"),
  ({"data.columns": "text=2"}, "config.data.columns=text=2: expected JSON"),
  ({"data.columns": {"text": 1.5}}, "config.data.columns: found {'text': 1.5}"),
  ({"data.split": "1"}, "config.data.split: found 1.0, expected 0 ≤ split < 1"),
  ({"data.eval_path": "e.jsonl"}, "set data.split=0"),
  (
    {"clean.text": '["upper"]'},
    "config.clean.text: unknown step 'upper', expected some of nfc",
  ),
  ({"clean.text": '["stop_words:"]'}, "config.clean.text: unknown step 'stop_words:'"),
  ({"clean.text": '["stop_words:[1]"]'}, "config.clean.text: 'stop_words:[1]' has no words"),
  ({"clean.text": '["nfc", "nfc"]'}, "config.clean.text: found ('nfc', 'nfc'), expected every"),
  ({"task": "chat", "clean.text": '["lower"]'}, "'lower' has no place with task='chat'"),
  (
    {"task": "seq2seq", "clean.text": '["stop_words:english"]'},
    "config.clean.text: 'stop_words:english' has no place with task='seq2seq'",
  ),
  ({"clean.secrets": "hide"}, "config.clean.secrets: found 'hide', expected one of 'keep'"),
  ({"clean.min_chars": "0"}, "config.clean.min_chars: found 0, expected at least 1"),
  (
    {"clean.min_chars": "9", "clean.max_chars": "8"},
    "config.clean.max_chars: found 8, expected config.clean.min_chars=9 or more",
  ),
  ({"clean.near_duplicates": "0"}, "config.clean.near_duplicates: found 0.0, expected a share"),
  (
    {"clean.overlap": "drop", "data.split": "0"},
    "config.clean.overlap: 'drop' has no effect where nothing is held out",
  ),
  ({"clean.ngram": "8"}, "config.clean.ngram: has no effect without config.clean.benchmarks"),
  (
    {"clean.benchmarks": '["b.txt"]', "clean.ngram": "0"},
    "config.clean.ngram: found 0, expected at least 1 word",
  ),
  ({"augment.drop": "0.1"}, "config.augment.drop: has no effect without copies"),
  ({"augment.synonyms": "s.json"}, "config.augment.synonyms: has no effect without copies"),
  ({"augment.copies": "1"}, "config.augment.copies: nothing would change in them"),
  ({"augment.copies": "-1"}, "config.augment.copies: found -1"),
  (
    {"task": "chat", "augment.copies": "1", "augment.drop": "0.1"},
    "config.augment.copies: task='chat' learns the texts themselves",
  ),
  ({"augment.copies": "1", "augment.drop": "1"}, "config.augment.drop: found 1.0"),
  (
    {"augment.copies": "1", "augment.replace": "0.5"},
    "config.augment.replace: needs config.augment.synonyms",
  ),
  (
    {"augment.copies": "1", "augment.drop": "0.5", "augment.synonyms": "s.json"},
    "config.augment.replace: needs config.augment.synonyms",
  ),
  (
    {"task": "tag", "augment.copies": "1", "augment.templates": '["{{ text }}"]'},
    "config.augment.templates: spans cannot follow with task='tag'",
  ),
  (
    {"augment.copies": "1", "augment.back_translation": '["a"]'},
    "config.augment.back_translation: found ('a',), expected two models",
  ),
  ({"data.path": "pypi:x==1!f"}, "config.data.sha256: missing"),
  ({"model.path": "pypi:x==1!f"}, "config.model.sha256: missing"),
  ({"model.path": ""}, "config.model.path: is empty"),
  ({"accumulate": "64"}, "config.accumulate: 64 micro-batches cannot share"),
  ({"tune.method": "regex"}, "config.tune.train: is empty"),
  ({"tune.train": '["head"]'}, "config.tune.train: has no effect"),
  ({"task": "chat", "tune.method": "head"}, "config.tune.method: 'head' trains a task head"),
  ({"tune.method": "last:0"}, "config.tune.method: found 'last:0', expected one of all"),
  ({"tune.method": "baises"}, "as 'last:2'); did you mean 'bias'?"),
  ({"tune.unfreeze": {"a": -1}}, "config.tune.unfreeze: found -1 for 'a'"),
  ({"tune.method": "head", "tune.unfreeze_every": 5}, "tune.unfreeze_every: has no effect"),
  ({"tune.method": "head", "optim.layer_decay": 0.5}, "optim.layer_decay: has no effect"),
  ({**LORA, "optim.name": "muon"}, "config.optim.name: 'muon' updates matrices of layers"),
  ({"tune.unfreeze_every": -1}, "config.tune.unfreeze_every: found -1"),
  ({"tune.unfreeze": {"a": 1}, "tune.unfreeze_every": 1}, "unfreeze_every: both say when"),
  ({"optim.layer_decay": 1.5}, "config.optim.layer_decay: found 1.5, expected above 0"),
  ({"optim.rates": {"head": 0.0}}, "config.optim.rates: found 0.0 for 'head'"),
  ({"optim.ema": 0.9, "optim.swa": 0.5}, "config.optim.ema, config.optim.swa: two kinds"),
  ({"optim.ema": 1.0}, "config.optim.ema: found 1.0, expected 0 up to below 1"),
  ({"optim.clip_value": -1.0}, "config.optim.clip_value: found -1.0"),
  ({"tune.base_dtype": "bfloat16"}, "config.tune.base_dtype: has no effect with tune.method"),
  ({"tune.lora.rank": "4"}, "config.tune.lora.rank: has no effect with tune.method='all'"),
  (
    {"export.format": "peft"},
    "config.export.format: found 'peft', but tune.method='all' makes",
  ),
  ({**LORA, "tune.lora.rank": "0"}, "config.tune.lora.rank: found 0, expected more than 0"),
  ({**LORA, "tune.lora.alpha": "0"}, "config.tune.lora.alpha: found 0.0, expected more than 0"),
  (
    {**LORA, "tune.lora.dropout": "1"},
    "config.tune.lora.dropout: found 1.0, expected at least",
  ),
  (
    {**LORA, "export.format": "peft", "export.dtype": "bfloat16"},
    "config.export.dtype: found 'bfloat16', but adapters are saved in float32",
  ),
  ({**LORA, "tune.lora.targets": "[]"}, "config.tune.lora.targets: is empty"),
  (
    {**LORA, "tune.lora.rank_pattern": '{"q": 0}'},
    "config.tune.lora.rank_pattern: found {'q': 0}, expected numbers above 0",
  ),
  (
    {**LORA, "tune.lora.dora": "true", "tune.lora.init": "pissa"},
    "config.tune.lora.init: 'pissa' moves a part of the weights into the adapter",
  ),
  ({"task": "chat", "data.labels": '["a"]'}, "config.data.labels: task='chat' has no labels"),
  ({"seed": "-1"}, "config.seed: found -1, expected a whole number from 0 to 4294967295"),
  ({"seed": "4294967296"}, "config.seed: found 4294967296, expected a whole number from 0"),
  ({"evaluate.every": "-5"}, "config.evaluate.every: found -5, expected 0 or more"),
  ({"evaluate.patience": "-1"}, "config.evaluate.patience: found -1, expected 0 or more"),
  ({"evaluate.max_new_tokens": "-1"}, "config.evaluate.max_new_tokens: found -1, expected 0"),
  ({"checkpoint.every": "-1"}, "config.checkpoint.every: found -1, expected 0 or more"),
  ({"evaluate.batch_size": "0"}, "config.evaluate.batch_size: found 0, expected at least 1"),
  ({"evaluate.batch_size": "-2"}, "config.evaluate.batch_size: found -2, expected at least 1"),
  ({"optim.b1": "-0.1"}, "config.optim.b1: found -0.1, expected 0 ≤ b1 < 1"),
  ({"optim.b2": "1"}, "config.optim.b2: found 1.0, expected 0 ≤ b2 < 1"),
  ({"optim.eps": "-1e-8"}, "config.optim.eps: found -1e-08, expected ≥ 0"),
  ({"optim.peak_lr": "0"}, "config.optim.peak_lr: found 0.0"),
  ({"optim.end_lr": "1"}, "config.optim.end_lr: found 1.0"),
  ({"loss.label_smoothing": "1"}, "config.loss.label_smoothing: found 1.0"),
  ({"task": "masked_lm", "data.mask_rate": "1"}, "config.data.mask_rate: found 1.0"),
  (
    {"data.template_date": "tomorrow"},
    "config.data.template_date: found 'tomorrow', expected a",
  ),
  ({"data.template_date": "20260131"}, "config.data.template_date: found '20260131'"),
  ({"data.max_dropped": "1.5"}, "config.data.max_dropped: found 1.5, expected a share from 0"),
  ({"data.max_dropped": "-0.1"}, "config.data.max_dropped: found -0.1"),
  ({"data.on_empty": "drop"}, "config.data.on_empty: has no effect with task='classify'"),
  ({"data.mask_rate": "0.3"}, "config.data.mask_rate: has no effect with task='classify'"),
  ({"data.whole_words": "true"}, "config.data.whole_words: has no effect"),
  ({"task": "masked_lm", "data.labels": '["a"]'}, "task='masked_lm' has no labels"),
  ({"data.train_on": "last"}, "train_on: has no effect with task='classify', only with chat"),
  ({"data.stride": "64"}, "config.data.stride: has no effect with task='classify'"),
  (
    {"task": "tag", "data.stride": "64"},
    "stride: is 64, which has no effect with data.too_long",
  ),
  (
    {"task": "chat", "data.stride": "64", "data.too_long": "turns"},
    "stride: is 64, which has no effect with data.too_long",
  ),
  ({"task": "classify", "data.too_long": "windows"}, "'windows' is for task='tag' and 'chat'"),
  ({"task": "tag", "data.too_long": "turns"}, "'turns' divides conversations of task='chat'"),
  (
    {"task": "chat", "data.too_long": "turns", "data.train_on": "each"},
    "'turns' leaves nothing to learn in all parts but the last with data.train_on='each'",
  ),
  ({"task": "tag", "data.train_on_tools": "false"}, "data.train_on_tools: has no effect"),
  ({"task": "seq2seq", "data.control_tokens": "escape"}, "control_tokens: has no effect"),
  ({"task": "tag", "data.unwritten": "leave_out"}, "config.data.unwritten: has no effect"),
  ({"task": "tag", "data.chat_template": "x"}, "config.data.chat_template: has no effect"),
  ({"task": "tag", "loss.chunk": "64"}, "config.loss.chunk: has no effect with task='tag'"),
  ({"evaluate.n_best": "5"}, "config.evaluate.n_best: has no effect with task='classify'"),
  ({"evaluate.max_answer_length": "5"}, "max_answer_length: has no effect"),
  ({"task": "seq2seq", "evaluate.null_threshold": "0"}, "null_threshold: has no effect"),
  (
    {"evaluate.prompts": '["hi"]'},
    "prompts: has no effect with task='classify', only with chat",
  ),
  ({"task": "answer", "evaluate.max_new_tokens": "9"}, "max_new_tokens: has no effect"),
  (
    {"task": "masked_lm", "data.too_long": "drop"},
    "'drop' has no effect with task='masked_lm'",
  ),
  ({"loss.focal": "-1"}, "config.loss.focal: found -1.0"),
  ({"task": "chat", "loss.focal": "2"}, "config.loss.focal: has no effect with task='chat'"),
  (
    {"task": "chat", "loss.class_weights": "balanced"},
    "config.loss.class_weights: has no effect with task='chat'",
  ),
  ({"loss.class_weights": '{"a": 0}'}, "config.loss.class_weights: found 0 for 'a'"),
  ({"loss.class_weights": '{"a": "b"}'}, "config.loss.class_weights: found {'a': 'b'}"),
  ({"loss.class_weights": "even"}, "config.loss.class_weights=even: expected JSON"),
  ({"data.label_type": "number", "loss.focal": "2"}, "no meaning for data.label_type='number'"),
  (
    {"data.label_type": "number", "loss.class_weights": "balanced"},
    "config.loss.class_weights: has no meaning for data.label_type='number'; set it to 'none'",
  ),
  ({"data.label_type": "number", "loss.label_smoothing": "0.1"}, "no meaning"),
  ({"data.label_type": "multi", "loss.z_loss": "0.1"}, "config.loss.z_loss: has no meaning"),
  ({"data.label_separator": ";"}, "config.data.label_separator: has no effect"),
  ({"data.label_separator": ""}, "config.data.label_separator: is empty"),
  ({"evaluate.threshold": "0.4"}, "config.evaluate.threshold: has no effect"),
  ({"data.label_type": "multi", "evaluate.threshold": "1"}, "threshold: found 1.0"),
  ({"data.label_type": "multi", "evaluate.threshold": '{"a": 0}'}, "threshold: found 0"),
  ({"mesh.fsdp": "-1"}, "config.mesh: -1 may stand once"),
  ({"mesh.tensor": "0"}, "config.mesh: found"),
  ({"mesh.context": "2"}, "config.mesh.context: found 2"),
  ({"model.dropout": "1"}, "config.model.dropout: found 1.0"),
  ({"evaluate.mode": "max"}, "config.evaluate.mode: set config.evaluate.metric too"),
  ({"steps": "0"}, "config.steps: found 0"),
  ({"epochs": "0"}, "config.epochs: found 0"),
]


@pytest.mark.parametrize(("overrides", "sentence"), BAD, ids=[str(b[0]) for b in BAD])
def test_bad_settings(path, overrides, sentence):
  with pytest.raises(UsageError) as error:
    config_lib.load_config(path, overrides)
  assert sentence in str(error.value)
  assert error.value.exit_code == 2


FILES = [
  ("def get_config(:", "x.py:1: not valid Python"),
  ("x = 1", "defines no get_config"),
  ("def get_config(arg=''):\n  return 3", "returned int, not Config"),
  (
    "from jaxsft.config import *\n"
    "def get_config(arg=''):\n  return Config(optim=Optim(peek_lr=1))",
    "Optim has no key 'peek_lr'; did you mean 'peak_lr'?",
  ),
  (
    "from jaxsft.config import *\ndef get_config(arg=''):\n  return Config(optim=3)",
    "config.optim: found 3, expected Optim(…)",
  ),
  ("import missing_module_of_mine", "ModuleNotFoundError"),
]


@pytest.mark.parametrize(("text", "sentence"), FILES)
def test_bad_files(tmp_path, text, sentence):
  (tmp_path / "x.py").write_text(text)
  with pytest.raises(UsageError) as error:
    config_lib.load_config(tmp_path / "x.py")
  assert sentence in str(error.value)


def test_missing_file():
  with pytest.raises(UsageError, match="no such file"):
    config_lib.load_config("nowhere.py")


def test_dict_round_trip(path):
  config = config_lib.load_config(
    path, {"data.labels": '{"a": "x > 0"}', "evaluate.slices": '["hi"]'}
  )
  assert config_lib.from_dict(config_lib.to_dict(config)) == config
  with pytest.raises(UsageError, match=r"config\.model\.pth: unknown key; did you mean .path"):
    config_lib.from_dict({"model": {"pth": "m"}})


SECTIONS = [
  s for s in vars(config_lib).values() if isinstance(s, type) and dataclasses.is_dataclass(s)
]


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_is_documented_and_its_default_valid(section):
  (tree,) = ast.parse(inspect.getsource(section)).body
  following = dict(zip(tree.body, tree.body[1:], strict=False))
  hints = typing.get_type_hints(section)
  for node in tree.body:
    if not isinstance(node, ast.AnnAssign) or dataclasses.is_dataclass(hints[node.target.id]):
      continue
    text = following.get(node)
    assert isinstance(text, ast.Expr) and isinstance(text.value.value, str), node.target.id
    default = ast.literal_eval(node.value)
    assert values.fits(default, hints[node.target.id]), node.target.id


def test_describe_lists_every_leaf():
  lines = list(config_lib.describe(Config(model=Model(path="m"), data=Data(path="d"))))
  assert "config.optim.peak_lr = 2e-05" in lines
  assert "config.model.path = 'm'" in lines
  assert len(lines) > 60
