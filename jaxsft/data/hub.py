"""Data sets of the Hugging Face hub by name: their files are found and fetched, no code is run.

`hf:OWNER/NAME/SPLIT`, `hf:OWNER/NAME@REVISION:CONFIG/SPLIT`. The files of a split are those
that the README's header lists (configs: data_files), else those named by the hub's conventions:
data/train-00000-of-00005.parquet, train.jsonl, my_dev.csv, test/part1.json, and, where no name
tells a split, all files are "train" (huggingface.co/docs/hub/datasets-file-names-and-splits).
"""

import fnmatch
import glob
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jaxsft.data import index, places, read, streams
from jaxsft.data.nearest import near
from jaxsft.errors import JaxsftError, UsageError

NAME = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:@([^:@]+?))?(?::([^:/@]+))?/([^/:@]+)")
SPLITS = {
  "train": ("train", "training"),
  "validation": ("validation", "valid", "dev", "val"),
  "test": ("test", "testing", "eval", "evaluation"),
}
"""Split -> the words of file names that tell it."""
SHARD = re.compile(r"(?:^|.*/)([\w.]+?)-\d{5}-of-\d{5}")
NO_ROWS = ("dataset_info*.json", "*requirements*.txt", "LICENSE*", ".*", "*/.*", "README*")


def is_name(path: str) -> bool:
  """Whether a path names a data set of the hub."""
  return path.startswith("hf:") and not places.is_url(path)


def fetched(name: str, *, key: str, cache: Path) -> Path:
  """The local file, or glob of files, of a split of a data set; raises JaxsftError, UsageError.

  The revision's commit stands in the path.
  """
  match = NAME.fullmatch(name)
  if not match:
    raise UsageError(
      f"{key} is {name!r}, expected hf:OWNER/NAME/SPLIT, with @REVISION or :CONFIG behind NAME "
      "where one is meant, such as hf:openai/gsm8k:main/train"
    )
  repository, revision, config, split = match.groups()
  import huggingface_hub  # late: most runs have their rows on disk

  try:
    info = huggingface_hub.HfApi().dataset_info(repository, revision=revision)
    get = lambda file: huggingface_hub.hf_hub_download(
      repository, file, repo_type="dataset", revision=info.sha
    )
    listed = [sibling.rfilename for sibling in info.siblings or []]
    header = huggingface_hub.metadata_load(get("README.md")) if "README.md" in listed else None
    found = _of_split(splits(listed, header, config, name, key), split, listed, name, key)
    files = {file: Path(get(file)) for file in found}
  except JaxsftError:
    raise
  except Exception as error:  # the hub's client raises its own, httpx's and OS errors
    raise JaxsftError(
      f"{key}: {name} could not be fetched from the Hugging Face hub ({index.reason(error)}); "
      "check the name, the revision and the network, or name a local copy"
    ) from error
  owner = cache / "hub" / repository.replace("/", "--") / info.sha
  directory = places.laid_out(owner, files)
  if len(found) == 1:
    return directory / found[0]
  return Path(glob.escape(str(directory)), "**")


def splits(
  listed: Sequence[str], header: Any, config: str | None, name: str, key: str
) -> dict[str, list[str]]:
  """Split -> its files, of all files of a data set and the README's header (None: none)."""
  configs = header.get("configs") if isinstance(header, dict) else None
  configs = [one for one in configs or [] if isinstance(one, dict)]
  configs = {str(one.get("config_name", "default")): one for one in configs}
  if configs:
    return _listed(listed, configs, config, name, key)
  if config is not None:
    inside = [file for file in listed if file.startswith(f"{config}/")]
    if not inside:
      names = sorted({file.partition("/")[0] for file in listed if "/" in file})
      raise JaxsftError(
        f"{key}: {name} has no configuration {config!r}: neither its README nor a directory "
        f"names one{near(config, names)}; correct {key}"
      )
    listed = inside
  return _by_names(listed)


