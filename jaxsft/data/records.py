"""Rows of what TensorFlow writes: TFDS data sets and files of tf.train.Example."""

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxsft.data import formats, streams
from jaxsft.errors import JaxsftError, UsageError

FRAME = 16
"""Bytes around a record: its length and two checksums."""


def _tensorflow() -> Any:
  """The module, which leaves the devices to JAX."""
  import tensorflow  # late: seconds to import

  for kind in ("GPU", "TPU"):
    with contextlib.suppress(RuntimeError):  # already in use: then it was settled before
      tensorflow.config.set_visible_devices([], kind)
  return tensorflow


def tfrecord(file: str) -> Iterator[formats.Record]:
  """One record a tf.train.Example, numbered from 1; the file may be compressed.

  A feature of one value is that value, of several a list, of none None; bytes are text in
  UTF-8. Raises JaxsftError with file:record for damaged records and for other messages.
  """
  tensorflow = _tensorflow()
  example = tensorflow.train.Example
  with _uncompressed(file) as plain:
    for number, record in enumerate(_framed(plain, file, tensorflow), 1):
      where = f"{file}:{number}"
      features = sorted(_parsed(record, example, where).features.feature.items())
      fields = {name: _feature(one, name, where) for name, one in features}
      yield formats.Record(number, str(number), fields)


def _framed(plain: str, file: str, tensorflow: Any) -> Iterator[bytes]:
  """The records of an uncompressed file, called `file` in errors; checksums are compared."""
  records = tensorflow.data.TFRecordDataset(plain, buffer_size=2**18).as_numpy_iterator()
  number, end = 1, 0
  cut = "the record is damaged or cut off ({}); fetch or write the file again, or correct "
  cut = f"{file}:{{}}: {cut}data.format"
  try:
    for record in records:
      yield record
      number, end = number + 1, end + len(record) + FRAME
  except tensorflow.errors.OpError as error:
    why = _first_line(error).rpartition("}} ")[2]
    raise JaxsftError(cut.format(number, why.partition(" [Op:")[0])) from None
  # TensorFlow takes a record whose head is cut off for the end of the file.
  if over := os.path.getsize(plain) - end:
    raise JaxsftError(cut.format(number, f"{over} bytes are no record"))


def _parsed(record: bytes, example: Any, where: str) -> Any:
  from google.protobuf import message, unknown_fields

  try:
    found = example.FromString(record)
    # A SequenceExample reads as an Example that has its lists as unknown fields.
    whole = not len(unknown_fields.UnknownFieldSet(found))
  except message.DecodeError:
    whole = False
  if not whole or not found.features.feature:
    raise JaxsftError(
      f"{where}: the record {formats.shown(record)} is no tf.train.Example with features; "
      "write the rows as such, or as JSONL"
    )
  return found


@contextlib.contextmanager
def _uncompressed(file: str) -> Iterator[str]:
  """The file itself, or a temporary copy: TensorFlow takes a gzip stream that is cut off for a
  whole one."""
  if not streams.compression(file):
    yield file
    return
  with tempfile.TemporaryDirectory(prefix="jaxsft-") as directory:
    copy = os.path.join(directory, "rows")
    try:
      with open(copy, "wb") as stream:
        stream.writelines(streams.chunks(file))
    except streams.Damaged as error:
      raise JaxsftError(f"{file}: {error}; fetch or write the file again") from error
    yield copy


def _feature(feature: Any, name: str, where: str) -> Any:
  kind = feature.WhichOneof("kind")
  values = list(getattr(feature, kind).value) if kind else []
  if kind == "bytes_list":
    values = [_text(value, f"the feature {name!r}", where) for value in values]
  return values if len(values) > 1 else next(iter(values), None)


def _first_line(error: Exception) -> str:
  return next(iter(str(error).strip().splitlines()), "")


def _text(value: bytes, what: str, where: str) -> str:
  try:
    return value.decode()
  except UnicodeDecodeError as error:
    raise JaxsftError(
      f"{where}: {what} holds {formats.shown(value)}, which is not UTF-8 ({error.reason}); "
      "only text, numbers and lists of these can be trained on: write or choose rows without "
      "raw bytes"
    ) from None


def tfds(name: str, data_dir: str | None) -> Iterator[formats.Record]:
  """`tfds:NAME/SPLIT`; NAME may be a directory that holds a prepared data set.

  Class ids become their names, bytes become text, arrays become lists.
  """
  _tensorflow()
  import tensorflow_datasets

  dataset, _, split = name.removeprefix("tfds:").rpartition("/")
  if not dataset or re.search(r":(?!\d|\*)", dataset):
    raise UsageError(f"data.path is {name!r}, expected tfds:NAME/SPLIT, e.g. tfds:imdb/train")
  try:
    if Path(dataset, "dataset_info.json").is_file():
      builder = tensorflow_datasets.builder_from_directory(dataset)
    else:
      builder = tensorflow_datasets.builder(dataset, data_dir=data_dir)
      builder.download_and_prepare()
    options = tensorflow_datasets.ReadConfig(
      add_tfds_id=True, interleave_cycle_length=1, try_autocache=False
    )
    examples = builder.as_dataset(split=split, shuffle_files=False, read_config=options)
    features = builder.info.features
    for example in tensorflow_datasets.as_numpy(examples):
      key = example.pop("tfds_id").decode()
      where = f"{name}:{key}"
      fields = {k: _plain(v, features[k], where) for k, v in example.items()}
      yield formats.Record(key, key, fields)
  except JaxsftError:
    raise
  except Exception as error:  # a data set's own code runs here and raises what it likes
    what = f"{type(error).__name__}: {_first_line(error)}"
    raise JaxsftError(
      f"data.path: {name} cannot be read by TFDS ({what}); expected "
      "tfds:NAME/SPLIT with a name that tensorflow_datasets lists and one of its splits, or "
      "tfds:DIRECTORY/SPLIT with a prepared data set"
    ) from error


def _plain(value: Any, feature: Any, where: str) -> Any:
  """A TFDS value as text, numbers, lists and dicts."""
  while hasattr(feature, "feature"):  # a sequence: what holds for its elements
    feature = feature.feature
  if isinstance(value, dict):
    return {name: _plain(part, feature[name], where) for name, part in value.items()}
  for method in ("to_list", "tolist"):  # ragged tensors; arrays and scalars
    if hasattr(value, method):
      value = getattr(value, method)()
  return _named(value, getattr(feature, "int2str", None), where)


def _named(value: Any, name_of: Callable[[int], str] | None, where: str) -> Any:
  if isinstance(value, list):
    return [_named(part, name_of, where) for part in value]
  if isinstance(value, bytes):
    return _text(value, "the example", where)
  if name_of and isinstance(value, int):
    return name_of(value) if value >= 0 else None  # -1: not labelled
  return value
