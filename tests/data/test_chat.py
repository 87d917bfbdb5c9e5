"""What is supervised decodes to exactly the answers and their stop tokens."""

import os
import pathlib

import numpy as np
import pytest

from jaxsft.data import chat
from jaxsft.data import messages as conversations
from jaxsft.errors import JaxsftError
from tests.templates import tiny

TRAINABLE = [name for name, shape in tiny.SHAPES.items() if shape[3]]
CONVERSATIONS = {
  "one": [("user", "Hi"), ("assistant", "Yes, the end.")],
  "three": [
    ("user", "Hi"),
    ("assistant", "Yes."),
    ("user", "And the\n\nrest?"),
    ("assistant", "A\nlist:\n\n  - the first\n"),
    ("user", "Thanks"),
    ("assistant", "Bye"),
  ],
  "system": [("system", "Be kind."), ("user", "Yes."), ("assistant", "Yes.")],
  "unicode": [("user", "Grüß"), ("assistant", "日本 🙂👩‍👩‍👧 é\u200b ﬁ")],
  "spaces": [("user", "x"), ("assistant", "  the \t\n\n  the  "), ("user", "  ")],
  "same": [("user", "the assistant"), ("assistant", "assistant\nthe")],
}


def as_messages(pairs):
  return [{"role": role, "content": content} for role, content in pairs]


def expected(shape, pairs):
  """The answers as `shape` writes them, by hand."""
  stop, text = tiny.SHAPES[shape][3], ""
  for index, (role, content) in enumerate(pairs):
    if role == "assistant":
      content = content.strip() if shape in ("headers", "turns") else content
      text += (" " if shape == "brackets" else "") + content + stop
      if shape == "tail" and index + 1 == len(pairs):
        text += "\n<|endoftext|>"
  return text


def expected_stops(shape, pairs):
  """The last token of every answer."""
  answers = [i for i, (role, _) in enumerate(pairs) if role == "assistant"]
  if shape == "tail" and answers[-1] + 1 == len(pairs):
    return {"<|end|>", "<|endoftext|>"} if len(answers) > 1 else {"<|endoftext|>"}
  return {tiny.SHAPES[shape][3]}


def tokens_of(pairs, tokenizer, train_on="all", template=None):
  messages = conversations.conversation({"messages": as_messages(pairs)}, train_on)
  rendered = chat.render(messages, tokenizer, template)
  return rendered, chat.tokenize(rendered, tokenizer, template)


def supervised_text(tokens, tokenizer):
  return tokenizer.decode(tokens.ids[tokens.supervised])


def pads(shape):
  return [None, tiny.SHAPES[shape][1]]


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("shape", TRAINABLE)
def test_supervised_text_is_the_answers_with_their_stop_tokens(shape, name):
  pairs = CONVERSATIONS[name]
  for pad in pads(shape):
    tokenizer = tiny.tokenizer(shape, pad)
    rendered, tokens = tokens_of(pairs, tokenizer)
    assert supervised_text(tokens, tokenizer) == expected(shape, pairs)
    spans = "".join(rendered.text[start:end] for start, end, _ in rendered.spans)
    assert spans == expected(shape, pairs)
    assert tokens.ids.tolist() == hf_ids(tokenizer, pairs)
    stops = set(tokenizer.convert_ids_to_tokens(list(tokens.stop_ids)))
    assert stops == expected_stops(shape, pairs)


def hf_ids(tokenizer, pairs, **options):
  return tokenizer.apply_chat_template(as_messages(pairs), **options)["input_ids"]


MUTANTS = {
  "no stop token": lambda ids, on: on & ~(on & ~np.roll(on, -1)),
  "one early": lambda ids, on: np.roll(on, -1),
  "one late": lambda ids, on: np.roll(on, 1),
  "all": lambda ids, on: np.ones_like(on),
  "none": lambda ids, on: np.zeros_like(on),
  "last answer only": lambda ids, on: on & (np.cumsum(~on) == np.cumsum(~on)[on][-1]),
  "user": lambda ids, on: ~on,
  "no white space": lambda ids, on: on & ~np.isin(ids, ids[on][1:2]),
}


