"""Templates that ask for the date are told one day, as transformers would on that day."""

import datetime
import pathlib

import pytest
from transformers.utils import chat_template_utils

from jaxsft import encoding, finish, preflight, prepare, pretrained, tasks
from jaxsft.data import template_date
from jaxsft.data.read import Row
from jaxsft.errors import JaxsftError, UsageError
from tests import tiny
from tests.contract import build

STOCK = pathlib.Path(__file__).parents[1] / "templates" / "stock"
DAY = "2026-03-05"
TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
TEMPLATES = {
  "gpt_oss": (STOCK / "gpt_oss.jinja").read_text(),
  "lines": "  {% if true %}\n  {{ strftime_now('%d %b %Y') }}\n{% endif %}\nx",
  "line ends": "\n\n{{ strftime_now('%-d. %B %y, %H:%M:%S %j') }}\n",
  "macro": "{%- macro m() %}{{ strftime_now('%A %F') }}{% endmacro %}{{ m() }}",
  "parts": "{%- set d = strftime_now('%Y-%m-%d') %}{{ d.split('-')[0] }}",
  "percent": "{{ strftime_now('100%% %%d %d') }}",
  "asked first": "{% if strftime_now is defined %}{{ strftime_now('%d') }}{% endif %}",
}


@pytest.fixture
def on_the_day(monkeypatch):
  """transformers thinks that it is DAY."""

  class Fixed(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
      return cls.fromisoformat(DAY)

  monkeypatch.setattr(chat_template_utils, "datetime", Fixed)


def written(template, **settings):
  words = tiny.letter_tokenizer()
  return words.apply_chat_template(TALK, chat_template=template, tokenize=False, **settings)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("asks", [False, True])
def test_it_is_written_as_on_that_day(on_the_day, name, asks):
  template = TEMPLATES[name]
  expected = written(template, add_generation_prompt=asks)
  dated = template_date.dated(template, DAY)
  assert written(dated, add_generation_prompt=asks) == expected
  assert template_date.undated(dated) == template != dated


def test_every_directive(on_the_day):
  every = [f"%{pad}{d}" for d in template_date.DIRECTIVES for pad in ("", "-")]
  template = "\x1f".join(f"{one} {{{{ strftime_now('{one}') }}}}" for one in every)
  found = written(template_date.dated(template, DAY)).split("\x1f")
  assert found == written(template).split("\x1f") and len(found) == len(every)


def test_today_changes_nothing():
  """The oracle above knows of the day; here it is today."""
  dated = template_date.dated(TEMPLATES["parts"], DAY)
  assert written(dated) == "2026" and "Thursday" in written(
    template_date.dated(TEMPLATES["macro"], DAY)
  )
  assert written(template_date.dated(TEMPLATES["parts"], "1999-12-31")) == "1999"


def test_what_cannot_be_told_a_date():
  with pytest.raises(UsageError, match=r"template_date: is '2026-03-05', .* does not ask"):
    template_date.dated("{{ messages }}", DAY)
  with pytest.raises(UsageError, match="does not ask"):
    template_date.dated(None, DAY)
  several = {"default": TEMPLATES["macro"], "tool_use": "x"}
  assert template_date.asks(several)
  with pytest.raises(UsageError, match=r"default, tool_use, .*data\.chat_template"):
    template_date.dated(several, DAY)
  for template in (None, "x", "{% macro f() %}{% endmacro %}\nx"):
    assert template_date.undated(template) == template


def dated_template():
  return "{{ strftime_now('%d') }}" + tiny.letter_tokenizer().chat_template


def context(**changes):
  words = tiny.letter_tokenizer()
  words.chat_template = dated_template()
  return tasks.Context(words, 90, labels=("a",), **changes)


ROW = Row("r", "rows.jsonl:2", {"messages": TALK, "label": "a"})
PLAIN = Row("p", "rows.jsonl:1", {"text": "hi", "label": "a"})


@pytest.mark.parametrize("task", ["chat", "classify"])
def test_a_template_without_a_day_is_refused_where_a_row_needs_it(tmp_path, monkeypatch, task):
  monkeypatch.setenv("JAXSFT_CACHE", str(tmp_path))
  encode = lambda rows, context: encoding.encode(rows, tasks.TASKS[task], context)
  said = r"^rows\.jsonl:2: the chat template asks for the date .* config\.data\.template_date"
  for place in (context(), context(chat_template="{# x #}" + dated_template())):
    with pytest.raises(JaxsftError, match=said):
      encode([PLAIN, ROW], place)
  assert len(encode([PLAIN], context()).store) == 1  # plain text is written by no template
  dated = template_date.dated(dated_template(), DAY)
  assert len(encode([PLAIN, ROW], context(chat_template=dated)).store) == 2


def test_a_run_is_told_the_day_and_its_export_is_not(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXSFT_CACHE", str(tmp_path / "cache"))
  model, rows = tiny.checkpoint(tmp_path / "model", "llama"), tmp_path / "rows.jsonl"
  tiny.rows(rows, "chat")
  settings = {"data__chat_template": dated_template()}
  make = lambda **more: tiny.config("llama", "chat", model, rows, **settings, **more)
  with pytest.raises(JaxsftError, match=r"rows\.jsonl:\d+: the chat template asks"):
    build.job(make(), tiny.devices(1))
  first, later = (
    build.job(make(data__template_date=day), tiny.devices(1)) for day in (DAY, "2026-03-06")
  )
  texts = [job.data.train.counts["samples"][0]["text"] for job in (first, later)]
  assert texts[0][:2] == "05" and texts[1] == "06" + texts[0][2:]
  assert first.data.train.store.fingerprint != later.data.train.store.fingerprint
  assert finish.export_facts(first)["chat_template"] == dated_template()


def test_the_report_names_the_day(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXSFT_CACHE", str(tmp_path / "cache"))
  model, rows = tiny.checkpoint(tmp_path / "model", "llama"), tmp_path / "rows.jsonl"
  tiny.rows(rows, "chat")
  settings = {"data__chat_template": dated_template(), "data__template_date": DAY}
  config = tiny.config("llama", "chat", model, rows, **settings)
  prepared = prepare.prepare(config, pretrained.open_base(config.model), tiny.devices(1))
  notes = preflight.plan_of(prepared, config)["notes"]
  assert "the chat template is told that it is 2026-03-05" in notes
