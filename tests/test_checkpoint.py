"""A checkpoint counts when it was committed, read back and matched; nothing else is used."""

import errno
import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from jaxsft import checkpoint, manifest
from jaxsft.errors import JaxsftError

TX = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))


def make_mesh(data, fsdp):
  devices = jax.devices()[: data * fsdp]
  axes = (jax.sharding.AxisType.Auto,) * 2
  return jax.make_mesh((data, fsdp), ("data", "fsdp"), axis_types=axes, devices=devices)


def place(tree, mesh):
  """Rows over fsdp, columns over data, where they divide."""

  def one(x):
    sizes = [mesh.shape["fsdp"], mesh.shape["data"]]
    fits = x.ndim == 2 and x.shape[0] % sizes[0] == 0 and x.shape[1] % sizes[1] == 0
    return jax.device_put(x, NamedSharding(mesh, P("fsdp", "data") if fits else P()))

  return jax.tree.map(one, tree)


def make_state(seed=0):
  keys = jax.random.split(jax.random.key(seed), 3)
  trainable = {
    "embed": {"embedding": jax.random.normal(keys[0], (16, 8))},
    "layers": {"kernel": jax.random.normal(keys[1], (2, 5, 3)).astype(jnp.bfloat16)},
    "head": {"bias": jax.random.normal(keys[2], (3,)), "none": jnp.zeros((0, 4))},
  }
  grads = jax.tree.map(jnp.ones_like, trainable)
  opt_state = TX.update(grads, TX.init(trainable), trainable)[1]
  step = jnp.asarray(seed, jnp.int32)
  return {"step": step, "trainable": trainable, "opt_state": opt_state}


def abstract(state):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )


def same(a, b):
  equal = lambda x, y: x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()
  return jax.tree.structure(a) == jax.tree.structure(b) and jax.tree.all(
    jax.tree.map(equal, a, b)
  )


@pytest.fixture
def run(tmp_path):
  """A run directory with steps 1 and 2, and the lines it said."""
  said = []
  with checkpoint.Checkpoints(tmp_path, keep=2, say=said.append) as saves:
    for step in (1, 2):
      saves.save(step, make_state(step), {"step": step})
  assert said == []
  return tmp_path, said


def data_file(directory):
  """The largest file that orbax wrote."""
  files = [p for p in (directory / "arrays").rglob("*") if p.is_file()]
  return max(files, key=lambda p: p.stat().st_size)


def test_round_trip_keeps_structure_bits_and_numbers(tmp_path):
  state, loop = make_state(3), {"tokens": 2**40 + 1, "best": None, "rates": (0.1,)}
  with checkpoint.Checkpoints(tmp_path) as saves:
    assert saves.latest() is None
    saves.save(3, state, loop)
    assert saves.latest() == 3
    found, found_loop = saves.restore(3, abstract(state))
  assert same(found, state)
  assert type(found["opt_state"][1][0]) is type(state["opt_state"][1][0])
  assert found_loop == loop | {"rates": [0.1]} and isinstance(found_loop["tokens"], int)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 2), (2, 4)])
def test_saved_on_eight_devices_restores_on_others(tmp_path, shape):
  state = place(make_state(), make_mesh(4, 2))
  assert len(state["trainable"]["embed"]["embedding"].sharding.device_set) == 8
  with checkpoint.Checkpoints(tmp_path) as saves:
    saves.save(5, state, {})
    there = abstract(place(make_state(), make_mesh(*shape)))
    found, _ = saves.restore(5, there)
  assert same(found, state)
  assert jax.tree.map(lambda x: x.sharding, found) == jax.tree.map(lambda x: x.sharding, there)


def test_a_leaf_without_sharding_goes_to_the_first_device(run):
  path, _ = run
  shapes = jax.eval_shape(make_state)
  with checkpoint.Checkpoints(path) as saves:
    found, _ = saves.restore(2, shapes)
  assert same(found, make_state(2))
  assert found["step"].sharding == SingleDeviceSharding(jax.devices()[0])


