"""jaxsft: supervised fine-tuning of pretrained language models in JAX/Flax.

config = jaxsft.load_config("configs/quickstart.py", {"optim.peak_lr": 1e-4})
run = jaxsft.finetune(config, workdir="runs/x")
model = jaxsft.load("runs/x")
"""

import importlib

__version__ = "0.1.0"

_PLACES = {"load_config": "config", "finetune": "train", "load": "pretrained"}


def __getattr__(name):
  # Late, so that `import jaxsft` costs nothing.
  if name in _PLACES:
    return getattr(importlib.import_module(f"jaxsft.{_PLACES[name]}"), name)
  raise AttributeError(f"module 'jaxsft' has no attribute {name!r}")
