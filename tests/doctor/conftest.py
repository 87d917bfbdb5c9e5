import json

import pytest

from jaxsft import prepare, pretrained
from tests import tiny

FAMILY = {"chat": "llama", "seq2seq": "t5"}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
  root = tmp_path_factory.mktemp("doctor")
  return {
    family: tiny.checkpoint(root / family, family) for family in ("bert", "llama", "t5", "bart")
  }


@pytest.fixture
def prepared(checkpoints, tmp_path, monkeypatch):
  """(kind, rows or a path, settings) -> (Prepared, Config)."""
  monkeypatch.setenv("JAXSFT_CACHE", str(tmp_path / "cache"))

  def make(kind, rows, held_out=None, **settings):
    data, family = rows, settings.pop("family", FAMILY.get(kind, "bert"))
    if isinstance(rows, list):
      data = write(tmp_path / "rows.jsonl", rows)
    if held_out is not None:
      settings["data__eval_path"] = str(write(tmp_path / "held_out.jsonl", held_out, "h"))
      settings["data__split"] = 0.0
    config = tiny.config(family, kind, checkpoints[family], data, **settings)
    base = pretrained.open_base(config.model)
    return prepare.prepare(config, base, tiny.devices(1)), config

  return make


def write(path, rows, prefix="r"):
  lines = [json.dumps({"name": f"{prefix}{i}", **row}) for i, row in enumerate(rows)]
  path.write_text("\n".join(lines) + "\n", encoding="utf-8")
  return path
