"""The verb `interpolate`: what it measures, what it chooses and what it leaves."""

import json
import re

import numpy as np
import pytest

import jaxsft
from jaxsft import (
  command,
  compiled,
  evaluate,
  forgetting,
  interpolate,
  pretrained,
  sources,
  weights,
)
from jaxsft.tasks import chat
from jaxsft.tuning import endpoints
from tests import tiny

TEXT = (
  "the film was great and the story dull\na very weak plot with a lovely cast\nit was fine\n"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """Pretrained and tuned models, rows and configs: a classifier's and a chat's."""
  root = tmp_path_factory.mktemp("interpolated")
  tiny.checkpoint(root / "base", "bert", kind="masked_lm")
  for seed, name in enumerate("abc", 1):
    tiny.checkpoint(root / name, "bert", seed, labels=("neg", "pos"))
    tiny.checkpoint(root / f"chat_{name}", "llama", seed)
  tiny.checkpoint(root / "chat_base", "llama")
  tiny.sentences(root / "rows.jsonl", 24)
  tiny.chats(root / "chats.jsonl", 12)
  (root / "text.txt").write_text(TEXT)
  for kind, name in (("classify", "rows"), ("chat", "chats")):
    prefix = "chat_" if kind == "chat" else ""
    config = tiny.config(
      "", kind, root / f"{prefix}base", root / f"{name}.jsonl",
      data__split=0.5, batch_size=16, evaluate__metric="loss", model__new_head=False,
    )  # fmt: skip
    tiny.write_config(root / f"{kind}.py", config)
  return root


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
  tiny.on_devices(monkeypatch, 1)


def arguments(place, out, models=("a",), kind="classify", **flags):
  prefix = "chat_" if kind == "chat" else ""
  models = ",".join(str(place / f"{prefix}{name}") for name in models)
  given = [f"--{name}={value}" for name, value in flags.items()]
  return [f"--model={models}", f"--config={place / kind}.py", f"--out={out}", *given]


def table(out):
  return [json.loads(line) for line in (out / "alphas.jsonl").read_text().splitlines()]


def leaves(path):
  flat = weights.params.flatten(jaxsft.load(path).params)
  return {path: np.asarray(leaf) for path, leaf in flat.items()}


def evaluated(place, name, kind, capsys):
  capsys.readouterr()
  evaluate.main([f"--model={place / name}", f"--config={place / kind}.py"])
  return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def chats(place):
  """Two alphas of a causal model and a text that it may forget; compilations are counted."""
  count = []
  with pytest.MonkeyPatch.context() as patch:
    tiny.on_devices(patch, 1)
    compile_it = compiled.Compiled._compile
    one = lambda self, args: count.append(self) or compile_it(self, args)
    patch.setattr(compiled.Compiled, "_compile", one)
    text = place / "text.txt"
    interpolate.main(
      arguments(place, place / "chats", kind="chat", alphas="0.75,1.25", general=text)
    )
  return place / "chats", count


def test_the_ends_are_both_models_exactly(place, chats, capsys):
  out, _ = chats
  rows = table(out)
  assert [row["alpha"] for row in rows] == [0, 0.75, 1, 1.25]
  for row, name in ((rows[0], "chat_a"), (rows[2], "chat_base")):
    said = evaluated(place, name, "chat", capsys)
    for metric in ("loss", "perplexity", "token_accuracy"):
      assert row["metrics"][metric] == said[metric]
  config = forgetting._general_config(
    pretrained.open_pretrained(place / "chat_base"),
    str(place / "text.txt"),
    jaxsft.load_config(place / "chat.py"),
  )
  text = sources.read_data(config.data, chat).train
  metrics = evaluate.judge(jaxsft.load(place / "chat_a"), config, text)[0]
  assert rows[0]["general"] == metrics["perplexity"]
  assert rows[2]["forgetting"] == 0
  first, last = rows[0]["general"], rows[2]["general"]
  assert rows[0]["forgetting"] == pytest.approx((first - last) / last)


def test_one_step_measures_all_alphas(chats):
  _, count = chats
  assert len(count) == len(set(map(id, count))) == 2  # the task's and the text's


def test_the_best_is_written_and_is_what_was_measured(place, chats, capsys):
  out, _ = chats
  result = json.loads((out / "result.json").read_text())
  best = min(table(out), key=lambda row: row["value"])
  assert result["chosen"] == best and best["alpha"] == 0.75  # not the last that was made
  assert evaluated(place, "chats/model", "chat", capsys)["loss"] == best["value"]
  page = (out / "curve.html").read_text()
  assert page.count("<svg") == 2 and "chosen" in page and "http" not in page
  pytest.importorskip("matplotlib")
  assert (out / "curve.png").read_bytes()[1:4] == b"PNG"


def test_an_encoder_reads_the_text_by_the_head_of_the_pretrained(place, tmp_path, capsys):
  text, out = place / "text.txt", tmp_path / "out"
  groups = '--alphas_of={"layers.1": 0.0, "embed": 1.0}'
  interpolate.main([*arguments(place, out, alpha=0.5, general=text), groups])
  said = json.loads(capsys.readouterr().out)
  rows = table(out)
  assert [(row["alpha"], row["alphas_of"]) for row in rows] == [
    (0, {}), (1, {}), (0.5, {"layers.1": 0.0, "embed": 1.0}),
  ]  # fmt: skip
  assert said["chosen"] == rows[-1]
  note = "dense/bias, dense/kernel, head/bias, head/kernel"
  assert all(path in said["notes"][0] for path in note.split(", "))
  base = pretrained.open_pretrained(place / "base")
  config = forgetting._general_config(
    base, str(text), jaxsft.load_config(place / "classify.py")
  )
  held = sources.read_data(config.data, forgetting.tasks.TASKS["masked_lm"]).train
  alone = evaluate.judge(jaxsft.load(place / "base"), config, held)[0]
  assert rows[1]["general"] == alone["pseudo_perplexity"]
  assert rows[0]["general"] != rows[1]["general"]
  # Every leaf is where its alpha puts it; the head is the tuned one's.
  p, t, m = (leaves(path) for path in (place / "base", place / "a", out / "model"))
  for path, leaf in m.items():
    if path.startswith("layers/"):
      np.testing.assert_array_equal(leaf[1], t[path][1])
      half = np.float32(0.5) * p[path][0] + np.float32(0.5) * t[path][0]
      np.testing.assert_array_equal(leaf[0], half)
    else:
      kept = p if path.startswith("embed/") else t
      np.testing.assert_array_equal(leaf, kept[path])


def test_a_budget_of_forgetting_binds(place, tmp_path, capsys):
  given = dict(general=place / "text.txt", alphas="0:1:3", max_forgetting=-0.1)
  interpolate.main(arguments(place, tmp_path, **given))
  chosen, rows = json.loads(capsys.readouterr().out)["chosen"], table(tmp_path)
  allowed = [row["value"] for row in rows if row["forgetting"] <= -0.1]
  assert chosen["value"] == min(allowed) > min(row["value"] for row in rows)


def test_each_group_gets_the_best_alpha_in_turn(place, tmp_path, capsys):
  given = [*arguments(place, tmp_path, alphas="0:1:3"), "--groups", "layers.0", "layers.1"]
  interpolate.main(given)
  chosen, rows = json.loads(capsys.readouterr().out)["chosen"], table(tmp_path)
  assert len(rows) == 3 + 2 * 2
  assert chosen["value"] == min(row["value"] for row in rows)
  uniform = min((row for row in rows if not row["alphas_of"]), key=lambda row: row["value"])
  assert all(row["alpha"] == uniform["alpha"] for row in rows if row["alphas_of"])
  before = [row for row in rows if "layers.1" not in row["alphas_of"]]
  first = min(before, key=lambda row: row["value"])["alphas_of"]
  later = [row["alphas_of"] for row in rows if "layers.1" in row["alphas_of"]]
  assert first and all(of | first == of for of in later)  # the second stands on the first


def test_a_greedy_soup_is_written(place, tmp_path, capsys):
  interpolate.main(arguments(place, tmp_path, "abc", how="greedy_soup", alpha=0))
  notes = json.loads(capsys.readouterr().out)["notes"]
  members = [name for name in "abc" if any(f"/{name}: " in n and "in the" in n for n in notes)]
  own = [leaves(place / name)["head/kernel"] for name in members]
  expected = np.mean(own, 0, dtype=np.float64)
  found = leaves(tmp_path / "model")["head/kernel"]
  np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("mode", ("max", "min"))
def test_a_greedy_soup_takes_what_does_not_harm(monkeypatch, mode):
  """The best first; what makes it worse is left out, what leaves it as it is goes in."""
  sign = 1 if mode == "max" else -1
  values = {(0,): 0.7, (1,): 0.9, (2,): 0.8, (3,): 0.6, (1, 2): 0.85, (1, 0): 0.9}
  values |= {(1, 0, 3): 0.95}
  monkeypatch.setattr(endpoints, "tuned_end", lambda ends, how, members: members)
  monkeypatch.setattr(endpoints, "put", lambda place, found, _: place.update(of=tuple(found)))
  number = lambda judge, place: {"value": sign * values[place["of"]]}
  monkeypatch.setattr(forgetting, "numbers", number)
  judge, notes = forgetting.Judge("f1", mode, None), []
  line = interpolate.Line(None, None, {}, {}, {}, judge, None)
  assert interpolate._greedy(line, "abcd", notes) == [1, 0, 3]
  assert notes[1] == f"c: f1 {sign * 0.8:g} alone, left out: with it the metric is worse"


BAD = (
  ({"models": ()}, "--model: found none"),
  ({"models": "ab"}, "expected one as --model=DIR"),
  ({"how": "soup"}, "expected several as --model=A,B"),
  ({"how": "average"}, "--how=average: expected one of linear, slerp"),
  ({"density": 0.5}, "--density: has no effect with --how=linear"),
  ({"how": "ties", "density": 0}, "--density=0.0: expected above 0"),
  ({"how": "ties", "sign": "most"}, "--sign=most: expected one of total, frequency"),
  ({"max_forgetting": 0.1}, "--max_forgetting: of what?"),
  ({"alpha": 0.5, "alphas": "0,1"}, "--alpha: cannot be given with --alphas"),
  ({"alpha": "nan"}, "--alpha=nan: expected a finite number"),
  ({"alpha": "half"}, "--alpha=half: expected float"),
  ({"how": "slerp", "alphas": "-1,0"}, "--how=slerp: expected every alpha between 0 and 1"),
  ({"dtype": "int8"}, "--dtype"),
  ({"base": "a"}, "is the same model as"),
  ({"models": "aa", "how": "soup"}, "is the same model as"),
  ({"base": "chat_base"}, "is a llama, .* is a bert"),
  ({"alphas_of": '{"layer.0": 1}'}, "--alphas_of: 'layer.0' matches no parameter"),
  ({"general": "none.txt"}, "--general: .*none.txt"),
  ({"base": "bare", "general": "text.txt"}, "has no language model's head"),
)


@pytest.mark.parametrize(("flags", "said"), BAD, ids=lambda x: x if isinstance(x, str) else "")
def test_what_is_refused_is_refused_in_a_sentence(place, tmp_path, capsys, flags, said):
  if not (place / "bare").exists():
    tiny.checkpoint(place / "bare", "bert", seed=7)
  flags = {k: place / v if k in ("base", "general") else v for k, v in flags.items()}
  with pytest.raises(SystemExit) as left:
    command.run(interpolate.main, arguments(place, tmp_path / "out", **flags))
  told = capsys.readouterr().err
  assert left.value.code in (1, 2) and re.search(said, told), told
  assert told.startswith("error: ") and not (tmp_path / "out").exists()
