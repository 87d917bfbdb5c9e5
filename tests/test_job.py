"""What the MFU divides by: the products of a token, counted in the traced program."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import extend

from jaxsft import checkpoint, job, step, train
from jaxsft import config as config_lib
from jaxsft.errors import JaxsftError
from jaxsft.tuning import select
from tests.models import tiny


def products(jaxpr):
  """Floating-point operations of all dot_general of a program, loops counted out."""
  total = 0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == "dot_general":
      (contracted, _), _ = eqn.params["dimension_numbers"]
      shape = eqn.invars[0].aval.shape
      total += 2 * eqn.outvars[0].aval.size * int(np.prod([shape[i] for i in contracted]))
    times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
    total += sum(times * products(inner) for inner in extend.core.jaxprs_in_params(eqn.params))
  return total


@pytest.mark.parametrize(
  ("family", "kind", "unroll"),
  [
    ("bert", "sequence", 1),
    ("bert", "sequence", 3),
    ("llama", "sequence", 3),
    ("llama", "lm", 1),
    ("bert", "masked_lm", 1),
  ],
)
def test_flops_of_a_token_are_those_of_the_program(family, kind, unroll):
  network, params = tiny.network(family, kind, unroll=unroll)
  (example,) = tiny.rows(61, (24,))
  batch = tiny.packed([example], padding=0)
  forward = products(jax.make_jaxpr(network.logits)(params, batch).jaxpr)
  chosen = select.choose(network.shapes(), "all", stacks=network.stacks)
  counted = job.flops_per_token(network, network.shapes(), chosen, [24])
  if network.causal:  # counted is what a query may see; the program masks the other half
    arch = network.arch
    halved = arch.layers - (kind == "sequence")
    counted += 12 * halved * arch.heads.count * arch.heads.dim * 24 / 2
  np.testing.assert_allclose(24 * counted / 3, forward, rtol=1e-6)


def test_no_backward_pass_goes_through_frozen_layers():
  """The products of a step that trains the last layers, counted in its program."""
  network, params = tiny.network("bert", "token")
  params = network.init(jax.random.key(0))
  (example,) = tiny.rows(61, (24,))
  batch = tiny.packed([example], padding=0)

  def counted(method):
    chosen = select.choose(network.shapes(), method, stacks=network.stacks)
    trainable, frozen = select.split(params, chosen)
    loss = lambda trainable: jnp.sum(network.logits(step.merge(trainable, frozen), batch))
    program = jax.make_jaxpr(jax.value_and_grad(loss))(trainable).jaxpr
    return products(program), 24 * job.flops_per_token(network, params, chosen, [24])

  D, width = network.arch.width, network.arch.heads.count * network.arch.heads.dim
  scores = 2 * width * 24 * 24  # of a layer
  for method, layers, lowest in (
    ("all", network.arch.layers, 0),
    ("last:1", 1, 0),
    ("last:2", 2, 0),
    ("head", 0, 2 * 24 * 3 * D),
  ):
    found, expected = counted(method)
    # Scores are computed again; a head that is the lowest needs no gradient of its input.
    np.testing.assert_allclose(found, expected + layers * scores - lowest, rtol=1e-6)


def test_a_run_goes_on_with_the_same_meaning_of_best():
  """What is measured stays; when, in what batches and on what else may change."""
  resumable = lambda config: job.resumable(config_lib.to_dict(config))
  kept = resumable(config_lib.Config())
  change = lambda key, value: resumable(
    config_lib.override(config_lib.Config(), f"evaluate.{key}", value)
  )
  others = {"metric": "loss", "mode": "min", "threshold": 0.3, "generate": 3, "n_best": 3}
  others |= {"generate_every": 0, "text_metrics": ("bleu",), "bleu_tokenizer": "zh"}
  others |= {"rouge_stemmer": True}
  others |= {"num_beams": 2, "length_penalty": 2.0, "max_new_tokens": 3}
  others |= {"max_answer_length": 3, "null_threshold": 0.0}
  free = {"every": 3, "patience": 3, "batch_size": 3, "slices": ("length",)}
  free |= {"prompts": ("a",), "sets": {"a": "b"}}
  keys = {field.name for field in dataclasses.fields(config_lib.Evaluate)}
  assert set(others) | set(free) == keys  # a new key has to be put on one side
  assert {key for key, value in others.items() if change(key, value) == kept} == set()
  assert {key for key, value in free.items() if change(key, value) != kept} == set()


def leaves(tree, path=()):
  """(where it is, value) of all that is no dict with keys."""
  for key, value in tree.items():
    if isinstance(value, dict) and value:
      yield from leaves(value, (*path, key))
    else:
      yield (*path, key), value


def test_keys_that_an_older_version_lacked_are_their_defaults():
  """Each alone, a group as a whole, and of a data set of a mixture; others count as ever."""
  mix = {"a": config_lib.Part("a.jsonl"), "b": config_lib.Part("b.jsonl", weight=2.0)}
  config = config_lib.override(config_lib.Config(), "data.mix", mix)
  config = config_lib.override(config, "optim.peak_lr", 1e-3)
  now = {"config": job.resumable(config_lib.to_dict(config)), "data": "d", "weights": "w"}
  usual = dict(leaves(config_lib.to_dict(config_lib.Config())))
  usual |= {("data", "mix", own, *path): value
            for own in mix
            for path, value in leaves(dataclasses.asdict(config_lib.Part()))}  # fmt: skip
  refused = set()
  for path, value in leaves(now["config"]):
    stored = json.loads(json.dumps(now))
    group = stored["config"]
    for key in path[:-1]:
      group = group[key]
    del group[path[-1]]
    try:
      checkpoint.check_loop(job.of_now({"hashes": stored}), now)
    except JaxsftError as error:
      refused.add(path)
      assert f"{'.'.join(path)}: {usual[path]!r} then, {value!r} now" in str(error)
  own = {("data", "mix", name, "path") for name in mix}
  assert refused == {("optim", "peak_lr"), ("data", "mix", "b", "weight"), *own}
  stored = json.loads(json.dumps(now))
  del stored["config"]["clean"], stored["config"]["augment"]
  checkpoint.check_loop(job.of_now({"hashes": stored}), now)
  stored["config"]["data"]["gone"] = 3
  with pytest.raises(JaxsftError, match=r"data.gone: 3 then, None now"):
    checkpoint.check_loop(job.of_now({"hashes": stored}), now)
  with pytest.raises(JaxsftError, match="the settings and the data and the base weights"):
    checkpoint.check_loop(job.of_now({}), now)


def test_a_run_of_an_older_version_goes_on(monkeypatch):
  now = {"config": job.resumable({}), "data": "d", "weights": "w"}
  stored = json.loads(json.dumps(now))
  del stored["config"]["augment"]
  monkeypatch.setattr(train, "identity", lambda job: now)
  found = types.SimpleNamespace(latest=lambda: 3, loop=lambda step: {"hashes": stored})
  assert train.find_checkpoint(types.SimpleNamespace(checkpoints=found)) == 3
  stored["config"]["seed"] = 1
  with pytest.raises(JaxsftError, match=r"seed: 1 then, 0 now"):
    train.find_checkpoint(types.SimpleNamespace(checkpoints=found))


def test_flops_of_a_masked_token_are_of_few_projections():
  network, _ = tiny.network("bert", "masked_lm")
  chosen = select.choose(network.shapes(), "all", stacks=network.stacks)
  count = lambda masked: job.flops_per_token(network, network.shapes(), chosen, [24], masked)
  projection = 6 * network.arch.vocab * network.arch.width
  np.testing.assert_allclose(count(1.0) - count(0.25), 0.75 * projection, rtol=1e-6)
