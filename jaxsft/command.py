"""The command line of every verb: flags, `--config.a.b=v` overrides, errors as sentences."""

import contextlib
import itertools
import os
import sys

from jaxsft import config as config_lib
from jaxsft.config.values import nearest
from jaxsft.errors import JaxsftError, UsageError

HUGE_PAGES = "glibc.malloc.hugetlb=1"
STARTED_ANEW = "JAXSFT_STARTED_ANEW"
MODEL = {"model": "", "sha256": None, "revision": None, "fsdp": 1, "tensor": 1}
"""Flags of the model that a verb uses, and of how its weights are split over devices."""
HUGE_PAGES_OF_SYSTEM = "/sys/kernel/mm/transparent_hugepage/enabled"


def parse(argv, flags, needs_config=True):
  """(config or None, {flag: value}) of the arguments `--name=value` or `--name value`.

  flags: {name: default}; a default of None means optional text, a bool makes a switch
  (`--name` alone is true), "" means required, () takes several words (`--name a b`, or
  `--name=a,b`). Raises UsageError, with the nearest valid
  name, for anything unknown.
  """
  values, overrides, path = dict(flags), {}, None
  for name, text in _pairs(argv, flags):
    if name == "config":
      path = text
    elif name.startswith("config."):
      overrides[name.removeprefix("config.")] = text
    elif name not in flags:
      raise UsageError(f"--{name}: unknown flag{nearest(name, ['config', *flags])}")
    elif isinstance(flags[name], bool):
      values[name] = _switch(name, text)
    elif isinstance(flags[name], tuple):
      values[name] = (*values[name], *(word for word in text.split(",") if word))
    elif isinstance(flags[name], (int, float)):
      values[name] = number(name, text, type(flags[name]))
    else:
      values[name] = text
  for name, default in flags.items():
    if default == "" and values[name] == "":
      raise UsageError(f"--{name}: missing; give --{name}=…")
  if path is None:
    if needs_config or overrides:
      raise UsageError("--config: missing; give --config=configs/….py")
    return None, values
  return config_lib.load_config(path, overrides), values


def named(argv, flags):
  """Names of the flags that the arguments of `parse` give, be it their default."""
  return {name for name, _ in _pairs(argv, flags)}


def _pairs(argv, flags):
  """(name, text) of each flag; a switch may stand without a text."""
  rest = list(argv)
  while rest:
    word = rest.pop(0)
    if not word.startswith("--"):
      raise UsageError(f"found {word!r}, expected --flag=value")
    name, equals, text = word[2:].partition("=")
    if not equals:
      if isinstance(flags.get(name), bool):
        text = "true"
      elif isinstance(flags.get(name), tuple):
        words = [*itertools.takewhile(lambda word: not word.startswith("--"), rest)]
        del rest[: len(words)]
        text = ",".join(words)
      elif rest and not rest[0].startswith("--"):
        text = rest.pop(0)
      else:
        raise UsageError(f"--{name}: has no value; expected --{name}=…")
    yield name, text


def _switch(name, text):
  if text.lower() not in ("true", "false"):
    raise UsageError(f"--{name}={text}: expected true or false")
  return text.lower() == "true"


def number(name, text, kind):
  """The number in the text of a flag; kind: int or float."""
  try:
    return kind(text)
  except ValueError:
    raise UsageError(f"--{name}={text}: expected {kind.__name__}") from None


def run(main, argv=None):
  """Runs `main(argv)` and exits: 0 done, 1 our error, 2 wrong usage, 3 preempted after saving.

  Errors are printed as one sentence without a traceback; JAXSFT_TRACEBACK=1 shows both.
  """
  argv = sys.argv[1:] if argv is None else argv
  if "--help" in argv or "-h" in argv:
    print(sys.modules[main.__module__].__doc__)
    sys.exit(0)
  try:
    main(argv)
  except JaxsftError as error:
    if os.environ.get("JAXSFT_TRACEBACK") == "1":
      raise
    from jaxsft import log  # late: it is slow to import

    print(f"error: {log.scrub(str(error))}", file=sys.stderr, flush=True)
    sys.exit(error.exit_code)
  except OSError as error:  # what no room expected: a file taken away, a disk that fills up
    if os.environ.get("JAXSFT_TRACEBACK") == "1":
      raise
    reason = error.strerror or str(error) or type(error).__name__
    where = f"{error.filename}: " if error.filename else ""
    print(
      f"error: {where}{reason}; correct the path, its permissions or the disk's space, then "
      "run the same command again",
      file=sys.stderr,
      flush=True,
    )
    sys.exit(1)
  except KeyboardInterrupt:
    print("error: interrupted", file=sys.stderr, flush=True)
    sys.exit(130)


def use_huge_pages():
  """Starts `python -m jaxsft.train` anew, once, with huge pages for malloc (Linux, glibc 2.35).

  XLA:CPU takes and frees its working memory at every step, which costs a sixth of a step in
  page faults of 4 KiB. glibc reads the setting when a process starts, never later; where
  the system gives huge pages to everybody or to nobody, nothing is done.
  """
  set_already, mark = os.environ.get("GLIBC_TUNABLES", ""), str(os.getpid())
  if os.environ.get(STARTED_ANEW) == mark or sys.gettrace() or sys.getprofile():
    return  # once, and not under a debugger, which would lose its hold
  main = getattr(sys.modules["__main__"], "__spec__", None)
  if "hugetlb" in set_already or not getattr(main, "name", "").startswith("jaxsft."):
    return
  try:
    with open(HUGE_PAGES_OF_SYSTEM) as file:
      on_request = "[madvise]" in file.read()
    library, _, version = os.confstr("CS_GNU_LIBC_VERSION").partition(" ")
  except (OSError, ValueError, AttributeError):  # not Linux, or not glibc
    return
  if not on_request or library != "glibc" or tuple(map(int, version.split("."))) < (2, 35):
    return
  changed = {"GLIBC_TUNABLES": ":".join(filter(None, [set_already, HUGE_PAGES]))}
  changed[STARTED_ANEW] = mark  # starting anew keeps the process's number
  with contextlib.suppress(OSError, TypeError):  # not allowed: then without
    arguments = [sys.executable, *sys.orig_argv[1:]]
    os.execve(sys.executable, arguments, {**os.environ, **changed})
