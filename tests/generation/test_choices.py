"""The one table of what a call may say of how texts are written."""

import re

import pytest

from jaxsft import command, generate, predict
from jaxsft.errors import UsageError
from jaxsft.generation import choices, sampling


def given(*argv):
  values = command.parse(argv, choices.FLAGS, needs_config=False)[1]
  return choices.of_flags(values, command.named(argv, choices.FLAGS))


def test_every_choice_has_its_flag_and_both_verbs_tell_of_it():
  assert set(choices.RULES) < set(choices.CHOICES) == set(choices.FLAGS)
  assert set(re.findall(r"--(\w+)=", choices.HELP)) == set(choices.CHOICES)
  for verb in (generate, predict):
    assert verb.__doc__.endswith(choices.HELP)


def test_flags_are_what_they_mean():
  assert given() == {}
  assert given("--num_beams=1") == {"num_beams": 1}  # said, be it the default
  said = given("--temperature", "0", "--seed=3", "--early_stopping=never", "--stop=Q:")
  assert said == {"temperature": 0.0, "early_stopping": "never", "stop": "Q:", "seed": 3}
  assert given("--early_stopping=true", '--stop=["a", "b"]') == {
    "early_stopping": True,
    "stop": ("a", "b"),
  }


@pytest.mark.parametrize(
  ("settings", "sentence"),
  [
    ({"num_beam": 2}, "found the setting num_beam; did you mean 'num_beams'"),
    ({"frame": None}, "found the setting frame"),
    ({"max_new_tokens": 0}, "max_new_tokens is 0, expected a whole number of at least 1"),
    ({"num_return": 1.5}, "num_return is 1.5, expected a whole number"),
    ({"seed": 2**32}, "seed is 4294967296, expected .* at most 4294967295"),
    ({"top_k": 5}, "top_k is 5 with temperature 0"),
    ({"num_beams": 4, "temperature": 1.0}, "temperature is 1.0 and num_beams 4"),
  ],
)
def test_what_means_nothing(settings, sentence):
  with pytest.raises(UsageError, match=sentence):
    choices.check(settings)


def test_what_means_something():
  choices.check({})
  choices.check(choices.CHOICES)
  assert sampling.Rules() == sampling.Rules(**{n: choices.CHOICES[n] for n in choices.RULES})
