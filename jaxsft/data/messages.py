"""Rows to conversations: lists of checked messages that say which of them train."""

import itertools

from jaxsft.data import forms
from jaxsft.errors import JaxsftError

ROLES = ("system", "developer", "user", "assistant", "tool")
LEADS = ("system", "developer")
"""Roles of what is said to the model before any question."""
OLDER = {"function": "tool"}
"""OpenAI's older name of a role -> the one that templates know."""
SETTINGS = "chat_template_kwargs"
"""TRL's field with what a template is told beside a row's messages."""
UNKNOWN = "\ufdd0"  # in the place of an answer; a noncharacter, which occurs in no text
ANSWERS = {"prompt": "completion", "instruction": "output"}
"""Field that asks -> the field of its answer, which a row to be answered may lack."""
WEIGHTS = forms.TRAINS[1:]


def conversation(fields, train_on="all", on_tools=True):
  """Checked messages of a row, each with a boolean "train" (only answers can train).

  fields: one of the forms of `forms` but text. train_on: "all" answers (as "each" has them) or
  the "last" one. A message's own "train": false takes it out, and so does a "weight" or
  "loss_weight" of 0; on_tools=False those that only call tools and do not say that they train.
  """
  messages = checked(fields, on_tools)
  if forms.form(fields) in (forms.PAIR, forms.CONVERSATIONAL) and fields.get("label") is False:
    raise JaxsftError(
      "the row's label is false, by which preferences mark a completion as a bad one, so it is "
      "none to learn; leave such rows out with config.data.keep='label', or give the field "
      "another name with config.data.columns={'unused': 'label'}"
    )
  if not any(message["role"] == "assistant" for message in messages):
    raise JaxsftError(
      "no message has the role 'assistant', so there is nothing to train on; add the "
      "answer or remove the row"
    )
  trained = [index for index, message in enumerate(messages) if message["train"]]
  if not trained:
    raise JaxsftError(
      "every assistant message has 'train': false"
      + ", or calls tools, which config.data.train_on_tools leaves out" * (not on_tools)
      + ", so there is nothing to train on; set one to true or remove the row"
    )
  if train_on == "last":
    trained = trained[-1:]
  return [message | {"train": i in trained} for i, message in enumerate(messages)]


def question(fields):
  """(messages that ask for an answer, the answer's text or None) of a row in any form but text.

  The answer is the last message, where that is the assistant's. A row to be answered may lack
  its completion or output. (None, None) for plain text, which asks nothing.
  """
  if forms.form(answered(fields)) == "text":
    return None, None
  messages = checked(answered(fields))
  if messages[-1]["role"] != "assistant":
    return messages, None
  answer = messages[-1]["content"]
  return messages[:-1], None if answer == UNKNOWN or not answer.strip() else answer


def answered(fields):
  """The fields with UNKNOWN where a question has no answer."""
  asked = [
    (a, b) for a, b in ANSWERS.items() if fields.get(a) is not None and fields.get(b) is None
  ]
  message = [{"role": "assistant", "content": UNKNOWN}]
  return fields | {b: message if isinstance(fields[a], list) else UNKNOWN for a, b in asked}


def checked(fields, on_tools=True):
  """The messages of a row in any form but text, each with a boolean "train"."""
  if fields.get(SETTINGS):
    raise JaxsftError(
      f"the row has the field {SETTINGS!r} ({forms.shown(fields[SETTINGS])}), but one template "
      "writes all rows alike; write what it should say into a template of your own "
      "(config.data.chat_template), and give the field another name with "
      f"config.data.columns={{'unused': '{SETTINGS}'}}"
    )
  messages = [_message(here, message, on_tools) for here, message in forms.turns(fields)]
  return _with_system(forms.system(fields), messages)


def _with_system(system, messages):
  """Messages that begin with the system prompt of the row's own field, if it has one."""
  if system is None:
    return messages
  if messages[0]["role"] not in LEADS:
    return [{"role": "system", "content": system, "train": False}, *messages]
  if messages[0]["content"] != system:
    raise JaxsftError(
      f"the field 'system' is {forms.shown(system)}, but the first message says "
      f"{forms.shown(messages[0]['content'])}; remove one of them"
    )
  return messages