@pytest.mark.parametrize("mutant", MUTANTS)
@pytest.mark.parametrize("shape", TRAINABLE)
def test_the_comparison_above_tells_every_wrong_mask(shape, mutant):
  tokenizer, pairs = tiny.tokenizer(shape), CONVERSATIONS["three"]
  tokens = tokens_of(pairs, tokenizer)[1]
  wrong = tokens._replace(supervised=MUTANTS[mutant](tokens.ids, tokens.supervised))
  assert supervised_text(wrong, tokenizer) != expected(shape, pairs)


@pytest.mark.parametrize("shape", TRAINABLE)
def test_prompts_are_what_training_shows_before_an_answer(shape):
  tokenizer, pairs = tiny.tokenizer(shape), CONVERSATIONS["three"]
  ids = tokens_of(pairs, tokenizer)[1].ids
  for cut in (1, 3, 5):
    prompt = chat.prompt_ids(as_messages(pairs[:cut]), tokenizer)
    assert prompt.tolist() == hf_ids(tokenizer, pairs[:cut], add_generation_prompt=True)
    assert prompt.tolist() == ids[: len(prompt)].tolist()


def test_a_token_across_the_border_is_supervised():
  tokenizer = tiny.tokenizer("chatml")
  tokens = tokens_of([("user", "Hi"), ("assistant", "Ok. O")], tokenizer)[1]
  assert supervised_text(tokens, tokenizer) == "\nOk. O<|im_end|>"  # "\nO" is one token
  tokens = tokens_of([("user", "Hi"), ("assistant", "\n\nx")], tokenizer)[1]
  assert supervised_text(tokens, tokenizer) == "\n\n\nx<|im_end|>"  # "\n\n", "\n"


@pytest.mark.parametrize("shape", ["thinking", "chatml", "generation"])
def test_the_last_answer_alone(shape):
  tokenizer, pairs = tiny.tokenizer(shape), CONVERSATIONS["three"]
  tokens = tokens_of(pairs, tokenizer, train_on="last")[1]
  assert supervised_text(tokens, tokenizer) == "Bye<|im_end|>"


def test_a_template_that_rewrites_history_is_refused_with_the_way_out():
  tokenizer = tiny.tokenizer("thinking")
  pairs = [
    ("user", "Hi"),
    ("assistant", "<think>hm</think>Yes"),
    ("user", "And?"),
    ("assistant", "<think>oh</think>No"),
  ]
  with pytest.raises(JaxsftError, match=r"messages\[1\].*<think>.*train_on='each'.*'last'"):
    tokens_of(pairs, tokenizer)
  tokens = tokens_of(pairs, tokenizer, train_on="last")[1]
  assert supervised_text(tokens, tokenizer) == "<think>oh</think>No<|im_end|>"


def test_a_tagged_template_that_rewrites_history_is_refused():
  tokenizer = tiny.tokenizer("chatml")
  template = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] if loop.last else m['content'] | upper }}<|im_end|>"
    "{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>{% endif %}\n{% endfor %}"
  )
  with pytest.raises(JaxsftError, match=r"messages\[1\].*train_on='each'.*'last'"):
    tokens_of(CONVERSATIONS["three"], tokenizer, template=template)
  tokens = tokens_of(CONVERSATIONS["three"], tokenizer, "last", template)[1]
  assert supervised_text(tokens, tokenizer) == "Bye<|im_end|>"


def test_tags_inside_a_macro_are_located():
  tokenizer = tiny.tokenizer("chatml")
  template = (
    "{%- macro turn(m) %}<|im_start|>{{ m['role'] }}\n"
    "{%- if m['role'] == 'assistant' %}\n\n{%- generation -%}\n {{ m['content'] }}"
    "{%- endgeneration %}<|im_end|>{% else %}{{ m['content'] }}<|im_end|>{% endif %}"
    "{% endmacro -%}{% for m in messages %}{{ turn(m) }}\n{% endfor %}"
  )
  tokens = tokens_of(CONVERSATIONS["three"], tokenizer, template=template)[1]
  assert supervised_text(tokens, tokenizer) == expected("chatml", CONVERSATIONS["three"])


