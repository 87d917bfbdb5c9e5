"""Which examples meet in which update, and in which rows: a pure function of the step.

Nothing here sees a token: the lengths, the seed and a few settings are enough, so that every
process computes the same plan and a run resumes anywhere from one integer. Lengths are [N];
where an example has a source and a target [N,2], and then a row's T is a pair (S, T).

What an update holds:
  batch_unit="examples"  the next `batch_size` of the epoch's permutation. Packing lays
                         exactly these into rows; it, `accumulate` and `row_multiple` change
                         the layout and nothing else. packing="buckets" is the exception:
                         it draws neighbours by length, as Hugging Face's group_by_length.
  batch_unit="rows"      `batch_size` rows, packed best-fit over windows of the permutation
                         and shuffled. Without packing a row is an example, so both agree.
The last update of an epoch is smaller, never dropped: weights make it exact. Of a mixture an
epoch holds what mixture.order draws, in the place of a permutation of all examples.
"""

import dataclasses
import hashlib
import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from jaxsft.data import mixture, pack
from jaxsft.errors import JaxsftError

SCAN = 2_000_000
"""Examples whose layout is looked at to choose shapes; longer plans may meet one more."""
WINDOW = 100_000
"""Examples among which rows are packed (batch_unit="rows"): best-fit gains nothing beyond."""
SAMPLE = 20_000
"""Examples whose packing is tried to choose the size of rows."""
SLOWER = 10
"""Divides WINDOW and SAMPLE for two streams, where it takes longer to find a row."""
GROUP = 50
"""Most updates in a group of packing="buckets"; at least four groups an epoch, so that small
data are not one sorted list. Both as in Hugging Face's group_by_length."""

Rows = list[list[int]]


