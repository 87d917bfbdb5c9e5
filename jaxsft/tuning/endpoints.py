"""The two ends of a line: a pretrained checkpoint and tuned ones, checked to be of one kind.

Their leaves are read when they are combined, one at a time: what is in memory at once is the
tuned end, one model on the devices, and a leaf of each checkpoint.
"""

import dataclasses
import pathlib
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxsft import families, weights
from jaxsft import tokenizer as tokenizers
from jaxsft.errors import UsageError
from jaxsft.tuning import combine

Readers = dict[str, Callable[[], np.ndarray]]
HEADS = ("labels", "label_type", "threshold", "answering", "instruction")
"""What tuned models must agree on: properties of pretrained.Pretrained."""


@dataclasses.dataclass(frozen=True)
class Ends:
  """Leaves of checkpoints of one architecture, as functions that read them."""

  names: Sequence[Any]
  """families.Name of every leaf of the tuned models."""
  shapes: dict[str, Any]
  """Their tree, of jax.ShapeDtypeStruct."""
  stacks: dict[str, int]
  """As models.Network.stacks."""
  pretrained: Readers
  """Without the leaves that only tuned models have."""
  tuned: tuple[Readers, ...]

  @property
  def own(self):
    """Paths of the leaves that the pretrained model lacks: the task's head."""
    return tuple(name.path for name in self.names if name.path not in self.pretrained)


@dataclasses.dataclass(frozen=True)
class How:
  """How tuned models become the tuned end of the line, and what the line is."""

  name: str = "linear"
  density: float = 0.2
  sign: str = "total"
  seed: int = 0


def ends(pretrained, tuned, network):
  """`Ends` of pretrained.Pretrained records; network: the tuned ones', with their head.

  Raises UsageError where they cannot be combined.
  """
  check(pretrained, tuned)
  return Ends(
    network_names(tuned[0], network),
    network.shapes(),
    network.stacks,
    readers(pretrained, network, heads=_same_head(pretrained, tuned[0])),
    tuple(readers(one, network) for one in tuned),
  )


def network_names(base, network):
  """families.Name of every leaf of a network, for the files of a pretrained.Pretrained."""
  return base.family.names(base.arch, network.head)


def readers(base, network, heads=True):
  """`Readers` of a checkpoint's leaves of a network; heads: whether those of part "head"."""
  names = [name for name in network_names(base, network) if heads or name.part != "head"]
  flat, wanted = weights.params.flatten(network.shapes()), {name.path for name in names}
  flat = {path: leaf for path, leaf in flat.items() if path in wanted}
  found = weights.leaves(
    base.source,
    names,
    weights.params.nest(flat),
    base_prefix=families.prefix_of(base.family, base.kind) or base.family.BASE_PREFIX,
    ignored=base.family.IGNORED,
    tied=base.family.TIED,
  )
  constant = "lm_head/bias"  # 0 where it is absent, as pretrained.load_params has it
  if heads and network.head.logits_bias and constant in flat and constant not in found:
    found[constant] = lambda: np.zeros(flat[constant].shape, np.float32)
  return found


def tuned_end(ends, how, members=None):
  """(path, leaf at alpha 0) of every leaf; members: numbers of the tuned models, None: all.

  Leaves that the pretrained model lacks are averaged over the tuned ones.
  """
  tuned = [ends.tuned[i] for i in (range(len(ends.tuned)) if members is None else members)]
  for name in ends.names:
    path = name.path
    own = path not in ends.pretrained
    if own or how.name in ("linear", "slerp", "soup", "greedy_soup"):
      yield path, combine.mean(one[path]() for one in tuned)
      continue
    leaves = [one[path]() for one in (ends.pretrained, *tuned)]
    yield path, combine.by_tensor(_merge(how, path), _lead(name), *leaves)


def _merge(how, path):
  """Function of (slot, pretrained tensor, tuned ones) that adds up what tuning changed."""
  if how.name == "ties":
    return lambda slot, p, *t: combine.ties(p, t, how.density, how.sign)
  if how.name == "task_arithmetic":
    return lambda slot, p, *t: combine.task_arithmetic(p, t)
  # Every tensor has its own draw, whatever the others are.
  draw = lambda slot: np.random.default_rng([how.seed, zlib.crc32(path.encode()), *slot])
  return lambda slot, p, *t: combine.dare(p, t, how.density, draw(slot))


def between(ends, end, alphas, how):
  """(path, leaf) of the model at `alphas` ({path: alpha or [L]}) of the line to `end`."""
  for name in ends.names:
    path, alpha, tuned = name.path, alphas[name.path], end[name.path]
    if path not in ends.pretrained:
      yield path, tuned
    elif how.name == "slerp":
      point = lambda slot, p, t, alpha=alpha: combine.slerp(
        p, t, float(alpha[slot[0]] if np.ndim(alpha) else alpha)
      )
      yield path, combine.by_tensor(point, _lead(name), ends.pretrained[path](), tuned)
    else:
      yield path, combine.linear(ends.pretrained[path](), tuned, alpha)