def test_tags_that_leave_an_answer_out_are_refused():
  template = tiny.template("generation").replace(
    "== 'assistant' %}", "== 'assistant' and loop.index0 != 5 %}"
  )
  with pytest.raises(JaxsftError, match=r"messages\[5\].*generation"):
    tokens_of(CONVERSATIONS["three"], tiny.tokenizer("generation"), template=template)


@pytest.mark.parametrize("shape", ["chatml", "generation", "generation_closed"])
def test_an_answer_that_does_not_train_is_left_out(shape):
  messages = as_messages(CONVERSATIONS["three"])
  messages[1]["train"] = messages[5]["train"] = False
  messages = conversations.conversation({"messages": messages})
  tokenizer = tiny.tokenizer(shape)
  tokens = chat.tokenize(chat.render(messages, tokenizer), tokenizer)
  answer = CONVERSATIONS["three"][3][1]
  assert supervised_text(tokens, tokenizer) == answer + "<|im_end|>"


def test_several_tags_in_one_answer():
  template = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{% generation %}1. {% endgeneration %}(said){% generation %}{{ m['content'] }}"
    "{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}<|im_end|>{% endfor %}"
  )
  tokenizer = tiny.tokenizer("chatml")
  pairs = [("user", "Hi"), ("assistant", "Yes"), ("user", "And?"), ("assistant", "No")]
  tokens = tokens_of(pairs, tokenizer, template=template)[1]
  assert supervised_text(tokens, tokenizer) == "1. Yes<|im_end|>1. No<|im_end|>"


def test_tags_whose_marks_change_the_text_are_refused():
  template = (
    "{% for m in messages %}{% set text %}{% generation %}{{ m['content'] }} "
    "{% endgeneration %}{% endset %}{{ text | trim }}<|im_end|>{% endfor %}"
  )
  with pytest.raises(JaxsftError, match=r"cannot be located.*'Hi <\|im_end\|>"):
    tokens_of(CONVERSATIONS["one"], tiny.tokenizer("chatml"), template=template)


def test_spans_without_stop_token_or_without_anything_before_are_refused():
  tokenizer = tiny.tokenizer("chatml")
  text = "<|im_start|>Yes<|im_end|>"
  with pytest.raises(JaxsftError, match=r"messages\[3\]: the last trained token is"):
    chat.tokenize(chat.Rendered(text, [(12, 15, 3)]), tokenizer)
  with pytest.raises(JaxsftError, match="nothing can predict"):
    chat.tokenize(chat.Rendered(text, [(0, len(text), 0)]), tokenizer)
  tokens = chat.tokenize(chat.Rendered(text, [(12, 15, 0), (15, 25, 0)]), tokenizer)
  assert supervised_text(tokens, tokenizer) == "Yes<|im_end|>"


def test_an_answer_that_the_template_leaves_out_is_refused():
  asked = "(message['content'] if message['role'] == 'user' else '')"
  template = tiny.template("chatml").replace("message['content']", asked)
  with pytest.raises(JaxsftError, match="writes nothing of this answer"):
    tokens_of(CONVERSATIONS["one"], tiny.tokenizer("chatml"), template=template)


WORDS = tiny.template("unclosed").replace("'<|'", "'# '").replace("|>", ":").replace("<|", "# ")


def test_a_template_without_stop_tokens_is_refused():
  tokenizer = tiny.tokenizer("unclosed")
  for name in ("three", "one"):
    with pytest.raises(JaxsftError, match=r"no stop token after this answer.*never learn"):
      tokens_of(CONVERSATIONS[name], tokenizer, template=WORDS)
  template = WORDS + "{{ eos_token if not add_generation_prompt }}"
  with pytest.raises(JaxsftError, match=r"messages\[1\].*in another way.*train_on='each'"):
    tokens_of(CONVERSATIONS["three"], tokenizer, template=template)
  tokens = tokens_of(CONVERSATIONS["one"], tokenizer, template=template)[1]
  assert supervised_text(tokens, tokenizer).endswith("end.<|endoftext|>")


