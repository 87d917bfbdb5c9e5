"""Turning a feature of an encoder off in our architecture parts it from torch: `-m full`."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxsft import models
from tests.families import torch_encoders
from tests.families.test_encoders import QUICK, highest, of_texts, problem  # noqa: F401

pytestmark = pytest.mark.full


def arch(**changes):
  """A change of fields of the architecture; a function is given the field's value."""

  def change(network, params):
    new = {k: v(getattr(network.arch, k)) if callable(v) else v for k, v in changes.items()}
    return replace(network, arch=replace(network.arch, **new)), params

  return change


def head(**changes):
  """A change of fields of the head."""
  return lambda network, params: (
    replace(network, head=replace(network.head, **changes)),
    params,
  )


def within(**changes):
  """A change inside a field that is a record."""
  return lambda record: replace(record, **changes)


def kinds(**changes):
  return lambda kinds: tuple(replace(kind, **changes) for kind in kinds)


def every_window(change):
  """The windows of the kinds that have one."""
  new = lambda kind: kind if kind.window is None else replace(kind, window=change(kind.window))
  return lambda kinds: tuple(new(kind) for kind in kinds)


EPS = within(eps=1e-12)
CASES = [  # case, head, feature, how it is turned off
  ("bert", "masked_lm", "eps", arch(norm=EPS)),
  ("bert", "masked_lm", "activation", arch(activation="gelu")),
  ("bert", "masked_lm", "placement", arch(placement="before")),
  ("bert", "masked_lm", "types", arch(types=0)),
  ("bert", "masked_lm", "positions", arch(position_rows=0)),
  ("bert", "masked_lm", "scale", arch(heads=within(scale=1.0))),
  ("bert", "masked_lm", "head's activation", head(dense="gelu")),
  ("bert", "masked_lm", "head's norm", head(norm=None)),
  ("bert", "sequence", "pooler", head(dense=None)),
  ("bert", "sequence", "pooler's activation", head(dense="relu")),
  ("bert", "sequence", "place", head(pool="last")),
  ("roberta", "masked_lm", "offset", arch(position_offset=1)),
  ("roberta", "masked_lm", "head's exact gelu", head(dense="gelu_new")),
  ("roberta", "sequence", "head's tanh", head(dense="gelu")),
  ("distilbert", "sequence", "head's relu", head(dense="tanh")),
  ("distilbert", "masked_lm", "eps", arch(norm=within(eps=1e-2))),
  (
    "electra",
    "masked_lm",
    "norm before the projection",
    arch(project=within(before_norm=True)),
  ),
  ("electra", "sequence", "head's gelu", head(dense="tanh")),
  ("electra", "masked_lm", "head's exact gelu", head(dense="gelu_new")),
  ("albert", "masked_lm", "repeats", arch(layers=3, kinds=lambda k: k[:3])),
  ("albert", "sequence", "pooler's activation", head(dense="gelu")),
  ("modernbert", "token", "window", arch(kinds=kinds(window=None))),
  ("modernbert", "token", "window's edge", arch(kinds=every_window(lambda w: w - 1))),
  ("modernbert", "token", "window's other edge", arch(kinds=every_window(lambda w: w + 1))),
  ("modernbert", "token", "rope", arch(kinds=kinds(rope=None))),
  ("modernbert", "token", "two ropes", arch(ropes=lambda ropes: ropes[:1] * 2)),
  ("modernbert", "token", "local first", arch(kinds=lambda kinds: kinds[1:] + kinds[:1])),
  ("modernbert", "token", "placement", arch(placement="residual")),
  ("modernbert", "sequence", "pool", head(pool="first")),
  ("modernbert", "sequence", "head's activation", head(dense="gelu")),
  ("deberta-v2", "token", "relative", arch(relative=None)),
  ("deberta-v2", "token", "buckets", arch(relative=within(buckets=0))),
  ("deberta-v2", "token", "farthest", arch(relative=within(farthest=12))),
  ("deberta-v2", "token", "c2p", arch(relative=within(content_to_position=False))),
  ("deberta-v2", "token", "p2c", arch(relative=within(position_to_content=False))),
  ("deberta-v2", "token", "norm", arch(relative=within(norm=None))),
  ("deberta-v2", "token", "norm's eps", arch(relative=lambda r: replace(r, norm=EPS(r.norm)))),
  ("deberta-v2", "token", "scale", arch(heads=within(scale=8**-0.5))),
  ("deberta-v2", "sequence", "pooler's activation", head(dense="tanh")),
  ("deberta-v2-xlarge", "token", "conv", arch(conv=None)),
  ("deberta-v2-xlarge", "token", "conv's activation", arch(conv=within(activation="tanh"))),
  ("deberta-v2-xlarge", "token", "span", arch(relative=within(buckets=5))),
  ("deberta-v2-xlarge", "token", "projection first", arch(project=within(before_norm=False))),
]


def difference(network, params, batch, theirs):
  run = jax.jit(network.logits).lower(params, batch).compile(QUICK)
  ours = of_texts(network, np.asarray(run(params, batch)))
  return max(np.abs(a - b).max() for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
  ("case", "kind", "change"),
  [pytest.param(*case[:2], case[3], id=f"{case[0]}-{case[2]}") for case in CASES],
)
def test_a_feature_that_is_off_is_noticed(oracle, case, kind, change):
  model, network, *_, params, batch = problem(oracle, case, kind)
  with oracle.no_grad():
    theirs = [out.numpy() for *_, out in torch_encoders.outputs(oracle, model, network, batch)]
  assert difference(network, params, batch, theirs) < 1e-4
  off, params = change(network, params)
  assert off != network
  # A tree made for other features: what is not there any more is left out, what is new random.
  fresh = models.Network(off.arch, off.head).init(jax.random.key(0))
  kept = _like(fresh, params)
  assert difference(off, kept, batch, theirs) > 1e-4


def _like(fresh, params):
  """The leaves of `params` where `fresh` has one of the same shape, else neutral ones."""
  if not isinstance(fresh, dict):
    return params if getattr(params, "shape", None) == fresh.shape else fresh
  return {
    k: _like(v, params.get(k, {}) if isinstance(params, dict) else {}) for k, v in fresh.items()
  }
