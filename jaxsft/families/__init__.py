"""What a model family calls things: config.json -> our architecture, and tensor names.

A family is a module with architecture, names, head_fields, export_config, CLASSES,
BASE_PREFIX (and PREFIXES where a class has another), IGNORED and TIED, and `computed` where
an export has tensors that are no parameters. It holds no layers.
"""

import re
from typing import NamedTuple

from jaxsft import models
from jaxsft.errors import JaxsftError
from jaxsft.models import heads
from jaxsft.weights.head_file import KIND as OWN_HEAD


class View(NamedTuple):
  """The part of a tensor that a leaf is, where the file keeps several in one.

  The tensor's rows (its `out` axis) are `groups` equal runs of `of` rows; the leaf is rows
  start to stop of every run. (start, stop, of) = (0, D, 3 D) is q of GPT-2's c_attn.
  """

  start: int
  stop: int
  of: int
  groups: int = 1
  """Query heads for GPT-NeoX, which keeps q, k and v of a head together."""
  transposed: bool = False
  """Whether the file has [in, out] (GPT-2's Conv1D); vectors are never transposed."""
  row: bool = False
  """Whether the file has the vector [n] as [1, n] (BART's final_logits_bias)."""


class Name(NamedTuple):
  """One tensor (or one a layer, or one an expert of a layer) in the file, and its leaf."""

  hf: str
  """Name in the file; "{i}" is the layer ("{i+1}" where the first has none), "{e}" the
  expert. Parts "base" and "pooler": without the family's BASE_PREFIX."""
  path: str
  """ "layers/attn/q/kernel"; a leaf stacked [L, …] where `hf` has "{i}" ([L-1, …] for "{i+1}"),
  [L, E, …] where it has "{e}" too."""
  part: str
  """ "base" (must be there), "pooler" (of the base, new where the file has none) or "head"
  (new where the file has none)."""
  view: View | None = None
  """None: the leaf is the whole tensor."""


REQUIRED = object()  # `field` without a value to fall back on

# Keys whose names look like architecture: one that is not known must not be passed over.
SUSPECT = r"rope|rotary|norm|attention|attn|scal|window|softcap|multiplier|bias|_act$"
HARMLESS = r"attn_implementation|^output_attentions$|_quantization|^problem_type$"

# Written by transformers 4 and 5 beside the architecture; never kept in an export.
STALE = ("_name_or_path", "transformers_version", "num_labels", "auto_map", "_commit_hash")


def field(config, name, kind, absent=REQUIRED):
  """config[name], which must be of `kind`; `absent` where older files lack the key.

  Raises JaxsftError for a missing key (no architectural value is guessed) or a wrong type.
  """
  value = config.get(name)
  if value is None:
    if absent is not REQUIRED:
      return absent
    raise JaxsftError(
      f"config.json of the {config.get('model_type')} model has no {name!r}: add the "
      "value that the model was trained with"
    )
  accepted = (int, float) if kind is float else kind
  if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
    raise JaxsftError(f"config.json: {name} is {value!r}, expected {kind.__name__}")
  if kind is int and value < 1:
    raise JaxsftError(f"config.json: {name} is {value}, expected at least 1")
  return kind(value)


def head_dim(width, count, keys=("hidden_size", "num_attention_heads")):
  """H of `count` heads that share the width; keys: what config.json calls the two.

  Raises JaxsftError where the heads do not divide it.
  """
  if width % count:
    raise JaxsftError(f"config.json: {keys[0]} {width} is not a multiple of {keys[1]} {count}")
  return width // count


def demand(config, name, supported, absent=REQUIRED):
  """Raises JaxsftError unless config[name] is one of `supported`; returns it."""
  value = config.get(name, absent)
  if value is REQUIRED:
    raise JaxsftError(f"config.json has no {name!r}, expected one of {list(supported)}")
  if value not in supported:
    raise JaxsftError(
      f"config.json: {name} is {value!r}, which is not supported; expected one of "
      f"{list(supported)}"
    )
  return value


def refuse_unknown(config, known):
  """Raises JaxsftError for keys that may change the computation and are not in `known`."""
  for name, value in config.items():
    suspect = re.search(SUSPECT, name) and not re.search(HARMLESS, name)
    if suspect and name not in known and value not in (None, False):
      raise JaxsftError(
        f"config.json: found {name} = {value!r}, which the {config.get('model_type')} "
        "family does not know and may change what the model computes; remove it if it "
        "has no effect"
      )


