"""Findings by what conversations say."""

from jaxsft.doctor import findings
from tests.doctor.test_findings import by_code, chats


def test_what_leads_a_conversation(prepared):
  """A developer is a system, which stands in the prompts of pairs too."""
  rows = chats(30) + chats(3, system=True)
  for row in rows[:4] + rows[30:]:
    *prompt, answer = row.pop("messages")
    row |= {"prompt": prompt, "completion": [answer]}
  developer = rows[32]["prompt"][0]
  developer["role"] = "developer"
  found = by_code(findings.findings(*prepared("chat", rows, None, data__split=0.0)))
  assert found["mixed-system"].text.startswith("3 training conversations have a system message")
  assert "r32" in found["odd-rows"].text and "written as the system's" in found["odd-rows"].text