def _message(here, message, on_tools):
  """A message without empty keys, with a boolean "train"."""
  if not isinstance(message, dict):
    raise JaxsftError(f"{here} is {forms.shown(message)}, expected {{'role', 'content'}}")
  message = {key: value for key, value in message.items() if value is not None}
  role = message.get("role")
  if isinstance(role, str) and role in OLDER:
    role = message["role"] = OLDER[role]
  if role not in ROLES:
    hint = ", or name the column 'conversations'" if "from" in message else ""
    raise JaxsftError(
      f"{here} has the role {role!r} and the keys {', '.join(map(str, message))}; expected "
      f"'role' (one of {', '.join(ROLES)}) and 'content'{hint}"
    )
  if message.get("refusal"):
    raise JaxsftError(
      f"{here} has the key 'refusal', which no template writes, so it would not be learnt; "
      "write answers as 'content', or remove the row"
    )
  if message.get("function_call"):
    message = _with_call(here, message)
  content = _text(here, message.get("content", "" if message.get("tool_calls") else None))
  if role == "assistant" and not content.strip() and not message.get("tool_calls"):
    raise JaxsftError(
      f"{here}: the assistant's content is empty; write the answer or remove the row"
    )
  train = _train(here, message, on_tools or bool(content.strip()))
  rest = {key: value for key, value in message.items() if key not in WEIGHTS}
  if message.get("tool_calls"):
    rest["tool_calls"] = _tool_calls(here, message["tool_calls"])
  return rest | {"content": content, "train": train}


def _with_call(here, message):
  """The message whose "function_call", OpenAI's older form, is a call as templates read it."""
  if message.get("tool_calls"):
    raise JaxsftError(f"{here} has both 'function_call' and 'tool_calls'; remove one of them")
  call = {"type": "function", "function": message["function_call"]}
  rest = {key: value for key, value in message.items() if key != "function_call"}
  return rest | {"tool_calls": [call]}


def _tool_calls(here, calls):
  """Calls whose arguments are objects: OpenAI writes them as a JSON text, which templates that
  write JSON themselves would quote once more.
  """
  if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
    raise JaxsftError(
      f"{here}: tool_calls is {forms.shown(calls)}, expected a list of {{'type': 'function', "
      "'function': {'name', 'arguments'}}; correct the row"
    )
  found = []
  for index, call in enumerate(calls):
    place = f"{here}: tool_calls[{index}]"
    written = forms.function_of(call, place).get("arguments")
    if isinstance(written, str):
      place = f"{place}.arguments"
      arguments = forms.parsed(place, written) if written.strip() else {}
      if not isinstance(arguments, dict):
        raise JaxsftError(
          f"{place} is {forms.shown(written)}, expected the JSON of an object; correct the row"
        )
      call = forms.with_arguments(call, arguments)
    found.append(call)
  return found


def _text(here, content):
  """The text of a message's content: itself, or its typed parts one after the other."""
  if isinstance(content, str):
    return content
  if not isinstance(content, list) or not content:
    raise JaxsftError(f"{here}: content is {forms.shown(content)}, expected text")
  texts = []
  for index, part in enumerate(content):
    kind = part.get("type") if isinstance(part, dict) else None
    said = [part[key] for key in ("text", "value") if key in part] if kind == "text" else []
    text = next((text for text in said if text is not None), None)
    if not isinstance(text, str):
      raise JaxsftError(
        f"{here}: content[{index}] is {forms.shown(part)}, expected {{'type': 'text', "
        "'text': …}: only text can be trained on; remove the part or the row"
      )
    texts.append(text)
  return "".join(texts)


def _train(here, message, answers):
  """Whether a message trains, by whichever key says it.

  answers: whether the assistant's message does if no key says so.
  """
  role, said = message["role"], {}
  for key in WEIGHTS:
    if key in message:
      said[key] = message[key] == 1
      if message[key] not in (0, 1):
        raise JaxsftError(
          f"{here}: {key!r} is {message[key]!r}, expected 0 or 1: a message trains or does not"
        )
  train = message.get("train", next(iter(said.values()), role == "assistant" and answers))
  if not isinstance(train, bool) or (train and role != "assistant"):
    raise JaxsftError(
      f"{here}: {next(iter(said), 'train')!r} is {train!r} for the role {role!r}; expected "
      "true or false, and true only for 'assistant'"
    )
  if any(other != train for other in said.values()):
    raise JaxsftError(
      f"{here}: 'train' is {train} but {', '.join(said)} say otherwise; keep one of them"
    )
  return train


def shorter(messages):
  """The conversation without its oldest exchanges: one less, two less, and so on.

  System messages at the start stay; every cut is in front of a user message, so that no
  answer loses its question. Stops where nothing would be left to train on.
  """
  lead = _lead(messages)
  for cut in range(lead + 1, len(messages)):
    rest = messages[cut:]
    if rest[0]["role"] == "user" and any(message["train"] for message in rest):
      yield messages[:lead] + rest


def exchanges(messages):
  """(system messages at the start, [the messages from each question to the next])."""
  lead = _lead(messages)
  cuts = [i for i in range(lead + 1, len(messages)) if messages[i]["role"] == "user"]
  pairs = itertools.pairwise([lead, *cuts, len(messages)])
  return messages[:lead], [messages[a:b] for a, b in pairs if a < b]


def _lead(messages):
  """How many messages of the system stand at the start."""
  lead = 0
  while lead < len(messages) and messages[lead]["role"] in LEADS:
    lead += 1
  return lead
