"""Adapter directories as PEFT saves them: adapter_config.json and adapter_model.safetensors."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxsft.errors import JaxsftError
from jaxsft.weights import safetensors_files, shards

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # before every name: PEFT wraps the model twice
TASKS = {  # kind of head (see heads.Head) -> task_type; "lm" of an encoder-decoder apart
  "lm": "CAUSAL_LM",
  "sequence": "SEQ_CLS",
  "token": "TOKEN_CLS",
  "span": "QUESTION_ANS",
  "none": "FEATURE_EXTRACTION",
}
SEQ2SEQ = "SEQ_2_SEQ_LM"
# Settings of a LoraConfig that change what is computed, with the values that are known here.
KNOWN = {
  "bias": ("none",),
  "lora_bias": (False,),
  "layer_replication": (None,),
  "target_parameters": (None, [], ()),
  "trainable_token_indices": (None,),
  "megatron_config": (None,),
  "alora_invocation_tokens": (None,),
  "use_qalora": (False,),
  "arrow_config": (None,),
  "use_bdlora": (None, False),
  "velora_config": (None,),
  "monteclora_config": (None,),
  "kasa_config": (None,),
  "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal", "pissa", "olora"),
}


@dataclasses.dataclass(frozen=True)
class Adapter:
  """An opened adapter."""

  path: pathlib.Path
  config: dict[str, Any]
  """adapter_config.json."""
  tensors: dict[str, np.ndarray]
  """By name, without PREFIX."""


def holds(directory: pathlib.Path) -> bool:
  """Whether a directory is an adapter, and no whole model."""
  return (directory / CONFIG).is_file() and not safetensors_files.holds(directory)


def read(directory: pathlib.Path) -> Adapter:
  """The adapter of a directory.

  Raises JaxsftError for another method than LoRA, for a setting of it that is not known
  here, and for tensors with other names than PEFT's.
  """
  config = shards.read_json(directory / CONFIG)
  if config.get("peft_type") != "LORA":
    raise JaxsftError(
      f"{directory / CONFIG}: peft_type is {config.get('peft_type')!r}, expected 'LORA': merge "
      "other adapters with PEFT's merge_and_unload() and load the model that it gives"
    )
  for name, known in KNOWN.items():
    if config.get(name, known[0]) not in known:
      raise JaxsftError(
        f"{directory / CONFIG}: {name} is {config[name]!r}, expected one of {list(known)}; "
        "merge the adapter with PEFT's merge_and_unload() and load the model that it gives"
      )
  if not (directory / WEIGHTS).is_file():
    raise JaxsftError(
      f"{directory}: has {CONFIG} and no {WEIGHTS}, expected both; save the adapter again"
    )
  found = safetensors_files.read_file(directory / WEIGHTS)
  strange = [name for name in found if not name.startswith(PREFIX)]
  if strange or not found:
    raise JaxsftError(
      f"{directory / WEIGHTS}: found {strange[:3] or 'no tensors'}, expected names that begin "
      f"with {PREFIX!r}; save the adapter with PEFT's save_pretrained()"
    )
  return Adapter(directory, config, {n.removeprefix(PREFIX): t for n, t in found.items()})


def write(
  directory: pathlib.Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> None:
  """Writes an adapter and reads it back. tensors: by name, without PREFIX."""
  text = json.dumps(config, indent=2, sort_keys=True) + "\n"
  (directory / CONFIG).write_text(text, encoding="utf-8")
  named = {PREFIX + name: values for name, values in tensors.items()}
  safetensors_files.write_file(directory / WEIGHTS, named)