def _listed(listed, configs, config, name, key) -> dict[str, list[str]]:
  """Split -> its files, by the README's header."""
  if config is None:
    chosen = [n for n, one in configs.items() if one.get("default") is True or n == "default"]
    chosen = list(configs) if len(configs) == 1 else chosen
  else:
    chosen = [config] if config in configs else []
  if len(chosen) != 1:
    which = f"no configuration {config!r}" if config else f"{len(configs)} configurations"
    raise JaxsftError(
      f"{key}: {name} has {which}{near(config or '', configs)}; name one behind a colon, "
      f"hf:OWNER/NAME:{next(iter(configs))}/SPLIT"
    )
  one = configs[chosen[0]]
  base = str(one.get("data_dir") or "").strip("./")
  inside = [file for file in listed if not base or file.startswith(f"{base}/")]
  data_files = one.get("data_files")
  if data_files is None:
    return _by_names(inside)
  found: dict[str, list[str]] = {}
  for split, patterns in _patterns(data_files):
    for pattern in patterns:
      whole = "/".join(part for part in (base, pattern.removeprefix("./")) if part)
      more = [file for file in inside if _matches(file, whole)]
      found.setdefault(split, []).extend(more)
  return found


def _patterns(data_files: Any) -> Iterable[tuple[str, list[str]]]:
  """(split, its patterns) of each way in which the header writes them."""
  as_list = lambda value: [value] if isinstance(value, str) else list(value or [])
  if isinstance(data_files, dict):
    return [(str(split), as_list(value)) for split, value in data_files.items()]
  if isinstance(data_files, list) and all(isinstance(one, dict) for one in data_files):
    return [(str(one.get("split", "train")), as_list(one.get("path"))) for one in data_files]
  return [("train", as_list(data_files))]


def _matches(file: str, pattern: str) -> bool:
  """As fsspec's globs do, a * stays inside a directory and ** does not."""
  from fsspec.utils import glob_translate

  return re.match(glob_translate(pattern), file) is not None


def _by_names(listed: Sequence[str]) -> dict[str, list[str]]:
  """Split -> its files, by the hub's conventions for names."""
  rows = [
    file
    for file in listed
    if Path(streams.bare(file)).suffix.lower() in read.SUFFIXES
    and not any(
      fnmatch.fnmatch(file, p) or fnmatch.fnmatch(Path(file).name, p) for p in NO_ROWS
    )
  ]
  shard = lambda file: (m := SHARD.match(file)) and m[1]
  inside = lambda file: file.rpartition("/")[0]
  ways = (shard, lambda file: _word(Path(file).name), lambda file: _word(inside(file)))
  for way in ways:
    found: dict[str, list[str]] = {}
    for file in rows:
      if split := way(file):
        found.setdefault(split, []).append(file)
    if found:
      return found
  return {"train": rows} if rows else {}


def _word(name: str) -> str | None:
  """The split that a word of a name tells, "one or another" where two do; None: none does."""
  words = set(re.split(r"[-._ /0-9]+", name.lower()))
  return " or ".join(split for split, own in SPLITS.items() if words.intersection(own)) or None


def _of_split(found, split, listed, name, key) -> list[str]:
  """The files of one split; they have one format."""
  same = {word: other for other, words in SPLITS.items() for word in words}
  files = found.get(split) or found.get(same.get(split, split)) or []
  if not files:
    there = [f"{n} ({len(f)} file{'s' * (len(f) != 1)})" for n, f in found.items() if f]
    code = [file for file in listed if file.endswith(".py")]
    hint = f"; it has a script, {code[0]}, and scripts are never run" if code else ""
    raise JaxsftError(
      f"{key}: {name} has no files of the split {split!r}; the splits found are "
      f"{', '.join(there) or 'none'}{hint}. Correct {key}, or download the data set and name "
      "its files"
    )
  suffixes = sorted({Path(streams.bare(file)).suffix.lower() for file in files})
  if len(suffixes) > 1:
    raise JaxsftError(
      f"{key}: {name} has files of several formats for the split {split!r}: "
      f"{', '.join(sorted(files)[:6])}; download the data set and name those that you mean"
    )
  return sorted(set(files))
