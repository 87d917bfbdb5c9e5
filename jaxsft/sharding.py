"""Which device holds what: the mesh, one table path -> PartitionSpec, batches, activations.

Axes: "data" copies the model, "fsdp" splits every leaf and gathers it where it is used,
"tensor" splits the products themselves, "context" splits sequences; "expert" spreads the
experts of a mixture, and copies everything else as "data" does.
"""

import collections
import contextlib
import math
import re

import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxsft.errors import JaxsftError, UsageError

AXES = ("data", "fsdp", "tensor", "context", "expert")
ROWS = ("data", "fsdp", "expert")  # the axes over which the rows of a batch are spread

# First match wins. Shapes stand beside each rule; [L] is the axis of stacked layers. Kernels
# are [out, in]: column-parallel leaves split `out` by tensor, row-parallel ones split `in`.
RULES = (
  (r"embed/tokens/embedding|lm_head/kernel", P("tensor", "fsdp")),  # V D
  (r"embed/(positions|types)/embedding", P(None, "fsdp")),  # positions D
  (r"layers/(attn/(pos_)?(q|k|v)|mlp/(up|gate))/kernel", P(None, "tensor", "fsdp")),  # L out D
  (r"layers/(attn/(pos_)?(q|k|v)|mlp/(up|gate))/bias", P(None, "tensor")),  # L out
  (r"layers/cross/(q|k|v)/kernel", P(None, "tensor", "fsdp")),  # L out D
  (r"layers/cross/(q|k|v)/bias", P(None, "tensor")),  # L out
  (r"layers/((attn|cross)/o|mlp/down)/kernel", P(None, "fsdp", "tensor")),  # L D in
  (r"layers/((attn|cross)/o|mlp/down)/bias", P(None, "fsdp")),  # L D
  (r"layers/((attn|cross)/o|mlp/down)/lora_a", P(None, None, "tensor")),  # L R in
  (r"layers/((attn|cross)/o|mlp/down)/lora_b", P(None, "fsdp", None)),  # L D R
  (r"layers/((attn|cross)/o|mlp/down)/lora_magnitude", P(None, "fsdp")),  # L D
  (r"layers/.+/lora_a", P(None, None, "fsdp")),  # L R D
  (r"layers/.+/lora_b", P(None, "tensor", None)),  # L out R
  (r"layers/.+/lora_magnitude", P(None, "tensor")),  # L out
  (r"layers/.+/lora_scale", P(None)),  # L
  (r"(dense|head|(embed/)?project)/lora_(a|b)", P(None, None)),  # R in, out R
  (r"(dense|head|(embed/)?project)/lora_magnitude", P(None)),  # out
  (r"layers/mlp/router/kernel", P(None, None, "fsdp")),  # L E D
  (r"layers/mlp/experts/(up|gate)/kernel", P(None, "expert", "tensor", "fsdp")),  # L E F D
  (r"layers/mlp/experts/down/kernel", P(None, "expert", "fsdp", "tensor")),  # L E D F
  (r"layers/relative/embedding", P(None, None, "tensor")),  # L buckets N
  (r"layers/.*norm/(scale|bias)", P(None, None)),  # L D
  (r"later/.*norm/(scale|bias)", P(None, None)),  # L-1 D
  (r"(embed/|dense_|conv_)?norm/(scale|bias)", P(None)),  # D
  (r"relative/embedding", P(None, "fsdp")),  # distances D, buckets N
  (r"conv/kernel", P(None, "fsdp", None)),  # D D/groups places
  (r"(dense|head|(embed/)?project)/kernel", P(None, "fsdp")),  # out D
  (r"(dense|head|lm_head|embed/project|conv)/bias", P(None)),  # out
  (r"ns_coeffs", P(None)),  # of Muon's polynomial
)
# Adafactor's sums over rows and columns are small. "v/…/…" is a tree of them, while
# "attn/v/kernel" is a projection.
FACTORED = r"(^|/)(v_row|v_col|v)/.+/"


