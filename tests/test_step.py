"""The update: exact sums, one penalty, clipping, skipping, and one optimiser: torch's AdamW."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft import optim, sharding, step


@pytest.fixture(autouse=True, params=["cpu", "tpu"])
def platform(request, monkeypatch):
  """The update is written differently for a CPU and for accelerators."""
  monkeypatch.setattr(sharding, "platform", lambda: request.param)


rng = np.random.default_rng(0)
PARAMS = {
  "head": {
    "kernel": rng.normal(size=(3, 5)).astype(np.float32),
    "bias": np.zeros(3, np.float32),
  },
  "pooler": {"kernel": np.eye(5, dtype=np.float32)},
}


def loss(params, batch, key):
  hidden = batch["x"] @ params["pooler"]["kernel"].T
  logits = hidden @ params["head"]["kernel"].T + params["head"]["bias"]
  nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch["y"][..., None], -1)[..., 0]
  if key is not None:
    nll = nll + 0.0 * jax.random.uniform(key)
  return {"loss": (jnp.sum(nll * batch["w"]), jnp.sum(batch["w"]))}


def make_batch(accumulate, weights=None, n=12):
  r = np.random.default_rng(1)
  batch = {
    "x": r.normal(size=(n, 5)).astype(np.float32),
    "y": r.integers(0, 3, n),
    "w": np.ones(n, np.float32) if weights is None else np.asarray(weights, np.float32),
  }
  return {k: v.reshape(accumulate, n // accumulate, *v.shape[1:]) for k, v in batch.items()}


def build(
  params=PARAMS,
  frozen=None,
  *,
  lr=0.1,
  penalty=("none", 0.0),
  clip=0.0,
  clip_value=0.0,
  wd=0.0,
  loss=loss,
  schedule=None,
  rule=None,
):
  tx = optim.make_transformation(
    "adamw", b1=0.9, b2=0.999, eps=1e-8, weight_decay=wd, params=params
  )
  settings = {"peak_lr": lr, "end_lr": 0, "warmup": 0, "decay": 1, "total": 100}
  schedule = schedule or optim.make_schedule("constant", **settings)
  rule = rule or optim.Rule(tx, schedule)
  run = jax.jit(
    partial(
      step.train_step,
      loss=loss,
      rule=rule,
      penalty=penalty,
      clip=clip,
      clip_value=clip_value,
      seed=0,
    )
  )
  return run, step.init_state(jax.tree.map(jnp.asarray, params), frozen or {}, rule)


def close(a, b, rtol=1e-5, atol=1e-6):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


@pytest.mark.parametrize("accumulate", [2, 3, 4, 12])
def test_accumulation_changes_nothing(accumulate):
  weights = [1, 0, 2, 1, 0, 0, 0, 1, 1, 3, 0, 1]  # ragged, with an empty micro-batch at 4 x 3
  run, state = build()
  whole, m1 = run(state, make_batch(1, weights))
  split, m2 = run(state, make_batch(accumulate, weights))
  close(whole.trainable, split.trainable)
  np.testing.assert_allclose(m1["loss"], m2["loss"], rtol=1e-6)
  assert m2["weight"] == 10


def test_gradient_is_of_the_weighted_mean():
  run, state = build(clip=0.0)
  batch = make_batch(1, [3, 1] + [0] * 10)
  _, metrics = run(state, batch)
  flat = {k: v[0] for k, v in batch.items()}
  mean = lambda p: loss(p, flat, None)[("loss")][0] / 4
  norm = jnp.sqrt(optim.squared_norm(jax.grad(mean)(state.trainable)))
  np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)


def test_weightless_tail_is_ignored():
  run, state = build()
  a, _ = run(state, make_batch(1, [1] * 6 + [0] * 6))
  batch = make_batch(1, [1] * 6 + [0] * 6)
  batch["x"][0, 6:] = 1e3
  b, _ = run(state, batch)
  jax.tree.map(np.testing.assert_array_equal, a.trainable, b.trainable)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_non_finite_updates_are_skipped_and_counted(poison):
  run, state = build()
  state, _ = run(state, make_batch(1))
  bad = make_batch(2)
  bad["x"][1, 0, 0] = poison
  after, metrics = run(state, bad)
  jax.tree.map(np.testing.assert_array_equal, after.trainable, state.trainable)
  jax.tree.map(np.testing.assert_array_equal, after.opt_state, state.opt_state)
  assert (int(after.step), int(after.skipped), int(after.bad)) == (2, 1, 1)
  assert int(metrics["bad"]) == 1
  good, _ = run(after, make_batch(1))
  assert (int(good.step), int(good.skipped), int(good.bad)) == (3, 1, 0)


def test_a_batch_without_weight_is_skipped():
  run, state = build(wd=0.1, penalty=("l2", 0.1))
  after, _ = run(state, make_batch(1, [0] * 12))
  jax.tree.map(np.testing.assert_array_equal, after.trainable, state.trainable)
  assert int(after.skipped) == 1


@pytest.mark.parametrize("clip", [0.0, 0.01])
def test_penalty_is_added_once_before_clipping(clip):
  """In the norm that is shown, and in what the optimiser gets: its first moment."""
  zero_grad = make_batch(3)
  zero_grad["x"][:] = 0  # the head's gradient is that of its bias alone
  run, state = build(penalty=("l2", 0.5), clip=clip)
  after, metrics = run(state, zero_grad)
  mask = optim.decays(state.trainable)
  value, factor = optim.penalty("l2", 0.5, state.trainable)
  extra = jax.tree.map(lambda p, m: factor * m * p, state.trainable, mask)
  np.testing.assert_allclose(metrics["penalty"], value, rtol=1e-6)
  flat = {k: v.reshape(-1, *v.shape[2:]) for k, v in zero_grad.items()}
  mean = lambda p: loss(p, flat, None)["loss"][0] / 12
  expected = jax.tree.map(jnp.add, jax.grad(mean)(state.trainable), extra)
  norm = jnp.sqrt(optim.squared_norm(expected))
  np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
  shrink = min(1, clip / norm) if clip else 1
  moment = jax.tree.map(lambda g: 0.1 * shrink * g, expected)  # 1 - b1
  close(after.opt_state[0].mu, moment, atol=1e-7)


def test_what_is_auxiliary_is_minimised_too_and_shown_apart():
  """The objective of a batch is the mean loss and the mean auxiliary, over the same weight."""

  def with_auxiliary(params, batch, key):
    sums, weight = loss(params, batch, key), jnp.sum(batch["w"])
    extra = 0.3 * jnp.sum(jnp.square(params["head"]["kernel"]))
    shown = (1e6 * jnp.sum(params["head"]["kernel"]), weight)
    return sums | {"auxiliary": (extra * weight, weight), "shown": shown}

  run, state = build(loss=with_auxiliary)
  _, metrics = run(state, make_batch(3, [1, 0, 2, 1] * 3))
  flat = {k: v[0] for k, v in make_batch(1, [1, 0, 2, 1] * 3).items()}

  def objective(params):
    kernel = params["head"]["kernel"]
    return loss(params, flat, None)["loss"][0] / 12 + 0.3 * jnp.sum(jnp.square(kernel))

  value, gradient = jax.value_and_grad(objective)(state.trainable)
  np.testing.assert_allclose(metrics["loss"] + metrics["auxiliary"], value, rtol=1e-6)
  norm = jnp.sqrt(optim.squared_norm(gradient))
  np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)


def test_the_rate_is_that_of_the_update():
  """Adam's first steps are as long as the rate: update 0 has that of 0, and shows it."""
  run, state = build(schedule=lambda step: 0.1 * (step + 1))
  for expected in (0.1, 0.2):
    before = state.trainable
    state, metrics = run(state, make_batch(1))
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.trainable, before)
    np.testing.assert_allclose(metrics["lr"], expected, rtol=1e-6)
    np.testing.assert_allclose(max(jax.tree.leaves(moved)), expected, rtol=1e-2)


