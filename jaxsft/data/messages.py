"""Rows to conversations: lists of checked messages that say which of them train."""

from jaxsft.errors import JaxsftError

ROLES = ("system", "user", "assistant", "tool")


def conversation(fields, train_on="all"):
  """Checked messages of a row, each with a boolean "train" (only answers can train).

  fields: {"messages": [{"role", "content", maybe "train"}, …]} or {"prompt", "completion"}.
  train_on: "all" answers or the "last" one. A message's own "train": false takes it out.
  """
  found = fields.get("messages")
  if found is None:
    found = _prompt_and_completion(fields)
  if not isinstance(found, list) or not found:
    raise JaxsftError(
      f"messages is {_show(found)}, expected a list of {{'role', 'content'}}; correct the "
      "row or map the right column with config.data.columns"
    )
  messages = [_message(index, message) for index, message in enumerate(found)]
  if not any(message["role"] == "assistant" for message in messages):
    raise JaxsftError(
      "no message has the role 'assistant', so there is nothing to train on; add the "
      "answer or remove the row"
    )
  trained = [index for index, message in enumerate(messages) if message["train"]]
  if not trained:
    raise JaxsftError(
      "every assistant message has 'train': false, so there is nothing to train on; set "
      "one to true or remove the row"
    )
  if train_on == "last":
    trained = trained[-1:]
  return [message | {"train": i in trained} for i, message in enumerate(messages)]


def _prompt_and_completion(fields):
  prompt, completion = fields.get("prompt"), fields.get("completion")
  if not (isinstance(prompt, str) and isinstance(completion, str)):
    raise JaxsftError(
      f"the row has the fields {', '.join(sorted(fields)) or 'none'}; expected 'messages', "
      "or 'prompt' and 'completion' as text; map columns with config.data.columns"
    )
  return [
    {"role": "user", "content": prompt},
    {"role": "assistant", "content": completion},
  ]


def _message(index, message):
  """A message without empty keys, with a boolean "train"."""
  here = f"messages[{index}]"
  if not isinstance(message, dict):
    raise JaxsftError(f"{here} is {_show(message)}, expected {{'role', 'content'}}")
  message = {key: value for key, value in message.items() if value is not None}
  role = message.get("role")
  if role not in ROLES:
    raise JaxsftError(
      f"{here} has the role {role!r} and the keys {', '.join(map(str, message))}; expected "
      f"'role' (one of {', '.join(ROLES)}) and 'content'"
    )
  content = message.get("content", "" if message.get("tool_calls") else None)
  if not isinstance(content, str):
    raise JaxsftError(f"{here}: content is {_show(content)}, expected text")
  if role == "assistant" and not content.strip() and not message.get("tool_calls"):
    raise JaxsftError(
      f"{here}: the assistant's content is empty; write the answer or remove the row"
    )
  train = message.get("train", role == "assistant")
  if not isinstance(train, bool) or (train and role != "assistant"):
    raise JaxsftError(
      f"{here}: 'train' is {train!r} for the role {role!r}; expected true or false, and "
      "true only for 'assistant'"
    )
  return message | {"content": content, "train": train}


def shorter(messages):
  """The conversation without its oldest exchanges: one less, two less, and so on.

  System messages at the start stay; every cut is in front of a user message, so that no
  answer loses its question. Stops where nothing would be left to train on.
  """
  lead = 0
  while lead < len(messages) and messages[lead]["role"] == "system":
    lead += 1
  for cut in range(lead + 1, len(messages)):
    rest = messages[cut:]
    if rest[0]["role"] == "user" and any(message["train"] for message in rest):
      yield messages[:lead] + rest


def _show(value):
  text = repr(value)
  return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '…'}"
