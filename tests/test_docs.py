"""The documents say what the code says: the settings page, and every command of the README."""

import ast
import dataclasses
import json
import pathlib
import re
import runpy

from jaxsft import config as config_lib
from jaxsft import families
from jaxsft.doctor import codes

ROOT = pathlib.Path(__file__).parent.parent


def test_settings_page_is_current():
  page = runpy.run_path(str(ROOT / "docs" / "make_settings.py"))["page"]()
  written = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
  assert written == page, "run python docs/make_settings.py"


def test_doctor_page_is_current():
  page = runpy.run_path(str(ROOT / "docs" / "make_doctor.py"))["page"]()
  written = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")
  assert written == page, "run python docs/make_doctor.py"
  settings = {line.split(" = ")[0] for line in config_lib.describe(config_lib.Config())}
  named = {name for code in codes.CODES.values() for name in re.findall("`(.+?)`", code.remedy)}
  assert {f"config.{name}" for name in named} <= settings


def test_readme_table_of_families_is_what_was_recorded():
  page = runpy.run_path(str(ROOT / "docs" / "make_families.py"))
  readme = (ROOT / "README.md").read_text(encoding="utf-8")
  parity = json.loads(page["PARITY"].read_text(encoding="utf-8"))
  assert readme == page["with_table"](readme, parity), "run python docs/make_families.py"
  assert set(parity) == set(families.FAMILIES)  # each of them was measured
  for parts in parity.values():
    assert parts["tiny"]["logits"] <= 1e-4 and parts["tiny"]["gradients"] <= 1e-3


def test_readme_names_only_settings_that_exist():
  readme = (ROOT / "README.md").read_text(encoding="utf-8")
  known = {line.split(" = ")[0] for line in config_lib.describe(config_lib.Config())}
  named = set(re.findall(r"--(config\.[a-z_.0-9]+)", readme))
  assert len(named) >= 5 and named <= known


def test_settings_in_the_page_about_data_are_settings():
  page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
  blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
  assert len(blocks) >= 3
  for block in blocks:
    *before, last = ast.parse(block).body
    names = dict(vars(config_lib))
    exec(compile(ast.Module(before, []), "data.md", "exec"), names)
    found = eval(compile(ast.Expression(last.value), "data.md", "eval"), names)
    whole = found if isinstance(found, config_lib.Config) else config_lib.Config(data=found)
    task = "seq2seq" if whole.data.prompt else "chat" if whole.data.mix else "classify"
    model = config_lib.Model(path="m")
    config_lib.check(dataclasses.replace(whole, task=task, model=model))
  named = set(re.findall(r"`(data\.[a-z_0-9]+)", page))
  known = {f"data.{field.name}" for field in dataclasses.fields(config_lib.Data)}
  assert named - {"data.json"} <= known


def test_readme_names_only_files_that_exist():
  readme = (ROOT / "README.md").read_text(encoding="utf-8")
  links = [link for link in re.findall(r"\]\(([^)#]+)\)", readme) if "://" not in link]
  assert len(links) >= 3
  for link in links:
    assert (ROOT / link).exists(), link


def test_both_commands_of_a_newcomer_stand_in_the_readme():
  lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
  assert (
    "python -m venv .venv && . .venv/bin/activate && pip install -e . && "
    "python -m jaxsft.train --config=configs/quickstart.py"
  ) in lines
  assert "pip install -e '.[test]' && pytest" in lines
