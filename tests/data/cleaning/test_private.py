"""Secrets and personal data: found by form and checksum, and never shown.

The numbers are those that banks, card makers and standards publish for tests.
"""

import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsft import sources, tasks
from jaxsft.config import Clean, Data
from jaxsft.data import read
from jaxsft.data.cleaning import fields, private, record, text, values
from jaxsft.errors import JaxsftError

part = lambda value: base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")
JWT = f"{part({'alg': 'HS256', 'typ': 'JWT'})}.{part({'sub': '1234567890'})}.SflKxwRJSMeKKF2QT4"
BEGIN, END = ("-----" + f"{word} RSA PRIVATE KEY" + "-----" for word in ("BEGIN", "END"))
SECRETS = {
  "AWS_KEY": ["AKIA" + "IOSFODNN7EXAMPLE"],
  "GITHUB_TOKEN": ["ghp_" + "a1B2" * 9, "github_pat_" + "11ABCDEFG0" * 3],
  "SLACK_TOKEN": ["xoxb" + "-123456789012-abcDEF"],
  "GOOGLE_KEY": ["AIza" + "SyD-1234567890abcdefghijklmnopqrstu"],
  "API_KEY": ["sk-" + "abcDEF1234567890abcdef", "hf_" + "abcDEF1234567890abcdefABCDEF12"],
  "JWT": [JWT],
  "PRIVATE_KEY": [f"{BEGIN}\nMIIEow\nabc=\n{END}", f"{BEGIN}\nMIIE cut off"],
}
IBANS = (  # of the registry's examples
  "GB82 WEST 1234 5698 7654 32", "DE89370400440532013000", "FR1420041010050500013M02606",
  "NO9386011117947", "MT84 MALT 0110 0001 2345 MTLC AST0 01S", "CH93 0076 2011 6238 5295 7",
)  # fmt: skip
CARDS = ("4111 1111 1111 1111", "5500-0055-5555-5559", "378282246310005", "6011111111111117")
PERSONAL = {
  "IBAN": IBANS,
  "CARD": CARDS,
  "EMAIL": ("jane.doe+x@mail.example.org", "a_b@c-d.de"),
  "PHONE": ("+49 30 1234567", "(555) 123-4567", "555-123-4567", "+1 (212) 555-0187",
            "+442071838750"),
  "IP": ("192.168.0.1", "2001:db8:0:0:8:800:200C:417A", "2001:db8::8:800:200c:417a"),
}  # fmt: skip


@pytest.mark.parametrize(
  ("group", "kind", "value"),
  [("secrets", kind, v) for kind, values in SECRETS.items() for v in values]
  + [("personal", kind, v) for kind, values in PERSONAL.items() for v in values],
)
def test_found_whole_and_masked(group, kind, value):
  for before, after in (
    ("", ""),
    ("see: ", " and then"),
    ("(", ")"),
    ("x\n", "\ny"),
    ("见", "。"),
  ):
    if kind == "PRIVATE_KEY" and END not in value:
      after = ""
    whole = f"{before}{value}{after}"
    found = private.find(group, whole)
    assert found == [(len(before), len(before) + len(value), kind)], whole
    assert private.masked(whole) == f"{before}[{kind}]{after}"


def test_values_of_assignments():
  value = "x9Kq" + "27LmZp04TtRw"
  for name in ("api_key=", 'API-Key: "', "password = '", "client_secret => ", "token:"):
    (found,) = private.find("secrets", f"{name}{value}\n")
    assert found == (len(name), len(name) + len(value), "SECRET")
  for innocent in (
    "token: the beginning",
    "password: aaaaaaaa11111111",
    "secret = none_of_yours",
  ):
    assert private.find("secrets", innocent) == []


