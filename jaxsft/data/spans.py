"""What of a rendered conversation is supervised: the answers and the stop tokens behind them.

With `{% generation %}` tags, an answer is what these enclose; without, what the template writes
after its own generation prompt. Nothing is found by searching for markers or by the length of
a tokenised prompt. `write(messages, add_generation_prompt=False)` is the template; `added` are
`control.Special.added`.
"""

import re

from jaxsft.data import control, forms
from jaxsft.errors import JaxsftError

THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Keys of a message with what is thought before its answer."""
UNWRITTEN = "with {} that the chat template does not write"
"""What is said of a conversation without its tools or thoughts."""
OPEN, CLOSE = "\ufdd0", "\ufdd1"  # noncharacters: they occur in no text
TAG = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")
TAGS = re.compile(r"(<[^<>]{1,40}>|\[[^\[\]]{1,40}\])")
EACH = (
  "set config.data.train_on='each' to make an example of every answer, or 'last' to train on "
  "the last one only"
)


def of_answers(messages, trained, text, write, added, template):
  """([(start, end, index)], the text) of the answers messages[index] for index in `trained`.

  The text is longer than it came where its end is the mark of a turn that would follow: see
  `_end`. Raises JaxsftError where the spans cannot be told.
  """
  spans = []
  for index in trained:
    turn = _turn(messages, index, text, write)
    start = _start(messages, index, turn, write, template)
    end, text = _end(messages, index, start, turn, text, write, added)
    _refuse_lost_calls(messages, index, text[start:end])
    spans.append((start, end, index))
  return spans, text


def of_tags(messages, trained, text, write, mark, added):
  """The same, of what the template's own tags enclose, up to the stop token after them.

  mark: `write` by the template with `marks` in the place of its tags.
  """
  plain = _unmark(mark(messages))[0]
  if plain != text:
    raise JaxsftError(
      "the {% generation %} tags of the chat template cannot be located: marks in their "
      f"place change the text ({_difference(text, plain)}); simplify what is around them"
    )
  spans = []
  for index in trained:
    before = len(_unmark(mark(messages[:index]))[1]) if index else 0
    own = _unmark(mark(messages[: index + 1]))[1][before:]
    if not own:
      raise JaxsftError(
        f"messages[{index}]: the chat template writes this answer outside of its "
        "{% generation %} tags, so it would not be trained; correct the template or set "
        "the message's 'train' to false"
      )
    turn = _turn(messages, index, text, write)
    end, text = _end(messages, index, own[-1][0], turn, text, write, added)
    own = [*own[:-1], (own[-1][0], end)]
    _refuse_lost_calls(messages, index, "".join(text[a:b] for a, b in own))
    spans += [(start, stop, index) for start, stop in own]
  return spans, text


def marks(template):
  """The template that writes a mark where each generation tag stands."""
  return TAG.sub(_mark, template)


def _mark(tag):
  """Jinja that writes a mark where the generation tag stands, with its white space rules."""
  left, end, right = tag.groups()
  mark = CLOSE if end else OPEN
  return f"{{%{left} if true %}}{{{{ '{mark}' }}}}{{% endif {right}%}}"


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


def _turn(messages, index, text, write):
  """The rendering that ends with the answer messages[index]: of the last, the whole text."""
  return text if index + 1 == len(messages) else write(messages[: index + 1])


def _start(messages, index, answered, write, template):
  """Where the answer begins: after the messages before it and the generation prompt.

  answered: of `_turn`.
  """
  if index == 0:
    raise JaxsftError(
      "messages[0] is an answer to nothing; put a message before it or set its 'train' to false"
    )
  prompt = write(messages[:index], True)
  if not answered.startswith(prompt):
    advice = "mark answers with {% generation %} in config.data.chat_template"
    raise JaxsftError(
      f"messages[{index}]: the chat template writes another text before this answer than "
      f"when it asks for an answer ({_difference(answered, prompt)}); "
      + (advice if index + 1 == len(messages) else f"{EACH}, or {advice}")
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


def _end(messages, index, start, turn, text, write, added):
  """(end of the stop tokens after the answer messages[index] that begins at `start`, the text).

  What follows the answer in `turn`, of `_turn`, apart from white space, are the template's stop
  tokens; those that also follow in the whole `text` count. Some templates (GLM's) write nothing
  between the answer and the mark that opens the next turn: this ends it, and is added to the
  text where no turn follows. Raises JaxsftError if the answer stands differently in `text` (a
  template that rewrites history), or if no stop token follows it: generation would never end.
  """
  rest, ends = turn.rstrip(), []
  while last := next((t for t in added if rest.endswith(t)), None):
    if not added[last] and not _closes(last, messages, index, write):
      break  # the message's own word, not the template's
    ends.append(len(rest))
    rest = rest.removesuffix(last).rstrip()
  if len(rest) <= start:
    raise JaxsftError(f"messages[{index}]: the chat template writes nothing of this answer")
  for end in ends:
    if text.startswith(turn[:end]):
      return end, text
  if ends or not text.startswith(turn.rstrip()):
    expected = rest if not text.startswith(rest) else turn[: ends[0]]
    raise JaxsftError(
      f"messages[{index}]: the chat template writes this answer in another way once "
      f"messages follow it ({_difference(text, expected)}); {EACH}, or change "
      "config.data.chat_template"
    )
  return _next_mark(messages, index, turn, text, write, added)


def _closes(word, messages, index, write):
  """Whether a word that is no control token ends answers, not only what this one says."""
  if any(word in part for part in control.texts(messages[index])):
    return False
  if not messages[index].get("tool_calls"):
    return True
  try:  # the template's words around a call may end it too
    other = write([*messages[:index], {"role": "assistant", "content": "a"}])
  except JaxsftError:
    return True
  return other.rstrip().endswith(word)


def _next_mark(messages, index, turn, text, write, added):
  """(end of the control token after the answer, the text with it).

  turn: the text up to the end of the answer. Where no turn follows, a short conversation in
  which one does tells the mark.
  """
  message, last = messages[index], index + 1 == len(messages)
  if not last and messages[index + 1]["role"] == "assistant":
    raise JaxsftError(
      f"messages[{index}]: the chat template lets the next turn end an answer, but the next is "
      "an answer too; make one message of them"
    )
  rest = _after_a_turn(message, write) if last else text[len(turn) :]
  mark = next((t for t, own in added.items() if own and rest.startswith(t)), None)
  said = len(turn.rstrip())
  space = turn[said:]
  if mark is None or not (space == "" or message["content"].endswith(space)):
    raise JaxsftError(
      f"messages[{index}]: the chat template writes no stop token after this answer "
      f"(but {(space + rest)[:20]!r}), so the model would never learn to stop; "
      "close answers with the end-of-turn token in config.data.chat_template"
    )
  return len(turn) + len(mark), turn + mark if last else text


def _after_a_turn(message, write):
  """What the template writes after an answer like this one where another turn follows."""
  calls = {name: message[name] for name in ("tool_calls",) if message.get(name)}
  said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"} | calls]
  try:
    whole = write([*said, {"role": "tool" if calls else "user", "content": "a"}])
    turn = write(said)
  except JaxsftError:
    return ""  # a template that lets none follow
  return whole[len(turn) :] if whole.startswith(turn) else ""


def refuse_left_out(messages, text, write):
  """Raises JaxsftError where the template leaves out what a tool, a user or the system says.

  Then it is all the same what the message says.
  """
  for i, message in enumerate(messages):
    said = message["content"].strip()
    if message["role"] == "assistant" or not said:
      continue
    if message["role"] == "user" and said in text:
      continue
    try:
      other = write([*messages[:i], message | {"content": f"{said}."}, *messages[i + 1 :]])
    except JaxsftError:
      continue  # it is read
    if other == text:
      raise JaxsftError(
        f"messages[{i}]: the chat template leaves out what the {message['role']} says; set "
        "another config.data.chat_template, or remove the message"
      )


def counted(lost, unwritten):
  """(UNWRITTEN of what is lost,) of {what: a sentence that says so, or ""}.

  unwritten: as config.data.unwritten; "refuse" raises JaxsftError with the first sentence.
  """
  found = {what: sentence for what, sentence in lost.items() if sentence}
  if found and unwritten == "refuse":
    way = "or config.data.unwritten='leave_out' to go on without"
    raise JaxsftError(
      f"{next(iter(found.values()))}; set another config.data.chat_template, {way}"
    )
  return tuple(UNWRITTEN.format(what) for what in found)


def tools_left_out(tools, text, write):
  """A sentence on the first tool of a row that the template leaves out; "": there is none.

  A model would learn to call, or not to call, what it is not told of. write: the template, of
  other tools or None: every tool has to change what it writes.
  """
  if not tools:
    return ""
  names = [forms.function_of(tool).get("name") for tool in tools]
  doubt = [i for i, name in enumerate(names) if not isinstance(name, str) or name not in text]
  for left in [[], *([tool for tool in tools if tool is not tools[i]] for i in doubt)]:
    try:
      other = write(left or None)
    except JaxsftError:
      continue  # it is read
    if other == text:
      told = next(tool for tool in tools if all(tool is not one for one in left))
      return (
        f"the chat template does not write the tool {forms.shown(told)}, so an answer would be "
        "learnt or asked for without it"
      )
  return ""


def thoughts_left_out(messages, spans, text, write):
  """A sentence on the first trained answer that the template does not write whole; "": none.

  What is thought before an answer stands under a key of THOUGHTS, or in its content, where
  templates cut it off at </think>. spans: of `of_answers` or `of_tags`, in `text`.
  """
  for index in dict.fromkeys(index for *_, index in spans):
    own = [span for span in spans if span[2] == index]
    lost = _lost_piece(messages[: index + 1], text[own[0][0] : own[-1][1]], write)
    if lost:
      return (
        f"messages[{index}]: the chat template does not write all of this answer, such as its "
        f"thoughts ({forms.shown(lost.strip())}), so that would not be learnt"
      )
  return ""


def _lost_piece(messages, said, write):
  """What of the last message does not change what the template writes; None: there is none.

  said: its span. Tried are thoughts that do not stand in it beside the content, and, where
  that does not, its pieces between <tags> and [tags].
  """
  message, said = messages[-1], _squeezed(said)
  content = _squeezed(message["content"])
  before, _, after = said.rpartition(content) if content else ("", "", said)
  texts = {key: message[key] for key in THOUGHTS if isinstance(message.get(key), str)}
  texts = {key: text for key, text in texts.items() if _squeezed(text) not in before + after}
  tries = [(text, {key: f"{text}."}) for key, text in texts.items()]
  if content not in said:
    pieces = TAGS.split(message["content"])
    for i in range(0, len(pieces), 2):
      other = "".join([*pieces[:i], f"{pieces[i]}.", *pieces[i + 1 :]])
      tries += [(pieces[i], {"content": other})] if pieces[i].strip() else []
  turn = write(messages) if tries else ""
  for piece, other in tries:
    try:
      if write([*messages[:-1], message | other]) == turn:
        return piece
    except JaxsftError:
      continue  # it is read
  return None


def _squeezed(text):
  """A text without white space, which templates change around thoughts."""
  return "".join(text.split())


def _refuse_lost_calls(messages, index, said):
  """Raises JaxsftError where the template leaves out a tool that an answer calls, or what it
  says beside its calls.
  """
  calls = messages[index].get("tool_calls") or ()
  names = [forms.function_of(call)["name"] for call in calls]
  beside = messages[index]["content"].strip()
  if names and beside not in said:
    raise JaxsftError(
      f"messages[{index}]: the chat template does not write what the answer says beside its "
      "calls, so it would not be learnt; set another config.data.chat_template, or empty the "
      "content"
    )
  for name in names:
    if said.count(name) < names.count(name):
      raise JaxsftError(
        f"messages[{index}]: the chat template does not write the call of the tool {name!r}, "
        "so it would not be learnt; set another config.data.chat_template, or remove the row"
      )


def _difference(expected, found):
  """Where two texts part, in words."""
  pairs = zip(expected, found, strict=False)
  at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(expected), len(found)))
  cut = lambda text: repr(text[max(at - 15, 0) : at + 25])
  return f"at character {at}: {cut(expected)} against {cut(found)}"
