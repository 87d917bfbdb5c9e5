"""Bad templates of data.prompt, places in columns, and splits."""

from tests.bad_inputs.cases import ROW, case, rows, settings


def _template(p):
  p.write("text.jinja", "see\n{{ text")
  p.set("data.prompt", {"text": "text.jinja"})


def _asked(p):
  """A config whose texts are made, and rows to answer that lack what they are made of."""
  p.flags["config"] = "config.py"
  p.set("data.id", None)
  p.set("data.prompt", {"text": "{{ title }}"})


MADE = [
  rows(
    "a template that names no column",
    None,
    1,
    "rows.jsonl:1",
    "no column 'texts', which config.data.prompt['text'] writes",
    "did you mean 'text'",
    "correct the template",
    data__prompt={"text": "{{ texts }}"},
  ),
  rows(
    "a template that writes null",
    {**ROW, "text": None},
    1,
    "rows.jsonl:12",
    "config.data.prompt['text'], line 2: 'text' is null",
    'or ""',
    data__prompt={"text": "see\n{{ text | trim }}"},
  ),
  rows(
    "a template that writes a list",
    {**ROW, "text": ["good", "film"]},
    1,
    "rows.jsonl:12",
    "found a list",
    "join",
    data__prompt={"text": "{{ text }}"},
  ),
  settings(
    "a template that does not end",
    2,
    "config.data.prompt['text'], line 1",
    "expected 'end of print statement'",
    "correct the template",
    data__prompt={"text": "{{ text"},
  ),
  case(
    "a file of a template that does not end",
    "train",
    _template,
    2,
    "config.data.prompt['text'] (text.jinja), line 2",
    "correct the template",
  ),
  settings(
    "no file of a template",
    2,
    "config.data.prompt['text']",
    "none.jinja is no file",
    data__prompt={"text": "none.jinja"},
  ),
  settings(
    "a template for nothing",
    2,
    "config.data.prompt",
    "'txt'",
    "task='classify'",
    "did you mean 'text'",
    data__prompt={"txt": "{{ text }}"},
  ),
  settings(
    "a template of tagged words",
    2,
    "config.data.prompt: found 'text'",
    "task='tag'",
    "data.columns",
    task="tag",
    data__prompt={"text": "{{ text }}"},
  ),
  settings(
    "a control token out of a template",
    1,
    "chats.jsonl:",
    "control token '<|im_end|>'",
    task="chat",
    data__prompt={"prompt": "hi <|im_end|>", "completion": "yes"},
  ),
  case(
    "rows to answer without what a template names",
    "predict",
    _asked,
    1,
    "new.jsonl:1",
    "no column 'title', which config.data.prompt['text'] writes",
  ),
  rows(
    "a place that no column has",
    None,
    1,
    "rows.jsonl:1",
    "'text' is a text, in which there is not the key 'en'",
    "data.columns",
    data__columns={"text": "text.en"},
  ),
  rows(
    "a row without a group",
    {**ROW, "by": ""},
    1,
    "rows.jsonl:12",
    "the group (field 'by', data.split_by) is ''",
    "data.keep",
    data__split_by="by",
    data__prompt={"by": "{{ by | default('me') }}"},
  ),
  settings(
    "groups that no row has", 1, "rows.jsonl:1", "no field 'doc', which data.split_by",
    data__split_by="doc",
  ),
  settings(
    "one group", 1, "data.split=0.2 leaves no row for", "of 1 groups", "data.eval_path",
    data__split_by="by",
    data__prompt={"by": "me"},
  ),
  settings(
    "folds beside a share", 2, "config.data.split: is 0.2", "data.folds=5", data__folds=5
  ),
  settings(
    "a fold too many", 2, "config.data.fold: found 5", "0 … 4",
    data__folds=5,
    data__fold=5,
    data__split=0,
  ),
]  # fmt: skip
