"""Messages to tokens: one rendering, one tokenisation, and which of the tokens train.

The tokenizer's own template writes the text. What is supervised is found as spans of
characters (`spans`): the answer and the stop token behind it.
"""

import functools
import json
import re
from typing import NamedTuple

import jinja2
import numpy as np

from jaxsft.data import control, forms, spans
from jaxsft.errors import JaxsftError

AS_SYSTEM = "with a developer's messages written as the system's"


class Rendered(NamedTuple):
  """A conversation as text."""

  text: str
  spans: list[tuple[int, int, int]]
  """(start, end, message index) in characters: answers with their stop tokens."""
  hidden: str = ""
  """The text as `control.encode` takes it; "": no control token is escaped in it."""
  odd: tuple[str, ...] = ()
  """What is to be known of it: AS_SYSTEM, and of what spans.UNWRITTEN says."""


class Tokens(NamedTuple):
  """A conversation as n tokens."""

  ids: np.ndarray
  """[n] int32."""
  supervised: np.ndarray
  """[n] bool."""
  stop_ids: frozenset
  """Ids of the last token of every supervised span."""


def render(
  messages,
  tokenizer,
  template=None,
  tools=None,
  add_generation_prompt=False,
  escape=False,
  unwritten="refuse",
):
  """`Rendered` conversation; with add_generation_prompt a prompt, which has no spans.

  messages: of `messages.conversation`. template: Jinja text; None: the tokenizer's own.
  escape: control tokens in messages are text. unwritten: as config.data.unwritten. Raises
  JaxsftError where the template fails or leaves out what is read or learnt, where a message
  contains a control token, and where the spans cannot be told: see `spans`.
  """
  template = template_of(tokenizer, template, tools)
  messages, odd = _with_known_roles(messages, template)
  if escape:
    messages, tools = control.hide(messages, tokenizer), control.hide(tools, tokenizer)
  else:
    control.refuse_in_messages(messages, tools, tokenizer)
  write = functools.partial(_write, tokenizer, template, tools)
  text, found = write(messages, add_generation_prompt), []
  asks = functools.partial(write, add_generation_prompt=add_generation_prompt)
  spans.refuse_left_out(messages, text, asks)
  with_tools = lambda some: _write(tokenizer, template, some, messages, add_generation_prompt)
  lost = {"tools": spans.tools_left_out(tools, text, with_tools)}
  if not add_generation_prompt:
    trained = [i for i, m in enumerate(messages) if m.get("train", m["role"] == "assistant")]
    added = control.special(tokenizer).added
    if spans.TAG.search(template):
      mark = functools.partial(_write, tokenizer, spans.marks(template), tools)
      found, text = spans.of_tags(messages, trained, text, write, mark, added)
    else:
      found, text = spans.of_answers(messages, trained, text, write, added, template)
    lost["thoughts"] = spans.thoughts_left_out(messages, found, text, write)
  odd += spans.counted(lost, unwritten)
  shown = control.show(text, tokenizer) if escape else text
  return Rendered(shown, found, text if shown != text else "", odd)


def _with_known_roles(messages, template):
  """(messages, what is odd): "developer" is OpenAI's newer name of the system, by which it goes
  where the template does not name it: many write any role, which a model has never seen.
  """
  if re.search("""['"]developer['"]""", template):
    return messages, ()
  known = [m | {"role": "system"} if m["role"] == "developer" else m for m in messages]
  return known, (AS_SYSTEM,) * (known != messages)


def template_of(tokenizer, template=None, tools=None):
  """The Jinja text in force."""
  if template is None and not tokenizer.chat_template:
    raise JaxsftError(
      "the tokenizer has no chat template; give one with config.data.chat_template"
    )
  return tokenizer.get_chat_template(template, tools)


