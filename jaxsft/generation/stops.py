"""What ends an answer: ids, and texts, where they stand in what has been written.

A stop string is looked for in the decoded text of an answer, not among its tokens: it may
begin and end inside of them. The text ends before it.
"""

from jaxsft import models
from jaxsft import tokenizer as tokenizer_lib
from jaxsft.data import chat
from jaxsft.errors import JaxsftError, UsageError

HALF = "\ufffd"  # what the first bytes of a character are decoded to


def stop_ids(base, template=None, supervised=()):
  """Sorted ids that end an answer of a `pretrained.Pretrained`.

  All that the checkpoint names: eos_token_id (one or a list) of generation_config.json and
  of config.json, the tokenizer's end-of-text token, and what ends an answer in the chat
  template in force. template: Jinja text; None: the tokenizer's own. supervised: ids that a
  training has supervised as ends.
  """
  found = {*supervised}
  named = (base.generation, base.config)
  for value in (*(d.get("eos_token_id") for d in named), base.tokenizer.eos_token_id):
    found |= set(value) if isinstance(value, list | tuple) else {value}
  if not models.has_source(base.arch):
    found |= ends_of_turn(base.tokenizer, template)
  return sorted(int(i) for i in found - {None})


def ends_of_turn(tokenizer, template=None):
  """The ids that training would supervise as the end of an answer in the chat template.

  None where there is no template, and where training would refuse it.
  """
  if template is None and not tokenizer.chat_template:
    return frozenset()
  said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
  try:
    return chat.tokenize(chat.render(said, tokenizer, template), tokenizer, template).stop_ids
  except JaxsftError:
    return frozenset()


def split(stop, tokenizer):
  """(texts to look for, ids of special tokens) of `stop`, a text or several, or None.

  Special tokens are no part of decoded text: those among `stop` end an answer by their id.
  Raises UsageError for what could never be found.
  """
  texts, ids = [], []
  special = [text for text, control in tokenizer_lib.added_tokens(tokenizer).items() if control]
  for text in (stop,) if isinstance(stop, str) else tuple(stop or ()):
    if not isinstance(text, str) or not text:
      raise UsageError(f"stop has {text!r}, expected texts of at least one character")
    if text in special:
      ids.append(tokenizer.convert_tokens_to_ids(text))
    elif inside := [token for token in special if token in text]:
      raise UsageError(
        f"stop has {text!r}, which contains the special token {inside[0]!r}; expected it alone "
        "or a text without it: special tokens are no part of an answer's text"
      )
    else:
      texts.append(text)
  return tuple(texts), ids


def cut(text, stops):
  """The text before the first of `stops`; all of it where there is none."""
  places = [place for stop in stops if (place := text.find(stop)) >= 0]
  return text[: min(places)] if places else text


def certain(text, stops):
  """The beginning of `text` that stays, whatever comes: cut, without half a character, and
  without an end that one of `stops` could begin with."""
  if (found := cut(text, stops)) != text:
    return found
  text = text.rstrip(HALF)
  for size in range(min(len(text), max(map(len, stops), default=1) - 1), 0, -1):
    if any(stop.startswith(text[-size:]) for stop in stops):
      return text[:-size]
  return text


def until(tokenizer, stops):
  """Function of new ids: how many of them it takes to write a stop string, else None."""
  if not stops:
    return None
  written = lambda ids: any(stop in decode(tokenizer, ids) for stop in stops)

  def needed(ids):
    if not written(ids):
      return None
    few, many = 0, len(ids)  # written(ids[:many]), not written(ids[:few])
    while many - few > 1:
      middle = (few + many) // 2
      few, many = (few, middle) if written(ids[:middle]) else (middle, many)
    return many

  return needed


def decode(tokenizer, ids):
  """The text of new ids, without special tokens."""
  return tokenizer.decode(ids, skip_special_tokens=True)
