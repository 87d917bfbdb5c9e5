"""Bad settings and flags."""

import json

from tests.bad_inputs.cases import case, settings


def _further_rows(p):
  """The held-out rows say by whom they are, those of another set do not."""
  p.rows(*[{"name": f"r{i}", "text": "a film", "label": "neg", "by": "me"} for i in range(11)])
  p.write("more.jsonl", [{"name": "m", "text": "a film", "label": "pos"}])
  p.set("evaluate.sets", {"more": "more.jsonl"})
  p.set("evaluate.slices", ["by"])


CONFIGS = [
  settings(
    "unknown config key", 2, "config.optim.peak_rl", "did you mean 'peak_lr'", optim__peak_rl=1
  ),
  settings("a value with keys", 2, "config.seed.a", "'seed'", seed__a=1),
  settings("wrong type", 2, "config.batch_size", "'many'", "int", batch_size="many"),
  case(
    "wrong choice",
    "train",
    lambda p: p.set("task", "clasify"),
    2,
    "config.task",
    "'clasify'",
    "did you mean 'classify'",
  ),
  settings(
    "split and evaluation rows",
    2,
    "config.data.split",
    "eval_path",
    data__eval_path="rows.jsonl",
  ),
  settings(
    "more micro-batches than examples",
    2,
    "config.accumulate",
    "9",
    "batch_size=8",
    accumulate=9,
  ),
  settings("mesh that does not match", 2, "config.mesh", "data=3", "found 1", mesh__data=3),
  settings("context mesh", 2, "config.mesh.context", "only 1", mesh__context=2),
  settings(
    "unknown metric",
    2,
    "config.evaluate.metric",
    "'acuracy'",
    "accuracy",
    evaluate__metric="acuracy",
  ),
  *(
    settings(
      f"a set named {name}",
      2,
      "config.evaluate.sets",
      repr(name),
      "another name",
      evaluate__sets=json.dumps({name: "rows.jsonl"}),
    )
    for name in ("held out", "All rows", "train", "../outside", "", ".hidden")
  ),
  settings(
    "slices by a field that no row has",
    2,
    "config.evaluate.slices",
    "held-out rows has the field 'lenght'",
    "name, text, label",
    evaluate__slices='["lenght"]',
  ),
  *(
    case(
      f"slices by a field that further rows lack, {verb}",
      verb,
      _further_rows,
      2,
      "config.evaluate.slices",
      "none of 1 rows of config.evaluate.sets['more'] has the field 'by'",
    )
    for verb in ("train", "evaluate")
  ),
  settings(
    "unknown metric with a direction",
    2,
    "config.evaluate.metric",
    "'f1'",
    "macro_f1",
    evaluate__metric="f1",
    evaluate__mode="max",
  ),
  settings(
    "metric of another kind of label",
    2,
    "config.evaluate.metric",
    "'mse'",
    "accuracy",
    evaluate__metric="mse",
  ),
  settings(
    "pattern without parameter",
    2,
    "config.tune.train",
    "'attn/query/kernel'",
    "layers/attn/q/kernel",
    tune__method="regex",
    tune__train=["attn/query/kernel"],
  ),
  settings(
    "pattern that is none",
    2,
    "config.tune.train",
    "'('",
    tune__method="regex",
    tune__train=["("],
  ),
  settings("limit of no rows", 2, "data.limit", "0", data__limit=0),
  case("missing config", "train", lambda p: p.flags.pop("config"), 2, "--config", "missing"),
  case(
    "missing config file",
    "train",
    lambda p: p.flags.update(config="configs/none.py"),
    2,
    "configs/none.py",
    "no such file",
  ),
  case(
    "config that is no Python",
    "train",
    lambda p: p.write("config.py", "def get_config(:\n"),
    2,
    "config.py:1",
    "Python",
  ),
  case(
    "config without get_config",
    "train",
    lambda p: p.write("config.py", "x = 1\n"),
    2,
    "config.py",
    "get_config",
  ),
  case(
    "config that fails",
    "train",
    lambda p: p.write("config.py", "def get_config(arg=''):\n  return {}['a']\n"),
    2,
    "config.py:2",
    "KeyError",
    "'a'",
  ),
  case(
    "unknown keyword in a config",
    "train",
    lambda p: p.write(
      "config.py",
      "from jaxsft.config import Config, Optim\n"
      "def get_config(arg=''):\n  return Config(optim=Optim(lr=1))\n",
    ),
    2,
    "config.py",
    "Optim",
    "'lr'",
  ),
  case(
    "unknown flag",
    "train",
    lambda p: p.flags.update(workdri="x"),
    2,
    "--workdri",
    "did you mean 'workdir'",
  ),
  case(
    "bad multihost",
    "train",
    lambda p: p.flags.update(multihost="here"),
    2,
    "--multihost=here",
    "HOST:PORT,INDEX,COUNT",
  ),
]