def make_mesh(data=-1, fsdp=1, tensor=1, context=1, expert=1, devices=None):
  """Mesh over all devices; one size may be -1, "what is left".

  Raises UsageError unless the sizes multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  sizes = [data, fsdp, tensor, context, expert]
  known = 1
  for size in sizes:
    known *= size if size != -1 else 1
  if -1 in sizes and len(devices) % known == 0:
    sizes[sizes.index(-1)] = len(devices) // known
    known = len(devices)
  if known != len(devices):
    named = ", ".join(f"{a}={s}" for a, s in zip(AXES, sizes, strict=True))
    raise UsageError(
      f"config.mesh: {named} makes {known} devices, found {len(devices)}; "
      "the sizes must multiply to that (one of them may be -1)"
    )
  # jax's default is Explicit, with which Linen's layers do not work.
  auto = (AxisType.Auto,) * len(AXES)
  return jax.make_mesh(tuple(sizes), AXES, axis_types=auto, devices=devices)


def row_shards(mesh):
  """Into how many parts the rows of a batch are split."""
  return math.prod(mesh.shape[axis] for axis in ROWS)


def path_string(path):
  """ "layers/attn/q/kernel" of a jax key path."""
  part = lambda key: getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))
  return "/".join(str(part(key)) for key in path)


def spec_for(path, shape, mesh):
  """PartitionSpec of one leaf: the first rule whose pattern ends `path` at a "/" boundary.

  Scalars and factored moments are replicated; an axis that does not divide its dimension
  is left out.
  Raises JaxsftError when no rule matches or the rule has another rank.
  """
  if not shape or re.search(FACTORED, path):
    return P()
  found = [spec for pattern, spec in RULES if re.search(rf"(^|/)({pattern})$", path)]
  if not found:
    raise JaxsftError(f"{path} {tuple(shape)}: no rule in sharding.RULES matches this leaf")
  spec = found[0]
  if re.search(r"(^|/)layers/", path) and len(spec) == len(shape) + 1:
    spec = spec[1:]  # all layers have the same weights: there is no L
  if len(spec) != len(shape):
    raise JaxsftError(f"{path} {tuple(shape)}: its rule {spec} has another rank")
  sized = zip(spec, shape, strict=True)
  return P(*(a if a and n % mesh.shape[a] == 0 else None for a, n in sized))


def shardings_for(tree, mesh):
  """NamedSharding of every leaf (arrays or shapes); moments match by their suffix."""

  def one(path, leaf):
    return NamedSharding(mesh, spec_for(path_string(path), leaf.shape, mesh))

  return jax.tree_util.tree_map_with_path(one, tree)


def within(mesh):
  """The context in which compiled functions know of a mesh; None: of none."""
  return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def replicated(mesh):
  return NamedSharding(mesh, P())


def batch_sharding(mesh, ndim, row_axis):
  """Rows (axis `row_axis` of `ndim`) over ROWS, everything else whole."""
  return NamedSharding(mesh, P(*(ROWS if axis == row_axis else None for axis in range(ndim))))


def put_batch(batch, mesh, row_axis=0):
  """Device arrays of this process's rows of a batch, global in shape.

  batch: dict of numpy arrays with the process's share of the rows on axis `row_axis`.
  """

  def put(x):
    sharding = batch_sharding(mesh, x.ndim, row_axis)
    if jax.process_count() == 1:
      return jax.device_put(x, sharding)
    return jax.make_array_from_process_local_data(sharding, x)

  return {name: put(x) for name, x in batch.items()}


def put_batches(batches, mesh, row_axis=0, ahead=2):
  """Device batches of an iterator of host batches, copied `ahead` before they are asked for."""
  queue = collections.deque()
  for batch in batches:
    queue.append(put_batch(batch, mesh, row_axis))
    if len(queue) > ahead:
      yield queue.popleft()
  yield from queue


def platform():
  """Where the code being traced will run: the mesh knows, even when it only compiles."""
  device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
  return jax.default_backend() if device is None else device.platform


def constrain(x, *spec):
  """Pins an activation to the mesh; a no-op without one, so that a model also runs bare."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return x
  return jax.lax.with_sharding_constraint(x, P(*spec))


def pin(tree):
  """The tree with every leaf where `shardings_for` has it; a no-op without a mesh.

  For what a compiled function hands to its next call: left alone, the compiler may lay an
  output otherwise than the input of the same name, and the next call does not take it.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return tree
  one = lambda path, x: constrain(x, *spec_for(path_string(path), x.shape, mesh))
  return jax.tree_util.tree_map_with_path(one, tree)
