"""A Hugging Face directory that everyone's tools load, written, read back and compared.

What the four places that hold stop ids say (config.json, generation_config.json, the
tokenizer, the template) is decided here, once, from what was supervised.
"""

import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import tempfile
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxsft import families, models, weights
from jaxsft import tokenizer as tokenizer_lib
from jaxsft.errors import JaxsftError
from jaxsft.generation import defaults
from jaxsft.weights import head_file, safetensors_files
from jaxsft.weights import params as params_lib

MANIFEST = "jaxsft_export.json"
THRESHOLD = "jaxsft_threshold"
"""Key of config.json with the `threshold` of tasks.Context, of a head of many labels."""
ANSWERING = "jaxsft_answers"
"""Key of config.json with the fields tasks.ANSWERING, of a head that finds answers; of others
with how they read rows, where that is not what anyone would take it to be."""
FRAME = (  # how a target begins and ends; old checkpoints have it in config.json
  "decoder_start_token_id",
  "forced_bos_token_id",
  "forced_eos_token_id",
  "bad_words_ids",
)


def write(
  directory: pathlib.Path,
  *,
  source_config: Mapping[str, Any],
  family: types.ModuleType,
  arch: Any,
  head: Any,
  params: Mapping[str, Any],
  tokenizer: Any,
  chat_template: str | None = None,
  stop_ids: Sequence[int] = (),
  labels: Sequence[str] = (),
  label_type: str = "single",
  threshold: float | Sequence[float] = 0.5,
  answering: Mapping[str, Any] | None = None,
  dtype: str = "float32",
  generation_config: Mapping[str, Any] | None = None,
  store: Callable[[pathlib.Path], Any] | None = None,
  notes: Mapping[str, Any] | None = None,
) -> list[str]:
  """Writes a model as a Hugging Face directory; returns the names of its files.

  source_config: config.json of the checkpoint it was loaded from. chat_template: the one
  trained with; None: the tokenizer's own. stop_ids: every id that was supervised as an
  end, for "lm" heads. labels: names in id order, () for a regression. label_type, threshold:
  as in tasks.Context; answering: its fields tasks.ANSWERING.
  generation_config: that of the checkpoint, whose sampling settings are kept. store: writes
  and compares the weights in a given directory; None: as one whole model. notes: what else the
  manifest says.

  Everything is written beside `directory`, loaded again from there and compared bit for
  bit, and only then takes its name: an earlier export of ours is replaced, anything else
  is refused, and no half of an export is ever seen. Raises JaxsftError with the reason.
  """
  directory = pathlib.Path(os.path.abspath(directory))
  check_target(directory)
  stops = _stop_ids(stop_ids, tokenizer, arch.vocab) if head.kind == "lm" else []
  config = family.export_config(dict(source_config), arch, head, list(labels), dtype)
  answering = _unusual(answering or {}, arch, head)
  config = _with_decisions(config, head, label_type, threshold, answering)
  config |= _token_ids_for(family, arch, config, source_config, tokenizer, stops)
  with _beside(directory) as work:
    _write_configs(work, config, stops, generation_config or {})
    tokenizer_lib.save_tokenizer(
      tokenizer, work, chat_template=chat_template, max_length=arch.max_positions
    )
    if store is None:
      _write_weights(work, family, arch, head, params, np.dtype(dtype))
      _compare(work, source_config, family, head, params)
    else:
      store(work)
    _compare_tokenizer(work, tokenizer, chat_template, stops)
    written = {"format": 1, "files": _hashes(work)}
    _write_json(work / MANIFEST, written | dict(notes or {}))
    files = sorted(path.name for path in work.iterdir())
  return files


@contextlib.contextmanager
def _beside(directory):
  """An empty directory that takes the place of `directory` after the block, or is removed."""
  try:
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
      prefix=f".{directory.name}.writing-", dir=directory.parent
    ) as temporary:
      work = pathlib.Path(temporary) / directory.name
      work.mkdir()
      yield work
      _replace(work, directory)
  except OSError as error:
    raise JaxsftError(
      f"writing the export to {directory} failed ({error}); expected a disk that takes "
      "it: check its space and permissions; nothing was left half-written"
    ) from error


def _token_ids_for(family, arch, config, source_config, tokenizer, stops):
  """`_token_ids`; the checkpoint's own pad id where positions count from it (RoBERTa)."""
  ids = _token_ids(config, tokenizer, stops)
  if family.architecture({**config, **ids}) != arch:
    ids["pad_token_id"] = source_config.get("pad_token_id")
  return ids


def _write_configs(work, config, stops, generation_config):
  """config.json and, where there are stop ids, generation_config.json."""
  _write_json(work / "config.json", config)
  if stops:
    generation = _generation(config, stops, generation_config)
    _write_json(work / "generation_config.json", generation)


