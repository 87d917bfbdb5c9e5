"""What a checkpoint asks of generation: followed, or said."""

from types import SimpleNamespace

import pytest

from jaxsft import families
from jaxsft.errors import JaxsftError
from jaxsft.generation import defaults, frames
from tests import tiny as checkpoints
from tests.families import encoder_decoder_published as published


def asked(config, generation=None, given=None):
  base = SimpleNamespace(
    config=config,
    generation=generation or {},
    arch=families.FAMILIES[config["model_type"]].architecture(config),
    path="dir",
  )
  return defaults.settings_of(base, given or {})


def test_what_published_checkpoints_ask_for():
  cnn = published.BART_BASE | {"length_penalty": 2.0, "max_length": 142, "min_length": 56}
  followed = {
    "num_beams": 4,
    "early_stopping": True,
    "no_repeat_ngram_size": 3,
    "length_penalty": 2.0,
    "max_new_tokens": 141,  # without the token that begins
    "min_new_tokens": 55,
  }
  assert asked(cnn) == (followed, {})
  assert asked(cnn, {"num_beams": 2, "max_new_tokens": 30})[0] == followed | {
    "num_beams": 2,
    "max_new_tokens": 30,
    "min_new_tokens": 30,  # not above the limit
  }
  # what is drawn is not searched for
  found, rest = asked(cnn, given={"temperature": 0.7})
  assert "num_beams" not in found and rest["num_beams"] == 4
  assert asked(published.T5_SMALL) == ({}, {})
  # nor does it stop a search that the call does without, or outlast the call's limit
  found, rest = asked(cnn, given={"num_beams": 1, "max_new_tokens": 8})
  assert "early_stopping" not in found and rest["early_stopping"] is True
  assert found["min_new_tokens"] == 8
  long = asked(published.T5_SMALL, {"min_new_tokens": 99})[0]  # more than answers have else
  assert long == {"min_new_tokens": 99, "max_new_tokens": 99}


def test_what_is_not_followed():
  config = checkpoints.LLAMA | {"vocab_size": 61}
  chat_model = {
    "do_sample": True,
    "temperature": 0.6,
    "top_p": 0.95,
    "repetition_penalty": 1.05,
    "max_length": 4096,
    "eos_token_id": [1, 2],
    "transformers_version": "5.0",
    "suppress_tokens": [3],
    "stop_strings": ["Q:"],
    "own_idea": 7,
  }
  found, rest = asked(config, chat_model)
  assert found == {"repetition_penalty": 1.05, "stop": ["Q:"]}
  drawn = {"do_sample": True, "temperature": 0.6, "top_p": 0.95}
  assert rest == drawn | {"max_length": 4096, "own_idea": 7}
  assert asked(config, chat_model, {"temperature": 0.5, "top_p": 1.0})[1] == {
    "max_length": 4096,
    "own_idea": 7,
  }
  assert asked(config, chat_model | {"do_sample": False})[1] == {
    "max_length": 4096,
    "own_idea": 7,
  }


def test_several_tokens_may_be_forced_at_the_end():
  """One id or a list of them, as transformers takes them."""
  config = published.BART_BASE
  arch = families.FAMILIES["bart"].architecture(config)
  for ids, last in ((2, (2,)), ([2], (2,)), ([2, 5], (2, 5)), (None, ())):
    asks = {"forced_eos_token_id": ids}
    base = SimpleNamespace(config=config | asks, generation={}, arch=arch, path="dir")
    assert frames.frame_of(base).last == last
  base = SimpleNamespace(
    config=config, generation={"forced_eos_token_id": ["a"]}, arch=arch, path="dir"
  )
  with pytest.raises(JaxsftError, match="forced_eos_token_id is 'a', expected the id of one"):
    frames.frame_of(base)
