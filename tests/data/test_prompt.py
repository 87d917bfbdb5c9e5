"""Templates write fields out of columns, and nothing that was not meant."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsft import sources, tasks, unlabelled
from jaxsft.config import Config, Data, Evaluate, Model, check
from jaxsft.data import messages, prompt
from jaxsft.data.read import Row
from jaxsft.errors import JaxsftError, UsageError
from jaxsft.tasks import chat
from tests import tiny


def fields(row, answers=(), **given):
  return prompt.fill(Row("r3", "f.csv:3", row), prompt.templates(given), answers).fields


def text(_template, **row):
  return fields(row, text=_template)["text"]


def refused(_template, **row):
  with pytest.raises(JaxsftError) as error:
    text(_template, **row)
  said = str(error.value)
  assert said.startswith("f.csv:3: ") and "config.data.prompt['text']" in said
  return said


def test_fields_are_written_out_of_columns():
  row = {"title": "A <b>", "body": " x\ny ", "lang": "German", "en": "house", "text": "old"}
  assert fields(row, text="{{ title }}. {{ body }}\n") == row | {"text": "A <b>.  x\ny \n"}
  made = fields(row, prompt="Translate to {{ lang }}:\n{{ en }}", text="[{{ text }}]")
  assert made["prompt"] == "Translate to German:\nhouse" and made["text"] == "[old]"
  swapped = fields(row, title="{{ body }}", body="{{ title }}")  # all read the columns
  assert (swapped["title"], swapped["body"]) == (" x\ny ", "A <b>")
  found = Row("r", "f:1", row)
  assert prompt.fill(found, {}) is found


@pytest.mark.parametrize(
  ("template", "written"),
  [
    ("{{ n }} {{ x }} {{ yes }}", "3 3.0 True"),
    ("{{ n + 1 }} {{ '%.1f' % x }} {{ 'y' if yes else 'n' }}", "4 3.0 y"),
    ("{{ tags | join(', ') }} {{ tags[1] }} {{ answers.text[0] }}", "a, b b Paris"),
    ("{{ answers | tojson }}", '{"text": ["Paris", "<é>"], "at": null}'),
    ("{% for tag in tags %}\n- {{ tag }}\n{% endfor %}\n\nend\n", "- a\n- b\n\nend\n"),
    ("  {% if n > 2 %}\n  many\n  {% endif %}\nx", "  many\nx"),
    ("{{ nil or 'no' }}|{{ nil | default('no') }}|{{ gone | default('-') }}", "no|no|-"),
    ("{% if nil %}a{% elif nil is none %}b{% endif %}", "b"),
    ("{% if nil == none and not nil and nil is not defined %}c{% endif %}", "c"),
    ("{{ nan or 'no' }}|{{ nan or 0 }}|{% if nan is none %}n{% endif %}", "no|0|n"),
    ("{% if gone is defined %}a{% else %}b{% endif %}", "b"),
    ("{{ answers.at or 'nowhere' }}", "nowhere"),
    ("{{ row['2nd name'] }} {{ row.n }} {{ row | length }}", "q 3 9"),
    ("{{ range(3) | join }}{% set k = n %}{{ k }}", "0123"),
    ("{{ empty }}|", "|"),
    ("no columns", "no columns"),
  ],
)
def test_what_is_written(template, written):
  row = {"n": 3, "x": 3.0, "yes": True, "tags": ["a", "b"], "nil": None, "nan": float("nan")}
  row |= {"answers": {"text": ["Paris", "<é>"], "at": None}, "2nd name": "q", "empty": ""}
  assert text(template, **row) == written


def test_a_column_named_row_is_that_column():
  assert text("{{ row }} {{ range }}", row="7", range="b") == "7 b"


@pytest.mark.parametrize(
  ("template", "said"),
  [
    ("{{ titel }}", "no column 'titel', which config.data.prompt['text'] writes; did you mean "
     "'title'? (there is title, "),
    ("{% if title %}{{ title }}{% else %}{{ boody }}{% endif %}", "no column 'boody', which"),
    ("{{ nil }}", "line 1: 'nil' is null; say what to write then, as in {{ nil or \"\" }}"),
    ("a\n\n{{ nil | trim }}", "line 3: 'nil' is null"),  # Jinja's own would write "None"
    ("{{ 'x' ~ nil }}", "'nil' is null"),
    ("{{ nil | upper }}", "'nil' is null"),
    ("{{ answers.at }}", "'answers.at' is null"),
    ("{{ tags | join }}", "'tags[1]' is null"),
    ("{{ nil.a }}", "'nil' is null"),
    ("{% for a in nil %}{% endfor %}", "'nil' is null"),
    ("{{ nan }}", "'nan' is no number (nan)"),
    ("{{ tags }}", 'found a list, expected text; write it out, as in {{ tags | join(", ") }}'),
    ("{{ answers }}", "found an object, expected text; write one of its keys"),
    ("{{ answers.items }}", "found a builtin_function_or_method, expected text"),
    ("{{ tags | map('upper') }}", "found a generator, expected text"),
    ("{{ answers.txt }}", "there is no 'txt'; did you mean 'text'? (there is text, at)"),
    ("{{ row.titel }}", "there is no 'titel'; did you mean 'title'?"),
    ("{{ tags[5] }}", "has no element 5"),
    ("{{ title + 1 }}", "TypeError: "),
    ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ("{{ title.__class__.__mro__ }}", "SecurityError"),
    ("{{ tags.append(1) }}", "SecurityError"),
    ("{% include 'other' %}", "no loader"),
    ("{{ lipsum() }}", "no column 'lipsum'"),  # chance has no place in rows
  ],
)  # fmt: skip
def test_what_cannot_be_written(template, said):
  row = {"title": "t", "nil": None, "nan": float("nan"), "tags": ["a", None]}
  assert said in refused(template, answers={"text": 1, "at": None}, **row)


@pytest.mark.parametrize(
  ("template", "said"),
  [
    ("{{ x", "line 1: unexpected end of template"),
    ("a\n{% if %}", "line 2: Expected an expression"),
    ("{% for a in b %}", "line 1: Unexpected end of template"),
    ("{{ x | uper }}", "line 1: No filter named 'uper'"),
    ("{{ x | random }}", "line 1: No filter named 'random'"),
    ("{% generation %}", "line 1: Encountered unknown tag 'generation'"),
  ],
)
def test_what_is_no_template_is_refused_with_the_settings(template, said):
  with pytest.raises(UsageError) as error:
    check(Config(model=Model(path="m"), data=Data(path="x", prompt={"text": template})))
  assert str(error.value).startswith(f"config.data.prompt['text'], {said}")
  assert str(error.value).endswith("; correct the template")


@pytest.mark.parametrize(
  ("task", "fields_", "said"),
  [
    ("seq2seq", ["source", "target"], None),
    ("seq2seq", ["sauce"], "nothing reads the field 'sauce' with task='seq2seq'; did you mean"),
    ("chat", ["prompt", "completion", "system"], None),
    ("chat", ["promt"], "did you mean 'prompt'?"),
    ("classify", ["text", "text_pair", "label"], None),
    ("classify", ["doc"], "nothing reads the field 'doc'"),
    ("answer", ["question", "context"], None),
    ("answer", ["text"], "nothing reads the field 'text' with task='answer'; did you mean"),
    ("masked_lm", ["text"], None),
    (
      "tag",
      ["text"],
      "config.data.prompt: found 'text', which cannot be written with task='tag'",
    ),
    ("tag", ["doc"], "nothing reads the field 'doc' with task='tag'; write one"),
  ],
)
def test_only_fields_that_are_read_are_written(task, fields_, said):
  data = Data(path="x", prompt=dict.fromkeys(fields_, "{{ a }}"))
  config = Config(task=task, model=Model(path="m"), data=data)
  if said is None:
    check(config)
    return
  with pytest.raises(UsageError) as error:
    check(config)
  assert str(error.value).startswith("config.data.prompt") and said in str(error.value)


def test_fields_that_other_settings_read_are_written():
  for keys, more in (
    (dict(split_by="doc"), {}),
    (dict(split_by="doc"), dict(task="tag")),
    (dict(keep="doc == 'a'"), {}),
    (dict(labels={"p": "doc == 'a'", "q": "doc != 'a'"}), {}),
    ({}, dict(evaluate=Evaluate(slices=("doc",)))),
  ):
    data = Data(path="x", prompt={"doc": "{{ url }}"}, **keys)
    check(Config(model=Model(path="m"), data=data, **more))


def test_a_file_is_read_without_the_newline_at_its_end(write):
  write("p.jinja", "Q: {{ q }}\n")
  assert text("p.jinja", q="why") == "Q: why"
  write("p.jinja", "Q: {{ q }}\n\n")
  assert text("p.jinja", q="why") == "Q: why\n"
  write("bad.jinja", "\n{{ q")
  write("latin.jinja", "é".encode("latin-1"))
  for name, said in (
    ("bad.jinja", r"config\.data\.prompt\['text'\] \(bad\.jinja\), line 2: unexpected"),
    ("none.jinja", r"config\.data\.prompt\['text'\]: none\.jinja is no file"),
    ("latin.jinja", r"latin\.jinja is not utf-8"),
  ):
    with pytest.raises(UsageError, match=said):
      text(name, q="why")


def test_answers_are_left_out_where_their_columns_are():
  given = dict(source="{{ en }}", target="{{ de | trim }}")
  asked = lambda **row: set(fields(row, answers=("target",), **given)) & set(given)
  assert asked(en="a", de="b") == {"source", "target"}
  assert asked(en="a") == asked(en="a", de=None) == {"source"}
  with pytest.raises(JaxsftError, match="no column 'en'"):
    asked(de="b")
  with pytest.raises(JaxsftError, match="no column 'de'"):
    fields({"en": "a"}, **given)


@pytest.mark.parametrize(
  ("row", "made", "form"),
  [
    ("alpaca", ["prompt", "completion"], "prompt and completion"),
    ("alpaca", ["text"], "text"),
    ("alpaca", ["instruction"], "alpaca"),
    ("alpaca", ["output"], "alpaca"),
    ("pair", ["instruction", "output"], "alpaca"),
    ("pair", ["prompt"], "prompt and completion"),
    ("pair", ["text"], "text"),
    ("messages", ["prompt", "completion"], "prompt and completion"),
    ("sharegpt", ["text"], "text"),
  ],
)
def test_what_is_made_tells_the_form(row, made, form):
  rows = {
    "alpaca": {"instruction": "a", "input": "b", "output": "c"},
    "pair": {"prompt": "a", "completion": "b"},
    "messages": {"messages": [{"role": "user", "content": "a"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "a"}]},
  }
  made = dict.fromkeys(made, "made of {{ id }}")
  found = fields(rows[row] | {"id": "7"}, **made)
  assert prompt.forms.form(found) == form and found["id"] == "7"
  assert all(found[field] == "made of 7" for field in made)


def test_other_columns_stay_where_no_chat_is_made():
  row = {"instruction": "a", "input": "b", "output": "c", "prompt": "d"}
  assert fields(row, source="{{ instruction }}") == row | {"source": "a"}


def test_control_tokens_are_refused_wherever_a_template_took_them_from():
  tokenizer = tiny.letter_tokenizer()
  context = tasks.Context(tokenizer=tokenizer, max_length=400, max_target_length=100)
  given = prompt.templates({"prompt": "ask {{ a }}", "completion": "{{ b }}<|im_end|>"})
  row = prompt.fill(Row("r", "f:9", {"a": "x", "b": "y"}), given)
  with pytest.raises(JaxsftError, match=r"^f:9: .*<\|im_end\|>"):
    chat.encode(row, context)
  given = prompt.templates({"prompt": "ask {{ a }}", "completion": "{{ b }}"})
  row = prompt.fill(Row("r", "f:9", {"a": "<|im_end|>", "b": "y"}), given)
  with pytest.raises(JaxsftError, match=r"^f:9: .*<\|im_end\|>"):
    chat.encode(row, context)
  row = prompt.fill(Row("r", "f:9", {"a": "x", "b": "y"}), given)
  plain = Row("r", "f:9", {"prompt": "ask x", "completion": "y"})
  for ours, theirs in zip(
    chat.encode(row, context).examples, chat.encode(plain, context).examples, strict=True
  ):
    assert {k: v.tolist() for k, v in ours.items()} == {
      k: v.tolist() for k, v in theirs.items()
    }


ROWS = [{"title": f"t{i}", "body": f"b{i}", "stars": i % 5, "doc": i % 9} for i in range(90)]
PROMPT = {
  "text": "{{ title }}. {{ body }}",
  "label": "{{ 'pos' if stars > 2 else 'neg' }}",
}


def read(name="rows.jsonl", rows=ROWS, **keys):
  """sources.Rows of rows in a file."""
  with open(name, "w") as file:
    file.writelines(json.dumps(row) + "\n" for row in rows)
  config = Config(model=Model(path="m"), data=Data(path=name, **keys))
  return sources.read_data(check(config).data, tasks.TASKS["classify"])


def test_templates_come_before_cleaning_and_splitting(write):
  rows = read(prompt=PROMPT, keep="text != 't3. b3'", split=0.4)
  assert rows.left_out == {"keep rule": 1}
  for row in (*rows.train, *rows.held_out):
    i = int(row.fields["title"][1:])
    assert row.fields["text"] == f"t{i}. b{i}"
    assert row.fields["label"] == ("pos" if i % 5 > 2 else "neg")


def test_a_group_may_be_made(write):
  key = PROMPT | {"group": "g{{ doc // 3 }}"}
  rows = read(prompt=key, split=0.5, split_by="group")
  sides = [{row.fields["doc"] // 3 for row in side} for side in rows[:2]]
  assert not sides[0] & sides[1] and "of 3 groups" in rows.split


def test_columns_are_named_before_templates_see_them(write):
  nested = [{"t": {"en": r["title"]}} | r for r in ROWS]
  columns = {"head": "t.en", "tail": "body"}
  rows = read(rows=nested, columns=columns, prompt=PROMPT | {"text": "{{ head }} {{ tail }}"})
  assert rows.train[0].fields["text"].startswith("t")
  with pytest.raises(JaxsftError, match=r"rows\.jsonl:1: no column 'body', which .*tail"):
    read(rows=nested, columns=columns, prompt=PROMPT)


def test_the_rows_of_evaluations_are_made_too(write):
  rows = read(prompt=PROMPT, split=0.0, eval_path="rows.jsonl")
  assert rows.held_out == rows.train
  config = Config(
    model=Model(path="m"),
    data=Data(path="rows.jsonl", prompt=PROMPT),
    evaluate=Evaluate(sets={"more": "rows.jsonl"}),
  )
  assert sources.further_sets(config)["more"].train == rows.train


def test_the_first_row_tells_a_wrong_name_of_any_branch(write):
  wrong = PROMPT | {"text": "{% if stars == 4 %}{{ boody }}{% else %}{{ body }}{% endif %}"}
  with pytest.raises(JaxsftError, match=r"^rows\.jsonl:1: no column 'boody'.*mean 'body'"):
    read(prompt=wrong)


def test_a_name_that_no_row_has_is_an_error_even_with_a_default(write):
  wrong = PROMPT | {"text": "{{ boody | default('') }} {{ body }}"}
  with pytest.raises(
    JaxsftError, match=r"'boody' is no column of any row; did you mean 'body'"
  ):
    read(prompt=wrong)
  rows = [*ROWS[1:], ROWS[0] | {"boody": "here"}]
  found = read(rows=rows, prompt=wrong, split=0.0).train
  assert found[-1].fields["text"] == "here b0" and found[0].fields["text"] == " b1"
  # Rows to be evaluated may all lack it.
  read("more.jsonl", ROWS, split=0.0, prompt=PROMPT)
  found = read(rows=rows, prompt=wrong, split=0.0, eval_path="more.jsonl")
  assert found.held_out[0].fields["text"] == " b0"


def test_texts_that_come_out_empty_are_counted(write):
  rows = [*ROWS, ROWS[0] | {"body": None}]
  found = read(rows=rows, prompt=PROMPT | {"text": "{{ body or '' }}"})
  assert found.left_out == {"empty text": 1}
  with pytest.raises(JaxsftError, match=r"rows\.jsonl:91: .*'body' is null"):
    read(rows=rows, prompt=PROMPT)


def test_a_question_may_lack_its_answer():
  given = {"instruction": "{{ q }}", "output": "{{ a }}"}
  row = Row("r", "f:1", fields({"q": "why"}, answers=messages.ANSWERS.values(), **given))
  (asked,), answer = messages.question(row.fields)
  assert (asked["role"], asked["content"], answer) == ("user", "why", None)


@pytest.mark.parametrize(
  ("task", "made", "unanswered"),
  [
    ("classify", {"text": "{{ t.en }}!", "label": "{{ l }}"}, {"label"}),
    ("chat", {"prompt": "to {{ lang }}: {{ t.en }}", "completion": "{{ t.de }}"}, set()),
    ("chat", {"prompt": "to {{ lang }}: {{ t.en }}", "completion": "{{ l }}"}, {"completion"}),
    ("seq2seq", {"source": "{{ t.en | upper }}", "target": "{{ l }}{{ t.de }}"}, {"target"}),
    ("answer", {"question": "{{ lang }}?", "context": "{{ t.en }}"}, set()),
    ("masked_lm", {"text": "{{ t.en }} {{ lang }}"}, set()),
  ],
)
def test_predictions_see_what_training_saw(write, task, made, unanswered):
  """Rows to answer lack "l", and what only the answer is made of is left out with it."""
  rows = [{"t": {"en": f"house {i}", "de": "Haus"}, "lang": "German"} for i in range(9)]
  for name, more in (("train.jsonl", {"l": "a", "answers": []}), ("new.jsonl", {})):
    write(name, "".join(json.dumps(row | more) + "\n" for row in rows))
  data = Data(path="train.jsonl", prompt=made, split=0.0)
  config = check(Config(task=task, model=Model(path="m"), data=data))
  trained = sources.read_data(config.data, tasks.TASKS[task]).train
  flags = {"data": "new.jsonl", "out": "out.jsonl", "columns": None, "part": None}
  asked, _, make = unlabelled.rows_of(flags, config)
  for seen, row in zip(trained, map(make, asked), strict=True):
    assert row.fields == {
      name: value
      for name, value in seen.fields.items()
      if name not in {"l", "answers", *unanswered}
    }


PARTS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
VALUES = st.recursive(
  PARTS,
  lambda some: (
    st.lists(some, max_size=3) | st.dictionaries(st.text(max_size=3), some, max_size=3)
  ),
  max_leaves=8,
)
TEMPLATES = (
  "{{ x }}",
  "{{ x | trim }}",
  "{{ x or '' }}",
  "{{ x ~ '' }}",
  "{{ x[0] }}",
  "{{ x.a }}",
)
TEMPLATES += (
  "{{ x | join }}",
  "{% for y in x %}{{ y }}{% endfor %}",
  "{{ x | upper }}{{ row.x }}",
)


@settings(max_examples=1500, deadline=None)
@given(VALUES, st.sampled_from(TEMPLATES))
def test_any_value_is_written_or_refused_in_a_sentence(value, template):
  found = prompt.templates({"text": template})
  try:
    made = prompt.fill(Row("r", "f:1", {"x": value}), found).fields["text"]
  except JaxsftError as error:
    assert str(error).startswith("f:1: config.data.prompt['text'], line 1: ")
    return
  assert isinstance(made, str)
  if value is None or value != value:
    assert made == "" and " or " in template  # never "None" or "nan"
  if isinstance(value, str) and template == "{{ x }}":
    assert made == value
  assert json.loads(text("{{ x | tojson }}", x=made)) == made
