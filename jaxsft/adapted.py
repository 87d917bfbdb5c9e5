"""Adapter directories in PEFT's format: found with their base, applied, and written."""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

from jaxsft import families, models, sharding, tokenizer, weights
from jaxsft.data import fetch
from jaxsft.errors import JaxsftError
from jaxsft.tuning import lora
from jaxsft.weights import peft_file, peft_names

TABLE = "embed/tokens/embedding"


@dataclasses.dataclass(frozen=True)
class Adapted:
  """An adapter on its base, for `pretrained.Pretrained`."""

  file: peft_file.Adapter
  base: Any
  """The pretrained.Pretrained that it was trained on."""


def base_of(adapter):
  """Where the base model of a peft_file.Adapter is: a directory, or a name for the hub.

  Raises JaxsftError where adapter_config.json does not say.
  """
  name = adapter.config.get("base_model_name_or_path")
  if not name:
    raise JaxsftError(
      f"{adapter.path / peft_file.CONFIG}: base_model_name_or_path is {name!r}, expected the "
      "directory or the name of the model that the adapter was trained on; write it there"
    )
  beside = adapter.path / name
  return str(beside) if beside.is_dir() else name


def open_adapted(local, open_base):
  """`pretrained.Pretrained` of an adapter's directory: its base's, with its own head and words.

  open_base: (path, revision of a name on the hub or None) -> pretrained.Pretrained.
  """
  file = peft_file.read(local)
  where = base_of(file)
  try:
    on_hub = fetch.HUB_ID.fullmatch(where) and not pathlib.Path(where).exists()
    base = open_base(where, file.config.get("revision") if on_hub else None)
  except JaxsftError as error:
    raise JaxsftError(
      f"{local / peft_file.CONFIG}: its base model {where!r} cannot be opened: {error}"
    ) from error
  own = local / "config.json"
  config = weights.shards.read_json(own) if own.is_file() else _config_of(file, base)
  words = base.tokenizer
  if (local / "tokenizer.json").is_file():
    words = tokenizer.load_tokenizer(local)
  return dataclasses.replace(
    base,
    path=local if own.is_file() else base.path,
    source=dataclasses.replace(base.source, config=config),
    tokenizer=words,
    adapted=Adapted(file, base),
  )


def _config_of(file, base):
  """The base's config.json with the head that the task_type of PEFT means."""
  kinds = {task: kind for kind, task in peft_file.TASKS.items()} | {peft_file.SEQ2SEQ: "lm"}
  kind = kinds.get(file.config.get("task_type"), base.kind)
  if kind in (base.kind, "none"):
    return base.config
  head = families.head_of(base.family, base.arch, kind, 1)
  names = [n for n in base.family.names(base.arch, head) if n.path == "head/kernel"]
  found = [file.tensors[n.hf] for n in names if n.hf in file.tensors]
  if not found:
    raise JaxsftError(
      f"{file.path}: has task_type {file.config['task_type']!r} and no {names[0].hf}, expected "
      "the trained head in it (modules_to_save of PEFT); save the adapter again"
    )
  head = dataclasses.replace(head, classes=len(found[0]) if kind != "span" else 0)
  return base.family.export_config(dict(base.config), base.arch, head, [], "float32") | {
    "problem_type": None
  }


def load_params(base, network, mesh, load):
  """(params with the adapter's leaves, paths of new leaves) of an adapted Pretrained.

  load(base, new_head): pretrained.load_params of a base alone.
  """
  file, under = base.adapted.file, base.adapted.base
  table, prefix = _table(base, network)
  shapes = dict(lora.select.paths(network.shapes()))
  found = peft_names.modules(table, shapes, prefix)
  inner = [m for m in found if lora.SEAM.search(m.names[0].path)]
  leaves, rest = peft_names.from_file(file, inner, shapes)
  of_table = [n for name in table if name.path == TABLE for n in _tensors(name, shapes, prefix)]
  if _copied(network) and set(of_table) & set(rest):
    raise JaxsftError(
      f"{file.path}: found a token table in modules_to_save; the model uses its table more "
      "than once (tied), and PEFT applies the saved one to one of the uses: merge the adapter "
      "with PEFT's merge_and_unload() and load the model that it gives"
    )
  whole = _whole(file, rest, table, shapes, prefix)
  own_head = any(name.part == "head" and name.path in whole for name in table)
  params, new = load(under, own_head)
  flat = dict(lora.select.paths(params))
  put = lambda path, values: _put(path, values, mesh)
  init, ranks = file.config.get("init_lora_weights"), peft_names.ranks(file, inner, shapes)
  if init in lora.DECOMPOSED:
    _refuse_fused(file, inner, leaves)
  for path, slots in whole.items():
    values = np.array(weights.params.on_host(flat[path]))
    for slot, part in slots.items():
      values[slot] = part
    flat[path] = put(path, values)
  for path, own in leaves.items():
    if init in lora.DECOMPOSED:
      kernel = weights.params.on_host(flat[f"{path}/kernel"])
      flat[f"{path}/kernel"] = put(
        f"{path}/kernel", lora.rest(kernel, ranks[path], own["scale"], init)
      )
    for name, values in own.items():
      flat[f"{path}/lora_{name}"] = put(f"{path}/lora_{name}", values)
  return weights.params.nest(flat), tuple(path for path in new if path not in whole)


