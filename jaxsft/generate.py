"""Text from a language model, greedy, drawn or searched for with beams.

  python -m jaxsft.generate --model=DIR_OR_NAME --prompt="…" [--sha256=…] [--revision=…]
                            [--fsdp=1] [--tensor=1]

The prompt becomes one user message if the tokenizer has a chat template, else it is plain
text that the model continues, or that an encoder-decoder reads, behind the instruction that it
was trained with (`prefix` in config.json) unless it begins so. With num_return above 1 every
line is a score and a text, as JSON. --fsdp and --tensor split the weights over so many devices
each, as config.mesh does in training; without them one device holds them all.
"""

import json

from jaxsft import command, pretrained, start
from jaxsft.generation import choices, writing

__doc__ += choices.HELP


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


def main(argv):
  known = command.MODEL | {"prompt": ""} | choices.FLAGS
  _, flags = command.parse(argv, known, needs_config=False)
  given = choices.of_flags(flags, command.named(argv, known))
  choices.check(given)  # before the weights are read
  start.quiet()
  start.compilation_cache()
  split = flags["fsdp"] != 1 or flags["tensor"] != 1
  mesh = start.mesh_of_flags(flags["fsdp"], flags["tensor"]) if split else None
  pins = (flags["sha256"], flags["revision"])
  model = pretrained.load(flags["model"], *pins, mesh=mesh)
  num_return = given.pop("num_return", 1)
  if num_return == 1:
    writing.answer(model, flags["prompt"], on_text=_printer(), **given)
    print()
    return
  for one in writing.answers_of(model, flags["prompt"], num_return, **given):
    print(json.dumps({"score": one.score, "text": one.text}, ensure_ascii=False))


if __name__ == "__main__":
  command.run(main)