def test_noise_is_of_the_update_and_the_micro_batch():
  """Drawn anew in each of both, and the same when they are done again."""

  def noisy(params, batch, key):
    noise = jax.random.uniform(key)
    shown = {name: (noise * batch[name][0], batch[name][0]) for name in ("first", "second")}
    return loss(params, batch, key) | shown

  run, state = build(loss=noisy)
  batch = make_batch(2) | {"first": np.float32([[1], [0]]), "second": np.float32([[0], [1]])}
  after, one = run(state, batch)
  _, two = run(after, batch)
  _, again = run(state, batch)
  seen = [float(metrics[name]) for metrics in (one, two) for name in ("first", "second")]
  assert len(set(seen)) == 4
  assert seen[:2] == [float(again[name]) for name in ("first", "second")]


def test_frozen_leaves_stay_and_train_leaves_move():
  trainable, frozen = {"head": PARAMS["head"]}, {"pooler": PARAMS["pooler"]}
  run, state = build(trainable, frozen, wd=0.1)
  for _ in range(3):
    state, _ = run(state, make_batch(1))
  np.testing.assert_array_equal(state.frozen["pooler"]["kernel"], PARAMS["pooler"]["kernel"])
  for name in ("kernel", "bias"):
    assert np.abs(state.trainable["head"][name] - PARAMS["head"][name]).min() > 0


