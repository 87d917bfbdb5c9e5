"""What the promises are tested on: tiny files made once, and compilers told to hurry."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jaxsft import start
from tests import tiny


@pytest.fixture(scope="session", autouse=True)
def quick_compilations(tmp_path_factory):
  """No optimisation passes, and what was compiled once is read back, also by subprocesses."""
  directory = tmp_path_factory.mktemp("cache")
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("JAXSFT_CACHE", str(directory))
    patch.setenv("JAX_COMPILATION_CACHE_DIR", str(directory / "compiled"))
    patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(directory / "compiled"))
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    patch.setattr(start, "compilation_cache", lambda: None)  # it keeps only slow ones
    compilation_cache.reset_cache()
    yield directory
    jax.config.update("jax_compilation_cache_dir", before)
    jax.config.update("jax_disable_most_optimizations", False)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def files(tmp_path_factory, quick_compilations):
  """(checkpoint, rows) of a pair of tiny.PAIRS, made when first asked for."""
  root = tmp_path_factory.mktemp("tiny")

  def make(family, task):
    model, data = root / family, root / f"{task}.jsonl"
    if not model.exists():
      tiny.checkpoint(model, family)
    if not data.exists():
      tiny.rows(data, task)
    return model, data

  return make
