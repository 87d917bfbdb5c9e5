"""Two processes of four devices each do what one of eight does."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest
from safetensors import numpy as safetensors

from jaxsft import train
from tests import tiny
from tests.contract.test_kill_anywhere import write_config

ROOT = pathlib.Path(__file__).parents[2]


def processes(config_file, workdir, tmp_path):
  """Exit codes and output of the two processes of one run."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  flags = "--xla_force_host_platform_device_count=4"
  started = []
  for index in range(2):
    command = [
      *(sys.executable, "-m", "jaxsft.train", f"--config={config_file}"),
      *(f"--workdir={workdir}", f"--multihost=localhost:{port},{index},2"),
    ]
    with open(tmp_path / f"process{index}.txt", "w") as out:
      started.append(
        subprocess.Popen(
          command,
          cwd=ROOT,
          env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
          stdout=out,
          stderr=out,
        )
      )
  try:
    codes = [process.wait(timeout=300) for process in started]
  finally:
    for process in started:
      process.kill()
  return codes, [(tmp_path / f"process{i}.txt").read_text() for i in range(2)]


@pytest.mark.parametrize("pair", [("llama", "chat")], ids=str)
def test_two_processes_train_as_one(files, tmp_path, pair):
  config = tiny.config(
    *pair,
    *files(*pair),
    steps=5,
    accumulate=2,
    checkpoint__every=2,
    evaluate__every=3,
    mesh__fsdp=2,
    mesh__tensor=2,
  )
  file = write_config(tmp_path / "config.py", config)
  codes, said = processes(file, tmp_path / "two", tmp_path)
  assert codes == [0, 0], "\n".join(said)
  one = train.finetune(config, tmp_path / "one")
  two = json.loads((tmp_path / "two" / "result.json").read_text())
  assert (two["steps"], two["tokens"]) == (5, one.result["tokens"])
  for name, value in one.result["metrics"].items():
    assert two["metrics"][name] == pytest.approx(value, rel=1e-4), name
  lines = [
    [json.loads(line) for line in (tmp_path / d / "metrics.jsonl").read_text().splitlines()]
    for d in ("one", "two")
  ]
  assert [(a["kind"], a["step"]) for a in lines[0]] == [
    (b["kind"], b["step"]) for b in lines[1]
  ]
  for ours, theirs in zip(*lines, strict=True):
    for name in {"loss", "grad_norm", "eval_loss"} & set(ours):
      assert theirs[name] == pytest.approx(ours[name], rel=1e-4), (name, ours["step"])
  a, b = (
    safetensors.load_file(tmp_path / d / "export/model.safetensors") for d in ("one", "two")
  )
  for name in a:
    np.testing.assert_allclose(b[name], a[name], atol=1e-3, err_msg=name)
  assert "update 5/5" in said[0] and "update" not in said[1]  # one of them speaks
  # Both go on from what they saved together: nothing is left to do.
  codes, said = processes(file, tmp_path / "two", tmp_path)
  assert codes == [0, 0] and "going on after update 5" in said[0], "\n".join(said)
