"""The forms in which chats are written down, each turned into messages.

| form | fields of the row |
|---|---|
| messages | messages: [{"role", "content"}, …] |
| sharegpt | conversations: [{"from", "value"}, …] or [{"role", "content"}, …]; system, tools |
| alpaca | instruction, output; input, system, history: [[question, answer], …] |
| prompt and completion | prompt, completion |
| conversational prompt and completion | the same, each a list of messages |
| text | text, which is learnt as it stands: no messages |

Alpaca and ShareGPT are read as LLaMA-Factory documents them (its data/README.md): the
question is instruction and input on a line each, answers of the history are learnt too, and a
function_call is an answer that calls tools, whose result is the observation. A conversational
prompt is TRL's: what stands in it is context, answers too, and all answers of the completion
are learnt.
"""

import json
from collections.abc import Mapping
from typing import Any

from jaxsft.errors import JaxsftError

PAIR = "prompt and completion"
CONVERSATIONAL = f"conversational {PAIR}"
NEEDED = {
  "messages": ("messages",),
  "sharegpt": ("conversations",),
  "alpaca": ("instruction",),
  PAIR: ("prompt", "completion"),
}
FIELDS = ("messages", "conversations", "prompt", "completion", "text")
FIELDS += ("instruction", "input", "output", "system", "history")
OTHER_FIELDS = ("text", "text_pair", "tokens", "source", "question", "context")
OTHER_FIELDS += ("label", "tags", "entities", "answers", "target", "targets")
"""What rows hold that are in none of these forms."""
ROLES = {
  "human": "user",
  "user": "user",
  "gpt": "assistant",
  "assistant": "assistant",
  "system": "system",
  "observation": "tool",
  "tool": "tool",
  "developer": "developer",
  "function": "tool",
}

TRAINS = ("train", "loss_weight", "weight")
"""Keys of a message that say whether it trains; the last are LLaMA-Factory's and OpenAI's."""

Turns = list[tuple[str, Any]]
"""(place in the row, message) in their order."""


def form(fields: Mapping[str, Any]) -> str:
  """The form of a row: one of NEEDED, CONVERSATIONAL or "text".

  A field that is None is not there. Text beside another form is a column like any other.
  Raises JaxsftError for a row of no form, or of two.
  """
  there = {name for name, value in fields.items() if value is not None}
  found = _forms(there)
  if found == [PAIR] and all(isinstance(fields[name], list) for name in NEEDED[PAIR]):
    return CONVERSATIONAL
  if len(found) > 1:
    first, second = (NEEDED[name][0] for name in found[:2])
    raise JaxsftError(
      f"the row is {found[0]} by its field {first!r} and {found[1]} by {second!r}, expected "
      "one of them; give the field that is not meant another name, such as "
      f"config.data.columns={{'unused': '{second}'}}"
    )
  if not found and "text" not in there:
    _refuse_preference(fields)
    raise JaxsftError(
      f"the row has the fields {', '.join(sorted(there)) or 'none'}; expected 'messages', "
      "'conversations', 'instruction' and 'output', 'prompt' and 'completion', or 'text'; map "
      "columns with config.data.columns"
    )
  return found[0] if found else "text"


def _refuse_preference(fields: Mapping[str, Any]) -> None:
  """Raises JaxsftError, with the columns to map, for a row of a better and a worse answer."""
  chosen, prompt = fields.get("chosen"), fields.get("prompt")
  if chosen is None or fields.get("rejected") is None:
    return
  pair = isinstance(prompt, str | list) and isinstance(chosen, type(prompt))
  field = "completion" if pair else "messages" if isinstance(chosen, list) else "text"
  raise JaxsftError(
    "the row is a preference between 'chosen' and 'rejected', which no task here learns; to "
    f"learn from what was chosen, set config.data.columns={{'{field}': 'chosen'}}"
  )


def plain(fields: Mapping[str, Any]) -> bool:
  """Whether a row has a field "text", maybe empty, and no other form."""
  return "text" in fields and not _forms({k for k, v in fields.items() if v is not None})


def has_turns(fields: Mapping[str, Any]) -> bool:
  """Whether a row has a form with messages."""
  return bool(_forms({name for name, value in fields.items() if value is not None}))


def named(fields: Mapping[str, Any]) -> str:
  """The form of a row of any task, such as "messages", or else the fields that a task knows."""
  there = {name for name, value in fields.items() if value is not None}
  found = _forms(there)
  if found == [PAIR]:
    found = [form(fields)]
  others = [name for name in OTHER_FIELDS if name in there and not (found and name == "text")]
  return ", ".join(found + others) or "no known field"


def _forms(there: set[str]) -> list[str]:
  return [name for name, needed in NEEDED.items() if there.issuperset(needed)]


