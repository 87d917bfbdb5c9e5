"""Every special feature of a decoder matters: without it, parity with torch would be lost."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from tests.families import decoder_configs
from tests.families.test_decoders import highest, ours  # noqa: F401  a fixture

pytestmark = pytest.mark.full


def heads(arch, **changes):
  return replace(arch, heads=replace(arch.heads, **changes))


def kinds(arch, change):
  return replace(arch, kinds=tuple(change(kind) for kind in arch.kinds))


def ropes(arch, change):
  return replace(arch, ropes=tuple(change(rope) for rope in arch.ropes))


def mixture(arch, **changes):
  return replace(arch, experts=replace(arch.experts, **changes))


def plain(rope):
  return replace(rope, kind="default", fields=())


def without_offset(arch):
  arch = replace(arch, norm=replace(arch.norm, offset=0.0))
  return arch if arch.heads.norm is None else heads(arch, norm=arch.norm)


FEATURES = {  # name -> (whether a decoder has it, the decoder without it)
  "eps": (
    lambda a: a.norm.eps != 1e-5,
    lambda a: replace(a, norm=replace(a.norm, eps=1e-6)),
  ),
  "offset": (lambda a: a.norm.offset, without_offset),
  "activation": (
    lambda a: True,
    lambda a: replace(a, activation="gelu_new" if "gelu" not in a.activation else "relu"),
  ),
  "final norm": (lambda a: a.final_norm, lambda a: replace(a, final_norm=False)),
  "parallel": (lambda a: a.placement == "parallel", lambda a: replace(a, placement="before")),
  "residual": (lambda a: a.placement == "residual", lambda a: replace(a, placement="before")),
  "window": (
    lambda a: any(kind.window for kind in a.kinds),
    lambda a: kinds(a, lambda kind: replace(kind, window=None)),
  ),
  "window by one": (
    lambda a: any(kind.window for kind in a.kinds),
    lambda a: kinds(a, lambda kind: replace(kind, window=kind.window and kind.window + 1)),
  ),
  "window of some": (
    lambda a: len({kind.window for kind in a.kinds}) > 1,
    lambda a: kinds(a, lambda kind: replace(kind, window=5)),
  ),
  "scale of the layer": (
    lambda a: any(kind.scale for kind in a.kinds),
    lambda a: kinds(a, lambda kind: replace(kind, scale=None)),
  ),
  "turning": (
    lambda a: a.ropes,
    lambda a: kinds(a, lambda kind: replace(kind, rope=None)),
  ),
  "turning of some": (
    lambda a: len({kind.rope for kind in a.kinds}) > 1,
    lambda a: kinds(a, lambda kind: replace(kind, rope=0)),
  ),
  "scaling of rope": (
    lambda a: any(rope.kind != "default" for rope in a.ropes),
    lambda a: ropes(a, plain),
  ),
  "theta": (lambda a: a.ropes, lambda a: ropes(a, lambda r: replace(r, theta=r.theta * 1.1))),
  "part that turns": (
    lambda a: any(rope.dim != a.heads.dim for rope in a.ropes),
    lambda a: ropes(a, lambda r: replace(plain(r), dim=a.heads.dim)),
  ),
  "pairs": (
    lambda a: any(rope.interleaved for rope in a.ropes),
    lambda a: ropes(a, lambda r: replace(r, interleaved=False)),
  ),
  "positions": (
    lambda a: a.position_offset,
    lambda a: replace(a, position_offset=a.position_offset - 1),
  ),
  "scale": (lambda a: a.heads.scale, lambda a: heads(a, scale=a.heads.scale * 1.2)),
  "softcap of scores": (lambda a: a.heads.softcap, lambda a: heads(a, softcap=None)),
  "norm of heads": (lambda a: a.heads.norm, lambda a: heads(a, norm=None)),
  "softcap": (lambda a: a.softcap, lambda a: replace(a, softcap=None)),
  "embed scale": (lambda a: a.embed_scale != 1, lambda a: replace(a, embed_scale=1.0)),
  "residual scale": (lambda a: a.residual_scale != 1, lambda a: replace(a, residual_scale=1.0)),
  "logit scale": (lambda a: a.logit_scale != 1, lambda a: replace(a, logit_scale=1.0)),
  "normalised experts": (
    lambda a: a.experts,
    lambda a: mixture(a, normalise=not a.experts.normalise),
  ),
  "experts of a token": (
    lambda a: a.experts,
    lambda a: mixture(a, per_token=a.experts.per_token - 1),
  ),
}


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("case", decoder_configs.CONFIGS)
def test_parity_notices_a_feature_that_is_off(oracle, case, feature):
  _, network, params, rows, _, logits, _ = ours(case)
  has, off = FEATURES[feature]
  if not has(network.arch):
    pytest.skip("has no such feature")
  other = replace(network, arch=off(network.arch))
  found = np.asarray(jax.jit(other.logits)(params, rows))
  difference = np.abs(found - logits)[rows["segments"] != 0].max()
  assert not difference < 2e-4, difference  # parity holds to 1e-4


def test_every_feature_is_somewhere(oracle):
  archs = [ours(case)[1].arch for case in decoder_configs.CONFIGS]
  assert [name for name, (has, _) in FEATURES.items() if not any(map(has, archs))] == []
