"""Batches: gathers the tokens of planned rows into arrays, and feeds them through tf.data.

Nothing here holds state: a batch is a function of the step, and tf.data only runs it ahead
of the device. The only importer of tf.data, late, with its accelerators hidden.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from jaxsft.data import pack
from jaxsft.data import store as stores
from jaxsft.errors import JaxsftError

Batch = dict[str, np.ndarray]


def batch(
  store: stores.Store,
  rows: list[list[int]],
  *,
  row_length: pack.Size,
  segments: int,
  accumulate: int | None = None,
  weighting: str = "token",
  scale: np.ndarray | None = None,
) -> Batch:
  """R rows of examples as arrays; with `accumulate` A every leaf is [A, R/A, …].

  [R, T] int32: inputs, targets (0 under weight 0), positions (from 0 in every segment),
  segments (1…M in a row, 0 is padding), and what else the store aligns with tokens.
  [R, T] float32: weights; weighting="example" divides them by their sum over the example.
  scale: [N] float32 by which the weights of each example, or of its label, are multiplied.
  [R, M]: example_ids (index into the store, -1 for none), and from the store's `label` and
  `label_weight` (1 where it has none) labels and label_weights (0 for none); [R, M, C] where
  an example has C values of one name.
  [R, S] int32, where examples have a source: source, source_positions and source_segments,
  with the same numbers as the target's; then row_length is (S, T).
  """
  sizes = row_length if isinstance(row_length, tuple) else (row_length,)
  result = {}
  for (name, (offsets, columns)), size in zip(store.streams.items(), sizes, strict=True):
    at = _layout(offsets, rows, size, segments)  # the target's is the last
    prefix = f"{name}_" if name == stores.SOURCE else ""
    columns = {k: v[at.source] for k, v in columns.items() if k not in stores.ASIDE}
    if "weights" in columns:
      columns["weights"] = columns["weights"].astype(np.float32)
    columns[f"{prefix}positions"] = at.within.astype(np.int32)
    numbers = np.repeat(at.place + 1, at.lengths).astype(np.int32)
    columns[f"{prefix}segments"] = numbers
    result |= {key: _lay(at, column, (len(rows), size)) for key, column in columns.items()}
  if "weights" in result and weighting == "example" and len(at.taken):
    weights = store.tokens["weights"][at.source].astype(np.float64)
    sums = np.repeat(np.add.reduceat(weights, at.before), at.lengths)
    weights = np.divide(weights, sums, where=sums > 0, out=weights).astype(np.float32)
    result["weights"] = _lay(at, weights, result["weights"].shape)
  if scale is not None and "weights" in result:
    each = np.repeat(scale[at.taken], at.lengths)
    result["weights"] *= _lay(at, each, result["weights"].shape)
  if "targets" in result and "weights" in result:
    result["targets"] *= result["weights"] != 0
  result |= _values(store, at, (len(rows), segments))
  if scale is not None and "label_weights" in result:
    result["label_weights"][at.row, at.place] *= scale[at.taken]
  if accumulate is None:
    return result
  if len(rows) % accumulate:
    raise JaxsftError(f"{len(rows)} rows do not split into {accumulate} micro-batches")
  return {
    key: values.reshape(accumulate, len(rows) // accumulate, *values.shape[1:])
    for key, values in result.items()
  }


def rows_of_process(
  rows: list[list[int]], index: int, count: int, accumulate: int = 1
) -> list[list[int]]:
  """The rows that process `index` of `count` feeds: its block of every micro-batch.

  All processes compute the same rows; these are taken by global index, so that the blocks
  one after another are the whole batch.
  """
  each = len(rows) // (accumulate * count)
  if each * accumulate * count != len(rows):
    raise JaxsftError(
      f"{len(rows)} rows do not split over accumulate={accumulate} x {count} processes; "
      "row_multiple must be a multiple of the number of processes"
    )
  starts = [(a * count + index) * each for a in range(accumulate)]
  return [row for start in starts for row in rows[start : start + each]]


def batches(
  make_batch: Callable[[int], Batch], start: int, stop: int, prefetch: int
) -> Iterator[Batch]:
  """make_batch(start) … make_batch(stop - 1), in order, `prefetch` of them made ahead.

  Shapes may vary from step to step, keys and types may not. An error of `make_batch` is
  raised as it was, at its step.
  """
  if start >= stop:
    return
  first = make_batch(start)  # tells keys and types; a wrong set-up fails here, plainly
  tf = _tensorflow()
  keys = sorted(first)
  failed: list[BaseException] = []

  def make(step):
    try:
      made = first if step == start else make_batch(int(step))
      if sorted(made) != keys:
        raise JaxsftError(f"step {step} has the keys {sorted(made)}, expected {keys}")
      return [made[key] for key in keys]
    except BaseException as error:
      failed.append(error)  # TensorFlow would only keep its text
      raise

  types = [tf.as_dtype(first[key].dtype) for key in keys]
  steps = tf.data.Dataset.range(start, stop)
  # One call at a time: the gather is short, and Python runs one thread anyway.
  made = steps.map(
    lambda step: tuple(tf.numpy_function(make, [step], types)),
    num_parallel_calls=1,
    deterministic=True,
  )
  options = tf.data.Options()
  options.autotune.enabled = False
  options.threading.private_threadpool_size = 1
  made = made.prefetch(max(prefetch, 1)).with_options(options)
  try:
    for values in made.as_numpy_iterator():
      yield dict(zip(keys, values, strict=True))
  except tf.errors.OpError:
    if failed:
      raise failed[0] from None
    raise


def seeds(example_ids: np.ndarray, seed: int, step: int) -> np.ndarray:
  """uint32 like `example_ids`: a hash of seed, step and example, to draw by on the device.

  The finaliser of SplitMix64 (Steele, Lea, Flood 2014), once for each of the three.
  """
  found = np.zeros(example_ids.shape, np.uint64)
  for part in (np.int64(seed), np.int64(step), example_ids.astype(np.int64)):
    found = (found ^ part.astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
    found = (found ^ (found >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    found = (found ^ (found >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    found = found ^ (found >> np.uint64(31))
  return (found >> np.uint64(32)).astype(np.uint32)


def validate(
  batch: Batch,
  vocab_size: int,
  max_positions: int | None,
  num_classes: int | None,
  ids: list[str] | None = None,
  classes_by_token: bool = False,
  source_vocab: int | None = None,
) -> None:
  """Refuses what JAX would clamp, drop or turn into NaN without a word.

  max_positions: rows of a learned position table, None without one. num_classes: None where
  labels are numbers. classes_by_token: `targets` are classes, not tokens. ids: the store's,
  for messages; else examples are named by index. source_vocab: of the encoder; None: the same.
  """
  inside = batch["segments"] > 0
  targets = (num_classes, "the labels") if classes_by_token else (vocab_size, "the vocabulary")
  for key, size, name in (
    ("inputs", vocab_size, "the vocabulary"),
    ("targets", *targets),
    ("positions", max_positions, "the model's positions"),
    ("source", source_vocab or vocab_size, "the vocabulary of the source"),
    ("source_positions", max_positions, "the model's positions"),
  ):
    if key in batch and size is not None:
      bad = (batch[key] < 0) | (batch[key] >= size)
      _refuse(batch, bad, key, f"expected 0 to {size - 1} ({name})", ids)
  if "weights" in batch:
    weights = batch["weights"]
    bad = ~np.isfinite(weights) | (weights < 0) | ((weights != 0) & ~inside)
    _refuse(batch, bad, "weights", "expected finite, >= 0 and 0 on padding", ids)
  if "weights" in batch and "targets" in batch:
    bad = (batch["weights"] == 0) & (batch["targets"] != 0)
    _refuse(batch, bad, "targets", "expected 0 where the weight is 0", ids)
  for key in ("starts", "ends"):
    if key in batch:
      places = np.arange(1, batch[key].shape[-1] + 1)
      lengths = np.sum(batch["segments"][..., None] == places, -2)
      bad = (batch[key] < 0) | (batch[key] >= np.maximum(lengths, 1))
      _refuse(batch, bad, key, "expected a token of the example", ids)
  if "labels" not in batch:
    return
  labels, weights = batch["labels"], batch["label_weights"]
  used = weights != 0
  bad = ~np.isfinite(weights) | (weights < 0) | (used & (batch["example_ids"] < 0))
  _refuse(batch, bad, "label_weights", "expected finite, >= 0, 0 without example", ids)
  bad, expected = ~np.isfinite(labels), "expected a finite number"
  if num_classes is not None:
    bad = bad | (labels < 0) | (labels >= num_classes) | (labels != np.floor(labels))
    expected = f"expected 0 to {num_classes - 1} (the labels)"
  used = used[..., None] if labels.ndim > used.ndim else used  # [R,M,C]: yes or no of each
  _refuse(batch, bad & used, "labels", expected, ids)


class _Layout(NamedTuple):
  """Where the tokens of a batch come from and go to; E examples, X tokens."""

  taken: np.ndarray  # [E] indices into the store
  row: np.ndarray  # [E]
  place: np.ndarray  # [E] from 0 in each row
  lengths: np.ndarray  # [E]
  before: np.ndarray  # [E] tokens of all earlier examples
  within: np.ndarray  # [X] position in the example
  source: np.ndarray  # [X] in the store's columns
  target: np.ndarray  # [X] in the flattened batch


def _layout(offsets, rows, row_length, segments) -> _Layout:
  counts = np.array([len(row) for row in rows], np.int64)
  taken = np.array([i for row in rows for i in row], np.int64)
  row = np.repeat(np.arange(len(rows)), counts)
  place = np.arange(len(taken)) - np.repeat(np.cumsum(counts) - counts, counts)
  lengths = offsets[taken + 1] - offsets[taken]
  before = np.cumsum(lengths) - lengths
  in_row = before - np.repeat(before[place == 0], counts[counts > 0])
  longest, most = (in_row + lengths).max(initial=0), counts.max(initial=0)
  if longest > row_length or most > segments:
    raise JaxsftError(
      f"a row holds {longest} tokens, another {most} examples, expected at most "
      f"{row_length} and {segments}"
    )
  within = np.arange(lengths.sum()) - np.repeat(before, lengths)
  source = np.repeat(offsets[taken], lengths) + within
  target = np.repeat(row * row_length + in_row, lengths) + within
  return _Layout(taken, row, place, lengths, before, within, source, target)


def _lay(at: _Layout, values, shape) -> np.ndarray:
  """[R, T] with the values [X] at their places."""
  flat = np.zeros(shape[0] * shape[1], values.dtype)
  flat[at.target] = values
  return flat.reshape(shape)


def _values(store, at: _Layout, shape) -> Batch:
  """Keys with one value an example, as [R, M]."""
  ids = np.full(shape, -1, np.int32)
  ids[at.row, at.place] = at.taken
  result = {"example_ids": ids}
  values = {k + "s": v[at.taken] for k, v in store.values.items() if k not in stores.ASIDE}
  if "labels" in values:
    values.setdefault("label_weights", np.ones(len(at.taken), np.float32))
  for key, column in values.items():
    result[key] = np.zeros((*shape, *column.shape[1:]), column.dtype)
    result[key][at.row, at.place] = column
  return result


def _refuse(batch, bad, key, expected, ids):
  """Raises on the first true place of `bad`, naming its example."""
  if not bad.any():
    return
  at = tuple(int(i) for i in np.argwhere(bad)[0])
  examples = batch["example_ids"]
  if key in ("labels", "label_weights", "starts", "ends"):
    example, where = int(examples[at[: examples.ndim]]), ""
  else:
    prefix = "source_" if key.startswith(stores.SOURCE) else ""
    segment = int(batch[f"{prefix}segments"][at])
    example = int(examples[(*at[:-1], segment - 1)]) if segment else -1
    where = f" at position {int(batch[f'{prefix}positions'][at])}"
  name = f"example {ids[example] if ids else example}" if example >= 0 else "padding"
  raise JaxsftError(f"found {key} {batch[key][at]} in {name}{where}, {expected}")


def _tensorflow():
  """TensorFlow without accelerators: it would take their memory from JAX."""
  import tensorflow as tf  # seconds to import, and only needed here

  for kind in ("GPU", "TPU"):
    try:
      tf.config.set_visible_devices([], kind)
    except RuntimeError as error:  # TensorFlow ran before us and has its devices already
      if tf.config.get_visible_devices(kind):
        raise JaxsftError(
          f"TensorFlow was started before training and holds the {kind}s; call "
          f"tf.config.set_visible_devices([], '{kind}') before using it"
        ) from error
  return tf
