"""Text from a language model, greedy, drawn or searched for with beams.

  python -m jaxsft.generate --model=DIR_OR_NAME --prompt="…" [--max_new_tokens=64]
                            [--temperature=0.7] [--top_k=40] [--top_p=0.9] [--min_p=0.05]
                            [--num_beams=4] [--length_penalty=1.0] [--early_stopping=true]
                            [--repetition_penalty=1.1] [--no_repeat_ngram_size=3]
                            [--min_new_tokens=8] [--stop="Q:" or --stop='["\\n\\n", "Q:"]']
                            [--num_return=1] [--seed=0] [--sha256=…] [--revision=…]

The prompt becomes one user message if the tokenizer has a chat template, else it is plain
text that the model continues, or that an encoder-decoder reads, behind the instruction that it
was trained with (`prefix` in config.json) unless it begins so. Temperature 0, the default,
takes the likeliest token. Settings that are not given are those of the checkpoint's
generation_config.json, but for sampling; see generation/defaults.py. With num_return above 1
every line is a score and an answer, as JSON, the best first; there are fewer lines where beams
find no more answers that end. The same prompt and seed draw the same.
"""

import dataclasses
import json

from jaxsft import command, pretrained, start
from jaxsft.config import values
from jaxsft.generation import defaults, sampling, writing


def _printer():
  """(on_text that prints what is new of the one text, list of what it has printed)."""
  printed = [""]

  def on_text(_, text):
    if text.startswith(printed[0]):
      print(text[len(printed[0]) :], end="", flush=True)
    else:  # the tokenizer has taken back a blank
      print(f"\n{text}", end="", flush=True)
    printed[0] = text

  return on_text


def _settings(argv):
  """Flags of the verb by name; those not given are None, so that the checkpoint decides."""
  rules = {k.name: k.default for k in dataclasses.fields(sampling.Rules)}
  flags = {
    "model": "",
    "prompt": "",
    "max_new_tokens": defaults.LIMIT,
    "num_return": 1,
    "seed": 0,
  }
  flags |= rules | {"early_stopping": None, "stop": None, "sha256": None, "revision": None}
  named = {word[2:].partition("=")[0] for word in argv if word.startswith("--")}
  _, flags = command.parse(argv, flags, needs_config=False)
  if flags["early_stopping"] is not None:
    key, kind = "--early_stopping", bool | str
    flags["early_stopping"] = values.parse(flags["early_stopping"], kind, key)
  if (flags["stop"] or "").startswith("["):
    flags["stop"] = values.parse(flags["stop"], tuple[str, ...], "--stop")
  optional = (*rules, "max_new_tokens", "stop")
  return {k: v for k, v in flags.items() if k not in optional or k in named}


def main(argv):
  settings = _settings(argv)
  start.quiet()
  start.compilation_cache()
  rules = {k.name for k in dataclasses.fields(sampling.Rules)} & set(settings)
  sampling.Rules(**{name: settings[name] for name in rules})  # before the weights are read
  path, *pins = (settings.pop(name) for name in ("model", "sha256", "revision"))
  model = pretrained.load(path, *pins)
  prompt, num_return = settings.pop("prompt"), settings.pop("num_return")
  if num_return == 1:
    writing.answer(model, prompt, on_text=_printer(), **settings)
    print()
    return
  for one in writing.answers_of(model, prompt, num_return, **settings):
    print(json.dumps({"score": one.score, "text": one.text}, ensure_ascii=False))


if __name__ == "__main__":
  command.run(main)