def head_of(family, arch, kind, classes=0):
  """The head of `kind` (see heads.Head) as the family builds it; a span has no `classes`.

  Raises JaxsftError for a kind that no such architecture carries.
  """
  known = models.KINDS[type(arch)]
  if kind not in known:
    name = family.__name__.rpartition(".")[2]
    raise JaxsftError(
      f"the {name} family has no {kind!r} head, expected one of {', '.join(known)}: choose a "
      "task that its models can do (config.task)"
    )
  classes = classes if kind in ("sequence", "token") else 0
  return heads.Head(kind=kind, classes=classes, **family.head_fields(arch, kind))


def kind_of(family, config):
  """Kind of the head that a checkpoint was saved with; "none" where none is used here."""
  if OWN_HEAD in config:
    return config[OWN_HEAD]
  name = (config.get("architectures") or [""])[0]
  return next((kind for kind, known in family.CLASSES.items() if known == name), "none")


def class_of(classes, kind):
  """{"architectures": …} of config.json for a head of `kind`, by a family's CLASSES.

  Where transformers has no class for it, that of the base, and our own key for the head.
  """
  if kind in classes:
    return {"architectures": [classes[kind]]}
  return {"architectures": [classes["none"]], OWN_HEAD: kind}


def prefix_of(family, kind):
  """What stands before the base's names in the file of a model with a head of `kind`."""
  if kind not in family.CLASSES or kind == "none":
    return ""
  return getattr(family, "PREFIXES", {}).get(kind, family.BASE_PREFIX)


def label_names(config, file):
  """Names of the classes of a trained head in id order, as Hugging Face reads them.

  transformers leaves out the names that it gives itself: LABEL_0, …, two where nothing says
  how many. file: what an error names.
  """
  usual = {str(i): f"LABEL_{i}" for i in range(config.get("num_labels", 2))}
  names = config.get("id2label") or usual
  expected = [str(i) for i in range(len(names))]
  if not isinstance(names, dict) or set(names) != set(expected):
    raise JaxsftError(
      f"{file}: id2label is {names!r}, expected a name for each of the ids "
      f"{', '.join(expected)}; write the names that its head was trained with"
    )
  return tuple(names[i] for i in expected)


def with_labels(config, head, labels):
  """The config with what Hugging Face reads of a classification head, or without it.

  labels: names in id order; () with one class is a regression.
  """
  out = {k: v for k, v in config.items() if k not in STALE}
  out.pop(OWN_HEAD, None)
  if head.kind in ("sequence", "token"):
    names = list(labels) or [f"LABEL_{i}" for i in range(head.classes)]
    out["id2label"] = {str(i): name for i, name in enumerate(names)}
    out["label2id"] = {name: i for i, name in enumerate(names)}
    out.pop("problem_type", None)
    if head.kind == "sequence":
      single = "single_label_classification"
      out["problem_type"] = single if labels else "regression"
  else:
    for name in ("id2label", "label2id", "problem_type"):
      out.pop(name, None)
  return out


from jaxsft.families import (  # noqa: E402  the families use what is above
  albert,
  bart,
  bert,
  camembert,
  deberta_v2,
  distilbert,
  electra,
  gemma,
  gemma2,
  gemma3_text,
  glm4,
  gpt2,
  gpt_neox,
  granite,
  llama,
  marian,
  mbart,
  mistral,
  mixtral,
  modernbert,
  mt5,
  olmo2,
  opt,
  pegasus,
  phi3,
  qwen2,
  qwen3,
  qwen3_moe,
  roberta,
  smollm3,
  t5,
  umt5,
  xlm_roberta,
)

ENCODERS = {
  "albert": albert,
  "bert": bert,
  "camembert": camembert,
  "deberta-v2": deberta_v2,
  "distilbert": distilbert,
  "electra": electra,
  "modernbert": modernbert,
  "roberta": roberta,
  "xlm-roberta": xlm_roberta,
}
DECODERS = {
  "gemma": gemma,
  "gemma2": gemma2,
  "gemma3_text": gemma3_text,
  "glm4": glm4,
  "gpt2": gpt2,
  "gpt_neox": gpt_neox,
  "granite": granite,
  "llama": llama,
  "mistral": mistral,
  "mixtral": mixtral,
  "olmo2": olmo2,
  "opt": opt,
  "phi3": phi3,
  "qwen2": qwen2,
  "qwen3": qwen3,
  "qwen3_moe": qwen3_moe,
  "smollm3": smollm3,
}
ENCODER_DECODERS = {
  "bart": bart,
  "marian": marian,
  "mbart": mbart,
  "mt5": mt5,
  "pegasus": pegasus,
  "t5": t5,
  "umt5": umt5,
}
FAMILIES = ENCODERS | DECODERS | ENCODER_DECODERS
"""`model_type` of config.json -> module."""