def test_merge_joins_what_split_parted():
  trainable, frozen = {"a": {"x": 1}, "b": 2}, {"a": {"y": 3}, "c": {"z": 4}}
  assert step.merge(trainable, frozen) == {"a": {"x": 1, "y": 3}, "b": 2, "c": {"z": 4}}


def test_five_updates_equal_torch_adamw(oracle):
  torch = oracle
  run, state = build(lr=0.01, clip=0.5, wd=0.1)
  kernel, bias, pooler = (
    torch.nn.Parameter(torch.tensor(x))
    for x in (PARAMS["head"]["kernel"], PARAMS["head"]["bias"], PARAMS["pooler"]["kernel"])
  )
  groups = [
    {"params": [kernel, pooler], "weight_decay": 0.1},
    {"params": [bias], "weight_decay": 0},
  ]
  optimizer = torch.optim.AdamW(groups, lr=0.01)
  batch = make_batch(1, [1, 2] * 6)
  x, y, w = (torch.tensor(batch[k][0]) for k in "xyw")
  for _ in range(5):
    state, _ = run(state, batch)
    optimizer.zero_grad()
    logits = torch.nn.functional.linear(x @ pooler.T, kernel, bias)
    nll = torch.nn.functional.cross_entropy(logits, y, reduction="none")
    ((nll * w).sum() / w.sum()).backward()
    torch.nn.utils.clip_grad_norm_([kernel, bias, pooler], 0.5)
    optimizer.step()
  np.testing.assert_allclose(state.trainable["head"]["kernel"], kernel.detach(), atol=2e-6)
  np.testing.assert_allclose(state.trainable["head"]["bias"], bias.detach(), atol=2e-6)


def test_small_updates_are_not_lost():
  run, state = build(lr=1e-6)
  before = state.trainable
  for _ in range(5):
    state, _ = run(state, make_batch(1))
  moved = np.mean(np.asarray(state.trainable["head"]["kernel"]) != before["head"]["kernel"])
  assert moved > 0.99


def test_rows_that_do_not_train_stay_to_the_bit():
  mask = np.array([True, False, True])
  masks = {"head/kernel": mask, "head/bias": mask}
  tx = optim.make_transformation(
    "adamw", b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.1, params=PARAMS
  )
  rule = optim.Rule(tx, lambda _: 0.1, masks=masks)
  run, state = build(rule=rule, wd=0.1, penalty=("l2", 0.3))
  free, same = build(wd=0.1, penalty=("l2", 0.3))
  for _ in range(3):
    state, _ = run(state, make_batch(2))
  head, start = state.trainable["head"], PARAMS["head"]
  np.testing.assert_array_equal(head["kernel"][1], start["kernel"][1])
  assert (np.asarray(head["kernel"])[mask] != start["kernel"][mask]).all()
  assert (np.asarray(head["bias"]) != 0).tolist() == mask.tolist()
  moments = [x for x in jax.tree.leaves(state.opt_state) if x.shape == (3, 5)]
  assert len(moments) == 2 and all(not x[1].any() and x[0].any() for x in moments)
  _, first = run(same, make_batch(2))
  _, whole = free(same, make_batch(2))
  squares = np.sum(PARAMS["pooler"]["kernel"] ** 2) + np.sum(start["kernel"][mask] ** 2)
  np.testing.assert_allclose(first["penalty"], 0.3 * np.sqrt(squares), rtol=1e-6)
  assert first["grad_norm"] < whole["grad_norm"]


def test_leaves_and_rows_learn_at_rates_of_their_own():
  """What an update with weight decay moves is that of the plain one, times the factors."""
  factors = {"pooler/kernel": 0.5, "head/kernel": np.array([1, 0.5, 0.25], np.float32)}
  tx = optim.make_transformation(
    "adamw", b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.1, params=PARAMS
  )
  rule = optim.Rule(tx, lambda _: 0.1, factors)
  (run, state), (plain, same) = (
    build(rule=rule, wd=0.1),
    build(wd=0.1),
  )
  moved = lambda state: jax.tree.map(np.subtract, state.trainable, PARAMS)
  found, expected = moved(run(state, make_batch(1))[0]), moved(plain(same, make_batch(1))[0])
  expected["pooler"]["kernel"] *= 0.5
  expected["head"]["kernel"] *= factors["head/kernel"][:, None]
  close(found, expected, rtol=1e-5, atol=1e-7)