def turns(fields: Mapping[str, Any]) -> Turns:
  """The messages of a row in any form but text; what is in them is checked elsewhere."""
  kind = form(fields)
  if kind == "text":
    raise JaxsftError(
      "the row is plain text, expected a conversation; map columns with config.data.columns"
    )
  return READ[kind](fields)


def text(fields: Mapping[str, Any]) -> str:
  """The text of a row of the form "text"."""
  found = fields["text"]
  if not isinstance(found, str) or not found.strip():
    raise JaxsftError(
      f"text is {shown(found)}, expected text; correct the row or map the right column with "
      "config.data.columns"
    )
  return found


def system(fields: Mapping[str, Any]) -> str | None:
  """The system prompt of a row's own field; None: there is none, or the row is plain text."""
  found = None if form(fields) == "text" else fields.get("system")
  if found is not None and not isinstance(found, str):
    raise JaxsftError(
      f"system is {shown(found)}, expected text; correct the row, or give the column another "
      "name with config.data.columns={'unused': 'system'}"
    )
  return found if found and found.strip() else None


def tools(fields: Mapping[str, Any]) -> list[dict[str, Any]] | None:
  """The tools that a row describes, for the template; None: there are none.

  The field may be a JSON text. Alpaca and ShareGPT describe them as {"name", …}, templates
  read {"type": "function", "function": {"name", …}}; in other forms they stay as they are.
  """
  found = fields.get("tools")
  if isinstance(found, str):
    found = parsed("tools", found) if found.strip() else None
  if not found:
    return None
  if not isinstance(found, list) or not all(isinstance(tool, dict) for tool in found):
    raise JaxsftError(f"tools is {shown(found)}, expected a list of objects; correct the row")
  if form(fields) not in ("sharegpt", "alpaca"):
    return found
  for index, tool in enumerate(found):
    function_of(tool, f"tools[{index}]")
  return [t if "function" in t else {"type": "function", "function": t} for t in found]


def function_of(one: dict[str, Any], here: str = "") -> dict[str, Any]:
  """What a tool, or a call of one, says of it, {"name", …}: there may be a "function" around.

  here: what names it in the JaxsftError for one that has no name; "": it is known to have one.
  """
  found = one.get("function", one)
  if here and (not isinstance(found, dict) or not isinstance(found.get("name"), str)):
    raise JaxsftError(
      f"{here} is {shown(one)}, expected {{'type': 'function', 'function': {{'name', …}}}} or "
      "{'name', …}; correct the row"
    )
  return found


def with_arguments(call: dict[str, Any], arguments: Any) -> dict[str, Any]:
  """A call of a tool with other arguments."""
  named = function_of(call) | {"arguments": arguments}
  return call | {"function": named} if "function" in call else named


def _list(fields: Mapping[str, Any], name: str) -> list[Any]:
  found = fields[name]
  if not isinstance(found, list) or not found:
    keys = "'from', 'value'" if name == "conversations" else "'role', 'content'"
    raise JaxsftError(
      f"{name} is {shown(found)}, expected a list of {{{keys}}}; correct the row or map the "
      "right column with config.data.columns"
    )
  return found


def _messages(fields: Mapping[str, Any]) -> Turns:
  return [(f"messages[{i}]", found) for i, found in enumerate(_list(fields, "messages"))]


def _prompt_and_completion(fields: Mapping[str, Any]) -> Turns:
  both = [fields[name] for name in NEEDED[PAIR]]
  if not all(isinstance(one, str) for one in both):
    raise JaxsftError(
      f"prompt is {shown(both[0])} and completion is {shown(both[1])}, expected two texts or "
      "two lists of messages {'role', 'content'}; correct the row or map columns with "
      "config.data.columns"
    )
  return [
    ("prompt", {"role": "user", "content": fields["prompt"]}),
    ("completion", {"role": "assistant", "content": fields["completion"]}),
  ]


def _conversational(fields: Mapping[str, Any]) -> Turns:
  """The messages of both lists; those of the prompt do not train."""
  found: Turns = []
  for name in NEEDED[PAIR]:
    found += [(f"{name}[{i}]", turn) for i, turn in enumerate(_list(fields, name))]
  asked = len(fields["prompt"])
  roles = [turn.get("role") if isinstance(turn, dict) else None for _, turn in found]
  if roles[asked - 1] == "assistant":
    raise JaxsftError(
      f"prompt[{asked - 1}] is an answer, expected a prompt that ends with what is to be "
      "answered; move the answer into the completion, or correct the row"
    )
  if "assistant" not in roles[asked:]:
    raise JaxsftError(
      "no message of the completion has the role 'assistant', so there is nothing to train on; "
      "add the answer or remove the row"
    )
  return [
    (here, _context(here, turn) if here.startswith("prompt") else turn) for here, turn in found
  ]


