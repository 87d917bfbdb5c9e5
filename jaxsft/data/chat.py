"""Messages to tokens: one rendering, one tokenisation, and which of the tokens train.

The tokenizer's own template writes the text. What is supervised is found as spans of
characters: the answer and the stop token behind it. With `{% generation %}` tags, these are
what the tags enclose; without, what the template writes after its own generation prompt.
Nothing is found by searching for markers or by the length of a tokenised prompt.
"""

import functools
import json
import re
from typing import Any, NamedTuple

import jinja2
import numpy as np

from jaxsft import tokenizer as tokenizer_lib
from jaxsft.errors import JaxsftError

OPEN, CLOSE = "\ufdd0", "\ufdd1"  # noncharacters: they occur in no text
TAG = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")
LAST = "set config.data.train_on='last' to train on the last answer only"


class Rendered(NamedTuple):
  """A conversation as text."""

  text: str
  spans: list[tuple[int, int, int]]
  """(start, end, message index) in characters: answers with their stop tokens."""


class Tokens(NamedTuple):
  """A conversation as n tokens."""

  ids: np.ndarray
  """[n] int32."""
  supervised: np.ndarray
  """[n] bool."""
  stop_ids: frozenset
  """Ids of the last token of every supervised span."""


class Special(NamedTuple):
  """What a tokenizer adds to plain text."""

  added: dict[str, bool]
  """Every added token that is not white space, longest first -> is it a control token?"""
  ids: frozenset
  """Ids of the added tokens."""
  exact: Any
  """`tokenizers.Tokenizer` that gives the same ids, and offsets with their white space."""


def render(messages, tokenizer, template=None, tools=None, add_generation_prompt=False):
  """`Rendered` conversation; with add_generation_prompt a prompt, which has no spans.

  messages: of `messages.conversation`. template: Jinja text; None: the tokenizer's own.
  Raises JaxsftError where the template fails, where a message contains a control token,
  and where the spans cannot be told: see `_turn_end`.
  """
  template = template_of(tokenizer, template, tools)
  _refuse_in_messages(messages, tokenizer)
  write = functools.partial(_write, tokenizer, template, tools)
  text = write(messages, add_generation_prompt)
  if add_generation_prompt:
    return Rendered(text, [])
  trained = [i for i, m in enumerate(messages) if m.get("train", m["role"] == "assistant")]
  added = _special(tokenizer, len(tokenizer)).added
  if TAG.search(template):
    mark = functools.partial(_write, tokenizer, TAG.sub(_mark, template), tools)
    return Rendered(text, _tagged_spans(messages, trained, text, mark, added))
  spans = []
  for index in trained:
    start = _answer_start(messages, index, write, template)
    end = _turn_end(messages, index, start, text, write(messages[: index + 1]), added)
    spans.append((start, end, index))
  return Rendered(text, spans)


def template_of(tokenizer, template=None, tools=None):
  """The Jinja text in force."""
  if template is None and not tokenizer.chat_template:
    raise JaxsftError(
      "the tokenizer has no chat template; give one with config.data.chat_template"
    )
  return tokenizer.get_chat_template(template, tools)


def _write(tokenizer, template, tools, messages, add_generation_prompt=False):
  """The text that the template makes of the messages."""
  plain = [{k: v for k, v in message.items() if k != "train"} for message in messages]
  try:
    return tokenizer.apply_chat_template(
      plain,
      tools=tools,
      chat_template=template,
      tokenize=False,
      add_generation_prompt=add_generation_prompt,
    )
  except (jinja2.TemplateError, TypeError) as error:
    raise JaxsftError(
      f"the chat template refuses these {len(plain)} messages: {error}; correct the row "
      "or change config.data.chat_template"
    ) from error


def _answer_start(messages, index, write, template):
  """Where the answer begins: after the messages before it and the generation prompt."""
  if index == 0:
    raise JaxsftError(
      "messages[0] is an answer to nothing; put a message before it or set its 'train' to false"
    )
  prompt = write(messages[:index], True)
  answered = write(messages[: index + 1])
  if not answered.startswith(prompt):
    advice = "mark answers with {% generation %} in config.data.chat_template"
    raise JaxsftError(
      f"messages[{index}]: the chat template writes another text before this answer than "
      f"when it asks for an answer ({_difference(answered, prompt)}); "
      + (advice if index + 1 == len(messages) else f"{LAST}, or {advice}")
    )
  if "add_generation_prompt" not in template:
    found = answered.find(messages[index]["content"].strip(), len(prompt))
    if found > 0 and answered[len(prompt) : found].strip():
      raise JaxsftError(
        "the chat template has no generation prompt, so its header "
        f"{answered[len(prompt) : found]!r} would be trained; add {{% if "
        "add_generation_prompt %}…{% endif %} in config.data.chat_template"
      )
  return len(prompt)


