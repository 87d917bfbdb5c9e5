"""The notebooks run from the first cell to the last, with a tiny model and few updates."""

import json
import pathlib

import nbclient
import nbformat
import pytest

from jaxsft import config as config_lib
from tests import tiny

ROOT = pathlib.Path(__file__).parent.parent
PARAMETERS = """
CONFIG = {config!r}
OVERRIDES = {{}}
WORKDIR = {workdir!r}
SENTENCES = ["a good film", "a bad film", "very dull"]
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the kernel's own machinery
def test_quickstart_notebook(optimised, tmp_path, monkeypatch):
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  monkeypatch.setenv("JAXSFT_CACHE", str(tmp_path / "cache"))
  monkeypatch.setenv("MPLBACKEND", "agg")
  model = tiny.checkpoint(tmp_path / "model", "bert")
  rows = tmp_path / "rows.jsonl"
  tiny.sentences(rows)
  settings = tiny.config("bert", "classify", model, rows)
  config = tmp_path / "config.py"
  config.write_text(
    "from jaxsft import config\n"
    f"VALUES = {config_lib.to_dict(settings)!r}\n"
    "def get_config(arg=''):\n  return config.from_dict(VALUES)\n"
  )
  notebook = nbformat.read(ROOT / "colab" / "quickstart.ipynb", as_version=4)
  cells = []
  for cell in notebook.cells:
    tags = cell.metadata.get("tags", [])
    if "parameters" in tags:
      cell.source = PARAMETERS.format(config=str(config), workdir=str(tmp_path / "run"))
    if "install" not in tags:
      cells.append(cell)
  assert len(cells) == len(notebook.cells) - 1
  notebook.cells = cells
  nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute(cwd=tmp_path)
  printed = "".join(
    output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])
  )
  for sentence in ("a good film", "a bad film", "very dull"):
    assert sentence in printed
  result = json.loads((tmp_path / "run" / "result.json").read_text())
  assert result["steps"] > 0 and (tmp_path / "run" / "export.zip").stat().st_size > 1000
