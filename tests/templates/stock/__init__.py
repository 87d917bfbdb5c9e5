"""Chat templates as models ship them, without `{% generation %}`, and what answers they write.

`answer` says by hand what a model has to learn of a message: nothing of it comes from the code
under test. LICENSES.md beside it says where the templates come from.
"""

import json
import pathlib
from typing import NamedTuple

from tests.templates import tiny

HERE = pathlib.Path(__file__).parent


class Stock(NamedTuple):
  """A template's tokens, and what it can write."""

  bos: str | None
  eos: str
  control: tuple[str, ...]
  """Control tokens besides."""
  words: tuple[str, ...] = ()
  """Added tokens that are no control tokens."""
  system: bool = True
  tools: bool = False
  described: bool = True
  """Whether the tools that a row describes are written, where calls of them are."""
  thinking: str | None = None
  """Key of a message with what is thought before the answer."""
  rewrites: tuple[str, ...] = ()
  """Names of CONVERSATIONS in which an answer stands otherwise once messages follow it."""
  mark: bool = False
  """Whether the next turn's mark ends an answer."""


IM, HEADERS = ("<|im_start|>", "<|im_end|>"), ("<|start_header_id|>", "<|end_header_id|>")
CALLS, THINK = ("<tool_call>", "</tool_call>"), ("<think>", "</think>")
TURNS = ("<start_of_turn>", "<end_of_turn>")
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
LISTS = ("[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]")
HARMONY = ("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|call|>")
GLM = ("[gMASK]", "<sop>", *ROLES, "<|observation|>")
OUTPUTS = ("outputs▁begin", "outputs▁end", "output▁begin", "output▁end")
DEEP = ("calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep", *OUTPUTS)
DEEP = ("<｜User｜>", "<｜Assistant｜>", *(f"<｜tool▁{name}｜>" for name in DEEP))
LLAMA, EOT = "<|begin_of_text|>", "<|end_of_text|>"