def test_the_mark_of_the_next_turn_ends_an_answer_that_nothing_else_ends():
  """GLM's way; where no turn follows, the mark that a question would have is added."""
  tokenizer = tiny.tokenizer("unclosed")
  pairs = [*CONVERSATIONS["one"], ("user", "And?"), ("assistant", "No\n ")]
  tokens = tokens_of(pairs, tokenizer)[1]
  assert supervised_text(tokens, tokenizer) == "Yes, the end.<|user|>No\n <|user|>"
  assert tokens.stop_ids == {tokenizer.convert_tokens_to_ids("<|user|>")}
  ids = hf_ids(tokenizer, pairs)
  assert tokens.ids.tolist()[: len(ids)] == ids and len(tokens.ids) == len(ids) + 1
  open_ended = [*pairs, ("user", "So?")]  # nothing is added behind a question
  assert tokens_of(open_ended, tokenizer)[1].ids.tolist() == hf_ids(tokenizer, open_ended)
  template = tiny.template("unclosed").replace("['content']", "['content'] + '\n'")
  with pytest.raises(JaxsftError, match="no stop token"):  # a mark that was forgotten
    tokens_of(pairs, tokenizer, template=template)


def test_an_added_word_at_the_end_of_an_answer_is_no_stop_token():
  tokenizer = tiny.tokenizer("unclosed")
  tokenizer.add_tokens(["</call>", "</turn>"])
  pairs = [("user", "Hi"), ("assistant", "<call>x</call>")]
  with pytest.raises(JaxsftError, match="no stop token"):
    tokens_of(pairs, tokenizer, template=WORDS)
  template = tiny.template("chatml").replace("<|im_end|>", "</turn>")
  tokens = tokens_of(pairs, tokenizer, template=template)[1]
  assert supervised_text(tokens, tokenizer) == "<call>x</call></turn>"
  assert tokens.stop_ids == {tokenizer.convert_tokens_to_ids("</turn>")}


def test_a_template_without_generation_prompt_would_train_its_header():
  template = tiny.template("chatml").split("{% if add_generation_prompt %}")[0]
  with pytest.raises(JaxsftError, match=r"no generation prompt.*'<\|im_start\|>assis"):
    tokens_of(CONVERSATIONS["one"], tiny.tokenizer("chatml"), template=template)


def test_a_generation_prompt_that_training_never_shows_is_refused():
  template = tiny.template("chatml").replace("assistant\\n'", "assistant\\n<think>'")
  with pytest.raises(JaxsftError, match=r"messages\[1\].*when it asks.*'last'.*generation"):
    tokens_of(CONVERSATIONS["three"], tiny.tokenizer("chatml"), template=template)


@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_control_tokens_in_a_message_are_refused(shape):
  tokenizer = tiny.tokenizer(shape)
  for token in tokenizer.all_special_tokens:
    for role in ("user", "assistant"):
      pairs = [("user", "Hi"), ("assistant", "Yes")]
      pairs[role == "assistant"] = (role, f"a {token}b")
      with pytest.raises(JaxsftError, match="control token") as error:
        tokens_of(pairs, tokenizer)
      assert token in str(error.value) and role in str(error.value)
  with pytest.raises(JaxsftError, match="control token"):
    chat.prompt_ids([{"role": "user", "content": tokenizer.eos_token}], tokenizer)


def test_a_second_beginning_of_text_is_refused():
  template = "{{ bos_token }}" + tiny.template("headers")
  with pytest.raises(JaxsftError, match=r"'<\|begin_of_text\|>' stands at .*\[0, 1\]"):
    tokens_of(CONVERSATIONS["one"], tiny.tokenizer("headers"), template=template)
  template = "{{ bos_token }}" + tiny.template("chatml")  # which spells out this one
  tokenizer = tiny.tokenizer("default_system")
  with pytest.raises(JaxsftError, match="beginning-of-text"):
    tokens_of(CONVERSATIONS["one"], tokenizer, template=template)


