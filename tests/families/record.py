"""What the parity tests measured, for `python docs/make_families.py` and `jaxsft.inspect`.

JAXSFT_RECORD=DIR pytest -m 'full or not full' tests/families
python docs/make_families.py DIR
"""

import json
import os
import pathlib


def parity(family, part, **differences):
  """Notes the largest difference of each kind in this process, if env JAXSFT_RECORD is set.

  part: "tiny" for random models, or the name of a real checkpoint. differences: logits=…,
  gradients=… (largest absolute difference from torch).
  """
  directory = os.environ.get("JAXSFT_RECORD")
  if not directory:
    return
  path = pathlib.Path(directory) / f"{family}+{part}+{os.getpid()}.json"
  path.parent.mkdir(parents=True, exist_ok=True)
  known = json.loads(path.read_text("utf-8")) if path.is_file() else {}
  for name, value in differences.items():
    known[name] = max(float(value), known.get(name, 0.0))
  path.write_text(json.dumps(known), encoding="utf-8")
