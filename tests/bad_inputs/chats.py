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
    "train_on='last'",
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