def test_the_average_of_weights_is_that_of_a_loop():
  """Over updates of which one is skipped; it moves nothing and is counted as it stands."""
  for average, total in (
    (optim.averaging(6, ema=0.5), None),
    (optim.averaging(6, swa=0.5), 3),
  ):
    rule = optim.Rule(optim.optax.trace(0.9), lambda _: 0.1, average=average)
    run, state = build(rule=rule)
    seen, expected = [], np.asarray(PARAMS["head"]["kernel"])
    for number in range(6):
      bad = make_batch(1, weights=np.full(12, np.nan if number == 4 else 1.0))
      state, _ = run(state, bad)
      seen.append(np.asarray(state.trainable["head"]["kernel"]))
      decay = min(0.5, (1 + number) / (10 + number))
      expected = decay * expected + (1 - decay) * seen[-1]
    assert int(state.skipped) == 1
    expected = expected if total is None else np.mean(seen[-total:], 0)
    found = step.params(state)["head"]["kernel"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(found - seen[-1]).max() > 1e-3


def test_each_number_is_clipped_before_the_norm():
  rule = optim.Rule(optim.optax.identity(), lambda _: 1.0)
  moved = lambda state: jax.tree.map(np.subtract, PARAMS, state.trainable)
  (run, state), (clipped, same) = build(rule=rule), build(rule=rule, clip_value=0.05, clip=0.1)
  whole = moved(run(state, make_batch(1))[0])
  state, metrics = clipped(same, make_batch(1))
  few = jax.tree.map(lambda g: np.clip(g, -0.05, 0.05), whole)
  norm = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(few)))
  np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
  assert norm > 0.1
  close(moved(state), jax.tree.map(lambda g: g * 0.1 / norm, few), rtol=1e-4)


def test_leaves_and_rows_that_start_later_are_torchs(oracle):
  """torch counts the updates of each parameter; before its first, nothing of it moves."""
  torch, begins = oracle, {"pooler": 2, "rows": (0, 1, 3)}
  starts = {"pooler/kernel": 2, "head/kernel": np.array(begins["rows"], np.int32)}
  tx = optim.make_transformation(
    "adamw", b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.1, params=PARAMS, starts=starts
  )
  run, state = build(rule=optim.Rule(tx, lambda _: 0.1, starts=starts))
  rows = [torch.nn.Parameter(torch.tensor(row)) for row in PARAMS["head"]["kernel"]]
  pooler = torch.nn.Parameter(torch.tensor(PARAMS["pooler"]["kernel"]))
  bias = torch.nn.Parameter(torch.tensor(PARAMS["head"]["bias"]))
  options = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8}
  groups = [{"params": [*rows, pooler], "weight_decay": 0.1}]
  theirs = torch.optim.AdamW([*groups, {"params": [bias], "weight_decay": 0.0}], **options)
  batch = {k: torch.tensor(v[0]) for k, v in make_batch(1).items()}
  for number in range(5):
    before = state
    state, _ = run(state, make_batch(1))
    theirs.zero_grad()
    logits = batch["x"] @ pooler.T @ torch.stack(rows).T + bias
    torch.nn.functional.cross_entropy(logits, batch["y"]).backward()
    late = [row for row, first in zip(rows, begins["rows"], strict=True) if number < first]
    for one in [*late, *([pooler] if number < begins["pooler"] else [])]:
      one.grad = None
    theirs.step()
    if number < begins["pooler"]:
      same = lambda x, y: x.shape != (5, 5) or np.testing.assert_array_equal(x, y)
      jax.tree.map(same, before, state)
    old, new = (x.trainable["head"]["kernel"] for x in (before, state))
    assert (old != new).any(1).tolist() == [number >= first for first in begins["rows"]]
  assert run._cache_size() == 1
  found = state.trainable
  close(found["pooler"]["kernel"], pooler.detach().numpy(), atol=1e-5)
  close(found["head"]["kernel"], torch.stack(rows).detach().numpy(), atol=1e-5)
  close(found["head"]["bias"], bias.detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["adafactor", "muon"])
def test_no_moment_of_what_does_not_train_moves(name):
  params = {"layers": {"q": {"kernel": np.ones((3, 130, 140), np.float32) * 0.1}}}
  starts = {"layers/q/kernel": np.array([0, 9, 9], np.int32)}
  settings = {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.1}
  tx = optim.make_transformation(name, **settings, params=params, starts=starts)
  total = lambda p, batch, key: {"loss": (jnp.sum(jnp.sin(p["layers"]["q"]["kernel"])), 1.0)}
  run, state = build(params, rule=optim.Rule(tx, lambda _: 0.1, starts=starts), loss=total)
  new, _ = run(state, make_batch(1))
  rows = [
    (np.asarray(x), np.asarray(y))
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(new), strict=True)
    if x.shape[:1] == (3,) and x.ndim > 1
  ]
  assert len(rows) >= 2  # the leaf, and some moment of it
  for old, now in rows:
    np.testing.assert_array_equal(now[1:], old[1:])
    assert (now[0] != old[0]).any()