def _write(tokenizer, template, tools, messages, add_generation_prompt=False):
  """The text that the template makes of the messages.

  Some templates want the arguments of calls as JSON text: for objects they fail (DeepSeek's),
  or write Python.
  """
  plain = [{k: v for k, v in message.items() if k != "train"} for message in messages]
  write = functools.partial(
    tokenizer.apply_chat_template,
    tools=tools,
    chat_template=template,
    tokenize=False,
    add_generation_prompt=add_generation_prompt,
  )
  objects = _arguments(plain)
  try:
    try:
      text = write(plain)
      takes_objects = not any(str(a) in text and json.dumps(a) != str(a) for a in objects)
    except TypeError:
      takes_objects = not objects
      if takes_objects:  # it fails for something else
        raise
    return text if takes_objects else write([_with_texts(message) for message in plain])
  except (jinja2.TemplateError, TypeError) as error:
    raise JaxsftError(
      f"the chat template refuses these {len(plain)} messages: {error}; correct the row "
      "or change config.data.chat_template"
    ) from error


def _arguments(messages):
  """The arguments of all calls that are objects."""
  calls = [call for message in messages for call in message.get("tool_calls") or ()]
  found = [forms.function_of(call).get("arguments") for call in calls]
  return [one for one in found if isinstance(one, dict)]


def _with_texts(message):
  """The message with its calls' arguments as JSON texts."""
  if not message.get("tool_calls"):
    return message
  calls = []
  for call in message["tool_calls"]:
    found = forms.function_of(call).get("arguments")
    text = json.dumps(found, ensure_ascii=False)
    calls.append(forms.with_arguments(call, text) if isinstance(found, dict) else call)
  return message | {"tool_calls": calls}


def tokenize(rendered, tokenizer, template=None):
  """`Tokens` of a rendered conversation, from one pass over its whole text.

  A token is supervised if and only if its characters meet a supervised span, so one that
  crosses the border is.
  """
  special = control.special(tokenizer)
  if rendered.hidden:
    encoding = control.encode(rendered.hidden, tokenizer)
  else:
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


def _last_span(found, index):
  return [span for span in found if span[2] == index][-1]


def prompt_ids(
  messages, tokenizer, template=None, tools=None, escape=False, unwritten="refuse"
):
  """[n] int32 ids that ask for the next answer, by the rendering that training uses."""
  rendered = render(messages, tokenizer, template, tools, True, escape, unwritten)
  return tokenize(rendered, tokenizer, template).ids


def plain(text, tokenizer, limit=None, escape=False):
  """(`Rendered`, `Tokens`) of a text that is learnt as it stands, with its end-of-text token.

  The tokenizer adds what it adds to any text, such as a beginning-of-text token; the
  end-of-text token stands at the end, once. All is supervised but the first token, which
  nothing can predict. limit: tokens that are kept; a text that is cut has no end to learn.
  escape: control tokens in it are text. Raises JaxsftError for a control token in the text
  and for a tokenizer without an end.
  """
  hidden = _hidden(text, tokenizer, escape)
  bos, end = tokenizer.bos_token_id, tokenizer.eos_token_id
  if end is None:
    raise JaxsftError(
      "the tokenizer names no end-of-text token (eos_token), so the model would never learn to "
      "stop; set one in its tokenizer_config.json"
    )
  ids, offsets = _plain_ids(text, hidden, tokenizer)
  if ids[-1:] == [end]:
    ids, offsets = ids[:-1], offsets[:-1]
  ids, offsets = [*ids, end], [*offsets, (len(text), len(text) + len(tokenizer.eos_token))]
  changed = hidden + tokenizer.eos_token if hidden != text else ""
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
  rendered = Rendered(text, [(offsets[1][0], len(text), 0)], changed)
  return rendered, Tokens(np.array(ids, np.int32), supervised, frozenset([] if cut else [end]))


def text_ids(text, tokenizer, escape=False):
  """The ids of a text that is not learnt, with what the tokenizer adds to any; see `plain`."""
  return [*_plain_ids(text, _hidden(text, tokenizer, escape), tokenizer)[0]]


def _hidden(text, tokenizer, escape):
  """The text as `control.encode` takes it, or as it is where it has no control token."""
  if escape:
    return control.hide(text, tokenizer)
  control.refuse(text, tokenizer)
  return text


def _plain_ids(text, hidden, tokenizer):
  """(ids, offsets) of a text with what the tokenizer adds to any."""
  if hidden == text:
    encoding = tokenizer(text, return_offsets_mapping=True)
    return encoding["input_ids"], encoding["offset_mapping"]
  encoding = control.encode(hidden, tokenizer, alone=True)
  return encoding.ids, encoding.offsets


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