@pytest.mark.parametrize(
  "innocent",
  [
    "GB82 WEST 1234 5698 7654 33",  # wrong check digits
    "DE8937040044053201300",  # too short
    "4111 1111 1111 1112",
    "0000 0000 0000 0000",
    "1234567890123",
    "std::vector a::b 12:34:56",
    "300.1.2.3",
    "version 1.2.3",
    "on 2024-01-15, 100 000 000 people",
    "mail@ home, @name, a@b",
    "eyJhbGci.eyJzdWIi.c2lnbmF0dXJl",  # no JSON
    "1 2 3 4 5 6 7 8 9",
  ],
)
def test_not_taken_for_what_it_is_not(innocent):
  assert private.find("personal", innocent) == [] == private.find("secrets", innocent)


def test_checksums():
  """ISO 7812 and ISO 13616: one wrong digit is always seen."""
  for number in CARDS:
    assert private.luhn(number)
    for i, c in enumerate(number):
      if c.isdigit():
        assert not private.luhn(number[:i] + str((int(c) + 1) % 10) + number[i + 1 :])
  for number in IBANS:
    assert private.iban(number)
    for i, c in enumerate(number):
      if c.isdigit() and i > 1:
        assert not private.iban(number[:i] + str((int(c) + 1) % 10) + number[i + 1 :])


def test_an_iban_has_the_length_of_its_country():
  for country, account in (("DE", "37040044053201300"), ("ZZ", "370400440532013000")):
    digits = "".join(str(int(c, 36)) for c in f"{account}{country}00")
    whole = f"{country}{98 - int(digits) % 97:02}{account}"
    assert not private.iban(whole) and private.find("personal", whole) == []


KEY, MAIL = SECRETS["AWS_KEY"][0], "jane@example.org"
ROWS = [
  {"text": f"<b>Key</b> {KEY} here", "label": "a"},
  {"text": "Ask jane&#64;example.org", "label": "b"},
  {"text": "Nothing", "label": "a"},
]


def read_rows(tmp_path, task="classify", rows=ROWS, **cleaning):
  path = tmp_path / "rows.jsonl"
  path.write_text("".join(json.dumps(r) + "\n" for r in rows))
  data = Data(path=str(path), split=0.0)
  return sources.read_data(data, tasks.TASKS[task], cleaning=Clean(**cleaning))


def test_masked_before_what_hides_it(tmp_path):
  found = read_rows(tmp_path, text=("markup", "lower"), secrets="mask", personal="mask")
  said = [r.fields["text"] for r in found.train]
  assert said == ["key [aws_key] here", "ask [email]", "nothing"]
  assert [(c.what, c.rows) for c in found.changes] == [
    ("changed by markup", 2), ("changed by mask:secrets", 1), ("changed by lower", 3),
    ("changed by mask:personal", 1),
  ]  # fmt: skip
  shown = "".join(map(str, found.changes)) + "".join(c.line() for c in found.changes)
  assert KEY not in shown and KEY.lower() not in shown and MAIL not in shown
  assert "[AWS_KEY]" in shown and "[EMAIL]" in shown


def test_left_out_and_counted(tmp_path):
  found = read_rows(tmp_path, text=("markup", "lower"), secrets="drop", personal="drop")
  assert [r.fields["text"] for r in found.train] == ["nothing"]
  assert (found.read, found.left_out) == (3, {"secrets": 1, "personal": 1})
  shown = str(found.changes)
  assert KEY not in shown and MAIL not in shown and "[AWS_KEY]" in shown


def test_rows_that_are_only_measured_are_not_left_out(tmp_path):
  held = tmp_path / "held.jsonl"
  held.write_text("".join(json.dumps(r) + "\n" for r in ROWS))
  path = tmp_path / "rows.jsonl"
  path.write_text(held.read_text())
  data = Data(path=str(path), split=0.0, eval_path=str(held))
  found = sources.read_data(data, tasks.TASKS["classify"], cleaning=Clean(secrets="drop"))
  assert (len(found.train), len(found.held_out)) == (2, 3)
  assert found.left_out == {"secrets": 1}


