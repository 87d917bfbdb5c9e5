"""Eight fake CPU devices for all tests, and the switch between oracle and no oracle."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Writing thousands of programs to the cache from one process has crashed XLA:CPU (0.10.2).
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
flags = os.environ.get("XLA_FLAGS", "")
if "xla_force_host_platform_device_count" not in flags:
  os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault("NPROC", "64")  # see start.mesh_of

import importlib

import pytest


def required(name, switch):
  """Module `name`; where it is missing: a skip, or a failure if env `switch` is 1."""
  try:
    return importlib.import_module(name)
  except ImportError:
    if os.environ.get(switch) == "1":
      pytest.fail(f"{name} is missing although {switch}=1")
    pytest.skip(f"needs {name}: pip install -e '.[oracle]'")


@pytest.fixture(scope="session")
def oracle():
  """torch, which the models are compared with (extra `oracle`)."""
  return required("torch", "JAXSFT_REQUIRE_ORACLE")
