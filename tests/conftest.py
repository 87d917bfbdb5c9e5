"""Eight fake CPU devices for all tests, and the switch between oracle and no oracle."""

import os
from importlib import metadata

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Compilers hurry, here and in subprocesses: most tests look at values alone. See `optimised`.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Writing thousands of programs to the cache from one process has crashed XLA:CPU (0.10.2).
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
flags = {
  "xla_force_host_platform_device_count": "8",
  "xla_cpu_opt_preset": "CPU_OPT_PRESET_FAST_COMPILE",
}
if metadata.version("jaxlib") < "0.11":  # they take half of the time to compile; later a must
  flags["xla_cpu_use_fusion_emitters"] = "false"
given = os.environ.get("XLA_FLAGS", "")
flags = [f"--{name}={value}" for name, value in flags.items() if name not in given]
os.environ["XLA_FLAGS"] = " ".join([given, *flags]).strip()
os.environ.setdefault("NPROC", "64")  # see start.mesh_of

import gc
import importlib
import pathlib

import jax
import pytest

# Files of more than half a minute come first: a long one at the end would keep one process busy
# while the other has nothing left.
LONG = ("contract/", "test_tpu", "models/", "families/", "generation/", "mixing/")
LONG += ("test_bad_inputs",)


def pytest_collection_modifyitems(items):
  items.sort(key=lambda item: not any(name in item.nodeid for name in LONG))


MAPS = pathlib.Path("/proc/self/maps")


def keep_room_for_programs(most):
  """Forgets compiled programs where they hold more than `most` memory maps.

  Linux gives a process 65,530: beyond them XLA crashes.
  """
  if MAPS.exists() and MAPS.read_bytes().count(b"\n") > most:
    jax.clear_caches()
    gc.unfreeze()
    gc.collect()


@pytest.fixture(autouse=True, scope="module")
def room_for_programs():
  yield
  keep_room_for_programs(20_000)
  gc.freeze()  # a collection need not walk through a million objects that jax keeps anyway


@pytest.fixture(autouse=True)
def room_within_a_module(request):
  yield
  if request.node.get_closest_marker("full"):  # modules of hundreds of tests
    keep_room_for_programs(40_000)


def required(name, switch):
  """Module `name`; where it is missing: a skip, or a failure if env `switch` is 1."""
  try:
    return importlib.import_module(name)
  except ImportError:
    if os.environ.get(switch) == "1":
      pytest.fail(f"{name} is missing although {switch}=1")
    pytest.skip(f"needs {name}: pip install -e '.[oracle]'")


@pytest.fixture
def optimised(monkeypatch):
  """The compiler as users have it, in this process and in those that it starts."""
  monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
  jax.config.update("jax_disable_most_optimizations", False)
  yield
  jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session")
def oracle():
  """torch, which the models are compared with (extra `oracle`)."""
  return required("torch", "JAXSFT_REQUIRE_ORACLE")
