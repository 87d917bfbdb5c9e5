"""Control tokens in texts: a message that says <|im_end|> must not end its turn.

They are refused, or escaped: the text stays as it is, but becomes tokens of its letters. For
that `hide` puts a noncharacter in the place of each one's first character before a template
sees the text. In what the template writes, the control tokens that are whole are then its own:
`encode` gives those, and only those, their ids. Every length stays, so spans hold.
"""

import functools
import json
import re
from typing import Any, NamedTuple

from jaxsft import tokenizer as tokenizer_lib
from jaxsft.errors import JaxsftError

STAND_INS = [
  chr(code) for code in range(0xFDD2, 0xFDF0)
]  # noncharacters: they occur in no text
ALIASES = 0xF0000  # the first characters by which `encode` calls the template's control tokens


class Special(NamedTuple):
  """What a tokenizer adds to plain text."""

  added: dict[str, bool]
  """Every added token that is not white space, longest first -> is it a control token?"""
  ids: frozenset
  """Ids of the added tokens."""
  exact: Any
  """`tokenizers.Tokenizer` that gives the same ids, and offsets with their white space."""


class Escape(NamedTuple):
  """How a tokenizer's control tokens are written as text."""

  pattern: re.Pattern
  """Any of them."""
  stand_ins: dict[str, str]
  """First character of a control token -> what stands for it."""
  shown: dict[int, str]
  """The other way round, for str.translate."""
  names: dict[str, str]
  """Control token -> its alias."""
  ids: dict[str, int]
  """Alias -> id, but for the token of unknown letters, which any text may have."""
  inside: Any
  """`tokenizers.Tokenizer` that knows the aliases in their place and adds nothing."""
  alone: Any
  """The same, which adds what the tokenizer adds to any text."""


def special(tokenizer):
  """`Special` of a tokenizer."""
  return _special(tokenizer, len(tokenizer))


def refuse(text, tokenizer):
  """Raises JaxsftError if a text contains a control token."""
  if found := tokenizer_lib.control_token_in(text, tokenizer):
    raise JaxsftError(
      f"the text contains the control token {found!r}, which would end or open a text; "
      "remove it from the row, or make a row of each part"
    )


def refuse_in_read(texts, tokenizer):
  """Raises JaxsftError where one of {field: text}, which are read and not learnt, has one.

  The tokenizer would make its own token of it: "good [SEP] bad" would be read as a pair. The
  name of the unknown token passes: every word that the tokenizer does not know becomes it too.
  """
  for name, text in texts.items():
    if found := tokenizer_lib.control_token_in(text, tokenizer, unknown=False):
      raise JaxsftError(
        f"the {name} contains the control token {found!r}, which the model would obey and not "
        "read; remove it from the row, or leave the row out with config.data.keep"
      )


def refuse_in_messages(messages, tools, tokenizer):
  """Raises JaxsftError if a text in the messages, or in what describes tools, contains one."""
  said = [(f"messages[{i}]: the {m['role']}'s text", m) for i, m in enumerate(messages)]
  said += [(f"tools[{i}]: the description", tool) for i, tool in enumerate(tools or ())]
  for what, value in said:
    for text in texts(value):
      if found := tokenizer_lib.control_token_in(text, tokenizer):
        raise JaxsftError(
          f"{what} contains the control token {found!r}, which would end or open a turn; "
          "remove it from the row, or set config.data.control_tokens to 'escape'"
        )


def texts(value):
  """Every text inside a JSON value, those of its keys too."""
  if isinstance(value, str):
    yield value
  elif isinstance(value, dict):
    for key, item in value.items():
      yield from (*texts(key), *texts(item))
  elif isinstance(value, list | tuple):
    for item in value:
      yield from texts(item)


