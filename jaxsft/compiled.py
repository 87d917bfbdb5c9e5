"""A jitted function, compiled once for each shape of its batch, that says what it cost."""

import time

import jax

from jaxsft import sharding

CPU_OPTIONS = {
  # In the other order XLA:CPU keeps more alive (a third more in a step of the quickstart) and
  # is no faster: every product fills all cores anyway.
  "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
}


class Compiled:
  """Compiles ahead of time when a batch shape is first met, so that compile time is known.

  The last argument of a call is the batch. `seconds` and `count` grow with every
  compilation; `bytes` is the largest memory a device needs in a call, arguments included.
  """

  def __init__(self, function, **options):
    self._jitted = jax.jit(function, **options)
    self._by_shape = {}
    self.seconds, self.bytes = 0.0, 0

  @property
  def count(self):
    """Shapes compiled so far."""
    return len(self._by_shape)

  def trace(self, *args):
    """The traced function, to be lowered by hand (as for another platform)."""
    return self._jitted.trace(*args)

  def __call__(self, *args):
    key = tuple(sorted((name, x.shape, str(x.dtype)) for name, x in args[-1].items()))
    if key not in self._by_shape:
      self._by_shape[key] = self._compile(args)
    return self._by_shape[key](*args)

  def _compile(self, args):
    start = time.perf_counter()
    options = CPU_OPTIONS if sharding.platform() == "cpu" else None
    compiled = self._jitted.lower(*args).compile(options)
    self.seconds += time.perf_counter() - start
    memory = compiled.memory_analysis()
    if memory is not None:
      needed = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
      )
      self.bytes = max(self.bytes, needed)
    return compiled