def test_a_beginning_of_text_only_inside_the_text_is_refused():
  template = tiny.template("turns").replace("{{ bos_token }}", "x{{ bos_token }}")
  with pytest.raises(JaxsftError, match=r"positions \[1\]"):
    tokens_of(CONVERSATIONS["one"], tiny.tokenizer("turns"), template=template)


def test_a_template_that_fails_is_named_with_its_own_words():
  template = "{{ raise_exception('Roles must alternate') }}"
  with pytest.raises(JaxsftError, match=r"refuses.*Roles must alternate.*chat_template"):
    tokens_of(CONVERSATIONS["one"], tiny.tokenizer("chatml"), template=template)
  tokenizer = tiny.tokenizer("chatml")
  tokenizer.chat_template = None
  with pytest.raises(JaxsftError, match="no chat template"):
    tokens_of(CONVERSATIONS["one"], tokenizer)


def test_an_answer_to_nothing_is_refused_unless_it_is_not_trained():
  tokenizer = tiny.tokenizer("chatml")
  pairs = [("assistant", "Welcome"), *CONVERSATIONS["one"]]
  with pytest.raises(JaxsftError, match=r"messages\[0\] is an answer to nothing"):
    tokens_of(pairs, tokenizer)
  messages = as_messages(pairs)
  messages[0]["train"] = False
  messages = conversations.conversation({"messages": messages})
  tokens = chat.tokenize(chat.render(messages, tokenizer), tokenizer)
  assert supervised_text(tokens, tokenizer) == "Yes, the end.<|im_end|>"


def test_added_tokens_are_seen_after_the_first_use():
  tokenizer = tiny.tokenizer("chatml")
  tokens_of(CONVERSATIONS["one"], tokenizer)
  tokenizer.add_special_tokens({"additional_special_tokens": ["<|new|>"]})
  with pytest.raises(JaxsftError, match="control token"):
    tokens_of([("user", "<|new|>"), ("assistant", "Yes")], tokenizer)


def test_added_white_space_is_no_control_token():
  tokenizer = tiny.tokenizer("chatml")
  tokenizer.add_special_tokens({"additional_special_tokens": ["\n\n"]})
  pairs = [("user", "Hi"), ("assistant", "A.\n\nB.")]
  tokens = tokens_of(pairs, tokenizer)[1]
  assert supervised_text(tokens, tokenizer) == "A.\n\nB.<|im_end|>"


def test_templates_do_not_see_which_messages_train():
  template = "{{ messages[0].keys() | list }}" + tiny.template("chatml")
  rendered = tokens_of(CONVERSATIONS["one"], tiny.tokenizer("chatml"), "last", template)[0]
  assert rendered.text.startswith("['role', 'content']<")


def test_other_ids_than_the_tokenizer_itself_gives_are_refused():
  tokenizer = tiny.tokenizer("chatml")
  tokenizer.split_special_tokens = True
  with pytest.raises(JaxsftError, match="split_special_tokens"):
    tokens_of(CONVERSATIONS["one"], tokenizer)


@pytest.mark.full
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_smollm2_supervises_the_answers(name):
  import transformers

  path = pathlib.Path(os.environ["JAXSFT_CHECKPOINTS"]) / "smollm2-135m-instruct"
  tokenizer = transformers.AutoTokenizer.from_pretrained(path)
  tokens = tokens_of(CONVERSATIONS[name], tokenizer)[1]
  crossing = "\n" if name == "spaces" else ""  # "\n " is one token
  answers = crossing + expected("chatml", CONVERSATIONS[name])
  assert supervised_text(tokens, tokenizer) == answers
  assert tokens.ids.tolist() == hf_ids(tokenizer, CONVERSATIONS[name])
  assert tokens.stop_ids == {tokenizer.convert_tokens_to_ids("<|im_end|>")}
