"""The user's config file: run as Python, with a sentence for whatever it does wrong."""

import dataclasses
import importlib.util
import pathlib
import traceback

from jaxsft.config import values
from jaxsft.errors import JaxsftError, UsageError


def run(path, sections):
  """What get_config(arg) of the file `path` ("x.py" or "x.py:arg") returns.

  sections: {name: dataclass} that it may have mistyped a key of. Raises UsageError.
  """
  path, _, argument = str(path).partition(":")
  file = pathlib.Path(path)
  if not file.is_file():
    raise UsageError(f"--config={path}: no such file; expected a Python config file")
  spec = importlib.util.spec_from_file_location(f"jaxsft_config_{file.stem}", file)
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
      raise UsageError(f"{path}: defines no get_config(arg='') that returns a Config")
    return module.get_config(argument) if argument else module.get_config()
  except JaxsftError:
    raise
  except SyntaxError as error:
    raise UsageError(f"{path}:{error.lineno}: not valid Python: {error.msg}") from None
  except Exception as error:  # the user's own code: anything
    raise UsageError(_explain(path, error, sections)) from error


def _explain(path, error, sections):
  """A sentence for an exception raised while a config file ran."""
  text = str(error)
  frames = traceback.extract_tb(error.__traceback__)
  inside = lambda frame: pathlib.Path(frame.filename).resolve() == pathlib.Path(path).resolve()
  lines = [frame.lineno for frame in frames if inside(frame)]
  where = f"{path}:{lines[-1]}" if lines else path
  if "unexpected keyword argument" in text:
    class_name = text.split(".")[0].split("(")[0]
    if section := sections.get(class_name):
      name = text.rsplit("'", 2)[1]
      near = values.nearest(name, [field.name for field in dataclasses.fields(section)])
      return f"{where}: {class_name} has no key {name!r}{near}"
  return f"{where}: the config file fails with {type(error).__name__}: {error}; correct it"