def test_donating_the_state_after_saving_changes_nothing(tmp_path):
  state, expected = make_state(1), make_state(1)
  with checkpoint.Checkpoints(tmp_path) as saves:
    saves.save(1, state, {})
    jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)(state)
    assert same(saves.restore(1, abstract(expected))[0], expected)


def edit(state, path, value):
  state["trainable"] = dict(state["trainable"], **{path: value})
  return state


@pytest.mark.parametrize(
  ("path", "value", "words"),
  [
    ("embed", {"embedding": jnp.zeros((15, 8))}, ["trainable/embed/embedding", "[16, 8]"]),
    ("embed", {"embedding": jnp.zeros((16, 8), jnp.bfloat16)}, ["dtype float32"]),
    ("embed", {"other": jnp.zeros((16, 8))}, ["trainable/embed/embedding", "not have"]),
    ("extra", jnp.zeros(3), ["trainable/extra", "needs"]),
  ],
)
def test_restore_is_strict_about_names_shapes_and_types(run, path, value, words):
  with checkpoint.Checkpoints(run[0]) as saves, pytest.raises(JaxsftError) as error:
    saves.restore(2, abstract(edit(make_state(), path, value)))
  assert all(word in str(error.value) for word in words), error.value


def flip(directory):
  path = data_file(directory)
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 4
  path.write_bytes(bytes(content))