def _mark(tag):
  """Jinja that writes a mark where the generation tag stands, with its white space rules."""
  left, end, right = tag.groups()
  mark = CLOSE if end else OPEN
  return f"{{%{left} if true %}}{{{{ '{mark}' }}}}{{% endif {right}%}}"


def _tagged_spans(messages, trained, text, mark, added):
  """Spans that the template's own tags enclose, up to the stop token after them."""
  plain = _unmark(mark(messages))[0]
  if plain != text:
    raise JaxsftError(
      "the {% generation %} tags of the chat template cannot be located: marks in their "
      f"place change the text ({_difference(text, plain)}); simplify what is around them"
    )
  spans = []
  for index in trained:
    before = len(_unmark(mark(messages[:index]))[1]) if index else 0
    turn, here = _unmark(mark(messages[: index + 1]))
    own = here[before:]
    if not own:
      raise JaxsftError(
        f"messages[{index}]: the chat template writes this answer outside of its "
        "{% generation %} tags, so it would not be trained; correct the template or set "
        "the message's 'train' to false"
      )
    end = _turn_end(messages, index, own[-1][0], text, turn, added)
    own = [*own[:-1], (own[-1][0], end)]
    spans += [(start, stop, index) for start, stop in own]
  return spans


def _unmark(marked):
  """(text without marks, spans between them)."""
  text, opened, spans = "", [], []
  for piece in re.split(f"([{OPEN}{CLOSE}])", marked):
    if piece == OPEN:
      opened.append(len(text))
    elif piece == CLOSE and opened:
      spans.append((opened.pop(), len(text)))
    else:
      text += piece
  return text, spans


def _turn_end(messages, index, start, text, turn, added):
  """End of the stop tokens after the answer messages[index] that begins at `start`.

  turn: the rendering that ends with this answer. What follows the answer in it, apart from
  white space, are the template's stop tokens; those that also follow in the whole `text`
  count. Raises JaxsftError if the answer stands differently in `text` (a template that
  rewrites history), or if no stop token follows it: generation would never end.
  """
  own = list(_texts(messages[index]))
  rest, ends = turn.rstrip(), []
  while last := next((t for t in added if rest.endswith(t)), None):
    if not added[last] and any(last in part for part in own):
      break  # the message's own word, not the template's
    ends.append(len(rest))
    rest = rest.removesuffix(last).rstrip()
  if len(rest) <= start:
    raise JaxsftError(f"messages[{index}]: the chat template writes nothing of this answer")
  if not text.startswith(rest):
    raise JaxsftError(
      f"messages[{index}]: the chat template writes this answer in another way once "
      f"messages follow it ({_difference(text, rest)}); {LAST}, or to change "
      "config.data.chat_template"
    )
  for end in ends:
    if text.startswith(turn[:end]):
      return end
  raise JaxsftError(
    f"messages[{index}]: the chat template writes no stop token after this answer "
    f"(but {text[len(rest) : len(rest) + 20]!r}), so the model would never learn to stop; "
    "close answers with the end-of-turn token in config.data.chat_template"
  )


def tokenize(rendered, tokenizer, template=None):
  """`Tokens` of a rendered conversation, from one pass over its whole text.

  A token is supervised if and only if its characters meet a supervised span, so one that
  crosses the border is.
  """
  special = _special(tokenizer, len(tokenizer))
  encoding = special.exact.encode(rendered.text, add_special_tokens=False)
  ids = np.array(encoding.ids, np.int32)
  starts, ends = np.array(encoding.offsets, np.int64).reshape(-1, 2).T
  supervised, stop_ids = np.zeros(len(ids), bool), set()
  for start, end, index in rendered.spans:
    inside = (starts < end) & (ends > start)
    supervised |= inside
    if (start, end, index) != _last_span(rendered.spans, index):
      continue
    last = int(ids[inside][-1]) if inside.any() else None
    if last not in special.ids:
      raise JaxsftError(
        f"messages[{index}]: the last trained token is {last}, not a stop token, so the "
        "model would never learn to stop; correct config.data.chat_template"
      )
    stop_ids.add(last)
  if supervised[:1].any():
    raise JaxsftError(
      "the answer begins with the first token of the text, which nothing can predict; add "
      "a header or a beginning-of-text token to config.data.chat_template"
    )
  _check_bos(ids, tokenizer, template_of(tokenizer, template))
  return Tokens(ids, supervised, frozenset(stop_ids))


def _last_span(spans, index):
  return [span for span in spans if span[2] == index][-1]


