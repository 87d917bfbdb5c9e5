"""Writes docs/settings.md from jaxsft/config: python docs/make_settings.py

Every key with its type, default and meaning; a test compares the page with the code.
"""

import ast
import dataclasses
import inspect
import pathlib
import typing

from jaxsft import config
from jaxsft.config import values

HEAD = """# Settings

Made from `jaxsft/config` by `python docs/make_settings.py`. Any key can be set on the
command line: `--config.optim.peak_lr=1e-4`, `--config.data.columns='{"text": "review"}'`,
`--config.steps=None`. `--print_config` shows the values of a config.
"""


def documented(section):
  """(key, annotation, default, meaning) of every value of a group, in order."""
  (tree,) = ast.parse(inspect.getsource(section)).body
  hints = typing.get_type_hints(section)
  for node, text in zip(tree.body, tree.body[1:], strict=False):
    if isinstance(node, ast.AnnAssign) and not dataclasses.is_dataclass(hints[node.target.id]):
      meaning = " ".join(text.value.value.split())
      yield node.target.id, hints[node.target.id], ast.literal_eval(node.value), meaning


def table(section, prefix):
  lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
  for key, annotation, default, meaning in documented(section):
    kind = values.describe(annotation).replace("|", "\\|")
    text = meaning.replace("|", "\\|")
    lines.append(f"| `{prefix}{key}` | {kind} | `{default!r}` | {text} |")
  return lines


def page():
  lines = [HEAD, "## Run", "", *table(config.Config, "")]
  for field in dataclasses.fields(config.Config):
    if field.default_factory is not dataclasses.MISSING:
      section = field.default_factory
      title = (section.__doc__ or "").strip()
      lines += ["", f"## {field.name}", "", title, "", *table(section, f"{field.name}.")]
      for key, annotation, _, _ in documented(section):
        if group := values.section(annotation):
          own = f"{field.name}.{key}.NAME."
          lines += ["", f"### {own[:-1]}", "", group.__doc__, "", *table(group, own)]
      for inner in dataclasses.fields(section):
        if inner.default_factory is not dataclasses.MISSING:
          group, own = inner.default_factory, f"{field.name}.{inner.name}."
          lines += ["", f"### {own[:-1]}", "", group.__doc__, "", *table(group, own)]
  return "\n".join(lines) + "\n"


if __name__ == "__main__":
  pathlib.Path(__file__).with_name("settings.md").write_text(page(), encoding="utf-8")
