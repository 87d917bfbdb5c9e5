"""Files with what cleaning leaves out or hides, and what augmentation reads."""

import json


def files(root, rows):
  """Good rows with a second of each, private data and German among them, and a benchmark."""
  text = "der Film war leider sehr lang und die Geschichte war auch nicht sehr gut oder neu"
  more = [
    {"name": "key", "text": "good AKIAIOSFODNN7EXAMPLE", "label": "pos"},
    {"name": "mail", "text": "write to me@example.org", "label": "neg"},
  ]
  more += [{"name": f"german{i}", "text": f"{text} {i}", "label": "neg"} for i in range(12)]
  again = [r | {"name": f"{r['name']} again"} for r in rows]
  odd, benchmark = root / "odd.jsonl", root / "benchmark.txt"
  odd.write_text("".join(json.dumps(r) + "\n" for r in [*rows, *again, *more]))
  benchmark.write_text(f"{text}\n{rows[0]['text']}\n")
  found = {"ODD ROWS": odd, "BENCHMARK": benchmark}
  for name, other in (("SYNONYMS", "plot"), ("OTHER SYNONYMS", "end")):
    found[name] = root / f"{other}.json"
    found[name].write_text(json.dumps({"the": [other], "film": [other], "a": [other]}))
  return found