def _tensors(name, shapes, prefix):
  """Names in the file of a leaf."""
  return peft_names.names_of(name, shapes[name.path].shape, prefix).flat


def _copied(network):
  """Whether PEFT, which replaces a module at one place, would make two of the token table."""
  projects = network.tied and network.head.kind in ("lm", "masked_lm")
  return projects or models.has_source(network.arch)


def _put(path, values, mesh):
  if mesh is None:
    return jax.device_put(values)
  spec = sharding.spec_for(path, values.shape, mesh)
  return jax.device_put(values, jax.sharding.NamedSharding(mesh, spec))


def _refuse_fused(file, found, leaves):
  fused = [m.name for m in found if len(m.names) > 1]
  if fused and leaves:
    raise JaxsftError(
      f"{file.path}: init_lora_weights is {file.config['init_lora_weights']!r} for {fused[0]}, "
      "which is several projections in one; save it in PEFT with "
      "path_initial_model_for_weight_conversion, as a plain adapter"
    )


def _table(base, network):
  names = base.family.names(base.arch, network.head)
  return names, families.prefix_of(base.family, network.head.kind)


def _whole(file, rest, table, shapes, prefix):
  """{path: {slot: values}} of tensors of the file that replace the base's."""
  found, known = {}, {}
  for name in table:
    tensors = peft_names.names_of(name, shapes[name.path].shape, prefix)
    for slot in np.ndindex(tensors.shape):
      known.setdefault(tensors[slot], []).append((name, slot))
  for tensor in rest:
    if tensor not in known:
      raise JaxsftError(
        f"{file.path}: found {tensor!r}, which is no adapter and no weight of this model; "
        "expected PEFT's names for the model that adapter_config.json names"
      )
    for name, slot in known[tensor]:
      shape = shapes[name.path].shape[len(slot) :]
      values = file.tensors[tensor]
      index = (slice(None),) * len(shape)
      read = lambda _, i, values=values: values[i]
      if values.shape != weights.views.tensor_shape(name, shape):
        raise JaxsftError(
          f"{file.path}: {tensor} is {list(values.shape)}, expected "
          f"{list(weights.views.tensor_shape(name, shape))}: it was trained on another base"
        )
      part = weights.views.read(read, tensor, name.view, shape, index)
      found.setdefault(name.path, {})[slot] = part
  return found


# --- to a directory --------------------------------------------------------------------


def refuse_unwritable(base, network, chosen):
  """Raises JaxsftError where PEFT has no way to hold what trains (paths `chosen`).

  That is also asked before training, so that nothing of it comes after.
  """
  kind = network.head.kind
  if kind not in base.family.CLASSES:
    raise JaxsftError(
      f"config.export.format: 'peft' cannot hold a {kind!r} head on a "
      f"{base.config['model_type']}, for which transformers has no class; set 'merged'"
    )
  if kind == "masked_lm":
    raise JaxsftError(
      "config.export.format: 'peft' cannot hold what task='masked_lm' trains beside adapters: "
      "PEFT would save a copy of the projection to the vocabulary; set 'merged'"
    )
  if TABLE in chosen and _copied(network):
    raise JaxsftError(
      "config.export.format: 'peft' cannot hold a token table that trains and is used at "
      "several places (projection to the vocabulary, encoder, decoder): PEFT would save a copy "
      "of it for one of them; set 'merged'"
    )
  table, prefix = _table(base, network)
  shapes = dict(lora.select.paths(network.shapes()))
  roots = _roots(table, network, chosen, shapes, prefix)
  if "embed_out" in roots:
    raise JaxsftError(
      "config.tune.train: trains the vocabulary projection of a gpt_neox, which the file "
      "calls embed_out and transformers 5 lm_head: PEFT would load it as nothing; set "
      "config.export.format='merged'"
    )
  for module in peft_names.modules(table, shapes, prefix):
    places = [name.path.removesuffix("/kernel") for name in module.names]
    own = [place for place in places if f"{place}/lora_a" in chosen]
    if own and any(f"{module.name}.".startswith(f"{root}.") for root in roots):
      raise JaxsftError(
        f"config.tune.train: trains a part of {module.name}, in which {', '.join(own)} has an "
        "adapter; PEFT has one or the other for a module: change config.tune.train or "
        "config.tune.lora.targets, or set config.export.format='merged'"
      )
    if f"{(own or [''])[0]}/lora_magnitude" in chosen and len(own) < len(places):
      raise JaxsftError(
        f"config.tune.lora.targets: {module.name} is several projections in one, of which only "
        f"{', '.join(own)} would have a DoRA adapter; PEFT has one length for each row of all: "
        f"choose {', '.join(places)}, or set config.export.format='merged'"
      )


