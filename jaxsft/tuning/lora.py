"""Low-rank adapters: leaves beside the kernels of projections, added, dropped, merged back.

Beside layers/attn/q/kernel [L,out,in] stand lora_a [L,R,in], lora_b [L,out,R], lora_scale [L]
and, for DoRA, lora_magnitude [L,out]; where layers share their weights, all without L.
`models.layers` computes with them. Letters as there; R is the adapter's rank.
"""

import re
import zlib
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxsft import sharding, weights
from jaxsft.errors import UsageError
from jaxsft.tuning import select

PROJECTION = re.compile(r"(^|/)layers/(attn|cross|mlp)/(?!router/)[^/]+/kernel$")
SEAM = re.compile(r"^(?!.*/experts/)(?!.*(^|/)(lm_head|conv)/).*/kernel$")
"""Kernels that `models.layers.linear` multiplies: an adapter loaded there has an effect."""
EXPERTS = re.compile(r"/experts/[^/]+/kernel$")
TRAINED = ("lora_a", "lora_b", "lora_magnitude")
LEAVES = (*TRAINED, "lora_scale")
HIGHEST = jax.lax.Precision.HIGHEST


@dataclass(frozen=True)
class Adapter:
  """What one projection gets."""

  rank: int
  alpha: float
  scale: float


def plan(tree, settings):
  """{"layers/attn/q": Adapter} of the projections that a `config.Lora` chooses.

  tree: parameters or their shapes. Raises UsageError for a pattern that matches no projection
  or that is not valid, and for the experts of a mixture.
  """
  paths = [path for path, _ in select.paths(tree)]
  own = [path for path in paths if PROJECTION.search(path)]
  whole = settings.targets == "all-linear"
  patterns = ("",) if whole else settings.targets
  chosen = {p for pattern in patterns for p in _matches("targets", pattern, own, paths)}
  if whole and any(map(EXPERTS.search, paths)):
    raise UsageError(
      "config.tune.lora.targets: found the experts of a mixture, whose stacked weights get no "
      "adapters; expected patterns for the rest, such as ('attn/',)"
    )
  chosen = [path for path in own if path in chosen]
  for name in ("rank_pattern", "alpha_pattern"):
    for pattern in getattr(settings, name) or {}:
      if not set(_matches(name, pattern, own, paths)) & set(chosen):
        raise UsageError(
          f"config.tune.lora.{name}: {pattern!r} matches no projection that gets an adapter, "
          f"expected one of {', '.join(path.removesuffix('/kernel') for path in chosen)}; "
          "change the pattern or config.tune.lora.targets"
        )
  return {
    path.removesuffix("/kernel"): _adapter(path.removesuffix("/kernel"), settings)
    for path in chosen
  }


def _matches(name, pattern, own, paths):
  """Those of the projections `own` in whose path `pattern` is found, at least one."""
  try:
    found = [path for path in own if re.search(pattern, path.removesuffix("/kernel"))]
    others = [path for path in paths if re.search(pattern, path)]
  except re.error as error:
    key = f"config.tune.lora.{name}"
    raise UsageError(f"{key}: {pattern!r} is no valid pattern: {error}") from None
  if not found:
    but = f"only {others[0]}, " if others else "nothing; there are "
    raise UsageError(
      f"config.tune.lora.{name}: {pattern!r} matches {but}expected projections of attention "
      f"and MLP: {', '.join(path.removesuffix('/kernel') for path in own)}"
    )
  return found


def _adapter(path, settings):
  """The `Adapter` of a projection: by the first pattern that matches, or as all have it."""
  values = []
  for name in ("rank", "alpha"):
    value = getattr(settings, name)
    patterns = getattr(settings, f"{name}_pattern") or {}
    found = [v for pattern, v in patterns.items() if re.search(pattern, path)]
    values.append(found[0] if found else value)
  rank, alpha = values
  return Adapter(rank, alpha, alpha / (rank**0.5 if settings.rslora else rank))