def truncate(directory):
  os.truncate(data_file(directory), data_file(directory).stat().st_size // 2)


def edit_manifest(directory):
  path = directory / "manifest.json"
  path.write_text(path.read_text().replace('"step": 2', '"step": 3'))


def edit_loop(directory):
  (directory / "loop.json").write_text('{"step": 1}')


DAMAGE = {
  "flip": (flip, "changed"),
  "truncate": (truncate, "changed"),
  "delete": (lambda d: data_file(d).unlink(), "missing"),
  "delete all": (lambda d: shutil.rmtree(d / "arrays"), "missing"),
  "no manifest": (lambda d: (d / "manifest.json").unlink(), "manifest.json is missing"),
  "torn manifest": (lambda d: os.truncate(d / "manifest.json", 40), "cannot be read"),
  "edited manifest": (edit_manifest, "manifest.json was changed"),
  "edited loop": (edit_loop, "loop.json was changed"),
  "added": (lambda d: (d / "arrays" / "x").write_text("x"), "was added"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_seen_said_and_passed_over(run, damage):
  path, said = run
  act, words = DAMAGE[damage]
  act(path / "checkpoints" / "2")
  with checkpoint.Checkpoints(path, say=said.append) as saves:
    assert saves.latest() == 1
    assert same(saves.restore(1, abstract(make_state()))[0], make_state(1))
    with pytest.raises(JaxsftError, match=r"step 2 .* cannot be used") as error:
      saves.restore(2, abstract(make_state()))
  assert words in str(error.value) and "Steps there: 1, 2" in str(error.value)
  assert "step 2" in said[0] and words in said[0] and "step 1" in said[1]


def test_a_step_that_is_not_there_names_those_that_are(run):
  with checkpoint.Checkpoints(run[0]) as saves:
    with pytest.raises(JaxsftError, match=r"manifest.json is missing.*Steps there: 1, 2"):
      saves.restore(7, abstract(make_state()))


def test_retention_keeps_the_newest_and_best_is_apart(tmp_path):
  with checkpoint.Checkpoints(tmp_path, keep=2) as saves:
    for step, value in ((1, 0.9), (2, 0.8), (3, 0.7), (4, 0.6)):
      state = make_state(step)
      saves.save(step, state, {})
      if step == 1:
        info = {"step": step, "metric": "accuracy", "value": value}
        saves.save_best(state["trainable"], info)
    assert saves.steps() == [3, 4] and saves.latest() == 4
    assert saves.best() == info
    params, found = saves.restore_best(abstract(make_state()["trainable"]))
  assert found == info and same(params, make_state(1)["trainable"])


def test_retention_never_counts_a_damaged_step(run):
  path, said = run
  flip(path / "checkpoints" / "2")
  with checkpoint.Checkpoints(path, keep=2, say=said.append) as saves:
    assert saves.latest() == 1
    saves.save(3, make_state(3), {})
    assert saves.steps() == [1, 3]
  assert any("removing the damaged step 2" in line for line in said)


def test_a_newer_damaged_step_does_not_push_out_what_was_just_saved(run):
  path, said = run
  (path / "checkpoints" / "2").rename(path / "checkpoints" / "9")
  flip(path / "checkpoints" / "9")
  with checkpoint.Checkpoints(path, keep=1, say=said.append) as saves:
    saves.save(2, make_state(2), {})
    assert saves.steps() == [2] and saves.latest() == 2


def test_saving_a_step_again_replaces_it(run):
  path, _ = run
  with checkpoint.Checkpoints(path) as saves:
    saves.save(2, make_state(8), {"again": 1})
    found, loop = saves.restore(2, abstract(make_state()))
  assert same(found, make_state(8)) and loop == {"again": 1}
  assert sorted(p.name for p in (path / "checkpoints").iterdir()) == ["1", "2"]


def test_best_replaces_best_and_is_verified(tmp_path):
  said = []
  with checkpoint.Checkpoints(tmp_path, say=said.append) as saves:
    assert saves.best() is None
    with pytest.raises(JaxsftError, match="no best parameters"):
      saves.restore_best({})
    for step, value in ((1, 0.5), (2, 0.75)):
      info = {"step": step, "metric": "accuracy", "value": value}
      saves.save_best(make_state(step)["trainable"], info)
    assert saves.best()["value"] == 0.75
  assert [p.name for p in (tmp_path / "best").iterdir()] == ["2"]
  flip(tmp_path / "best" / "2")
  with checkpoint.Checkpoints(tmp_path, say=said.append) as saves:
    assert saves.best() is None
  assert "best parameters of step 2" in said[0] and "changed" in said[0]


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "0.9"])
def test_what_is_not_a_number_is_never_best(tmp_path, value):
  with checkpoint.Checkpoints(tmp_path) as saves, pytest.raises(JaxsftError, match="finite"):
    saves.save_best(make_state()["trainable"], {"step": 1, "value": value})
  assert not (tmp_path / "best").exists()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_state_that_is_not_finite_is_not_saved(run, bad):
  path, _ = run
  state = make_state(3)
  state["trainable"]["embed"]["embedding"] = jnp.ones((16, 8)).at[3, 2].set(bad)
  with checkpoint.Checkpoints(path) as saves:
    with pytest.raises(JaxsftError, match=r"NaN or infinity in trainable/embed/embedding"):
      saves.save(3, state, {})
    assert saves.latest() == 2


def untouched(path, saves):
  assert sorted(p.name for p in (path / "checkpoints").iterdir()) == ["1", "2"]
  assert saves.latest() == 2
  assert same(saves.restore(1, abstract(make_state()))[0], make_state(1))


@pytest.mark.parametrize("name", ["write", "sync"])
def test_a_full_disk_leaves_earlier_checkpoints(run, monkeypatch, name):
  path, _ = run

  def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")

  with checkpoint.Checkpoints(path) as saves:
    monkeypatch.setattr(manifest, name, full)
    with pytest.raises(JaxsftError, match=r"step 3 in .*No space left.*--workdir") as error:
      saves.save(3, make_state(3), {})
    assert error.value.exit_code == 1 and str(path) in str(error.value)
    monkeypatch.undo()
    untouched(path, saves)


def test_what_reads_back_differently_does_not_count(run, monkeypatch):
  path, _ = run
  with checkpoint.Checkpoints(path) as saves:
    load = saves._load

    def wrong(arrays, wanted):
      tree = load(arrays, wanted)
      bits = tree["trainable"]["embed"]["embedding"]
      tree["trainable"]["embed"]["embedding"] = bits.at[7, 7].multiply(1.0000001)
      return tree

    monkeypatch.setattr(saves, "_load", wrong)
    with pytest.raises(JaxsftError, match="embedding read back from disk as"):
      saves.save(3, make_state(3), {})
    with pytest.raises(JaxsftError, match=r"embedding of step 2 .* was restored as"):
      saves.restore(2, abstract(make_state()))
    monkeypatch.undo()
    untouched(path, saves)


def test_reading_back_goes_in_groups(tmp_path, monkeypatch):
  monkeypatch.setattr(checkpoint, "READ_BACK_BYTES", 600)
  sizes = []
  with checkpoint.Checkpoints(tmp_path) as saves:
    load = saves._load

    def count(arrays, wanted):
      sizes.append(sum(x.nbytes for x in wanted.values()))
      return load(arrays, wanted)

    monkeypatch.setattr(saves, "_load", count)
    saves.save(1, make_state(), {})
  leaves = jax.tree.leaves(make_state())
  assert sum(sizes) == sum(x.nbytes for x in leaves)
  assert max(sizes) <= max(600, max(x.nbytes for x in leaves)) and len(sizes) == 3


@pytest.mark.parametrize("loop", [{"best": float("nan")}, {"n": np.int32(3)}, {1: 2}])
def test_a_loop_that_json_does_not_keep_is_refused(run, loop):
  path, _ = run
  with checkpoint.Checkpoints(path) as saves:
    with pytest.raises(JaxsftError, match="step 3"):
      saves.save(3, make_state(), loop)
    untouched(path, saves)


def test_read_only_touches_nothing(run):
  path, _ = run
  (path / "checkpoints" / "tmp-3").mkdir()
  with checkpoint.Checkpoints(path, read_only=True) as saves:
    assert saves.latest() == 2
    with pytest.raises(JaxsftError, match="reading only"):
      saves.save(3, make_state(), {})
  assert (path / "checkpoints" / "tmp-3").exists()


def test_leftovers_go_but_not_what_is_not_ours(run):
  path, said = run
  (path / "checkpoints" / "tmp-3" / "arrays").mkdir(parents=True)
  (path / "checkpoints" / "tmp-notes").mkdir()
  (path / "checkpoints" / "2").rename(path / "checkpoints" / "old-2")  # killed in between
  with checkpoint.Checkpoints(path, say=said.append) as saves:
    assert saves.latest() == 2
  names = sorted(p.name for p in (path / "checkpoints").iterdir())
  assert names == ["1", "2", "tmp-notes"] and "tmp-3" in said[0]


def test_keep_none_is_refused(tmp_path):
  with pytest.raises(JaxsftError, match=r"checkpoint.keep = 0"):
    checkpoint.Checkpoints(tmp_path, keep=0)


def test_checksum_sees_place_and_bit_and_not_the_mesh():
  x = jax.random.normal(jax.random.key(0), (16, 8))
  one = lambda y: np.asarray(manifest.checksum(y))[:2].tolist()
  for changed in (x.at[0].set(x[1]).at[1].set(x[0]), x.T.reshape(16, 8), -x, x.at[3, 3].add(1)):
    a, b = one(x), one(changed)
    assert a[0] != b[0] and a[1] != b[1]
  assert one(jnp.zeros(4)) != one(-jnp.zeros(4)) and one(jnp.zeros(4)) != one(jnp.zeros(5))
  assert one(x) == one(place(x, make_mesh(4, 2))) == one(place(x, make_mesh(1, 2)))


def test_another_run_is_not_resumed():
  settings = lambda rate: {"optim": {"peak_lr": rate}, "tune": {"train": ("a", "b")}}
  now = {"config": settings(1e-5), "data": "a", "weights": "w"}
  saved = {"hashes": json.loads(json.dumps(now))}
  checkpoint.check_loop(saved, now)
  with pytest.raises(JaxsftError, match=r"the data differ.*--workdir") as error:
    checkpoint.check_loop(saved, now | {"data": "b"})
  assert "weights" not in str(error.value)
  with pytest.raises(JaxsftError, match=r"optim.peak_lr: 1e-05 then, 3e-05 now") as error:
    checkpoint.check_loop(saved, now | {"config": settings(3e-5)})
  assert "tune" not in str(error.value)
  with pytest.raises(JaxsftError, match="the settings and the data and the base weights"):
    checkpoint.check_loop({}, now)


SCRIPT = """
import os, resource, signal, sys, threading
sys.path[:0] = [{root!r}, {tests!r}]
import test_checkpoint as t
from jaxsft import checkpoint, manifest
die = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)

def after(module, name, times=1):
  whole, calls = getattr(module, name), []
  def killed(*args, **kwargs):
    whole(*args, **kwargs)
    calls.append(1)
    if len(calls) == times:
      die()
  setattr(module, name, killed)

with checkpoint.Checkpoints({path!r}) as saves:
  saves._orbax
  {inject}
  saves.save(3, t.make_state(3), dict(step=3))
"""

FULL = pytest.mark.full  # a process each: the others run with `-m full`
KILLS = [  # where it dies, code, newest step afterwards
  pytest.param("after(checkpoint, '_make_empty')", 2, id="arrays begun", marks=FULL),
  pytest.param(
    "checkpoint._make_empty = lambda d: (d.mkdir(), threading.Timer(0.02, die).start()); "
    "checkpoint._commit = die",
    2,
    id="inside orbax",
  ),
  pytest.param("checkpoint.Checkpoints._read_back = die", 2, id="written", marks=FULL),
  pytest.param("checkpoint._commit = die", 2, id="read back", marks=FULL),
  pytest.param("manifest.write = die", 2, id="before the manifest", marks=FULL),
  pytest.param("os.rename = die", 2, id="before the name"),
  pytest.param("checkpoint._remove = die", 3, id="after the name", marks=FULL),
  pytest.param("after(os, 'rename', 2)", 3, id="while removing"),
]


def run_script(path, inject):
  tests = os.path.dirname(__file__)
  root = os.path.dirname(tests)
  code = SCRIPT.format(root=root, tests=tests, path=str(path), inject=inject)
  env = dict(os.environ, JAX_PLATFORMS="cpu")
  command = [sys.executable, "-c", code]
  return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(("inject", "newest"), KILLS)
def test_killed_while_saving(run, inject, newest):
  path, said = run
  done = run_script(path, inject)
  assert done.returncode == -9, done.stderr
  with checkpoint.Checkpoints(path, say=said.append) as saves:
    assert saves.latest() == newest
    state, loop = saves.restore(newest, abstract(make_state()))
    assert same(state, make_state(newest)) and loop == {"step": newest}
    saves.save(3, make_state(3), {"step": 3})  # and going on works
    assert saves.steps() == [2, 3]
  assert sorted(p.name for p in (path / "checkpoints").iterdir()) == ["2", "3"]
  assert all("interrupted save" in line for line in said)


def test_a_file_that_cannot_grow_is_an_error_in_words(run):
  """A real failed write inside orbax: files may not exceed 300 bytes."""
  path, _ = run
  done = run_script(path, "resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))")
  assert done.returncode == 1
  words = next(x for x in done.stderr.splitlines() if "JaxsftError: step 3 in" in x)
  assert "File too large" in words and "tensorstore" not in words and len(words) < 700
  assert "ERROR:absl" not in done.stderr
  with checkpoint.Checkpoints(path) as saves:
    untouched(path, saves)


def test_orbax_is_not_imported_before_it_is_needed():
  code = "import sys, jaxsft.checkpoint; sys.exit('orbax' in sys.modules)"
  root = os.path.dirname(os.path.dirname(__file__))
  assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