def store(directory, *, base, network, params, adapter):
  """Writes adapter_config.json and adapter_model.safetensors, reads them back and compares.

  params: with the adapters, as `lora.plain` has them. adapter: of job.adapter_facts.
  """
  refuse_unwritable(base, network, adapter["chosen"])
  table, prefix = _table(base, network)
  flat = {path: leaf for path, leaf in lora.select.paths(params)}
  shapes = dict(lora.select.paths(network.shapes()))
  found = peft_names.modules(table, shapes, prefix)
  leaves = {}
  for path, leaf in flat.items():
    place, _, name = path.rpartition("/")
    if name in lora.LEAVES:
      own = leaves.setdefault(place, {})
      own[name.removeprefix("lora_")] = np.asarray(weights.params.on_host(leaf), np.float32)
  done = peft_names.to_file(leaves, found, shapes)
  tensors = {}
  for module, part in done.items():
    for kind, end in peft_names.SUFFIXES.items():
      if getattr(part, kind) is not None:
        tensors[f"{module}.{end}"] = getattr(part, kind)
  more, saved = _trained_modules(base, network, flat, adapter["chosen"], shapes)
  config = peft_names.config_of(done, [m.name for m in found], adapter["rslora"])
  config |= {
    "peft_type": "LORA",
    "task_type": _task_type(network),
    "base_model_name_or_path": adapter["base"],
    "revision": adapter["revision"],
    "lora_dropout": adapter["dropout"],
    "bias": "none",
    "fan_in_fan_out": any(
      m.names[0].view is not None and m.names[0].view.transposed
      for m in found
      if m.name in done
    ),
    "init_lora_weights": True,
    "inference_mode": True,
    "modules_to_save": saved or None,
  }
  peft_file.write(directory, config, tensors | more)
  _compare(directory, leaves, flat, adapter["chosen"], found, table, shapes, prefix)


def _compare(directory, leaves, flat, chosen, found, table, shapes, prefix):
  """Reads the adapter as any user would, and compares it with what was meant: products,
  lengths and, of `flat`, all leaves that train by themselves.
  """
  file = peft_file.read(directory)
  read, rest = peft_names.from_file(file, found, shapes)
  for path, own in leaves.items():
    there = read.get(path)
    for slot in np.ndindex(own["scale"].shape):
      meant = own["scale"][slot] * (own["b"][slot] @ own["a"][slot])
      is_ = meant * 0
      if there is not None:
        is_ = there["scale"][slot] * (there["b"][slot] @ there["a"][slot])
      if not np.allclose(meant, is_, rtol=1e-5, atol=1e-6 * max(1.0, np.abs(meant).max())):
        raise _differs(f"the adapter of {path}", "product")
    lengths = (there or {}).get("magnitude")
    if "magnitude" in own and not np.array_equal(own["magnitude"], lengths):
      raise _differs(f"the adapter of {path}", "lengths")
  whole = _whole(file, rest, table, shapes, prefix)
  for path in sorted({name.path for name in table} & set(chosen)):
    meant = np.asarray(weights.params.on_host(flat[path]), np.float32)
    slots = whole.get(path, {})
    size = sum(np.size(part) for part in slots.values())
    if size != meant.size or any(not np.array_equal(meant[i], p) for i, p in slots.items()):
      raise _differs(path, "values")


def _differs(what, same):
  return JaxsftError(
    f"found {what} to differ after it was written and loaded again; expected the same {same}: "
    "this is a mistake in jaxsft, please report it"
  )


def _task_type(network):
  if network.head.kind == "lm" and models.has_source(network.arch):
    return peft_file.SEQ2SEQ
  return peft_file.TASKS.get(network.head.kind)


def _roots(table, network, chosen, shapes, prefix):
  """modules_to_save: the modules of which a leaf trains by itself, none inside another."""
  top = network.head.kind in ("sequence", "token")  # PEFT saves such a head as a whole
  roots = set()
  for name in table:
    for tensor in _tensors(name, shapes, prefix) if name.path in chosen else ():
      whole = top and name.part == "head"
      roots.add(tensor.split(".")[0] if whole else tensor.rpartition(".")[0])
  inside = lambda root: any(root.startswith(f"{other}.") for other in roots)
  return sorted(root for root in roots if not inside(root))


def _trained_modules(base, network, flat, chosen, shapes):
  """({name in the file: values}, modules_to_save) of all modules of which a leaf trains."""
  table, prefix = _table(base, network)
  roots = _roots(table, network, chosen, shapes, prefix)
  inside = lambda tensor: any(tensor.startswith(f"{root}.") for root in roots)
  own = [n for n in table if any(map(inside, _tensors(n, shapes, prefix)))]
  params = weights.params.nest({n.path: flat[n.path] for n in own})
  tensors = weights.export_tensors(params, own, base_prefix=prefix)
  return {name: values for name, values in tensors if inside(name)}, roots


def is_adapter(path):
  """Whether a resolved model is an adapter's directory."""
  return path.is_dir() and peft_file.holds(path)