def _context(here: str, turn: Any) -> Any:
  """A message that does not train."""
  said = [key for key in TRAINS if isinstance(turn, dict) and turn.get(key)]
  if said:
    raise JaxsftError(
      f"{here}: {said[0]!r} is {turn[said[0]]!r}, but what stands in a prompt is context and "
      "is not learnt; remove the key, or move the message into the completion"
    )
  return turn | {"train": False} if isinstance(turn, dict) else turn


def _alpaca(fields: Mapping[str, Any]) -> Turns:
  _texts(fields, "instruction", "output")
  question = [fields["instruction"]]
  if fields.get("input") is not None:
    _texts(fields, "input")
    question.append(fields["input"])
  question = [part for part in question if part.strip()]
  if not question:
    raise JaxsftError(
      "instruction and input are empty, expected a question; correct the row, or leave such "
      "rows out with config.data.keep"
    )
  found = []
  for place, pair in _history(fields):
    found += [
      (f"{place}[{i}]", {"role": role, "content": part})
      for i, (role, part) in enumerate(zip(("user", "assistant"), pair, strict=True))
    ]
  return [
    *found,
    ("instruction", {"role": "user", "content": "\n".join(question)}),
    ("output", {"role": "assistant", "content": fields["output"]}),
  ]


def _history(fields: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
  """(place, [question, answer]) of the exchanges before."""
  found = fields.get("history") or []
  pairs = [found] if not isinstance(found, list) else found
  for pair in pairs:
    texts = isinstance(pair, list) and [part for part in pair if isinstance(part, str)]
    if not texts or not len(texts) == len(pair) == 2:
      raise JaxsftError(
        f"history is {shown(found)}, expected pairs of texts [[question, answer], …]; correct "
        "the row"
      )
  return [(f"history[{i}]", pair) for i, pair in enumerate(pairs)]


def _sharegpt(fields: Mapping[str, Any]) -> Turns:
  conversations = _list(fields, "conversations")
  return [_turn(f"conversations[{i}]", turn) for i, turn in enumerate(conversations)]


def _turn(here: str, turn: Any) -> tuple[str, Any]:
  if not isinstance(turn, dict):
    raise JaxsftError(f"{here} is {shown(turn)}, expected {{'from', 'value'}}")
  by, said = ("from", "value") if "from" in turn or "value" in turn else ("role", "content")
  speaker, content = turn.get(by), turn.get(said)
  rest = {key: value for key, value in turn.items() if key not in (by, said)}
  if speaker == "function_call":
    calls = {"role": "assistant", "content": "", "tool_calls": _calls(here, content)}
    return here, rest | calls
  if not isinstance(speaker, str) or speaker not in ROLES:
    raise JaxsftError(
      f"{here} is from {speaker!r} and has the keys {', '.join(map(str, turn))}; expected "
      f"'from' (one of {', '.join(ROLES)}, function_call) and 'value', or 'role' and 'content'"
    )
  return here, rest | {"role": ROLES[speaker], "content": content}


def _calls(here: str, content: Any) -> list[dict[str, Any]]:
  """Tool calls, as templates read them, of {"name", "arguments"} or a list of these."""
  found = parsed(here, content) if isinstance(content, str) else content
  calls = found if isinstance(found, list) else [found]
  for call in calls:
    arguments = call.get("arguments") if isinstance(call, dict) else None
    if not isinstance(arguments, dict) or not isinstance(call.get("name"), str):
      raise JaxsftError(
        f"{here}: the function_call is {shown(content)}, expected the JSON of {{'name', "
        "'arguments': {…}}; correct the row"
      )
  return [{"type": "function", "function": call} for call in calls]


def parsed(here: str, content: str) -> Any:
  """The value of a JSON text; raises JaxsftError with the place `here`."""
  try:
    return json.loads(content)
  except (ValueError, RecursionError) as error:
    raise JaxsftError(
      f"{here}: {shown(content)} is no JSON ({error}); correct the row"
    ) from None


def _texts(fields: Mapping[str, Any], *names: str) -> None:
  for name in names:
    if not isinstance(fields.get(name), str):
      raise JaxsftError(
        f"{name} is {shown(fields.get(name))}, expected {' and '.join(map(repr, names))} as "
        "text; correct the row or map columns with config.data.columns"
      )


def shown(value: Any) -> str:
  """A value's type and its beginning."""
  text = repr(value)
  return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '…'}"


READ = {
  "messages": _messages,
  "sharegpt": _sharegpt,
  "alpaca": _alpaca,
  PAIR: _prompt_and_completion,
  CONVERSATIONAL: _conversational,
}
