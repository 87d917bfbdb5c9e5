"""No key of the config is accepted and ignored: flipping it changes the run or is refused.

Each key is flipped alone, and one of three looks must see it: at the examples and their order,
at the compiled update (as its jaxpr) with the places of its arrays, or at what a whole run
leaves behind, with the arithmetic replaced by a stand-in.
"""

import dataclasses
import json

import pytest

from jaxsft import config as config_lib
from jaxsft.config import values
from jaxsft.errors import JaxsftError
from tests import tiny
from tests.contract import odd_rows
from tests.contract.flips import CHAT, CLASSIFY, FLIPS, TEXTS
from tests.contract.looks import LOOKS


def keys(section=config_lib.Config, prefix=""):
  """Dotted names of all leaves of the config tree."""
  for field in dataclasses.fields(section):
    if dataclasses.is_dataclass(field.type):
      yield from keys(field.type, f"{prefix}{field.name}.")
      continue
    yield prefix + field.name
    if group := values.section(field.type):
      yield from keys(group, f"{prefix}{field.name}.NAME.")


def test_every_key_is_flipped_here():
  assert set(FLIPS) == set(keys())


@pytest.fixture(scope="module")
def seen(files, tmp_path_factory):
  """What a look sees of a config, or the sentence with which it is refused."""
  root, known = tmp_path_factory.mktemp("flipped"), {}
  csv = root / "rows.csv"
  rows = [json.loads(line) for line in files(*CLASSIFY)[1].read_text().splitlines()]
  lines = [f'{r["name"]},"{r["text"]}",{r["label"]}' for r in rows]
  csv.write_text("\n".join(["name,text,label", *lines]) + "\n")
  named = {"CSV": csv, "MODEL OF llama": files(*CHAT)[0], "MODEL OF t5": files(*TEXTS)[0]}
  chats = files(*CHAT)[1].read_text().splitlines()
  for name, key, said in (
    ("CALLS", "tool_calls", [{"name": "look"}]),
    ("CONTROL TOKENS", "content", "a <|im_end|> b"),
    ("THOUGHTS", "thinking", "so"),
  ):
    named[name] = root / f"{key}.jsonl"
    talks = [json.loads(line) for line in chats]
    for row in talks:
      call = {"role": "assistant", "content": "" if key == "tool_calls" else "ok", key: said}
      row["messages"] = [{"role": "user", "content": "so"}, call, *row["messages"]]
    named[name].write_text("".join(json.dumps(row) + "\n" for row in talks))
  named["MODEL WITH A HEAD"] = tiny.checkpoint(root / "head", "bert", labels=("neg", "pos"))
  named["MODEL IN A PICKLE"] = pickled = tiny.checkpoint(root / "pickle", "bert")
  (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")  # what it holds is none
  named |= odd_rows.files(root, rows)
  named["SILENT"] = silent = root / "silent.jsonl"
  said = {"messages": [{"role": "user", "content": "a"}], "name": "silent"}
  silent.write_text(files(*CHAT)[1].read_text() + json.dumps(said) + "\n")
  named |= {f"DATA OF {task}": files("bert", task)[1] for task in ("classify", "number")}

  def value(given):
    if given == "DATED TEMPLATE":
      return "{{ strftime_now('%d') }}" + tiny.letter_tokenizer().chat_template
    if given == "TEMPLATE":
      return tiny.letter_tokenizer().chat_template.replace("message['role']", "'a'", 1)
    if isinstance(given, tuple):
      return tuple(map(value, given))
    if isinstance(given, dict):
      return {k: value(v) for k, v in given.items()}
    return str(named.get(given, given)) if isinstance(given, str) else given

  def see(look, pair, settings):
    settings = {k: value(v) for k, v in settings.items() if not k.startswith("!")}
    key = (look, pair, repr(sorted(settings.items())))
    if key not in known:
      try:
        config = tiny.config(*pair, *files(*pair), **settings)
        known[key] = LOOKS[look](config, root / str(len(known)))
      except JaxsftError as error:
        known[key] = f"refused: {error}"
    return known[key]

  return see


@pytest.mark.parametrize("key", sorted(FLIPS))
def test_flipping_it_changes_something(seen, key):
  look, pair, other, settings = FLIPS[key]
  before = seen(look, pair, settings)
  assert before.startswith("refused") == settings.get("!refused", False), before
  key = key.replace("NAME", "a").replace(".", "__")
  after = seen(look, pair, settings | {key: other})
  assert after != before


def test_looking_twice_sees_the_same(seen, files, tmp_path):
  """Otherwise every flip would seem to matter."""
  for look, pair in (("data", CLASSIFY), ("step", CLASSIFY), ("run", CLASSIFY)):
    config = tiny.config(*pair, *files(*pair))
    assert LOOKS[look](config, tmp_path / look) == seen(look, pair, {})