STOCK = {
  "chatml": Stock(None, IM[1], IM),
  "smollm2": Stock(IM[0], IM[1], IM),
  "llama3": Stock(LLAMA, "<|eot_id|>", (*HEADERS, EOT)),
  "llama3_1": Stock(LLAMA, "<|eot_id|>", (*HEADERS, EOT), tools=True),
  "qwen2_5": Stock(None, IM[1], (*IM, "<|endoftext|>"), CALLS, tools=True),
  "qwen3": Stock(
    None,
    IM[1],
    (*IM, "<|endoftext|>"),
    (*CALLS, *THINK),
    tools=True,
    thinking="reasoning_content",
    rewrites=("three", "tools", "thinking"),
  ),
  "gemma2": Stock("<bos>", "<eos>", TURNS, system=False),
  "gemma3": Stock("<bos>", "<eos>", TURNS),
  "mistral_v1": Stock("<s>", "</s>", (), system=False),
  "mistral_v3": Stock(
    "<s>", "</s>", ("[INST]", "[/INST]", "[TOOL_CALLS]", *LISTS), system=False, tools=True
  ),
  "phi3": Stock(None, "<|endoftext|>", (*ROLES, "<|end|>")),
  "phi4": Stock(None, IM[1], (*IM, "<|im_sep|>", "<|endoftext|>")),
  "zephyr": Stock("<s>", "</s>", ()),
  "gpt_oss": Stock(
    None,
    "<|return|>",
    HARMONY,
    tools=True,
    thinking="thinking",
    rewrites=("three", "thinking"),
  ),
  "deepseek_v3": Stock(
    "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", DEEP, tools=True, described=False
  ),
  "glm4": Stock(None, "<|endoftext|>", GLM, tools=True, mark=True),
  "glm4moe": Stock(
    None,
    "<|endoftext|>",
    GLM,
    (*CALLS, *THINK, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    tools=True,
    thinking="reasoning_content",
    rewrites=("thinking",),
    mark=True,
  ),
  "granite3": Stock(
    None,
    "<|end_of_text|>",
    ("<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>"),
    tools=True,
  ),
}

CALL = {"name": "weather", "arguments": {"city": "Zürich", "days": 2}}
TOOL_CALL = {"type": "function", "function": CALL}
TOOLS = [
  {
    "type": "function",
    "function": {
      "name": "weather",
      "description": "The weather.",
      "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
  }
]


def talk(*turns):
  """Messages of (role, content) or whole messages."""
  return [t if isinstance(t, dict) else {"role": t[0], "content": t[1]} for t in turns]


THREE = (
  ("user", "Hi"),
  ("assistant", "Yes."),
  ("user", "And the\n\nrest?"),
  ("assistant", "A\nlist:\n\n  - the first\n"),
  ("user", "Thanks"),
  ("assistant", "Bye"),
)
CALLED = {"role": "assistant", "content": "", "tool_calls": [TOOL_CALL]}
CONVERSATIONS = {
  "one": talk(("user", "Hi"), ("assistant", "Yes, the end.")),
  "three": talk(*THREE),
  "system": talk(("system", "Be kind."), ("user", "Yes."), ("assistant", "Yes.")),
  "unicode": talk(("user", "Grüß"), ("assistant", "日本 🙂👩‍👩‍👧 é\u200b ﬁ")),
  "spaces": talk(("user", "  x "), ("assistant", "  the \t\n\n  the  ")),
  "empty": talk(("user", ""), ("assistant", "What?")),
  "tools": talk(("user", "Rain?"), CALLED, ("tool", '{"rain": 1}'), ("assistant", "Yes.")),
  "thought": talk(("user", "2+2"), {"role": "assistant", "content": "4", "why": "Two\nand."}),
  "thinking": talk(
    ("user", "2+2"),
    {"role": "assistant", "content": "4", "why": "Two twos."},
    ("user", "And 1?"),
    {"role": "assistant", "content": "5", "why": "One more."},
  ),
}


def conversation(name, which):
  """The messages of CONVERSATIONS[which] with the template's own key for thoughts."""
  key = STOCK[name].thinking
  renamed = [{key if k == "why" else k: v for k, v in m.items()} for m in CONVERSATIONS[which]]
  return renamed


def tools(name, which):
  """What a row of CONVERSATIONS[which] describes."""
  return TOOLS if which == "tools" and STOCK[name].described else None


THOUGHT = CONVERSATIONS["thought"]
CASES = [
  (name, which)
  for name, stock in STOCK.items()
  for which in CONVERSATIONS
  if (stock.system or which != "system")
  and (stock.tools or which != "tools")
  and (stock.thinking or which not in ("thought", "thinking"))
]


def template(name):
  return (HERE / f"{name}.jinja").read_text(encoding="utf-8")


def tokenizer(name, pad=None):
  """The byte-level tokenizer of `tiny` with this template and its tokens."""
  bos, eos, control, words = STOCK[name][:4]
  made = tiny.built(bos, eos, control, template(name), pad)
  made.add_tokens(list(words))
  return made


def answer(name, messages, index):
  """What is to be learnt of messages[index] where messages[: index + 1] are written."""
  m, stock = messages[index], STOCK[name]
  last = index + 1 == len(messages)
  said, calls = m["content"], m.get("tool_calls")
  result = calls if last else messages[index + 1]["role"] == "tool"
  mark = "<|observation|>" if result else "<|user|>"  # what opens the turn after GLM's
  asked = max(i for i, one in enumerate(messages) if one["role"] == "user")
  thought = m.get(stock.thinking) if stock.thinking else None
  arguments = json.dumps(CALL["arguments"], ensure_ascii=False)
  hermes = f'{{"name": "weather", "arguments": {arguments}}}'
  if name in ("chatml", "smollm2", "phi4"):
    return f"{said}<|im_end|>"
  if name == "phi3":
    return f"{said}<|end|>" + "\n<|endoftext|>" * last
  if name in ("gemma2", "gemma3"):
    return f"{said.strip()}<end_of_turn>"
  if name in ("llama3", "llama3_1"):
    call = f'{{"name": "weather", "parameters": {arguments}}}'
    return f"{call if calls else said.strip()}<|eot_id|>"
  if name in ("mistral_v1", "zephyr"):
    return f"{said}</s>"
  if name == "mistral_v3":
    return f"[TOOL_CALLS] [{hermes}]</s>" if calls else f" {said.strip()}</s>"
  if name == "qwen2_5":
    return f"<tool_call>\n{hermes}\n</tool_call><|im_end|>" if calls else f"{said}<|im_end|>"
  if name == "qwen3":
    if index > asked and (last or thought):
      plain = [*messages[:index], m | {"content": said.lstrip("\n")}]
      thought = (thought or "").strip("\n")
      return f"<think>\n{thought}\n</think>\n\n" + answer("qwen2_5", plain, index)
    return answer("qwen2_5", messages, index)
  if name == "gpt_oss":
    think = f"<|channel|>analysis<|message|>{thought}<|end|><|start|>assistant"
    think = think if thought is not None and last else ""
    if calls:
      return f" to=functions.weather<|channel|>commentary json<|message|>{arguments}<|call|>"
    end = "<|return|>" if last else "<|end|>"
    return f"{think}<|channel|>final<|message|>{said}{end}"
  if name == "deepseek_v3":
    begin, end = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
    call = f"{begin}function<｜tool▁sep｜>weather\n```json\n{arguments}\n```{end}"
    return f"{call + '<｜tool▁calls▁end｜>' if calls else said}<｜end▁of▁sentence｜>"
  if name == "glm4":
    return (f"weather\n{arguments}" if calls else f"\n{said}") + mark
  if name == "glm4moe":
    think = f"\n<think>{(thought or '').strip() if index > asked else ''}</think>"
    pairs = [
      (k, v if isinstance(v, str) else json.dumps(v)) for k, v in CALL["arguments"].items()
    ]
    call = "".join(f"<arg_key>{k}</arg_key>\n<arg_value>{v}</arg_value>\n" for k, v in pairs)
    call = f"\n<tool_call>weather\n{call}</tool_call>"
    return think + (call if calls else f"\n{said.strip()}") + mark
  assert name == "granite3"
  call = f"<|tool_call|>[{hermes}]"
  return f"{call if calls else said}<|end_of_text|>"
