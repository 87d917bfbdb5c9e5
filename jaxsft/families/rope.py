"""Rotary positions of config.json: `rope_parameters` (transformers 5) and the older keys."""

from jaxsft import families
from jaxsft.errors import JaxsftError
from jaxsft.models import rope


def read(config, head_dim, *, fraction=1.0, interleaved=False, extra=None):
  """rope.Rope of `rope_parameters`, or of `rope_theta` and `rope_scaling`.

  head_dim: of the attention. fraction: of the head that turns, where config.json does not
  say partial_rotary_factor. extra: fields of the scaling that a family keeps at the top
  level of config.json (Phi-3's original_max_position_embeddings).
  Raises JaxsftError where both are there and disagree, for unknown kinds and unknown keys.
  """
  new, scaling = config.get("rope_parameters"), config.get("rope_scaling")
  old, theta = None, config.get("rope_theta")
  if theta is not None or scaling:
    theta = (new or {}).get("rope_theta") if theta is None else theta
    old = {"rope_theta": theta, **(scaling or {})}
  fraction = config.get("partial_rotary_factor") or fraction
  one = lambda fields: parse(
    fields, head_dim, fraction=fraction, interleaved=interleaved, extra=extra
  )
  found = [one(fields) for fields in (new, old) if fields is not None]
  if not found:
    raise JaxsftError(
      "config.json has neither rope_parameters nor rope_theta: add the base that the "
      "model was trained with (10000.0 for Llama 1 and 2)"
    )
  if found[0] != found[-1]:
    raise JaxsftError(
      f"config.json: rope_parameters {new} disagree with rope_theta and rope_scaling "
      f"{old}; keep the right one"
    )
  return found[0]


def parse(fields, head_dim, *, fraction=1.0, interleaved=False, extra=None):
  """rope.Rope of one dict of rope fields, with rope_theta among them."""
  fields = dict(fields)
  kinds = {fields.pop(k) for k in ("type", "rope_type") if fields.get(k)} or {"default"}
  kind = kinds.pop()
  if kinds or kind not in rope.KINDS:
    known = ", ".join(rope.KINDS)
    raise JaxsftError(
      f"config.json: the rope type {kind!r} is not supported, expected one of {known}"
    )
  theta = families.field(fields, "rope_theta", float)
  fraction = fields.get("partial_rotary_factor") or fraction
  needed, optional = rope.KINDS[kind]
  for name, value in (extra or {}).items():
    if name in needed and fields.get(name) is None:
      fields[name] = value
  ours = {"rope_theta", "partial_rotary_factor"}
  given = {k for k, v in fields.items() if v is not None}
  unknown = given - {*needed, *optional, *ours}
  missing = [name for name in needed if fields.get(name) is None]
  if unknown or missing:
    raise JaxsftError(
      f"config.json: rope type {kind!r} with unknown fields {sorted(unknown)} and missing "
      f"fields {missing}; expected {[*needed]}"
    )
  values = tuple((name, _value(fields[name])) for name in sorted(given - ours))
  return rope.Rope(kind, theta, int(head_dim * fraction), interleaved, values)


def _value(value):
  if isinstance(value, list | tuple):
    return tuple(float(x) for x in value)
  return value if isinstance(value, bool) else float(value)


def write(found, head_dim):
  """The keys of config.json for a Rope, in both spellings.

  transformers 4 reads rope_theta and rope_scaling, 5 reads rope_parameters.
  """
  fields = fields_of(found, head_dim)
  scaling = {k: v for k, v in fields.items() if k not in ("rope_theta", PARTIAL)}
  out = {
    "rope_theta": found.theta,
    "rope_scaling": None if found.kind == "default" else scaling,
    "rope_parameters": fields,
  }
  return out | ({PARTIAL: fields[PARTIAL]} if PARTIAL in fields else {})


PARTIAL = "partial_rotary_factor"


def fields_of(found, head_dim):
  """`rope_parameters` of one Rope; partial_rotary_factor only where not all of it turns."""
  fields = {"rope_theta": found.theta, "rope_type": found.kind}
  for name, value in found.fields:
    whole = name == "original_max_position_embeddings"
    fields[name] = int(value) if whole else list(value) if isinstance(value, tuple) else value
  if found.dim != head_dim:
    fields[PARTIAL] = found.dim / head_dim
  return fields