def _with_decisions(config, head, label_type, threshold, answering):
  """The config with how a head's logits become answers; nothing of an earlier head's."""
  config = {k: v for k, v in config.items() if k not in (THRESHOLD, ANSWERING)}
  if answering:
    config[ANSWERING] = dict(answering)
  if head.kind == "sequence" and label_type == "multi":
    config |= {"problem_type": "multi_label_classification", THRESHOLD: threshold}
  return config


def _unusual(answering, arch, head):
  """What of a head's reading is to be kept; causal models read as far as positions reach."""
  usual = {"text_steps": (), "control_tokens": "refuse", "unwritten": "refuse"}
  own = {}
  if head.kind == "span":
    own = {name: v for name, v in answering.items() if name not in usual}
  elif head.kind != "lm" or models.has_source(arch):
    usual |= {"max_length": arch.max_positions, "pairs": False}
  found = {name: answering.get(name, v) for name, v in usual.items()}
  return own | {name: v for name, v in found.items() if v != usual[name] and v != []}


def _write_weights(
  work: pathlib.Path,
  family: types.ModuleType,
  arch: Any,
  head: Any,
  params: Mapping[str, Any],
  dtype: np.dtype,
) -> None:
  """model.safetensors, and head.safetensors for a head that transformers has no class for."""
  names, own = family.names(arch, head), {}
  prefix = families.prefix_of(family, head.kind)
  if head.kind not in family.CLASSES:
    own = {name.hf for name in names if name.part == "head"}
  tensors = params_lib.export_tensors(params, names, base_prefix=prefix, dtype=dtype)
  computed = getattr(family, "computed", lambda _: ())(arch)
  tensors = itertools.chain(tensors, ((prefix + k, v.astype(dtype)) for k, v in computed))
  if not own:
    weights.save_safetensors(work, tensors)
    return
  apart: list[tuple[str, np.ndarray]] = []

  def base():
    for name, array in tensors:
      if name in own:
        apart.append((name, array))
      else:
        yield name, array

  weights.save_safetensors(work, base())
  head_file.save_head(work, apart)


def verify(
  directory: pathlib.Path,
  *,
  family: types.ModuleType,
  network: Any,
  params: Mapping[str, Any],
  probe: Mapping[str, Any],
  tolerance: float = 1e-5,
) -> float:
  """Loads an export and compares its logits on a batch with those of `params`.

  params: what was exported; rounded to the stored type before the comparison. Returns the
  largest difference, relative to the largest logit; raises JaxsftError above `tolerance`.
  """
  source = weights.open_source(directory)
  names = family.names(network.arch, network.head)
  dtype = next(iter(source.tensors.values())).dtype
  shardings = jax.tree.map(lambda leaf: leaf.sharding, params)
  stored, report = weights.load(
    source,
    names,
    jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params),
    base_prefix=families.prefix_of(family, network.head.kind),
    ignored=family.IGNORED,
    shardings=shardings,
  )
  if report.new:
    raise JaxsftError(
      f"found no {', '.join(report.new)} in the export {directory}; expected every "
      "parameter: export again"
    )
  rounded = jax.tree.map(lambda leaf: leaf.astype(dtype).astype("float32"), params)
  logits = jax.jit(network.logits)
  ours, theirs = (np.asarray(logits(p, dict(probe))) for p in (rounded, stored))
  scale = max(1.0, float(np.abs(ours).max()))
  difference = float(np.abs(ours - theirs).max()) / scale
  if not difference <= tolerance:
    raise JaxsftError(
      f"found logits of the export {directory} that differ from the trained model's by "
      f"{difference:.3g} of the largest; expected at most {tolerance:.3g}: do not use it"
    )
  return difference


def check_target(directory: pathlib.Path) -> None:
  """Refuses to overwrite what this function has not written itself, or was changed."""
  if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
    return
  advice = "choose another directory or move it away"
  manifest = directory / MANIFEST
  if not manifest.is_file():
    raise JaxsftError(
      f"found {directory} in use by something that is not an export of jaxsft; expected "
      f"a new or empty directory: {advice}"
    )
  try:
    written = json.loads(manifest.read_text(encoding="utf-8"))["files"]
  except (ValueError, KeyError, TypeError) as error:
    raise JaxsftError(
      f"found {manifest} unreadable ({error!r}); expected the list of files of an "
      f"earlier export: {advice}"
    ) from error
  found = _hashes(directory)
  found.pop(MANIFEST)
  changed = sorted(name for name in found | written if found.get(name) != written.get(name))
  if changed:
    raise JaxsftError(
      f"found {', '.join(changed[:4])} in {directory} changed since the export was "
      f"written; expected it untouched, as it would be replaced: {advice}"
    )


