"""Weights combined with weights: the tuned end of a line, and a point between it and its start.

Pure functions of NumPy arrays of one tensor, in float32. The line starts at the pretrained
weights p (alpha 1) and ends (alpha 0) at tuned ones, or at what several tuned t_1 … t_K make.
"""

import math

import numpy as np

SIGNS = ("total", "frequency")
PARALLEL = 1e-6  # sine of an angle below which an arc is the straight line


def linear(pretrained, tuned, alpha):
  """alpha p + (1 - alpha) t; exactly p at 1 and t at 0.

  alpha: a number, or [L] one for each row of the first axis.
  """
  own, other = np.float32(alpha), np.float32(1 - np.asarray(alpha, np.float64))
  if own.ndim:
    own, other = (x.reshape(-1, *[1] * (tuned.ndim - 1)) for x in (own, other))
  return own * pretrained + other * tuned


def slerp(pretrained, tuned, alpha):
  """The point at `alpha` on the arc between two tensors, each taken as one long vector.

  sin(alpha w) / sin(w) p + sin((1 - alpha) w) / sin(w) t, w the angle between them: the
  straight line where they are parallel, or one is zero.
  """
  p, t = (x.astype(np.float64).ravel() for x in (pretrained, tuned))
  norms = math.sqrt(p @ p) * math.sqrt(t @ t)
  angle = math.acos(min(1.0, max(-1.0, (p @ t) / norms))) if norms else 0.0
  sine = math.sin(angle)
  if sine < PARALLEL:
    return linear(pretrained, tuned, alpha)
  own, other = math.sin(alpha * angle) / sine, math.sin((1 - alpha) * angle) / sine
  return np.float32(own) * pretrained + np.float32(other) * tuned


def mean(tuned):
  """The uniform soup (arXiv:2203.05482) of an iterable of tensors, which are met one by one."""
  total, count = None, 0
  for one in tuned:
    total, count = (one if total is None else total + one), count + 1
  return total / np.float32(count) if count > 1 else total


def task_arithmetic(pretrained, tuned):
  """p + sum of t_i - p (arXiv:2212.04089)."""
  return pretrained + sum(one - pretrained for one in tuned)


def ties(pretrained, tuned, density, sign="total"):
  """p + what t_i - p agree on (arXiv:2306.01708).

  Of each t_i - p the share `density` of largest magnitude stays; at every place the sign wins
  that weighs more ("total"), or that more of them have ("frequency"), + where both are even;
  those of this sign are averaged.
  """
  kept = np.stack([largest(one - pretrained, density) for one in tuned])
  weighed = kept if sign == "total" else np.sign(kept)
  elected = np.where(weighed.sum(0) >= 0, np.float32(1), np.float32(-1))
  agree = np.sign(kept) == elected
  count = np.maximum(agree.sum(0, dtype=np.float32), 1)
  return pretrained + (kept * agree).sum(0) / count


def dare(pretrained, tuned, density, rng):
  """p + sum of t_i - p of which a random share `density` stays, divided by it
  (arXiv:2311.03099).
  """
  drawn = lambda one: (rng.random(one.shape) < density) * (one - pretrained)
  return pretrained + sum(drawn(one) for one in tuned) / np.float32(density)


def largest(values, density):
  """`values` with all but the int(density n) of largest magnitude set to 0."""
  count = int(density * values.size)
  flat, out = values.ravel(), np.zeros(values.size, values.dtype)
  if count:
    stay = np.argpartition(np.abs(flat), -count)[-count:]
    out[stay] = flat[stay]
  return out.reshape(values.shape)


def by_tensor(function, lead, *leaves):
  """`function` of every tensor of stacked leaves, whose first `lead` axes count tensors.

  function(slot, *tensors); slot: the place among them, a tuple of `lead` numbers.
  """
  if not lead:
    return function((), *leaves)
  out = np.empty_like(leaves[0])
  for slot in np.ndindex(out.shape[:lead]):
    out[slot] = function(slot, *(leaf[slot] for leaf in leaves))
  return out