@dataclass(frozen=True, eq=False)
class Plan:
  """Every update of a run; `batch` and `shape` are pure functions of the step."""

  lengths: np.ndarray
  """[N] int32, tokens of each example; [N,2] those of its source and its target."""
  seed: int
  batch_size: int
  batch_unit: str
  packing: str
  accumulate: int
  row_multiple: int
  row_length: pack.Size
  """T of packed rows; otherwise the largest T."""
  segments: int
  """M, places for examples in a row."""
  row_counts: tuple[int, ...] = ()
  """R, the rows of a batch: the next of these; beyond them the next multiple."""
  row_lengths: tuple[pack.Size, ...] = ()
  """T without packing: the next of these; (): the next multiple of 8."""
  num_steps: int = 0
  notes: tuple[str, ...] = ()
  """What a user should know about this plan, as sentences."""
  layout: tuple[Rows, ...] = ()
  """Evaluation: all updates, laid once; training draws them by the epoch."""
  draw: mixture.Draw | None = None
  """How often an epoch holds which examples; None: each once."""
  cache: dict = field(init=False, repr=False, default_factory=dict)
  """Results of pure functions; never more than two epochs of order."""

  def batch(self, step: int) -> Rows:
    """R rows of example indices, [] for padding; micro-batch a is rows [a R/A, (a+1) R/A)."""
    rows, count = self.rows(step), self.shape(step)[0]
    each = count // self.accumulate
    dealt: Rows = [[] for _ in range(count)]
    for k, row in enumerate(rows):  # round robin, so that micro-batches hold equal shares
      dealt[k % self.accumulate * each + k // self.accumulate] = row
    return dealt

  def shape(self, step: int) -> tuple[int, pack.Size, int]:
    """(R, T, M) of a step's batch; T is a pair (S, T) for two streams."""
    rows = self.rows(step)
    unit = self.accumulate * self.row_multiple
    count = pack.next_size(len(rows), self.row_counts, unit)
    if self.packing == "pack":
      return count, self.row_length, self.segments
    longest = pack.longest(self.lengths[[i for row in rows for i in row]])
    return count, pack.next_size(longest, self.row_lengths, 8), self.segments

  def rows(self, step: int) -> Rows:
    """The rows of a step before padding and dealing."""
    if self.layout:
      return self.layout[step]
    if _by_rows(self):
      epoch, k = self._locate(step)
      return _epoch(self, epoch)[k * self.batch_size : (k + 1) * self.batch_size]
    taken = self.examples(step)
    if self.packing != "pack":
      return [[i] for i in taken.tolist()]
    packed = pack.pack(self.lengths[taken], self.row_length, self.segments)
    return [taken[row].tolist() for row in packed]

  def examples(self, step: int) -> np.ndarray:
    """Indices of the examples of an update, each once, in no promised order."""
    if self.layout or (_by_rows(self)):
      return np.array([i for row in self.rows(step) for i in row])
    epoch, k = self._locate(step)
    return _epoch(self, epoch)[k * self.batch_size : (k + 1) * self.batch_size]

  def epoch(self, step: int) -> int:
    """The pass over the data, from 0, that a step belongs to."""
    return self._locate(step)[0]

  def steps(self, epochs: float | int) -> int:
    """Updates of so many epochs; part of one is rounded up."""
    if self.layout:
      return math.ceil(epochs * len(self.layout))
    full, part = int(epochs), epochs - int(epochs)
    if not _alike(self):
      done = sum(_steps_in(self, e) for e in range(full))
      return done + (math.ceil(part * _steps_in(self, full) - 1e-9) if part else 0)
    return math.ceil(epochs * _steps_in(self, 0) - 1e-9)

  def shapes(self) -> set[tuple[int, pack.Size, int]]:
    """The distinct batch shapes that will be met: the step compiles once for each."""
    return set(self.shape_counts())

  def shape_counts(self) -> dict[tuple[int, pack.Size, int], int]:
    """Shape -> number of updates that have it, over the whole plan."""
    if "shapes" not in self.cache:
      self.cache["shapes"] = dict(Counter(map(self.shape, range(self.num_steps))))
    return self.cache["shapes"]

  def digest(self, fingerprint: str = "") -> str:
    """sha256 of everything that decides the order, and of the order drawn first.

    A resumed run compares it with its checkpoint's. The layout of rows over devices is not
    in it: a run goes on on another mesh.
    """
    settings = (self.seed, self.batch_size, self.batch_unit, self.packing, self.accumulate)
    if _by_rows(self):  # here what shares a row decides what shares an update
      order = (self.row_length, self.segments, self.rows(0))
    else:
      order = self.examples(0).tolist()
    text = f"{fingerprint} {settings} {self.num_steps} {order}"
    total = hashlib.sha256(text.encode())
    total.update(np.asarray(self.lengths, np.int64).tobytes())
    if self.draw is not None:
      total.update(mixture.digest(self.draw).encode())
    return total.hexdigest()

  def summary(self) -> dict:
    """What the preflight report says about the plan, as plain values."""
    counts = self.shape_counts()
    places = sum(rows * np.array(length) * n for (rows, length, _), n in counts.items())
    whole, part = self._locate(self.num_steps)  # whole epochs, updates of one more
    last = range(self.num_steps - part, self.num_steps)
    rest = np.concatenate([np.zeros(0, int), *map(self.examples, last)])
    times = mixture.seen(self.draw, self.seed, whole, rest, len(self.lengths))
    tokens = times @ self.lengths.astype(np.int64)
    filled = {}
    if self.lengths.ndim == 2:
      filled = dict(zip(("source", "target"), (tokens / places).tolist(), strict=True))
    return {
      "updates": self.num_steps,
      "epochs": self.epoch(self.num_steps - 1) + 1,
      "tokens": int(np.sum(tokens)),
      "efficiency": float(np.sum(tokens) / np.sum(places)),
      "filled": filled,
      "shapes": [[*shape, n] for shape, n in sorted(counts.items())],
      "mixture": mixture.summary(self.draw, self.lengths, times),
      "notes": list(self.notes),
    }

  def _locate(self, step: int) -> tuple[int, int]:
    """(epoch, update within it)."""
    if not 0 <= step:
      raise JaxsftError(f"step {step} is not in the plan, expected 0 or more")
    if self.layout:
      return divmod(step, len(self.layout))
    if _alike(self):
      return divmod(step, _steps_in(self, 0))
    epoch = 0
    while step >= _steps_in(self, epoch):
      step -= _steps_in(self, epoch)
      epoch += 1
    return epoch, step


def plan_training(
  lengths,
  *,
  seed: int,
  batch_size: int,
  batch_unit: str,
  packing: str,
  max_length: pack.Size,
  accumulate: int = 1,
  row_multiple: int = 1,
  epochs: float | int = 1,
  steps: int | None = None,
  draw: mixture.Draw | None = None,
) -> Plan:
  """The updates of a training run over examples of these lengths.

  max_length: the longest row allowed (of two streams: the longest example). With
  batch_unit="rows" it is the row length (rounded up to 8); with "examples" rows are as short as
  padding and attention make best.
  row_multiple: rows of a micro-batch are a multiple of it (the shards of the batch axis).
  steps: number of updates; overrides epochs (which may be fractional).
  """
  lengths = pack.checked(lengths, max_length)
  packing = {"auto": "pack"}.get(packing, packing)
  sizes = {"batch_size": batch_size, "accumulate": accumulate, "row_multiple": row_multiple}
  for name, value in sizes.items():
    if value < 1:
      raise JaxsftError(f"{name} is {value}, expected at least 1")
  plan = Plan(lengths, seed, batch_size, batch_unit, packing, accumulate, row_multiple, 0, 1)
  plan = dataclasses.replace(plan, draw=draw)
  if packing == "pack":
    plan = _with_rows(plan, max_length)
  else:
    plan = dataclasses.replace(plan, row_length=pack.up(pack.longest(lengths), 8))
  num_steps = plan.steps(epochs) if steps is None else steps
  if num_steps < 1:
    raise JaxsftError(
      f"the plan has {num_steps} updates (epochs={epochs}, steps={steps}), expected at "
      "least 1; raise epochs or steps"
    )
  plan = dataclasses.replace(plan, num_steps=num_steps)
  return dataclasses.replace(_with_buckets(plan), notes=_notes(plan))


def plan_evaluation(
  lengths,
  *,
  batch_size: int,
  batch_unit: str,
  packing: str,
  max_length: pack.Size,
  row_multiple: int = 1,
) -> Plan:
  """Every example exactly once, sorted by length, in as few shapes as possible."""
  lengths = pack.checked(lengths, max_length)
  packing = {"auto": "pack"}.get(packing, packing)
  longest = pack.longest(lengths)
  row_length, segments = pack.up(longest, 8), 1
  if packing == "pack":
    sample = [_sample(lengths, np.arange(len(lengths)))]
    if batch_unit == "rows":
      row_length = pack.up(max_length, 8)
    else:
      row_length = pack.choose_row_length(sample, longest, max_length, 1)
    segments = pack.choose_segments(sample, row_length)
    rows = _windows(lengths, np.arange(len(lengths)), row_length, segments)
    if batch_unit == "examples":  # as many rows as so many examples fill on average
      batch_size = max(1, round(batch_size * len(rows) / len(lengths)))
  else:
    rows = [[i] for i in np.argsort(-pack.work(lengths), kind="stable").tolist()]
  # Spread over the fewest batches, so that the last is no emptier than it must be.
  batches = math.ceil(len(rows) / pack.up(min(batch_size, len(rows)), row_multiple))
  count = pack.up(math.ceil(len(rows) / batches), row_multiple)
  layout = tuple(rows[k : k + count] for k in range(0, len(rows), count))
  row_lengths: tuple[pack.Size, ...] = ()
  if packing != "pack":
    needed = [pack.up(pack.longest(lengths[np.ravel(update)]), 8) for update in layout]
    row_lengths = pack.choose_buckets(needed, 3, 0)
  return Plan(
    lengths, 0, batch_size, batch_unit, packing, 1, row_multiple, row_length, segments,
    row_counts=(count,), row_lengths=row_lengths, num_steps=len(layout), layout=layout,
  )  # fmt: skip


def _with_rows(plan: Plan, max_length: pack.Size) -> Plan:
  """Chooses T and M of packed rows from the first updates; never from what lays them out."""
  first, longest = _permutation(plan, 0), pack.longest(plan.lengths)
  if plan.batch_unit == "rows":
    sample, row_length = [_sample(plan.lengths, first)], pack.up(max_length, 8)
  else:
    each = min(plan.batch_size, len(first))
    updates = max(1, min(len(first), _few(SAMPLE, plan.lengths)) // each)
    sample = [plan.lengths[first[k * each : (k + 1) * each]] for k in range(updates)]
    unit = plan.accumulate * plan.row_multiple
    row_length = pack.choose_row_length(sample, longest, max_length, unit)
  segments = pack.choose_segments(sample, row_length)
  return dataclasses.replace(plan, row_length=row_length, segments=segments)


def _with_buckets(plan: Plan) -> Plan:
  """Chooses the shapes from the layouts that the plan will meet."""
  unit = plan.accumulate * plan.row_multiple
  if plan.packing == "pack" and plan.batch_unit == "examples":
    scan = range(min(plan.num_steps, max(1, SCAN // plan.batch_size)))
    counts = [pack.up(len(plan.rows(s)), unit) for s in scan]
    chosen = pack.choose_buckets(counts, 3, _price(counts, plan))
    return dataclasses.replace(plan, row_counts=chosen)
  drawn = _epoch(plan, 0)
  plan = dataclasses.replace(
    plan, row_counts=(pack.up(min(plan.batch_size, len(drawn)), unit),)
  )
  if plan.packing == "buckets" or (plan.packing == "none" and plan.lengths.ndim == 2):
    scan = range(min(plan.num_steps, max(1, SCAN // plan.batch_size)))
    needed = [pack.up(pack.longest(plan.lengths[plan.examples(s)]), 8) for s in scan]
    chosen = pack.choose_buckets(needed, 6, _price(needed, plan))
    plan = dataclasses.replace(plan, row_lengths=chosen)
  return plan


def _price(values, plan: Plan) -> float:
  """Of one more shape: a compilation, counted as the work of 10 updates."""
  return 10 * float(np.mean(pack.work(np.array(values)))) * len(values) / plan.num_steps


def _notes(plan: Plan) -> tuple[str, ...]:
  drawn = len(_epoch(plan, 0))
  if drawn >= plan.batch_size:
    return ()
  unit = "rows" if _by_rows(plan) else "examples"
  return (
    f"batch_size {plan.batch_size} is larger than the data ({drawn} {unit}): every update "
    f"is one whole epoch of {drawn} {unit}",
  )


def _permutation(plan: Plan, epoch: int) -> np.ndarray:
  if plan.draw is not None:
    return mixture.order(plan.draw, plan.seed, epoch)
  return np.random.default_rng((plan.seed, epoch)).permutation(len(plan.lengths))


def _epoch(plan: Plan, epoch: int):
  """The order of an epoch: indices of examples, or rows; the last two are remembered."""
  orders = plan.cache.setdefault("orders", {})
  order = orders.get(epoch)
  if order is None:
    order = _draw(plan, epoch)
    if len(orders) > 1:  # the feed's thread and the caller may both be here: no harm
      orders.pop(next(iter(list(orders)), None), None)
    orders[epoch] = order
  return order


def _draw(plan: Plan, epoch: int):
  order = _permutation(plan, epoch)
  if plan.packing == "buckets":
    group = max(1, min(GROUP, len(order) // (4 * plan.batch_size))) * plan.batch_size
    parts = [order[k : k + group] for k in range(0, len(order), group)]
    sort = lambda part: part[np.argsort(-pack.work(plan.lengths[part]), kind="stable")]
    return np.concatenate([sort(part) for part in parts])
  if _by_rows(plan):
    rows = _windows(plan.lengths, order, plan.row_length, plan.segments)
    shuffled = np.random.default_rng((plan.seed, epoch, 1)).permutation(len(rows))
    return [rows[k] for k in shuffled]
  return order


def _few(count: int, lengths) -> int:
  return count if lengths.ndim == 1 else max(1, count // SLOWER)


def _windows(lengths, order, row_length: pack.Size, segments: int) -> Rows:
  """Rows of all examples, packed within windows of `order`."""
  rows, size = [], _few(WINDOW, lengths)
  for start in range(0, len(order), size):
    window = order[start : start + size]
    packed = pack.pack(lengths[window], row_length, segments)
    rows += [window[row].tolist() for row in packed]
  return rows


def _by_rows(plan: Plan) -> bool:
  return plan.batch_unit == "rows" and plan.packing == "pack"


def _alike(plan: Plan) -> bool:
  """Whether all epochs have the same number of updates.

  Best-fit depends on the multiset of lengths alone, so only several windows can differ, and
  mixtures, whose epochs may hold other examples.
  """
  one = plan.draw is None and len(plan.lengths) <= _few(WINDOW, plan.lengths)
  return one or not _by_rows(plan)


def _steps_in(plan: Plan, epoch: int) -> int:
  counts = plan.cache.setdefault("steps", {})
  if epoch not in counts:
    examples = len(plan.lengths) if plan.draw is None else plan.draw.total
    units = len(_epoch(plan, epoch)) if _by_rows(plan) else examples
    counts[epoch] = math.ceil(units / plan.batch_size)
  return counts[epoch]


def _sample(lengths, order) -> np.ndarray:
  """A few thousand lengths that stand for all, evenly from `order`."""
  return lengths[order[:: max(1, len(order) // _few(5000, lengths))]]
