"""A tiny chat model that the tests of generation share."""

import pytest

import jaxsft
from tests import tiny as checkpoints


@pytest.fixture(scope="module")
def chatty(tmp_path_factory):
  path = checkpoints.checkpoint(tmp_path_factory.mktemp("chat") / "model", "llama")
  return jaxsft.load(str(path))