def test_an_error_does_not_say_it(tmp_path):
  with pytest.raises(JaxsftError, match=r"rows.jsonl:1: holds secrets \(AWS_KEY\)") as caught:
    read_rows(tmp_path, secrets="error", text=("lower",))
  assert KEY not in str(caught.value) and "[AWS_KEY]" in str(caught.value)
  with pytest.raises(JaxsftError, match=r"rows.jsonl:2: holds personal \(EMAIL\)") as caught:
    read_rows(tmp_path, personal="error", text=("markup",))
  assert MAIL not in str(caught.value)


def test_other_samples_hide_them_too(tmp_path):
  found = read_rows(
    tmp_path, text=("lower",), min_chars=8, rows=[*ROWS, *ROWS], duplicates="drop"
  )
  assert found.left_out["duplicates"] == 2
  assert KEY.lower() not in str(found.changes).lower() and "[HIDDEN]" in str(found.changes)


def test_spans_cover_the_placeholder(tmp_path):
  rows = [{"text": f"Ask {MAIL} now", "entities": [[4, 8, "PER"]]}]
  found = read_rows(tmp_path, "tag", rows, personal="mask")
  assert found.train[0].fields["text"] == "Ask [EMAIL] now"
  assert found.train[0].fields["entities"] == [{"start": 4, "end": 11, "label": "PER"}]


# --- wherever a model reads --------------------------------------------------------------

OPAQUE = "x9Kq" + "27LmZp04TtRw"
ASK = {"role": "user", "content": "go"}


def calling(arguments):
  made = {"id": "call_1", "type": "function", "function": {"name": "get_token"}}
  made["function"]["arguments"] = arguments
  return {"messages": [ASK, {"role": "assistant", "content": None, "tool_calls": [made]}]}


NESTED = {"note": f"use {KEY}", "login": {"password": OPAQUE, "to": [MAIL, 4111111111111111]}}
LAID_OUT = json.dumps(NESTED, indent=1) + " "
ESCAPED = KEY.replace("A", "\\u0041")
TOOL = {"name": "f", "description": f"with {KEY}"}
PLACES = {
  "arguments": calling(NESTED),
  "arguments as JSON": calling(LAID_OUT),
  "bare call": {"messages": [ASK, {"role": "assistant", "tool_calls": [
    {"name": "f", "arguments": {"a": [KEY]}}]}]},
  "thoughts": {"messages": [ASK, {"role": "assistant", "content": "b", "thinking": KEY}]},
  "name": {"messages": [ASK | {"name": KEY}, {"role": "assistant", "content": "b"}]},
  "reasoning": {"messages": [ASK, {"role": "assistant", "content": "b", "reasoning": KEY}]},
  "result": {"messages": [{"role": "tool", "content": json.dumps({"key": KEY})}]},
  "typed result": {"messages": [{"role": "tool", "content": [{"type": "text", "text": KEY}]}]},
  "escaped": {"messages": [{"role": "tool", "content": f'["{ESCAPED}"]'}]},
  "older call": {"messages": [ASK, {"role": "assistant", "function_call": {
    "name": "f", "arguments": json.dumps({"k": KEY})}}]},
  "sharegpt": {"conversations": [{"from": "function_call", "value": json.dumps(
    {"name": "f", "arguments": {"k": KEY}})}]},
  "sharegpt's object": {"conversations": [{"from": "function_call", "value":
    {"name": "f", "arguments": {"k": KEY}}}]},
  "tools": {"messages": [ASK], "tools": [TOOL]},
  "tools as JSON": {"messages": [ASK], "tools": json.dumps([TOOL])},
}  # fmt: skip


def rows_of(fields):
  return [read.Row("r", "rows:1", fields)]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("task", ["chat", "classify"])
