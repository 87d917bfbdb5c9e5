"""Chat templates that ask which day it is (`strftime_now`): one day for the whole run.

Otherwise rows that were tokenised yesterday and prompts of today would differ, a resumed run
would find other data, and two hosts might disagree at midnight. A template with a day is the
template behind a macro that answers in the place of the function; an export has it without.
"""

import datetime

from jaxsft.data import forms
from jaxsft.errors import JaxsftError, UsageError

DIRECTIVES = "aAbBcCdeDfFGgHhIjklmMpPrRsSTuUVwWxXyYZz"
OPEN, CLOSE = "{% macro strftime_now(format) %}", "{% endmacro %}\n"  # trim_blocks takes the \n

PERCENT = "\ufdd0"  # a noncharacter, which occurs in no text


def asks(template):
  """Whether a template, or one of {name: template}, asks for the date."""
  texts = template.values() if isinstance(template, dict) else [template or ""]
  return any("strftime_now" in text for text in texts)


def dated(template, date):
  """The Jinja text that is told, at every call of strftime_now, that it is the day `date`.

  template: Jinja text; date: "2026-11-25". The time is midnight. Raises UsageError for a
  template that does not ask, and for several by name.
  """
  if isinstance(template, dict):
    raise UsageError(
      f"config.data.template_date: the tokenizer has the chat templates {', '.join(template)}, "
      "expected one; give the one to use with config.data.chat_template"
    )
  if not asks(template):
    raise UsageError(
      f"config.data.template_date: is {date!r}, but the chat template does not ask for a date "
      "(strftime_now); leave it out"
    )
  day = datetime.datetime.fromisoformat(date)
  said = [(f"%{pad}{d}", day.strftime(f"%{pad}{d}")) for d in DIRECTIVES for pad in ("-", "")]
  said = [("%%", PERCENT), *said, (PERCENT, "%")]
  filters = "".join(f"|replace({name!r}, {text!r})" for name, text in said)
  return f"{OPEN}{{{{ format{filters} }}}}{CLOSE}{template}"


def undated(template):
  """What `dated` was given; any other template as it is."""
  if template is None or not template.startswith(OPEN):
    return template
  return template.partition(CLOSE)[2]


def refuse_undated(rows, context, reads_text):
  """Raises JaxsftError with the place of the first row that a template without a day writes.

  context: tasks.Context. reads_text: whether rows with a "text" are read as that.
  """
  template = context.chat_template or context.tokenizer.chat_template
  if not asks(template) or (isinstance(template, str) and template.startswith(OPEN)):
    return
  for row in rows:
    text = reads_text and row.fields.get("text") is not None
    if forms.has_turns(row.fields) and not text:
      raise JaxsftError(
        f"{row.where}: the chat template asks for the date (strftime_now), so that the row "
        "becomes other tokens tomorrow; set config.data.template_date to a day, such as "
        "'2026-01-31'"
      )
