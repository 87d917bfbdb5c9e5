"""What a checkpoint asks of generation: followed, or said."""

import re
from types import SimpleNamespace

import pytest

from jaxsft import families
from jaxsft.errors import JaxsftError
from jaxsft.generation import choices, defaults, frames
from tests import tiny as checkpoints
from tests.families import encoder_decoder_published as published

LLAMA = checkpoints.LLAMA | {"vocab_size": 61}


def opened(config, generation=None):
  return SimpleNamespace(
    config=config,
    generation=generation or {},
    arch=families.FAMILIES[config["model_type"]].architecture(config),
    path="dir",
    tokenizer=checkpoints.letter_tokenizer(),
  )


def asked(config, generation=None, given=None):
  return defaults.settings_of(opened(config, generation), given or {})


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
  config = LLAMA
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


SEARCH = {"num_beams": 4, "early_stopping": True, "length_penalty": 2.0}


@pytest.mark.parametrize(
  ("generation", "given", "found", "rest"),
  [
    (SEARCH, {"stop": "Q:"}, {}, SEARCH),
    (SEARCH, {"stop": ["<|im_end|>", "Q:"], "length_penalty": 1.5}, {}, ["num_beams"]),
    (SEARCH, {"stop": "<|im_end|>"}, SEARCH, {}),  # an id, which ends beams as well
    (SEARCH, {"stop": ()}, SEARCH, {}),
    (SEARCH, {"stop": "Q:", "num_beams": 1}, {"length_penalty": 2.0}, ["early_stopping"]),
    (SEARCH | {"stop_strings": ["Q:"]}, {"num_beams": 2}, SEARCH, {"stop_strings": ["Q:"]}),
    (SEARCH | {"stop_strings": ["Q:"]}, {"num_beams": 1}, {"stop": ["Q:"]}, ["early_stopping"]),
    ({"stop_strings": ["Q:"]}, {}, {"stop": ["Q:"]}, {}),
    # what it asks for itself is its own contradiction, and stays one
    (SEARCH | {"stop_strings": ["Q:"]}, {}, SEARCH | {"stop": ["Q:"]}, {}),
  ],
)
def test_the_call_comes_before_what_cannot_be_beside_it(generation, given, found, rest):
  """Beams and stop strings: whichever the call gives, the checkpoint's other one goes."""
  ours, others = asked(LLAMA, generation, given)
  assert ours | given == ours | found | given and set(found) - set(given) <= set(ours)
  if isinstance(rest, list):
    assert set(rest) <= set(others)
  else:
    assert others == rest
  assert not {*others} & {*given, *ours}


def test_where_it_stands_and_what_can_be_done():
  """One sentence for what stands in one file and has one remedy."""
  config = LLAMA | {"num_return_sequences": 3, "top_p": 0.9}
  generation = {"do_sample": True, "top_k": 7, "max_length": 99, "typical_p": 0.5}
  base = opened(config, generation | {"diversity_penalty": 0.5, "top_p": None})
  say = lambda given, **how: defaults.sentences(
    base, defaults.settings_of(base, given)[1], given, **how
  )
  every = {"can": tuple(choices.CHOICES)}
  file, other = "dir/generation_config.json asks for ", "dir/config.json asks for "
  ends = " when it generates, which is not followed: "
  draw = "give a temperature, and top_k, top_p or min_p, with the call to draw"
  none = "jaxsft has no such setting"
  assert set(say({}, **every)) == {
    f"{file}do_sample=True, top_k=7{ends}{draw}",
    f"{other}top_p=0.9{ends}{draw}",
    f"{file}max_length=99{ends}give max_new_tokens with the call",
    f"{other}num_return_sequences=3{ends}give num_return with the call",
    f"{file}diversity_penalty=0.5, typical_p=0.5{ends}{none}",
  }
  # whoever does what is advised hears no more of it
  advised = {"temperature": 0.5, "top_k": 7, "top_p": 0.9}
  advised |= {"max_new_tokens": 9, "num_return": 3}
  assert say(advised, **every) == [f"{file}diversity_penalty=0.5, typical_p=0.5{ends}{none}"]
  held = say({}, can=("max_new_tokens", "num_beams", "length_penalty"))
  assert f"{file}do_sample=True, top_k=7{ends}it cannot be asked for here" in held
  assert f"{file}max_length=99{ends}give max_new_tokens with the call" in held


@pytest.mark.parametrize(
  ("generation", "given", "said"),
  [
    ({"num_beams": 4}, {"temperature": 0.5}, "num_beams=4 .*give no temperature to have it"),
    ({"num_beams": 4}, {"stop": "Q:"}, "num_beams=4 .*give no stop to have it"),
    ({"early_stopping": True}, {}, "early_stopping=True .*give num_beams above 1"),
    ({"stop_strings": ["Q:"]}, {"num_beams": 2}, "stop_strings=.*give num_beams=1 to have"),
  ],
)
def test_what_one_cannot_have_beside_the_other(generation, given, said, capsys):
  base = opened(LLAMA, generation)
  defaults._said.clear()
  defaults.followed(base, given)
  assert re.search(said, capsys.readouterr().err)
  defaults.followed(base, given)
  assert not capsys.readouterr().err  # once


def test_a_length_that_another_one_replaces_is_not_asked_for():
  """transformers goes by max_new_tokens where there are both."""
  both = {"max_length": 99, "max_new_tokens": 5}
  assert asked(LLAMA, both) == ({"max_new_tokens": 5}, {})
  assert asked(LLAMA, {"max_length": 99}, {"max_new_tokens": 5}) == ({}, {})
  assert asked(LLAMA, {"max_length": 99}) == ({}, {"max_length": 99})


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