def test_every_place_is_masked_dropped_and_refused(place, task):
  task, noted = tasks.TASKS[task], record.Record()
  steps = text.program((), masks=["secrets", "personal"])
  (new,) = fields.normalised(rows_of(PLACES[place]), task, steps, noted)
  said = json.dumps(new.fields)
  assert KEY not in said and OPAQUE not in said and MAIL not in said and "[AWS_KEY]" in said
  shown = "".join(map(str, noted.changes()))
  assert "changed by mask:secrets" in shown and KEY not in shown and OPAQUE not in shown
  (again,) = fields.normalised([new], task, steps, record.Record())
  assert again is new
  drop = fields.without_private(
    rows_of(PLACES[place]), task, (), {"secrets": "drop"}, record.Record()
  )
  assert list(drop) == []
  with pytest.raises(JaxsftError, match=r"rows:1: holds secrets \(AWS_KEY\)") as caught:
    error = {"secrets": "error"}
    list(fields.without_private(rows_of(PLACES[place]), task, (), error, record.Record()))
  assert KEY not in str(caught.value) and OPAQUE not in str(caught.value)


def masked_call(arguments):
  steps = text.program((), masks=["secrets", "personal"])
  rows = rows_of(calling(arguments))
  (new,) = fields.normalised(rows, tasks.TASKS["chat"], steps, record.Record())
  (made,) = new.fields["messages"][1]["tool_calls"]
  assert (made["id"], made["function"]["name"]) == ("call_1", "get_token")
  return made["function"]["arguments"]


def test_a_masked_call_is_still_a_call():
  """Names stay, and so does the layout of JSON around what is hidden."""
  hidden = {"note": "use [AWS_KEY]"}
  hidden["login"] = {"password": "[SECRET]", "to": ["[EMAIL]", "[CARD]"]}
  assert masked_call(NESTED) == hidden
  assert masked_call(LAID_OUT) == json.dumps(hidden, indent=1) + " "
  pem = f"{BEGIN}\nMIIEvQIBADANBgkqhkiG9w0\n{END}"
  for whole in (pem, pem[:50]):  # which in JSON's letters would take the rest with it
    found = masked_call(json.dumps({"pem": whole, "n": 1.50, "é": None, "b": True}))
    assert json.loads(found) == {"pem": "[PRIVATE_KEY]", "n": 1.5, "é": None, "b": True}
  twice = '{"k": 1, "k": "' + KEY + '", "x": NaN, "y": [[], {}], "z": -1e+5}'
  assert masked_call(twice) == twice.replace(KEY, "[AWS_KEY]")
  inner = json.dumps({"body": json.dumps({"token": OPAQUE})})
  assert json.loads(json.loads(masked_call(inner))["body"]) == {"token": "[SECRET]"}
  assert (
    masked_call(f'{{"a": "{KEY}') == '{"a": "[AWS_KEY]'
  )  # no JSON: refused where it is read


def test_steps_over_texts_leave_calls_alone():
  given = calling({"html": "<b>x</b>", "url": "https://a.de"})
  steps = text.program(("markup", "urls"))
  (new,) = fields.normalised(rows_of(given), tasks.TASKS["chat"], steps, record.Record())
  assert new.fields is given


def test_a_prompt_with_calls_is_masked():
  messages = calling({"key": KEY})["messages"]
  found = fields.prompt(messages, ("mask:secrets",))
  assert found[1]["tool_calls"][0]["function"]["arguments"] == {"key": "[AWS_KEY]"}


JSON = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
  lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.text(max_size=4), parts),
  max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.lists(JSON, max_size=3), st.booleans(), st.sampled_from([None, 1]))
def test_values_of_json_are_found_as_json_finds_them(value, ascii, indent):
  seen, written = [], json.dumps(value, ensure_ascii=ascii, indent=indent)
  assert values.mapped(written, lambda one: seen.append(one) or one, deep=True) == written
  whole = []
  values.inside(value, lambda one: whole.append(one) or one)
  assert seen == whole
  upper = lambda one: one[: one.find(": ") + 2] + "[X]" if ": " in one else "[X]"
  found = values.mapped(written, upper, deep=True)
  assert json.loads(found) == values.inside(value, upper)
