"""DeBERTa v2 and v3 (arXiv:2006.03654, arXiv:2111.09543) as Hugging Face stores them."""

from jaxsft import families
from jaxsft.errors import JaxsftError
from jaxsft.families import Name
from jaxsft.families import bert_layout as layout
from jaxsft.models import attention_layer, disentangled, encoder, layers

BASE_PREFIX = "deberta."

IGNORED = (
  *layout.IGNORED,
  r"^(cls|lm_predictions|mask_predictions)\.",  # of pretraining
  r"^pooler\.",  # where the head reads every token
  r"^(deberta\.)?embeddings\.position_embeddings\.",  # where they are not added
)
TIED = (("cls.predictions.decoder.weight", "embeddings.word_embeddings.weight"),)
KNOWN = {
  *layout.KNOWN,
  "attention_head_size",
  "conv_act",
  "norm_rel_ebd",
  "pooler_hidden_act",
  "position_biased_input",
  "relative_attention",
  "share_att_key",
}
CLASSES = layout.classes("DebertaV2")


def architecture(config):
  """EncoderConfig of a DeBERTa config.json (a dict).

  Raises JaxsftError for missing fields, unsupported values, and unknown fields that may
  change the computation.
  """
  get = lambda name, kind, *absent: families.field(config, name, kind, *absent)
  fields = layout.fields(config)
  families.refuse_unknown(config, KNOWN)
  width, head_dim = fields["width"], fields["heads"].dim
  families.demand(config, "attention_head_size", (head_dim,), head_dim)
  families.demand(config, "pooler_hidden_size", (width, None), width)
  pooler_act = families.demand(config, "pooler_hidden_act", layers.ACTIVATIONS, "gelu")
  legacy, narrow = get("legacy", bool, True), get("embedding_size", int, width)
  terms = _terms(config)
  fields |= {
    "heads": attention_layer.plain_heads(
      fields["heads"].count, head_dim, scale=(head_dim * (1 + len(terms))) ** -0.5
    ),
    "relative": _relative(config, fields, terms),
    "conv": _conv(config),
    "project": None
    if narrow == width
    else encoder.Project(narrow, bias=False, before_norm=True),
    "spelling": "legacy" if legacy else "",
    "tied": fields["tied"] or not legacy,
    "relative_dropout": get("hidden_dropout_prob", float),
  }
  if not get("position_biased_input", bool, True):
    fields["position_rows"] = 0
  dropout = get("hidden_dropout_prob", float)
  readers = layout.readers(
    none={},
    sequence={
      "dropout_in": get("pooler_dropout", float, 0.0),
      "dense": pooler_act,
      "dropout": get("cls_dropout", float, dropout),
    },
    token={"dropout": dropout},
    span={},
    masked_lm=layout.transform(fields),
  )
  return encoder.EncoderConfig(**fields, readers=readers)


def _terms(config):
  """Which of "c2p" and "p2c" are in the scores."""
  found = config.get("pos_att_type") or []
  found = found.lower().split("|") if isinstance(found, str) else found
  found = {term.strip() for term in found} - {"", "none"}
  if unknown := found - {"c2p", "p2c"}:
    raise JaxsftError(
      f"config.json: pos_att_type has {sorted(unknown)}, expected some of c2p and p2c"
    )
  return found


def _relative(config, fields, terms):
  if not families.field(config, "relative_attention", bool):
    return None
  farthest = config.get("max_relative_positions", -1)
  farthest = farthest if farthest > 0 else fields["max_positions"]
  buckets = max(config.get("position_buckets", -1), 0)
  norm = config.get("norm_rel_ebd", "none").lower().split("|")
  return disentangled.Relative(
    span=buckets or farthest,
    buckets=buckets,
    farthest=farthest,
    shared=families.field(config, "share_att_key", bool, False),
    content_to_position="c2p" in terms,
    position_to_content="p2c" in terms,
    norm=fields["norm"] if "layer_norm" in [part.strip() for part in norm] else None,
  )


def _conv(config):
  size = layout.count(config, "conv_kernel_size", 0)
  if not size:
    return None
  if size % 2 == 0:
    raise JaxsftError(f"config.json: conv_kernel_size is {size}, expected an odd number")
  activation = families.demand(config, "conv_act", layers.ACTIVATIONS, "tanh")
  return encoder.Conv(size, families.field(config, "conv_groups", int, 1), activation)


head_fields = layout.head_fields


def names(arch, head):
  """The name table of the encoder and its head."""
  table = [
    *layout.embeddings(arch),
    *layout.layer(q="query_proj", k="key_proj", v="value_proj"),
  ]
  if arch.project is not None:
    table += layout.linear("embeddings.embed_proj", "embed/project", bias=False)
  if arch.relative is not None:
    table += _relative_names(arch.relative)
  if arch.conv is not None:
    table += layout.linear("encoder.conv.conv", "conv")
    table += layout.norm("encoder.conv.LayerNorm", "conv_norm")
  if head.kind == "sequence":
    table += layout.linear("pooler.dense", "dense", "head")
  table += layout.output(head)
  if head.kind == "masked_lm":
    table += _masked_lm_names(arch)
  return table


def _relative_names(relative):
  own = "encoder.layer.{i}.attention.self."
  table = [Name("encoder.rel_embeddings.weight", "relative/embedding", "base")]
  if relative.norm is not None:
    table += layout.norm("encoder.LayerNorm", "relative/norm")
  if not relative.shared and relative.content_to_position:
    table += layout.linear(f"{own}pos_key_proj", "layers/attn/pos_k")
  if not relative.shared and relative.position_to_content:
    table += layout.linear(f"{own}pos_query_proj", "layers/attn/pos_q")
  return table


def _masked_lm_names(arch):
  legacy = arch.spelling == "legacy"
  own, dense = ("cls.predictions", "transform.") if legacy else ("lm_predictions.lm_head", "")
  return [
    *layout.linear(f"{own}.{dense}dense", "dense", "head"),
    *layout.norm(f"{own}.{dense}LayerNorm", "dense_norm", "head"),
    *layout.vocabulary(arch, f"{own}.decoder.weight", f"{own}.bias"),
  ]


def export_config(config, arch, head, labels, dtype="float32"):
  """config.json of the exported model, for transformers 4 and 5.

  config: the one it was loaded with. labels: names in id order, () for a regression.
  """
  legacy = arch.spelling == "legacy"
  known = {
    "classes": CLASSES,
    "model_type": "deberta-v2",
    "legacy": legacy,
    # The newer head multiplies by the token table without it; told to tie, transformers 4
    # would put the table in the place of the head's dense layer.
    "tie_word_embeddings": arch.tied and legacy,
    "position_biased_input": arch.position_rows > 0,
    "pooler_hidden_size": arch.width,
    "pooler_hidden_act": config.get("pooler_hidden_act", "gelu"),
    "pooler_dropout": config.get("pooler_dropout", 0.0),
  }
  return layout.export(config, arch, head, labels, dtype, known)
