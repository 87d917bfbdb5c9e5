"""All processes of a run do the same: what shapes it is compared before anything is written.

Every process reads the rows and plans the order by itself. Where one has another file, another
setting or another library, they would train on different batches, or wait for each other for
ever, without a word.
"""

import hashlib
import json
import pathlib
import platform
from importlib import metadata

import jax
import numpy as np

from jaxsft import config as config_lib
from jaxsft.errors import JaxsftError

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
LIBRARIES += ("transformers", "tokenizers", "jinja2")
PARTS = 64
"""Rows of what is gathered, whatever the number of parts: arrays of two shapes would hang."""


def check(config, base, data, workdir):
  """Raises JaxsftError, in every process, where the processes of this run differ.

  data: prepare.Prepared. With one process nothing is computed.
  """
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    own = parts(config, base, data, workdir)
    refuse(list(own), multihost_utils.process_allgather(digests(own)))


def same(own):
  """Whether all processes have the same value; asked by all of them.

  own: anything that becomes JSON. A process that is in `check` meanwhile hears that it differs.
  """
  if jax.process_count() == 1:
    return True
  from jax.experimental import multihost_utils

  gathered = multihost_utils.process_allgather(digests({"": own}))
  return bool(np.all(gathered == gathered[:1]))


def parts(config, base, data, workdir):
  """{what it is called: value} of all that must be the same; values become JSON."""
  tree = config_lib.to_dict(config)
  groups = {f"config.{key}": value for key, value in tree.items() if isinstance(value, dict)}
  single = {key: value for key, value in tree.items() if not isinstance(value, dict)}
  stores = {name: part.store.fingerprint for name, part in data.evaluated.items()}
  found = {"jaxsft's code": code_hash(), "the config": single, **groups}
  found |= {
    "--workdir": str(workdir),
    "the training rows and their order": data.plan.digest(data.train.store.fingerprint),
    "the rows to evaluate on": stores,
    "the model's weights": base.identity(),
    "Python": platform.python_version(),
  }
  return found | {f"the version of {name}": metadata.version(name) for name in LIBRARIES}


def digests(found):
  """[PARTS, 8] uint32: the sha256 of each part of `parts`, in their order, and zeros."""
  result = np.zeros((PARTS, 8), np.uint32)
  for i, value in enumerate(found.values()):
    text = json.dumps(value, sort_keys=True, default=str)
    result[i] = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint32)
  return result


def refuse(names, gathered):
  """Raises JaxsftError where a process has another digest than the first one.

  names: of the parts; gathered: [processes, PARTS, 8].
  """
  differ = np.any(gathered != gathered[:1], -1)  # processes PARTS
  if not differ.any():
    return
  said = []
  for i in np.flatnonzero(differ.any(0)).tolist():
    others = ", ".join(map(str, np.flatnonzero(differ[:, i])))
    said.append(f"{names[i] if i < len(names) else 'a further part'} (process {others})")
  raise JaxsftError(
    f"the {len(gathered)} processes of this run do not agree with process 0: they differ in "
    f"{', '.join(said)}; start all with the same command, files and packages"
  )


def code_hash():
  """sha256 over the files of this package."""
  root = pathlib.Path(__file__).parent
  digest = hashlib.sha256()
  for file in sorted(root.rglob("*.py")):
    text = file.read_bytes()
    digest.update(f"{file.relative_to(root).as_posix()} {len(text)} ".encode() + text)
  return digest.hexdigest()