def shapes(tree, settings):
  """The tree of shapes with those of the adapters' leaves."""
  flat = dict(select.paths(tree))
  for path, adapter in plan(tree, settings).items():
    *lead, out, width = flat[f"{path}/kernel"].shape
    new = {"a": (*lead, adapter.rank, width), "b": (*lead, out, adapter.rank), "scale": lead}
    new |= {"magnitude": (*lead, out)} if settings.dora else {}
    for name, shape in new.items():
      flat[f"{path}/lora_{name}"] = jax.ShapeDtypeStruct(tuple(shape), jnp.float32)
  return weights.params.nest(flat)


def add(params, settings, seed, mesh=None):
  """The parameters with new adapters; the model computes what it did before.

  With init "pissa" or "olora" the kernels become what the adapters leave of them.
  """
  flat = dict(select.paths(params))
  for path, adapter in plan(params, settings).items():
    flat |= _start(path, flat[f"{path}/kernel"], adapter, settings, seed, mesh)
  return weights.params.nest(flat)


def _start(path, kernel, adapter, settings, seed, mesh):
  """{path: leaf} of a new adapter, and of the kernel."""
  key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(path.encode()))
  a = b = None
  if settings.init in DECOMPOSED:
    a, b = _decomposed(kernel, adapter, settings.init)

  def make(kernel, a, b):
    *lead, out, width = kernel.shape
    if a is None:
      a, b = (
        INITS[settings.init](key, (*lead, adapter.rank, width), adapter),
        jnp.zeros((*lead, out, adapter.rank)),
      )
    else:
      kernel = kernel - adapter.scale * jnp.matmul(b, a, precision=HIGHEST)
    new = {"kernel": kernel, "lora_a": a, "lora_b": b}
    new["lora_scale"] = jnp.full(tuple(lead), adapter.scale, jnp.float32)
    if settings.dora:
      new["lora_magnitude"] = jnp.linalg.norm(kernel, axis=-1)
    return {f"{path}/{name}": leaf for name, leaf in new.items()}

  out = None
  if mesh is not None:
    out = sharding.shardings_for(jax.eval_shape(make, kernel, a, b), mesh)
  return jax.jit(make, out_shardings=out)(kernel, a, b)


def _uniform(key, shape, adapter):
  """As PEFT: Kaiming uniform with a = sqrt(5)."""
  bound = shape[-1] ** -0.5
  return jax.random.uniform(key, shape, minval=-bound, maxval=bound)


def _normal(key, shape, adapter):
  return jax.random.normal(key, shape) / adapter.rank


def _principal(matrix, adapter):
  u, s, v = np.linalg.svd(matrix, full_matrices=False)
  root = np.sqrt(s[: adapter.rank] / adapter.scale)
  return root[:, None] * v[: adapter.rank], u[:, : adapter.rank] * root


def _orthogonal(matrix, adapter):
  q, r = np.linalg.qr(matrix)
  return r[: adapter.rank], q[:, : adapter.rank]


INITS = {"default": _uniform, "gaussian": _normal}
DECOMPOSED = {"pissa": _principal, "olora": _orthogonal}


def _decomposed(kernel, adapter, init):
  """(A, B) of every matrix of a kernel, on the host. Their product is the same on every
  machine up to rounding, though signs may not be: so what is left of the kernel is, too.
  """
  matrices = weights.params.on_host(kernel)
  if adapter.rank > min(matrices.shape[-2:]):
    raise UsageError(
      f"config.tune.lora.rank: found {adapter.rank} with init={init!r}, expected at most "
      f"{min(matrices.shape[-2:])}, the smaller side of a matrix"
    )
  flat = matrices.reshape(-1, *matrices.shape[-2:]).astype(np.float32)
  pairs = [DECOMPOSED[init](matrix, adapter) for matrix in flat]
  shape = matrices.shape[:-2]
  return tuple(
    np.stack(part).reshape(*shape, *part[0].shape) for part in zip(*pairs, strict=True)
  )


def rest(kernel, ranks, scales, init):
  """What `init` leaves of a kernel [L,out,in] for adapters of ranks [L] (0: none) and scales
  [L]."""
  left = np.array(kernel, np.float32)
  for slot in map(tuple, np.argwhere(ranks)):
    adapter = Adapter(int(ranks[slot]), 0.0, float(scales[slot]))
    a, b = DECOMPOSED[init](left[slot], adapter)
    left[slot] -= adapter.scale * (b @ a)
  return left