def prompt_ids(messages, tokenizer, template=None, tools=None):
  """[n] int32 ids that ask for the next answer, by the rendering that training uses."""
  rendered = render(messages, tokenizer, template, tools, add_generation_prompt=True)
  return tokenize(rendered, tokenizer, template).ids


def plain(text, tokenizer, limit=None):
  """(`Rendered`, `Tokens`) of a text that is learnt as it stands, with its end-of-text token.

  The tokenizer adds what it adds to any text, such as a beginning-of-text token; the
  end-of-text token stands at the end, once. All is supervised but the first token, which
  nothing can predict. limit: tokens that are kept; a text that is cut has no end to learn.
  Raises JaxsftError for a control token in the text and for a tokenizer without an end.
  """
  refuse_control_tokens(text, tokenizer)
  bos, end = tokenizer.bos_token_id, tokenizer.eos_token_id
  if end is None:
    raise JaxsftError(
      "the tokenizer names no end-of-text token (eos_token), so the model would never learn to "
      "stop; set one in its tokenizer_config.json"
    )
  encoding = tokenizer(text, return_offsets_mapping=True)
  ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
  if ids[-1:] == [end]:
    ids, offsets = ids[:-1], offsets[:-1]
  ids, offsets = [*ids, end], [*offsets, (len(text), len(text) + len(tokenizer.eos_token))]
  text += tokenizer.eos_token
  cut = limit is not None and len(ids) > limit
  if cut:
    ids, text = ids[:limit], text[: offsets[limit - 1][1]]
  if ids[:-1].count(bos) > 1 or len(ids) < 2:
    raise JaxsftError(
      f"the text becomes the tokens {ids[:5]}, expected at most one beginning-of-text token "
      f"({bos}) and something to learn after the first token; correct the tokenizer or the row"
    )
  supervised = np.arange(len(ids)) > 0
  rendered = Rendered(text, [(offsets[1][0], len(text), 0)])
  return rendered, Tokens(np.array(ids, np.int32), supervised, frozenset([] if cut else [end]))


def _check_bos(ids, tokenizer, template):
  """At most one beginning-of-text token, at the start.

  Some tokenizers (SmolLM2) give that name to the token that opens every turn: then the
  template spells it out, and only two in a row are wrong.
  """
  bos = tokenizer.bos_token_id
  if bos is None:
    return
  at = np.flatnonzero(ids == bos)
  opens_turns = tokenizer.bos_token in template
  doubled = np.any(np.diff(at) == 1)
  if doubled or (not opens_turns and np.any(at > 0)):
    raise JaxsftError(
      f"the beginning-of-text token {tokenizer.bos_token!r} stands at the token positions "
      f"{at[:5].tolist()}, expected at most one, at 0; the chat template or a message adds "
      "it again: correct config.data.chat_template"
    )


def refuse_control_tokens(text, tokenizer):
  """Raises JaxsftError if a text contains a control token."""
  if found := tokenizer_lib.control_token_in(text, tokenizer):
    raise JaxsftError(
      f"the text contains the control token {found!r}, which would end or open a text; "
      "remove it from the row, or make a row of each part"
    )


def _refuse_in_messages(messages, tokenizer):
  """Raises JaxsftError if a text in the messages contains a control token."""
  for index, message in enumerate(messages):
    for text in _texts(message):
      if found := tokenizer_lib.control_token_in(text, tokenizer):
        raise JaxsftError(
          f"messages[{index}]: the {message['role']}'s text contains the control token "
          f"{found!r}, which would end or open a turn; remove it from the row"
        )


def _texts(value):
  """Every text inside a JSON value."""
  if isinstance(value, str):
    yield value
  elif isinstance(value, dict | list):
    for item in value.values() if isinstance(value, dict) else value:
      yield from _texts(item)


@functools.lru_cache(maxsize=4)
def _special(tokenizer, size):
  """`Special` of a tokenizer with `size` tokens (part of the key: tokens can be added)."""
  del size
  import tokenizers  # needed only with data of this task

  backend = getattr(tokenizer, "backend_tokenizer", None)
  if backend is None:
    raise JaxsftError(
      f"{type(tokenizer).__name__} gives no character offsets, by which answers are told "
      "from prompts; use a checkpoint with a tokenizer.json"
    )
  state = json.loads(backend.to_str())
  # The post-processor would add nothing here but cut white space from the offsets.
  state |= {"post_processor": None, "truncation": None, "padding": None}
  exact = tokenizers.Tokenizer.from_str(json.dumps(state))
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


def _difference(expected, found):
  """Where two texts part, in words."""
  pairs = zip(expected, found, strict=False)
  at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(expected), len(found)))
  cut = lambda text: repr(text[max(at - 15, 0) : at + 25])
  return f"at character {at}: {cut(expected)} against {cut(found)}"
