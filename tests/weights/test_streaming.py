"""Peak memory of loading, measured in a process of its own.

What counts is memory that the process owns (RssAnon): the pages of a memory-mapped file are
the kernel's cache and would hide a copy as well as pretend one. It is read at every read of
a slice, when the buffers are full, and by a thread in between.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from jaxsft import weights

L, D, F, V = 4, 1024, 1280, 5120
SHARD = 21 * 10**6
SCRIPT = """
import json, os, pathlib, sys, threading
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from jaxsft import weights
from jaxsft.families import Name
from jaxsft.weights import params as params_lib

L, D, F, V = {sizes}
SHAPES = {{"embed": (V, D), "up": (L, F, D), "gate": (L, F, D), "down": (L, D, F)}}
NAMES = [Name(f"layers.{{{{i}}}}.{{x}}.weight", x, "base") for x in ("up", "gate", "down")]
NAMES += [Name("embed.weight", "embed", "base")]  # last: beside all that the devices hold

def owned():
  for line in open("/proc/self/status"):
    if line.startswith("RssAnon"):
      return int(line.split()[1]) * 1024

peak, done = 0, threading.Event()
def look():
  global peak
  peak = max(peak, owned())
def watch():
  while not done.wait(0.0005):
    look()

def load(path, shapes, split):
  opened, reads = weights.open_source(path), []
  def read_slice(name, index):
    values = opened.read_slice(name, index)
    reads.append(values.nbytes)
    look()
    return values
  source = weights.Source(opened.path, opened.config, opened.tensors, read_slice)
  mesh = jax.make_mesh((8,), ("fsdp",), devices=jax.devices()[:8])
  last = lambda shape: NamedSharding(mesh, P(*[None] * (len(shape) - 1), "fsdp"))
  where = {{k: last(s) for k, s in shapes.items()}}
  shapes = {{k: jax.ShapeDtypeStruct(s, np.float32) for k, s in shapes.items()}}
  params, _ = weights.load(source, NAMES, shapes, shardings=where if split else None)
  return params, sum(reads)

path, split, spoil = pathlib.Path(sys.argv[1]), sys.argv[2] == "split", sys.argv[3]
small = {{"embed": (16, 8), "up": (1, 8, 8), "gate": (1, 8, 8), "down": (1, 8, 8)}}
load(path / "small", small, split)  # threads and caches that stay
if spoil == "copy":  # a whole leaf on the host beside its parts
  real = weights.params._reader
  hold = []
  def reader(source, leaf, dtype):
    hold.append(real(source, leaf, dtype)(tuple(slice(None) for _ in leaf.shape)))
    del hold[:-1]
    return lambda index: hold[-1][index].copy()
  weights.params._reader = reader
before = owned()
threading.Thread(target=watch, daemon=True).start()
params, read = load(path / "large", SHAPES, split)
after = owned()
done.set()
print(json.dumps({{"peak": peak - before, "held": after - before, "read": read}}))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  """73 MB in four files and an index, and a tiny one of the same names."""
  root = tmp_path_factory.mktemp("streaming")
  rng = np.random.default_rng(0)
  for kind, (layers, width, mlp, vocab) in {
    "large": (L, D, F, V),
    "small": (1, 8, 8, 16),
  }.items():
    shapes = {"embed.weight": (vocab, width)}
    for x, shape in {"up": (mlp, width), "gate": (mlp, width), "down": (width, mlp)}.items():
      shapes |= {f"layers.{i}.{x}.weight": shape for i in range(layers)}
    tensors = (
      (n, rng.random(s, np.float32).astype("bfloat16" if n.startswith("embed") else "f4"))
      for n, s in shapes.items()
    )
    weights.save_safetensors(root / kind, tensors, shard_bytes=SHARD)
    (root / kind / "config.json").write_text('{"model_type": "toy"}')
  return root


def measure(checkpoint, split, spoil="nothing"):
  # The fixed threshold gives freed memory back at once, as for leaves of more than 32 MB.
  script = SCRIPT.format(sizes=(L, D, F, V))
  done = subprocess.run(
    [sys.executable, "-c", script, str(checkpoint), split, spoil],
    capture_output=True,
    text=True,
    env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"},
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


DEVICES = 4 * (V * D + 3 * L * F * D)  # bytes of all leaves in float32
LEAF = 4 * V * D  # of the largest, about as much as the largest file


@pytest.mark.parametrize(("split", "beside"), [("whole", 1.3 * LEAF), ("split", 0.5 * LEAF)])
def test_loading_holds_no_second_copy(checkpoint, split, beside):
  """One leaf on its way to one device; an eighth of one where a leaf is split over eight."""
  found = measure(checkpoint, split)
  assert found["read"] == DEVICES - 2 * V * D  # once; the embedding's file is bfloat16
  assert found["held"] > 0.98 * DEVICES  # on the devices, and not in a mapped file
  assert found["peak"] < DEVICES + beside, found


@pytest.mark.parametrize(("split", "beside"), [("whole", 1.3 * LEAF), ("split", 0.5 * LEAF)])
def test_the_measure_sees_a_copy(checkpoint, split, beside):
  found = measure(checkpoint, split, "copy")
  assert found["peak"] > DEVICES + beside, found
