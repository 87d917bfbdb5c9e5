"""What a call may say of how texts are written: one table for every verb and for Python.

What a call does not say is the checkpoint's, see defaults.py.
"""

import dataclasses

from jaxsft.config import values
from jaxsft.generation import sampling

LIMIT = 64  # new tokens where neither the call nor the checkpoint says
RULES = tuple(field.name for field in dataclasses.fields(sampling.Rules))
CHOICES = {  # name -> what it is where nobody says
  "max_new_tokens": LIMIT,
  **{name: getattr(sampling.Rules, name) for name in RULES},
  "stop": None,
  "num_return": 1,
  "seed": 0,
}
FLAGS = CHOICES | {"early_stopping": None}  # its text may be true, false or never
HELP = """
How texts are written; what is not given is as the checkpoint's generation_config.json has it,
but for drawing:
  --max_new_tokens=64         most tokens of a text
  --temperature=0.7           draws; 0, the default, takes the likeliest token each time
  --top_k=40 --top_p=0.9 --min_p=0.05            draws among the likeliest only
  --seed=0                    of what is drawn: the same prompt and seed draw the same
  --num_beams=4               searches with beams; 1 does not
  --length_penalty=1.0        more favours longer texts (scores are over tokens**length_penalty)
  --early_stopping=true       ends a search early: true, false or never
  --repetition_penalty=1.1 --no_repeat_ngram_size=3    against repetitions
  --min_new_tokens=8          fewer tokens end no text
  --stop="Q:"                 a text ends before it; or several, --stop='["\\n\\n", "Q:"]'
  --num_return=1              so many texts with their scores, the best first; beams may find
                              fewer that end
"""


def of_flags(flags, named):
  """{name: value} of the CHOICES among parsed flags, those that were `named`."""
  given = {name: flags[name] for name in CHOICES if name in named}
  if "early_stopping" in given:
    kind = bool | str
    given["early_stopping"] = values.parse(given["early_stopping"], kind, "--early_stopping")
  if given.get("stop", "").startswith("["):
    given["stop"] = values.parse(given["stop"], tuple[str, ...], "--stop")
  return given


def check(given):
  """Raises UsageError for choices that mean nothing, whatever the checkpoint asks for."""
  sampling.check_names(given, CHOICES)
  sampling.Rules(**{name: given[name] for name in RULES if name in given})
  for name, least in (("max_new_tokens", 1), ("num_return", 1)):
    sampling.whole(name, given.get(name, CHOICES[name]), least)
  sampling.whole("seed", given.get("seed", CHOICES["seed"]), 0, 2**32 - 1)
