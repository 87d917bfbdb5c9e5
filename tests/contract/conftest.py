"""What the promises are tested on: tiny files made once, programs kept for subprocesses."""

import pytest

from tests import tiny


@pytest.fixture(scope="package", autouse=True)
def kept_programs(tmp_path_factory):
  """What a subprocess compiled, the next one reads back."""
  directory = tmp_path_factory.mktemp("cache")
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("JAXSFT_CACHE", str(directory))
    patch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")  # read when jax is imported
    patch.setenv("JAX_COMPILATION_CACHE_DIR", str(directory / "compiled"))
    yield directory


@pytest.fixture(scope="package")
def files(tmp_path_factory, kept_programs):
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
