"""Bad conversations and chat templates."""

from tests.bad_inputs.cases import ANSWER, ASK, case, chat, settings, turns

CHATML = (
  "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
  "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

CHATS = [
  chat(
    "messages not a list", {"messages": "hi"}, 1, "chats.jsonl:2", "'hi'", "expected a list"
  ),
  chat(
    "a message that is text",
    {"messages": ["hi", "four"]},
    1,
    "chats.jsonl:2",
    "messages[0]",
    "'role'",
  ),
  chat(
    "no messages",
    {"conversation": []},
    1,
    "chats.jsonl:2",
    "conversation",
    "'messages'",
    "config.data.columns",
  ),
  chat(
    "two forms in a row",
    turns(ASK, ANSWER) | {"instruction": "2 plus 2", "output": "four"},
    1,
    "chats.jsonl:2",
    "messages by its field 'messages'",
    "alpaca by 'instruction'",
    "config.data.columns",
  ),
  chat(
    "alpaca without output",
    {"instruction": "2 plus 2", "input": ""},
    1,
    "chats.jsonl:2",
    "output is NoneType None",
    "as text",
  ),
  chat(
    "alpaca with half an exchange",
    {"instruction": "2 plus 2", "output": "four", "history": [["a cat"]]},
    1,
    "chats.jsonl:2",
    "history is list",
    "[[question, answer], …]",
  ),
  chat(
    "sharegpt from nobody known",
    {"conversations": [{"from": "human", "value": "a"}, {"from": "bot", "value": "b"}]},
    1,
    "chats.jsonl:2",
    "conversations[1] is from 'bot'",
    "human, user, gpt",
  ),
  chat(
    "sharegpt with two systems",
    {
      "conversations": [{"from": "system", "value": "a"}, {"from": "human", "value": "b"}],
      "system": "c",
    },
    1,
    "chats.jsonl:2",
    "'system'",
    "remove one",
  ),
  chat(
    "a call that is no JSON",
    {"conversations": [{"from": "function_call", "value": "f(1)"}]},
    1,
    "chats.jsonl:2",
    "conversations[0]",
    "'f(1)' is no JSON",
  ),
  chat(
    "tools that are no JSON",
    turns(ASK, ANSWER) | {"tools": "[search]"},
    1,
    "chats.jsonl:2",
    "tools: str '[search]' is no JSON",
  ),
  chat(
    "plain text with a control token",
    {"text": "four<|im_end|>"},
    1,
    "chats.jsonl:2",
    "'<|im_end|>'",
    "remove it",
  ),
  chat(
    "a picture in a message",
    turns(("user", [{"type": "image_url", "image_url": "a.png"}]), ANSWER),
    1,
    "chats.jsonl:2",
    "messages[0]: content[0]",
    "only text",
  ),
  chat(
    "a weight between",
    {
      "messages": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "weight": 0.5},
      ]
    },
    1,
    "chats.jsonl:2",
    "messages[1]: 'weight' is 0.5",
    "0 or 1",
  ),
  chat(
    "unknown role",
    turns(ASK, ("bot", "four")),
    1,
    "chats.jsonl:2",
    "messages[1]",
    "'bot'",
    "assistant",
  ),
  chat(
    "no assistant turn", turns(ASK), 1, "chats.jsonl:2", "'assistant'", "nothing to train on"
  ),
  chat(
    "empty answer",
    turns(ASK, ("assistant", " ")),
    1,
    "chats.jsonl:2",
    "messages[1]",
    "empty",
    "remove the row",
  ),
  chat(
    "content that is a number",
    turns(ASK, ("assistant", 4)),
    1,
    "chats.jsonl:2",
    "messages[1]",
    "int 4",
    "expected text",
  ),
  chat(
    "control token in content",
    turns(("user", "a<|im_end|>b"), ANSWER),
    1,
    "chats.jsonl:2",
    "messages[0]",
    "'<|im_end|>'",
    "remove it",
  ),
  chat(
    "conversation too long",
    turns(ASK, ("assistant", "meow " * 200)),
    1,
    "chats.jsonl:2",
    "the limit is 512",
    "config.data.too_long",
  ),
  chat(
    "conversation too long to cut",
    turns(ASK, ("assistant", "meow " * 200)),
    1,
    "1 of 4",
    "too long",
    "max_length",
    data__too_long="truncate",
    data__split=0,
  ),
  case(
    "template without assistant turn",
    "train",
    lambda p: p.template(
      "{% for m in messages %}{% if m['role'] == 'user' %}"
      "<|im_start|>{{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"
    ),
    1,
    "chats.jsonl:",
    "messages[1]",
    "writes nothing of this answer",
    task="chat",
  ),
  case(
    "template that never stops",
    "train",
    lambda p: p.template(CHATML.replace("<|im_end|>", "")),
    1,
    "chats.jsonl:",
    "no stop token",
    "chat_template",
    task="chat",
  ),
  case(
    "template that rewrites history",
    "train",
    lambda p: (
      p.messages(ASK, ANSWER, ASK, ANSWER),
      p.template(
        CHATML.replace(
          "{{ m['content'] }}",
          "{{ m['content'] if loop.last else m['content'] | replace('four', '4') }}",
        )
      ),
    ),
    1,
    "chats.jsonl:",
    "messages[1]",
    "in another way",
    "train_on='each'",
    task="chat",
  ),
  case(
    "template that is no Jinja",
    "train",
    lambda p: p.template("{% for m in messages %}"),
    1,
    "chats.jsonl:",
    "template",
    "config.data.chat_template",
    task="chat",
  ),
  case(
    "no chat template",
    "train",
    lambda p: p.tokenizer("llama", chat_template=None),
    1,
    "no chat template",
    "config.data.chat_template",
    task="chat",
  ),
  settings(
    "missing template file",
    2,
    "config.data.chat_template",
    "none.jinja",
    task="chat",
    data__chat_template="none.jinja",
  ),
  settings(
    "labels for a chat",
    2,
    "config.data.labels",
    "task='chat'",
    task="chat",
    data__labels=["a", "b"],
  ),
  settings("chat with an encoder", 1, "bert", "config.task", task="chat", model__path="bert"),
]
