"""Two processes of four devices each do what one of eight does."""

import dataclasses
import json
import socket

import numpy as np
import pytest
from safetensors import numpy as safetensors

from jaxsft import train
from tests import tiny
from tests.contract.test_kill_anywhere import Chains


def two_processes(config_files, root, times):
  """The runs of two processes of one job, done `times` times: [(exit codes, outputs)].

  config_files: of the one process and of the other.
  """
  chains, addresses = Chains(root, dict(enumerate(config_files))), []
  for _ in range(times):
    with socket.socket() as free:
      free.bind(("localhost", 0))
      addresses.append(f"localhost:{free.getsockname()[1]}")
  for index in range(2):
    flags = [(f"--multihost={address},{index},2",) for address in addresses]
    chains.add(
      *((f"{time} {index}", index, "two", 4, None, flags[time]) for time in range(times))
    )
  done = chains.run()
  found = [[done[f"{time} {index}"] for index in range(2)] for time in range(times)]
  return [([status for status, *_ in pair], [text for *_, text in pair]) for pair in found]


@pytest.mark.parametrize("pair", [("llama", "chat")], ids=str)
def test_two_processes_train_as_one(files, tmp_path, pair):
  config = tiny.config(
    *pair,
    *files(*pair),
    steps=5,
    accumulate=2,
    checkpoint__every=2,
    evaluate__every=3,
    evaluate__generate=2,
    evaluate__text_metrics=("chrf",),
    evaluate__max_new_tokens=4,
    mesh__fsdp=2,
    mesh__tensor=2,
  )
  file = tiny.write_config(tmp_path / "config.py", config)
  (codes, said), (again, said_again) = two_processes([file, file], tmp_path, 2)
  assert codes == [0, 0], "\n".join(said)
  one = train.finetune(config, tmp_path / "one")
  two = json.loads((tmp_path / "two" / "result.json").read_text())
  assert (two["steps"], two["tokens"]) == (5, one.result["tokens"])
  for name, value in one.result["metrics"].items():
    same = value if isinstance(value, str) else pytest.approx(value, rel=1e-4)
    assert two["metrics"][name] == same, name
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
  assert again == [0, 0] and "going on after update 5" in said_again[0], "\n".join(said_again)


def test_two_processes_that_do_not_agree_both_end_with_a_sentence(files, tmp_path):
  config = tiny.config("bert", "classify", *files("bert", "classify"), steps=2)
  other = dataclasses.replace(config, seed=7)
  configs = [tiny.write_config(tmp_path / f"{c.seed}.py", c) for c in (config, other)]
  ((codes, said),) = two_processes(configs, tmp_path, 1)
  assert codes == [1, 1], "\n".join(said)
  for text in said:  # by another seed the order is another, too
    assert "the config (process 1), the training rows and their order (process 1);" in text
    assert "do not agree with process 0" in text and "the same command" in text
  assert not (tmp_path / "two").exists()
