"""Secrets and personal data: found by form and checksum, and never shown.

The numbers are those that banks, card makers and standards publish for tests.
"""

import base64
import json

import pytest

from jaxsft import sources, tasks
from jaxsft.config import Clean, Data
from jaxsft.data.cleaning import private
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
