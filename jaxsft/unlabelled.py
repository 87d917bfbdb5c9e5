"""Rows that `predict` answers, read as training reads labelled ones."""

import itertools
import json
import os

from jaxsft import config as config_lib
from jaxsft import row_file, sources, tasks
from jaxsft.config import values
from jaxsft.data import fetch, messages, prompt, read
from jaxsft.errors import JaxsftError


def rows_of(flags, config):
  """(the rows of --data, text that names them, what makes their fields) as a config says.

  Raises UsageError where --out is one of their files.
  """
  data = config_lib.Data() if config is None else config.data
  given = ("columns",) if flags["columns"] else ()
  data = sources.as_part(data, flags["part"], given)
  columns, kind = data.columns, dict[str, str | int]
  if flags["columns"]:
    columns = values.parse(flags["columns"], kind, "--columns")
    values.check(columns, kind, "--columns")
  settings = sources.reading(data) | {"columns": columns}
  path = fetch.resolve(flags["data"], None, key="--data")
  own = read.files_of(path, data.format)
  row_file.check(flags["out"], own)
  rows = read.read_rows(path, **settings)
  first = next(rows, None)  # what is wrong with a file is said before the weights are read
  if first is None:
    raise JaxsftError(f"--data={flags['data']}: holds no row, expected at least one to answer")
  made, answers = prompt.templates(data.prompt), ()
  if made:
    task = tasks.TASKS[config.task]
    answers = (*task.GOLD, *(messages.ANSWERS.values() if task.HEAD == "lm" else ()))
    prompt.check(first, made, answers)
  files = [str(path)]
  for file in own:
    files += [file, os.stat(file).st_size, os.stat(file).st_mtime_ns]
  texts = {field: one.text for field, one in made.items()}
  named = json.dumps([files, settings, texts], sort_keys=True)
  return itertools.chain([first], rows), named, lambda row: prompt.fill(row, made, answers)
