"""Runs the sides of a benchmark in alternation, each in its own process, and compares them.

A side is a function of settings (a dict) that returns JSON values; it imports what it needs
itself, so that jaxsft and its peers may live in different environments. A run of a side is
a fresh process: start-up, memory and compilation are its own. This file needs only Python.
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time


def flags(doc, **defaults):
  """The parser of a benchmark: the flags that all of them have, and --NAME=default."""
  parser = argparse.ArgumentParser(
    description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--rounds", type=int, default=3, help="runs of every side")
  parser.add_argument("--sides", default="", help="comma-separated; all if empty")
  parser.add_argument("--peers", default=sys.executable, help="python of the peers")
  parser.add_argument("--json", default="", help="file for the settings and all rounds")
  parser.add_argument("--env", action="append", default=[], help="NAME=VALUE for all sides")
  parser.add_argument("--compile_cache", action="store_true", help="keep compiled programs")
  parser.add_argument("--lock", default="", help="file to lock (flock) while a round runs")
  for name, default in defaults.items():
    parser.add_argument(f"--{name}", type=type(default), default=default)
  return parser


def child(sides):
  """In a process that `run_side` started: runs the side, writes its result, and exits."""
  if sys.argv[1:2] != ["--child"]:
    return
  settings = json.loads(pathlib.Path(sys.argv[2]).read_text())
  result = sides[settings["side"]](settings)
  pathlib.Path(settings["out"]).write_text(json.dumps(result))
  sys.exit()


@contextlib.contextmanager
def alone(path):
  """Holds the lock of a file, for which other work on the machine is asked to wait too."""
  if not path:
    yield
    return
  import fcntl

  with open(path, "a") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


def run_side(script, side, args, settings, python):
  """Result of a side, with "peak_rss" (bytes, whole process) and "wall" (seconds)."""
  with tempfile.TemporaryDirectory(prefix=f"{side}-") as directory:
    path, out = (pathlib.Path(directory) / name for name in ("settings.json", "out.json"))
    # The benchmark's own folder comes first in sys.path; jaxsft is found beside it.
    root = str(pathlib.Path(script).resolve().parent.parent)
    env = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.getenv("PYTHONPATH", "")])}
    if side.startswith("jaxsft"):  # as `python -m jaxsft.train` starts itself
      env.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    env |= dict(pair.split("=", 1) for pair in args.env)
    if not args.compile_cache:
      env["JAX_COMPILATION_CACHE_DIR"] = ""
    settings = settings | {"side": side, "out": str(out), "workdir": directory}
    with open(pathlib.Path(directory) / "log", "w+") as log:
      settings["started"] = time.time()
      path.write_text(json.dumps(settings))
      command = [python, script, "--child", str(path)]
      process = subprocess.Popen(command, stdout=log, stderr=log, env=env)
      _, status, usage = os.wait4(process.pid, 0)
      wall = time.time() - settings["started"]
      process.returncode = os.waitstatus_to_exitcode(status)  # it was waited for here
      if process.returncode:
        log.seek(0)
        sys.exit(f"{side} failed with {process.returncode}:\n{log.read()[-6000:]}")
    unit = 1 if sys.platform == "darwin" else 1024
    result = json.loads(out.read_text())
    return result | {"peak_rss": usage.ru_maxrss * unit, "wall": wall}


def alternate(script, sides, args, settings, ours=("jaxsft",)):
  """{side: [result of every round]}: a round runs every side once, in turn."""
  chosen = [name for name in args.sides.split(",") if name] or list(sides)
  found = collections.defaultdict(list)
  for number in range(args.rounds):
    with alone(args.lock):
      for side in chosen:
        python = sys.executable if side.startswith(ours) else args.peers
        found[side].append(run_side(script, side, args, settings, python))
        wall = found[side][-1]["wall"]
        print(f"round {number + 1}/{args.rounds}: {side}, {wall:.0f} s", flush=True)
    save(args, found)  # what comes later may fail
  return dict(found)


def median(results, value):
  """Median over rounds of value(result); None where a round has none."""
  values = [value(result) for result in results]
  return None if None in values else statistics.median(values)


def rate(result, unit, skip):
  """Units a second of the updates after the first `skip` (at least one: it compiles)."""
  done, seconds = result[unit], result["seconds"]
  if len(seconds) <= skip:
    raise SystemExit(f"{len(seconds)} updates, expected more than --skip={skip}")
  return (done[-1] - done[skip - 1]) / (seconds[-1] - seconds[skip - 1])


def show(found, columns, rate_of):
  """Prints a table of medians; columns: {title: function of a result}.

  rate_of: the title whose medians are also shown as ratio of the first side's to each.
  """
  titles = ["side", *columns, "spread", "jaxsft / side"]
  first = next(iter(found.values()))
  lines = [titles, ["---"] * len(titles)]
  for side, results in found.items():
    medians = {title: median(results, value) for title, value in columns.items()}
    values = [columns[rate_of](result) for result in results]
    spread = f"{min(values):.1f} … {max(values):.1f}"
    ratio = median(first, columns[rate_of]) / medians[rate_of]
    shown = ["–" if value is None else f"{value:.4g}" for value in medians.values()]
    lines.append([side, *shown, spread, f"{ratio:.2f}"])
  print("\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n")


def curves(found, pairs):
  """Compares losses update by update, prints the differences and returns them.

  pairs: (side, side) that saw the same batches in the same order. Four digits agree where
  |a - b| < 1e-4 x max(1, |a|).
  """
  compared = []
  for a, b in pairs:
    if a not in found or b not in found:
      continue
    one, two = found[a][0]["losses"], found[b][0]["losses"]
    gaps = [abs(x - y) / max(1.0, abs(x)) for x, y in zip(one, two, strict=True)]
    absolute = max(abs(x - y) for x, y in zip(one, two, strict=True))
    late = next((i + 1 for i, gap in enumerate(gaps) if gap >= 1e-4), None)
    verdict = "four digits agree" if late is None else f"apart from update {late} on"
    print(
      f"{a} and {b}, {len(one)} updates: first losses {one[0]:.6f} and {two[0]:.6f}, last "
      f"{one[-1]:.6f} and {two[-1]:.6f}, largest difference {absolute:.2e}: {verdict}"
    )
    compared.append({"sides": [a, b], "largest": absolute, "gaps": gaps, "agree": late is None})
  return compared


def save(args, found, compared=()):
  """Writes the raw rounds to --json."""
  if args.json:
    machine = {"platform": platform.platform(), "cpus": os.cpu_count()}
    value = {"arguments": vars(args), "machine": machine, "rounds": found, "curves": compared}
    pathlib.Path(args.json).write_text(json.dumps(value, indent=1) + "\n")
