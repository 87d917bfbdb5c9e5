"""What happens before the first line of work: devices, compilation cache, signals."""

import os
import signal
import warnings

import jax

from jaxsft import config as config_lib
from jaxsft import sharding
from jaxsft.data import fetch
from jaxsft.errors import UsageError


def quiet():
  """Keeps the start-up chatter of TensorFlow and of the tokenizers off the screen."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
  os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
  os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
  warnings.filterwarnings("ignore", message=".*os.fork.*", category=RuntimeWarning)


def compilation_cache():
  """Keeps compiled programs across runs; JAX_COMPILATION_CACHE_DIR moves it ("": off)."""
  if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    jax.config.update("jax_compilation_cache_dir", str(fetch.cache_directory() / "compiled"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def multihost(address):
  """Joins the processes of a run: "auto" on Cloud TPU pods and clusters, or
  "HOST:PORT,INDEX,COUNT" by hand. Must come before anything touches a device."""
  if address == "auto":
    jax.distributed.initialize()
    return
  try:
    host, index, count = address.split(",")
    jax.distributed.initialize(host, int(count), int(index))
  except ValueError:
    raise UsageError(
      f"--multihost={address}: expected auto, or HOST:PORT,INDEX,COUNT"
    ) from None


def mesh_of(sizes):
  """The mesh of a config's `mesh` group over all devices of all processes."""
  if "host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
    # Fake CPU devices share a pool of one thread each. Where a second program waits in it,
    # collectives of the first wait for ever; NPROC is how XLA:CPU is told of more threads.
    os.environ.setdefault("NPROC", "64")
  return sharding.make_mesh(sizes.data, sizes.fsdp, sizes.tensor, sizes.context, sizes.expert)


def mesh_of_flags(fsdp, tensor):
  """The mesh of --fsdp and --tensor; more devices than these split hold copies.

  Raises UsageError where the devices do not divide so.
  """
  for name, parts in (("fsdp", fsdp), ("tensor", tensor)):
    if parts < 1:
      raise UsageError(f"--{name}={parts}: expected at least 1")
  if (count := jax.device_count()) % (fsdp * tensor):
    raise UsageError(
      f"--fsdp={fsdp} --tensor={tensor}: split a model into {fsdp * tensor} parts, found "
      f"{count} devices; expected a divisor of that number"
    )
  return mesh_of(config_lib.Mesh(fsdp=fsdp, tensor=tensor))


class Preemption:
  """Remembers that the process was asked to stop (SIGTERM), so that the loop can save first."""

  def __init__(self):
    self._asked = False

  def __enter__(self):
    self._old = None
    if jax.process_count() > 1:  # jax.distributed listens, and tells all processes
      return self
    try:
      self._old = signal.signal(signal.SIGTERM, self._ask)
    except ValueError:  # not the main thread, as in some notebooks
      pass
    return self

  def __exit__(self, *_):
    if self._old is not None:
      signal.signal(signal.SIGTERM, self._old)

  def _ask(self, *_):
    self._asked = True

  def asked(self, step):
    """Whether to stop after update `step`; the same answer on every process."""
    if jax.process_count() == 1:
      return self._asked
    from jax.experimental import multihost_utils

    return bool(multihost_utils.reached_preemption_sync_point(step))