def hide(value, tokenizer):
  """A JSON value in whose texts a noncharacter stands for the first one of control tokens."""
  if isinstance(value, dict):
    return {hide(key, tokenizer): hide(item, tokenizer) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [hide(item, tokenizer) for item in value]
  if not isinstance(value, str):
    return value
  escape = _escape(tokenizer, len(tokenizer))
  if any(mark in value for mark in escape.stand_ins.values()):
    raise JaxsftError(
      "the text has a noncharacter (from U+FDD0) by which control tokens are escaped; remove "
      "it from the row"
    )
  while escape.pattern.search(value):  # what is left of one may be part of another
    value = escape.pattern.sub(lambda m: escape.stand_ins[m[0][0]] + m[0][1:], value)
  return value


def show(text, tokenizer):
  """The text as it was before `hide`."""
  return text.translate(_escape(tokenizer, len(tokenizer)).shown)


def encode(text, tokenizer, alone=False):
  """`tokenizers.Encoding` of a text in which `hide` has been, with the offsets of `show`'s.

  alone: with what the tokenizer adds to any text. Raises JaxsftError where the text has
  characters of private use that stand for tokens here, and where a hidden token got its id.
  """
  escape = _escape(tokenizer, len(tokenizer))
  names = escape.names
  if any(name[0] in text for name in names.values()):
    raise JaxsftError(
      "the text has control tokens and characters of private use (from U+F0000), by which "
      "these are escaped; remove one or the other from the row"
    )
  own = sum(names[token] in escape.ids for token in escape.pattern.findall(text))
  text = escape.pattern.sub(lambda m: names[m[0]], text).translate(escape.shown)
  encoding = (escape.alone if alone else escape.inside).encode(text, add_special_tokens=alone)
  known = {*escape.ids.values()}
  marked = zip(encoding.ids, encoding.special_tokens_mask, strict=True)
  if own != sum(i in known and not added for i, added in marked):
    raise JaxsftError(
      "the text has a control token that cannot be escaped with this tokenizer; remove it from "
      "the row, or set config.data.control_tokens to 'refuse'"
    )
  return encoding


@functools.lru_cache(maxsize=4)
def _special(tokenizer, size):
  """`Special` of a tokenizer with `size` tokens (part of the key: tokens can be added)."""
  del size
  # The post-processor would add nothing here but cut white space from the offsets.
  exact = _load(_state(tokenizer) | {"post_processor": None})
  added = {
    t: control for t, control in tokenizer_lib.added_tokens(tokenizer).items() if t.strip()
  }
  ids = frozenset(tokenizer.convert_tokens_to_ids(list(added)))
  probe = " Grüße,  日本 🙂\n\n 12\tx" + "\n ".join(list(added)[:20])
  expected = tokenizer(probe, add_special_tokens=False)["input_ids"]
  if exact.encode(probe, add_special_tokens=False).ids != expected:
    raise JaxsftError(
      f"{type(tokenizer).__name__} gives other ids than its own tokenizer.json; load it "
      "with default settings (split_special_tokens off) or use another checkpoint"
    )
  return Special(added, ids, exact)


@functools.lru_cache(maxsize=4)
def _escape(tokenizer, size):
  """`Escape` of a tokenizer with `size` tokens."""
  del size
  tokens = [t for t, control in special(tokenizer).added.items() if control]
  first = sorted({token[0] for token in tokens})
  if len(first) > len(STAND_INS):
    raise JaxsftError(
      f"the control tokens begin with {len(first)} characters, expected at most "
      f"{len(STAND_INS)}; set config.data.control_tokens to 'refuse'"
    )
  stand_ins = dict(zip(first, STAND_INS, strict=False))
  names = {token: chr(ALIASES + i) + token[1:] for i, token in enumerate(tokens)}
  state = _renamed(_state(tokenizer), names)
  inside, alone = _load(state | {"post_processor": None}), _load(state)
  ids = dict(zip(tokens, tokenizer.convert_tokens_to_ids(tokens), strict=True))
  if any(inside.token_to_id(names[token]) != i for token, i in ids.items()):
    raise JaxsftError(
      f"{type(tokenizer).__name__} has control tokens that cannot be told from text; set "
      "config.data.control_tokens to 'refuse'"
    )
  pattern = re.compile("|".join(map(re.escape, tokens)) or r"(?!)")
  shown = {ord(stand_in): char for char, stand_in in stand_ins.items()}
  told = {names[token]: i for token, i in ids.items() if i != tokenizer.unk_token_id}
  return Escape(pattern, stand_ins, shown, names, told, inside, alone)


def _renamed(state, names):
  """tokenizer.json with other names for some tokens."""
  added = [
    t | {"content": names.get(t["content"], t["content"])} for t in state["added_tokens"]
  ]
  model, vocabulary = state["model"], state["model"]["vocab"]
  if isinstance(vocabulary, dict):
    vocabulary = {names.get(token, token): i for token, i in vocabulary.items()}
  else:  # Unigram
    vocabulary = [[names.get(token, token), score] for token, score in vocabulary]
  model = model | {"vocab": vocabulary}
  if model.get("unk_token") in names:
    model["unk_token"] = names[model["unk_token"]]
  return state | {"added_tokens": added, "model": model}


def _state(tokenizer):
  """tokenizer.json as a dict, without truncation and padding."""
  backend = getattr(tokenizer, "backend_tokenizer", None)
  if backend is None:
    raise JaxsftError(
      f"{type(tokenizer).__name__} gives no character offsets, by which answers are told "
      "from prompts; use a checkpoint with a tokenizer.json"
    )
  return json.loads(backend.to_str()) | {"truncation": None, "padding": None}


def _load(state):
  import tokenizers  # needed only with data of this task

  return tokenizers.Tokenizer.from_str(json.dumps(state))
