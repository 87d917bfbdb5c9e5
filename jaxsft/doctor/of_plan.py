"""Findings by the plan of a run: how many updates, how full, what settings make of it."""

from jaxsft.doctor.codes import found

FEW = 10
"""Updates below which it is said."""
FULL = 0.5
"""Share of the places of a batch that should hold tokens."""


def check(plan, config):
  """What an order.Plan and the settings of a run give reason to say."""
  updates = plan.num_steps
  for note in plan.notes:
    yield found("batch-larger-than-data", f"{note}; lower batch_size")
  if updates < FEW:
    yield found(
      "few-updates",
      f"the run has {updates} updates, which is hardly enough to learn from; raise epochs, or "
      "lower batch_size",
    )
  warmup = config.optim.warmup
  warm = int(warmup) if warmup >= 1 else round(warmup * updates)
  if warm >= updates and warm > 1:
    yield found(
      "warmup-covers-run",
      f"optim.warmup is {warmup:g}, which is {warm} updates of {updates}: the learning rate "
      "rises to the last one; lower it, or write a share below 1",
    )
  yield from _patience(updates, config.evaluate)
  filled = plan.summary()["efficiency"]
  if filled < FULL and plan.packing != "pack":
    yield found(
      "much-padding",
      f"{filled:.0%} of the places of a batch hold tokens, the rest is padding; set "
      "data.packing='auto', which puts short examples into one row",
    )


def _patience(updates, evaluate):
  measured = -(-updates // evaluate.every) if evaluate.every else 1
  if evaluate.patience and evaluate.patience >= measured:
    yield found(
      "patience-without-effect",
      f"evaluate.patience is {evaluate.patience}, but the run has {measured} evaluations "
      f"(every {evaluate.every or updates} of {updates} updates): it cannot stop early; lower "
      "evaluate.every",
    )