def plain(params, start, init):
  """The adapters as they add to the kernels of the checkpoint, which `init` changed.

  start: the parameters before the first update. What A and B then were is subtracted: their
  ranks are twice as large (arXiv:2404.02948, section 4).
  """
  if init not in DECOMPOSED:
    return params
  flat, first = dict(select.paths(params)), dict(select.paths(start))
  for path in list(flat):
    if path.endswith("/lora_a"):
      flat[path] = jnp.concatenate([flat[path], first[path]], -2)
    if path.endswith("/lora_b"):
      flat[path] = jnp.concatenate([flat[path], -first[path]], -1)
  return weights.params.nest(flat)


def choose(tree, patterns, stacks):
  """The select.Choice of the adapters, a task head, and what `patterns` (re.search) match.

  tree: with the adapters. The head of a language model is none of the task. Raises
  UsageError where a pattern matches nothing, or a projection that has an adapter.
  """
  flat = dict(select.paths(tree))
  own = {path for path in flat if path.rpartition("/")[2] in TRAINED}
  base = {path: leaf for path, leaf in flat.items() if path.rpartition("/")[2] not in LEAVES}
  head = select.HEAD if "dense" in tree else r"^head/"
  own |= {path for path in base if re.search(head, path)}
  more = select.matching(weights.params.nest(base), patterns, stacks, "config.tune.train")
  both = [path for path in more.paths if f"{path.rpartition('/')[0]}/lora_a" in flat]
  if both:
    raise UsageError(
      f"config.tune.train: matches {both[0]}, which has an adapter (config.tune.lora.targets); "
      "expected one way to train it: change one of the two patterns"
    )
  masks = {path: mask for path, mask in more.masks.items() if path not in own}
  return select.Choice(frozenset(own | more.paths), masks=masks)


def rates(paths, settings):
  """{path: factor of the learning rate} of those of `paths` where it is not 1 (LoRA+)."""
  return {path: settings.plus for path in paths if path.endswith("/lora_b")}


def dropping(params, share, key):
  """The parameters as they train: every adapter with its own noise for the dropout.

  share: the rate as a number of 2^32, see layers.share_of; 0: nothing is dropped.
  """
  if not share:
    return params
  flat = dict(select.paths(params))
  for path in [path for path in flat if path.endswith("/lora_scale")]:
    own = jax.random.fold_in(key, zlib.crc32(path.encode()))
    lead = flat[path].shape
    noise = jax.random.bits(own, (*lead, 2), jnp.uint32)
    rates = jnp.full((*lead, 1), share, jnp.uint32)
    name = path.removesuffix("scale")
    flat[f"{name}drop"] = jnp.concatenate([noise, rates], -1)
  return weights.params.nest(flat)


def has(params):
  """Whether there is an adapter."""
  return any(path.endswith("/lora_a") for path, _ in select.paths(params))


@jax.jit
def merged(params):
  """The parameters without adapters, whose products are added to the kernels, in float32."""
  flat = dict(select.paths(params))
  for path in [path for path in flat if path.endswith("/lora_a")]:
    place = path.rpartition("/")[0]
    leaf = lambda name, place=place: flat.get(f"{place}/{name}")
    flat[f"{place}/kernel"] = whole(*map(leaf, ("kernel", *LEAVES)))
  flat = {p: leaf for p, leaf in flat.items() if p.rpartition("/")[2] not in LEAVES}
  return sharding.pin(weights.params.nest(flat))


def whole(kernel, a, b, magnitude, scale):
  """W + scale B A, [...,out,in]; its rows scaled to `magnitude`, where it is not None."""
  kernel = kernel.astype(jnp.float32)
  kernel = kernel + scale[..., None, None] * jnp.matmul(b, a, precision=HIGHEST)
  if magnitude is None:
    return kernel
  return kernel * (magnitude / jnp.linalg.norm(kernel, axis=-1))[..., None]
