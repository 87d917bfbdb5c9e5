"""Secrets and personal data in texts: found by their form, and by their checksums.

What was found is never shown: samples and sentences have the placeholder in its place.
"""

import base64
import ipaddress
import json
import math
import re
from collections import Counter
from collections.abc import Iterator

from jaxsft.data.cleaning import edits

SECRETS = {
  "PRIVATE_KEY": r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----[\s\S]*?"
  r"(?:-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----|\Z)",
  "AWS_KEY": r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}\b",
  "GITHUB_TOKEN": r"\b(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255})\b",
  "SLACK_TOKEN": r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}\b"
  r"|\bhooks\.slack\.com/services/[A-Za-z0-9/]{20,}",
  "GOOGLE_KEY": r"\bAIza[0-9A-Za-z_-]{35}(?![0-9A-Za-z_-])|\bya29\.[0-9A-Za-z_-]{20,}",
  "API_KEY": r"\bsk-[A-Za-z0-9_-]{20,}|\bhf_[A-Za-z0-9]{30,}\b|\b[rs]k_live_[A-Za-z0-9]{20,}\b",
  "JWT": r"\beyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]{6,}",
  "SECRET": r"(?i:(?:api|access|secret|auth|private|client)[ _-]?(?:key|token|secret)|secret"
  r"|token|passw(?:or)?d|pwd)[\"']?\s*(?:[:=]|=>)\s*[\"']?([^\s\"'<>,;]{12,})",
}
"""Kind -> pattern; a group in it is the secret itself."""
PERSONAL = {
  "IBAN": r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}\b",
  "CARD": r"(?<![\d.,-])\d(?:[ -]?\d){12,18}(?![\d-])",
  "EMAIL": r"\b[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}\b",
  "IP": r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}(?![\w]|\.\d)"
  r"|[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:]))",
  "PHONE": r"(?<![\w.+-])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){1,5}"
  r"|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}[ .-]\d{3}[ .-]\d{4})(?![\w-])",
}
KINDS = {"secrets": SECRETS, "personal": PERSONAL}
COMPILED = {
  group: {kind: re.compile(pattern, re.ASCII) for kind, pattern in patterns.items()}
  for group, patterns in KINDS.items()
}
IBAN_LENGTHS = {  # of the SWIFT registry
  code: length
  for length, codes in {
    15: "NO", 16: "BE", 18: "DK FI FO GL NL SD", 19: "MK SI",
    20: "AT BA EE KZ LT LU MN XK", 21: "CH HR LI LV", 22: "BG BH CR DE GB GE IE ME RS VA",
    23: "AE GI IL IQ OM TL", 24: "AD CZ ES MD PK RO SA SE SK TN VG", 25: "LY PT ST",
    26: "IS TR", 27: "BI DJ FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HU LB NI PL SV",
    29: "BR EG PS QA UA", 30: "JO KW MU", 31: "MT SC", 32: "LC", 33: "RU",
  }.items()
  for code in codes.split()
}  # fmt: skip
LONG = re.compile(r"(?=[\w+/=-]{0,200}\d)(?=[\w+/=-]{0,200}[^\W\d])[\w+/=-]{16,}")
ENTROPY = 3.0
"""Bits a character from which the value of an assignment counts as a secret."""


def luhn(number: str) -> bool:
  """Whether the digits of a number have the right check digit (ISO/IEC 7812-1, annex B)."""
  digits = [int(c) for c in number if c.isdigit()]
  doubled = [sum(divmod(2 * d, 10)) for d in digits[-2::-2]]
  return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def iban(number: str) -> bool:
  """Whether an IBAN has its country's length and the right check digits (ISO 13616)."""
  plain = number.replace(" ", "").upper()
  if IBAN_LENGTHS.get(plain[:2]) != len(plain):
    return False
  return int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1


def find(group: str, text: str) -> list[tuple[int, int, str]]:
  """(start, end, kind) of all "secrets" or "personal" data in a text, in order.

  Where two overlap, the kind that is named first has it.
  """
  taken: list[tuple[int, int, str]] = []
  for kind, pattern in COMPILED[group].items():
    for start, end in _of_kind(kind, pattern, text):
      if all(end <= a or start >= b for a, b, _ in taken):
        taken.append((start, end, kind))
  return sorted(taken)


def _of_kind(kind: str, pattern: re.Pattern, text: str) -> Iterator[edits.Span]:
  for match in pattern.finditer(text):
    start, end = match.span(1) if pattern.groups else match.span()
    found = text[start:end]
    if kind == "IBAN":
      end = start + _length_of_iban(found)
    if end > start and CHECKS.get(kind, bool)(text[start:end]):
      yield start, end


def _length_of_iban(found: str) -> int:
  """How many characters of a text are the IBAN that it begins with."""
  needed, seen = IBAN_LENGTHS.get(found[:2], 0), 0
  for at, c in enumerate(found):
    seen += c != " "
    if seen == needed:
      return at + 1 if found[at + 1 : at + 2] in ("", " ") else 0
  return 0


def _is_card(found: str) -> bool:
  digits = re.sub(r"\D", "", found)
  return digits[0] in "23456" and len(set(digits)) > 1 and luhn(digits)


def _is_address(found: str) -> bool:
  groups = [part for part in found.split(":") if part]
  if ":" in found and len(groups) < 3:
    return False  # "a::b" is more often code
  try:
    return bool(ipaddress.ip_address(found))
  except ValueError:
    return False


def _is_jwt(found: str) -> bool:
  head = found.split(".")[0]
  try:
    said = json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))
  except ValueError:
    return False
  return isinstance(said, dict) and "alg" in said


def _is_phone(found: str) -> bool:
  return 8 <= sum(c.isdigit() for c in found) <= 15


def _is_secret(found: str) -> bool:
  letters, digits = any(c.isalpha() for c in found), any(c.isdigit() for c in found)
  n = len(found)
  bits = -sum(k / n * math.log2(k / n) for k in Counter(found).values())
  return letters and digits and bits >= ENTROPY


CHECKS = {
  "IBAN": iban,
  "CARD": _is_card,
  "IP": _is_address,
  "PHONE": _is_phone,
  "JWT": _is_jwt,
  "SECRET": _is_secret,
}


def masks(group: str, text: str) -> list[edits.Edit]:
  """Edits that put a placeholder such as [EMAIL] in the place of what is found."""
  return [(start, end, f"[{kind}]") for start, end, kind in find(group, text)]


def masked(text: str) -> str:
  """The text with a placeholder for everything that is found."""
  for group in KINDS:
    text = edits.apply(text, masks(group, text))
  return text


def hidden(text: str) -> str:
  """The text as it may be shown: `masked`, and without what may have been a key before a step
  took its capitals or dashes: long words of letters and digits.
  """
  return LONG.sub("[HIDDEN]", masked(text))