def put(place, leaves, shardings):
  """Fills `place` ({path: jax.Array}); every old leaf goes when the new one has come."""
  for path, leaf in leaves:
    place[path] = jax.device_put(leaf, shardings[path])
    jax.block_until_ready(place[path])


def _lead(name):
  """How many axes of a leaf count tensors of the file."""
  return sum(axis in name.hf for axis in ("{i}", "{i+1}", "{e}"))


def _same_head(pretrained, tuned):
  """Whether the pretrained model's head is the tuned one's, earlier; refuses another order."""
  if pretrained.kind != tuned.kind:
    return False
  ours, theirs = tuned.labels, pretrained.labels
  if ours != theirs and sorted(ours) == sorted(theirs):
    raise UsageError(
      f"--base: the labels of {pretrained.path} are {', '.join(theirs)}, those of "
      f"{tuned.path} are {', '.join(ours)}; expected one order: their heads would be mixed"
    )
  return ours == theirs


def check(pretrained, tuned):
  """Raises UsageError where checkpoints are the same, or not of one kind."""
  seen = {}
  named = [(pretrained, "--base"), *((one, "--model") for one in tuned)]
  for one, flag in named:
    if one.adapted is not None:
      raise UsageError(
        f"{flag}: {one.path} is an adapter, expected whole models: merge it first, "
        "jaxsft.load(PATH).save(DIR), and give DIR"
      )
  for one, flag in named:
    for mark in (str(pathlib.Path(one.path).resolve()), one.identity()):
      if mark in seen:
        raise UsageError(
          f"{flag}: {one.path} is the same model as {seen[mark]}; expected a pretrained model "
          "and others that were tuned from it"
        )
    seen |= dict.fromkeys((str(pathlib.Path(one.path).resolve()), one.identity()), one.path)
  for one in tuned:
    _check_body(pretrained, one)
  first, *others = tuned
  for one in others:
    _check_head(first, one)


def _check_body(pretrained, tuned):
  kinds = [one.config["model_type"] for one in (pretrained, tuned)]
  if kinds[0] != kinds[1]:
    raise UsageError(
      f"--base: {pretrained.path} is a {kinds[0]}, {tuned.path} is a {kinds[1]}; expected "
      "the model that this one was tuned from"
    )
  if found := _fields_that_differ(_as_trained(pretrained, tuned), tuned.arch):
    raise UsageError(
      f"--base: {pretrained.path} and {tuned.path} differ in "
      + ", ".join(f"{name} ({a} and {b})" for name, a, b in found[:4])
      + "; expected one architecture: give the model that this one was tuned from"
    )
  if found := _tokens_that_differ(pretrained.tokenizer, tuned.tokenizer):
    raise UsageError(
      f"--base: the tokenizers of {pretrained.path} and {tuned.path} differ in {found}; "
      "expected one vocabulary, whose ids mean the same to both"
    )


def _check_head(first, other):
  """Raises UsageError where two tuned models answer differently."""
  where = f"--model: {first.path} and {other.path}"
  if first.kind != other.kind:
    raise UsageError(f"{where} have the heads {first.kind!r} and {other.kind!r}; expected one")
  for what in HEADS:
    ours, theirs = getattr(first, what), getattr(other, what)
    if ours != theirs:
      raise UsageError(
        f"{where} have the {what.replace('_', ' ')} {ours!r} and {theirs!r}; expected the "
        "same, in the same order"
      )
  if found := tokenizers.differences(first.tokenizer, other.tokenizer):
    raise UsageError(f"{where} have tokenizers that differ in {found}; expected the same")


def _as_trained(pretrained, tuned):
  """The pretrained architecture with the dropout and the initial values of the tuned one."""
  of = lambda one, wanted: {k: v for k, v in one.config.items() if wanted == _trains(k)}
  return pretrained.family.architecture(of(pretrained, False) | of(tuned, True))


def _trains(key):
  """Whether only training reads a key of config.json."""
  return "drop" in key or key.startswith("init")


def _fields_that_differ(ours, theirs, prefix=""):
  """[(name, a, b)] of two architectures."""
  found = []
  for name in ours.__dataclass_fields__:
    a, b = getattr(ours, name), getattr(theirs, name)
    if a == b:
      continue
    inner = hasattr(a, "__dataclass_fields__") and type(a) is type(b)
    found += _fields_that_differ(a, b, f"{prefix}{name}.") if inner else [(prefix + name, a, b)]
  return found


def _tokens_that_differ(ours, theirs):
  """A token or text whose ids differ, in words; "" for none."""
  a, b = ours.get_vocab(), theirs.get_vocab()
  if a != b:
    token = next(t for t in sorted(a | b) if a.get(t) != b.get(t))
    return f"the token {token!r} (ids {a.get(token)} and {b.get(token)})"
  for text in tokenizers.PROBES:
    if ours(text).input_ids != theirs(text).input_ids:
      return f"the ids of {text!r}"
  return ""
