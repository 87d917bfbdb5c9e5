"""Runs `python -m jaxsft.train` many times, cheaply: imports once, then one fork a run.

  python -m tests.contract.runner jobs.json     writes jobs.json.done: {name: exit status}

A job is {"name", "argv", "devices", "kill", "out"}; the jobs of an inner list run one after
another, the lists side by side. `kill` is "PLACE:N": SIGKILL at the N-th time there (PLACE
"term": SIGTERM after update N). The exit status of a killed run is -9.
"""

import gc
import json
import os
import re
import shutil
import signal
import sys
import threading
import types


def die():
  os.kill(os.getpid(), signal.SIGKILL)


def at(count, owner, name, act, before=False):
  """Acts at the `count`-th call of owner.name."""
  original, calls = getattr(owner, name), [0]

  def counted(*args, **kwargs):
    calls[0] += 1
    now = calls[0] == count
    if now and before:
      act()
    result = original(*args, **kwargs)
    if now and not before:
      act()
    return result

  setattr(owner, name, counted)


def arm(place, count):
  """Plants one end of this process."""
  from jaxsft import checkpoint, evaluate, finish, hf_directory, log, manifest

  checkpoint.shutil = types.SimpleNamespace(**vars(shutil))  # others remove directories too
  term = lambda: os.kill(os.getpid(), signal.SIGTERM)
  where = {
    "update": lambda: at(count, log.Log, "step", die),
    "term": lambda: at(count, log.Log, "step", term),
    "evaluate": lambda: at(count, evaluate.sharding, "put_batches", die),
    "best": lambda: at(count, checkpoint.Checkpoints, "save_best", die),
    "written": lambda: at(count, manifest, "write", die, before=True),  # all but the name
    "saved": lambda: at(count, checkpoint.Checkpoints, "save", die),
    "removing": lambda: at(count, checkpoint.shutil, "rmtree", die, before=True),
    "measured": lambda: at(count, finish, "evaluate_and_keep_best", die),
    "exporting": lambda: at(count, hf_directory, "_replace", die, before=True),
  }
  where[place]()


def run(job):
  """In the child: never returns."""
  with open(job["out"], "w") as out:
    os.dup2(out.fileno(), 1)
    os.dup2(out.fileno(), 2)
  devices = f"device_count={job['devices']}"
  os.environ["XLA_FLAGS"] = re.sub(r"device_count=\d+", devices, os.environ["XLA_FLAGS"])
  code = 70
  try:
    if job["kill"]:
      place, count = job["kill"].split(":")
      arm(place, int(count))
    import jax

    from jaxsft import command, start, train

    start.compilation_cache = lambda: None  # it keeps only slow ones
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    try:
      command.run(train.main, job["argv"])
      code = 0
    except SystemExit as done:
      code = done.code or 0
    except BaseException:
      import traceback

      traceback.print_exc()
    if jax.distributed.is_initialized():
      jax.distributed.shutdown()  # os._exit leaves out what waits for the other processes
  finally:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main(path):
  with open(path) as file:
    chains = json.load(file)
  # What every run needs, so that a fork has it; none of it starts a thread or a device.
  import jax  # noqa: F401
  import orbax.checkpoint  # noqa: F401
  import sklearn.metrics  # noqa: F401
  import tensorflow  # noqa: F401
  from transformers import AutoTokenizer  # noqa: F401  (brings torch, where there is one)

  from jaxsft import train  # noqa: F401

  gc.freeze()  # or a collection in a fork would copy all of it
  done, running = {}, {}
  chains = [list(chain) for chain in chains]
  waiting = list(chains)
  while waiting or running:
    while waiting and len(running) < 2:
      chain = waiting.pop(0)
      job = chain.pop(0)
      pid = os.fork()
      if pid == 0:
        run(job)
      running[pid] = (job, chain)
    pid, status = os.wait()
    job, chain = running.pop(pid)
    done[job["name"]] = os.waitstatus_to_exitcode(status)
    if chain:
      waiting.insert(0, chain)
  assert threading.active_count() == 1
  with open(f"{path}.done", "w") as file:
    json.dump(done, file)


if __name__ == "__main__":
  main(sys.argv[1])