def _stop_ids(stop_ids: Sequence[int], tokenizer: Any, vocab: int) -> list[int]:
  """Every supervised end, and the tokenizer's eos, which engines stop at anyway."""
  eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
  stops = list(dict.fromkeys([*map(int, stop_ids), *eos]))
  if not stops:
    raise JaxsftError(
      "found no stop token: nothing was supervised as an end and the tokenizer has no "
      "eos_token; expected one, without which generation never ends: use a chat_template "
      "that closes every assistant turn with a special token"
    )
  if bad := [stop for stop in stops if not 0 <= stop < vocab]:
    raise JaxsftError(
      f"found the stop ids {bad} outside the vocabulary of {vocab}; expected ids that "
      "the model can emit: tokenizer and weights do not belong together"
    )
  return stops


def _token_ids(
  config: Mapping[str, Any], tokenizer: Any, stops: Sequence[int]
) -> dict[str, Any]:
  """bos, eos and pad of config.json as the tokenizer and the stop ids have them."""
  ids = {}
  for kind in ("bos", "pad"):
    value = getattr(tokenizer, f"{kind}_token_id")
    if value is not None or f"{kind}_token_id" in config:
      ids[f"{kind}_token_id"] = value
  if stops:
    ids["eos_token_id"] = stops[0] if len(stops) == 1 else list(stops)
  return ids


def _generation(
  config: Mapping[str, Any], stops: Sequence[int], given: Mapping[str, Any]
) -> dict[str, Any]:
  """generation_config.json: the given settings with the ids of `config`.

  Where this file is, transformers no longer reads what an old config.json says of generation.
  """
  plain = {**defaults.NEUTRAL, **defaults.SAMPLING}
  framed = {k: v for k, v in config.items() if v is not None and v != plain.get(k, v)}
  framed |= {k: config[k] for k in FRAME if config.get(k) is not None}
  ids = {k: config[k] for k in ("bos_token_id", "pad_token_id") if k in config}
  return framed | dict(given) | ids | {"eos_token_id": list(stops)}


def _compare(
  directory: pathlib.Path,
  source_config: Mapping[str, Any],
  family: types.ModuleType,
  head: Any,
  params: Mapping[str, Any],
) -> None:
  """Opens the written model as any user would and compares it with what was meant."""
  source = weights.open_source(directory)
  arch, meant = (family.architecture(c) for c in (source.config, dict(source_config)))
  if arch != meant:
    raise JaxsftError(
      f"found the written config.json to describe {arch}; expected {meant}: this is a "
      "mistake in jaxsft's export of this family, please report it"
    )
  flat = params_lib.flatten(params)
  dtype = np.dtype(source.config["dtype"])
  written = weights.leaves(
    source,
    family.names(arch, head),
    params,
    base_prefix=families.prefix_of(family, head.kind),
    ignored=family.IGNORED,
    dtype=dtype,
  )
  for path, read in written.items():
    ours = params_lib.cast(params_lib.on_host(flat.pop(path)), dtype, path)
    if not safetensors_files.same_bits(ours, read()):
      raise JaxsftError(
        f"found {path!r} to differ after it was written and loaded again; expected the "
        "same bits: this is a mistake in jaxsft's table of this family, please report it"
      )
  if flat:
    raise JaxsftError(
      f"found no {', '.join(sorted(flat)[:4])} in the written model; expected every "
      "parameter: this is a mistake in jaxsft's table of this family, please report it"
    )


def _compare_tokenizer(
  directory: pathlib.Path,
  tokenizer: Any,
  chat_template: str | None,
  stops: Sequence[int],
) -> None:
  written = tokenizer_lib.load_tokenizer(directory)
  if found := tokenizer_lib.differences(tokenizer, written, chat_template):
    raise JaxsftError(
      f"found the written tokenizer to differ from the one trained with ({found}); "
      "expected the same: its class cannot be written as a plain fast tokenizer"
    )
  path = directory / "generation_config.json"
  if path.is_file():
    found = json.loads(path.read_text(encoding="utf-8"))["eos_token_id"]
    if list(stops) != found or written.eos_token_id not in {*stops, None}:
      raise JaxsftError(
        f"found the stop ids {found} in {path.name} and {written.eos_token_id} in the "
        f"tokenizer; expected {list(stops)} in both"
      )


def _hashes(directory: pathlib.Path) -> dict[str, str]:
  """Relative name -> sha256 of every file under `directory`."""
  hashes = {}
  for path in sorted(directory.rglob("*")):
    if path.is_file():
      with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
      hashes[path.relative_to(directory).as_posix()] = digest
  return hashes


def _replace(work: pathlib.Path, directory: pathlib.Path) -> None:
  """Gives `work` its name; the old directory goes only when the new one stands."""
  old = work.parent / "old"
  if directory.exists():
    os.rename(directory, old)
  try:
    os.rename(work, directory)
  except OSError as error:
    if old.exists():
      os.rename(old, directory)
    raise JaxsftError(
      f"moving the finished export to {directory} failed ({error}); expected a directory "
      "that can be renamed: the earlier one, if any, was left as it was"
    ) from error
  shutil.rmtree(old, ignore_errors=True)


def _write_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
  text = json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
  path.write_text(text, encoding="utf-8")
