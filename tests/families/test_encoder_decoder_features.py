"""Turning a feature of an encoder-decoder off in our architecture parts it from torch."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from tests.golden import make_encoder_decoders

pytestmark = pytest.mark.full


def arch(**changes):
  """A change of fields of the architecture; a function is given the field's value."""

  def change(network, params):
    new = {k: v(getattr(network.arch, k)) if callable(v) else v for k, v in changes.items()}
    return replace(network, arch=replace(network.arch, **new)), params

  return change


def within(**changes):
  """A change inside a field that is a record."""
  return lambda record: replace(
    record, **{k: v(getattr(record, k)) if callable(v) else v for k, v in changes.items()}
  )


def moved(old, new):
  """The first layer's table of relative positions for all layers."""

  def change(network, params):
    params = {**params}
    for stack in ("encoder", "decoder"):
      layers = {**params[stack]["layers"]}
      table = layers.pop("relative")["embedding"]
      params[stack] = {**params[stack], "layers": layers, "relative": {"embedding": table[0]}}
    return arch(relative=within(per_layer=False))(network, params)

  return change


def without_logits_bias(network, params):
  bias = params["lm_head"]["bias"]
  return network, {**params, "lm_head": {**params["lm_head"], "bias": 0 * bias}}


def causal_buckets(network, params):
  """The encoder's distances without their sign: a table of half the buckets, twice."""
  table = params["encoder"]["relative"]["embedding"]
  half = len(table) // 2
  same = np.concatenate([table[:half], table[:half]])
  return network, {**params, "encoder": {**params["encoder"], "relative": {"embedding": same}}}


SCALED = within(heads=within(scale=lambda s: None if s is not None else 1.0))
T5 = {
  "scale": arch(encoder=SCALED),
  "decoder's scale": arch(decoder=SCALED),
  "eps": arch(norm=within(eps=1e-6)),
  "norm": arch(norm=within(kind="layer")),
  "placement": arch(placement="residual"),
  "final norm": arch(final_norm=False),
  "distance": arch(relative=within(max_distance=30)),
  "logit scale": arch(logit_scale=lambda s: 0.5 if s == 1 else 1.0),
}
BART = {
  "scale": arch(encoder=SCALED),
  "decoder's scale": arch(decoder=SCALED),
  "eps": arch(norm=within(eps=1e-2)),
  "embedding's scale": arch(embed_scale=1.0),
  "constant of the logits": without_logits_bias,
  "activation": arch(activation="gelu_new"),
}
LEARNED = {
  "offset": arch(position_offset=1, max_positions=lambda n: n + 1),
  "embedding's norm": arch(embed_norm=False),
}
FIRST, LAST = {"placement": arch(placement="before")}, {"placement": arch(placement="residual")}
FEATURES = {
  "t5": T5 | {"activation": arch(activation="gelu"), "sign": causal_buckets},
  "t5-v1.1": T5
  | {"activation": arch(activation="gelu"), "gate": arch(gated=False), "sign": causal_buckets},
  "mt5": T5 | {"activation": arch(activation="gelu_new"), "sign": causal_buckets},
  "umt5": T5 | {"activation": arch(activation="gelu"), "tables": moved("layers", "stack")},
  "bart": BART | LEARNED | FIRST,
  "mbart": BART | LEARNED | LAST | {"final norm": arch(final_norm=False)},
  "marian": BART | FIRST | {"sinusoids": arch(positions="relative")},
  "marian-separate": BART | FIRST | {"own table": arch(source_vocab=None)},
  "pegasus": BART
  | LAST
  | {"final norm": arch(final_norm=False), "sinusoids": arch(positions="relative")},
}
CASES = [(case, feature) for case, found in FEATURES.items() for feature in found]
QUICK = {"xla_backend_optimization_level": 0}  # compiling is most of the time


@pytest.mark.parametrize(("case", "feature"), CASES)
def test_a_feature_turned_off_is_seen(case, feature):
  network, params, rows = make_encoder_decoders.problem(case)
  if feature == "own table":
    table = params["encoder"].pop("embed")["tokens"]["embedding"]
    rows = rows | {"source": np.minimum(rows["source"], network.arch.vocab - 1)}
    assert len(table) > network.arch.vocab
  network, params = FEATURES[case][feature](network, params)
  with np.load(make_encoder_decoders.FILE) as stored:
    expected = stored[case]
  with jax.default_matmul_precision("highest"):
    logits = jax.jit(network.logits).lower(params, rows).compile(QUICK)(params, rows)
  found = make_encoder_decoders.stored(np.asarray(logits), rows)
  assert not np.abs(found - expected).max() < 2e-4
