"""What BART and its kin share: fields of config.json, tensor names, the export."""

from jaxsft import families
from jaxsft.errors import JaxsftError
from jaxsft.families import Name, View, t5_layout
from jaxsft.models import attention_layer, encoder_decoder, layers

BASE_PREFIX = "model."
IGNORED = (
  r"^(model\.)?(encoder|decoder)\.embed_tokens\.weight$",  # shared.weight once more
  r"^(model\.)?(encoder|decoder)\.version$",
  r"^lm_head\.",  # another head (the table's own names come first)
  r"^final_logits_bias$",
  r"^(classification_head|qa_outputs)\.",
)
COMPUTED = (r"^(model\.)?(encoder|decoder)\.embed_positions\.weight$",)  # sinusoids
TIED = (
  ("lm_head.weight", "shared.weight"),
  ("model.encoder.embed_tokens.weight", "shared.weight", True),
  ("model.decoder.embed_tokens.weight", "shared.weight", True),
)
KNOWN = {
  "attention_dropout",
  "encoder_attention_heads",
  "decoder_attention_heads",
  "num_attention_heads",
  "scale_embedding",
  "normalize_before",
  "normalize_embedding",
  "add_final_layer_norm",
}
OFFSET = 2  # of learned positions: fairseq counts them from the padding token on


def classes(name, kinds=("sequence", "span"), lm="ForConditionalGeneration"):
  """{kind: class} of transformers for the heads that it has."""
  suffixes = {"sequence": "ForSequenceClassification", "span": "ForQuestionAnswering"}
  own = {"none": f"{name}Model", "lm": name + lm}
  return own | {kind: name + suffixes[kind] for kind in kinds}


def fields(config, *, positions, embed_norm, placement, final_norm):
  """Fields of EncoderDecoderConfig; a family replaces those where it differs."""
  get = lambda name, kind, *absent: families.field(config, name, kind, *absent)
  families.refuse_unknown(config, KNOWN)
  # What the first versions of transformers made one class of, and what follows from the
  # model_type since then.
  for name, value in (
    ("normalize_before", placement == "before"),
    ("normalize_embedding", embed_norm),
    ("add_final_layer_norm", final_norm),
    ("static_position_embeddings", positions == "sinusoid"),
    ("num_hidden_layers", config.get("encoder_layers")),  # another name of the same
    ("is_decoder", False),
    ("encoder_layerdrop", 0.0),
    ("decoder_layerdrop", 0.0),
  ):
    families.demand(config, name, (value,), value)
  families.demand(config, "activation_function", layers.ACTIVATIONS)
  width, vocab = get("d_model", int), get("vocab_size", int)
  first, pad = start(config), config.get("pad_token_id")
  return {
    "vocab": vocab,
    "source_vocab": None,
    "width": width,
    "encoder": _stack(config, "encoder", width),
    "decoder": _stack(config, "decoder", width),
    "max_positions": get("max_position_embeddings", int),
    "positions": positions,
    "relative": None,
    "position_offset": OFFSET if positions == "learned" else 0,
    "embed_scale": width**0.5 if get("scale_embedding", bool) else 1.0,
    "embed_norm": embed_norm,
    "norm": layers.Norm("layer", 1e-5, bias=True, offset=0.0),  # no key says so
    "placement": placement,
    "final_norm": final_norm,
    "activation": get("activation_function", str),
    "gated": False,
    "mlp_bias": True,
    "logit_scale": 1.0,
    "logits_bias": True,
    "tied": get("tie_word_embeddings", bool, True),  # younger than the format
    "frozen_token": pad if first == pad else None,
    "decoder_start": first,
    "dropout": get("dropout", float),
    "attention_dropout": get("attention_dropout", float),
    "mlp_dropout": get("activation_dropout", float),
    "final_dropout": 0.0,
    "head_dropout": get("classifier_dropout", float, 0.0),
    "std": get("init_std", float),
  }


def start(config):
  """decoder_start_token_id, or None."""
  found = config.get("decoder_start_token_id")
  if not isinstance(found, int | None):
    raise JaxsftError(
      f"config.json: decoder_start_token_id is {found!r}, expected the id of a token"
    )
  return found


def _stack(config, name, width):
  get = lambda key: families.field(config, f"{name}_{key}", int)
  count = get("attention_heads")
  dim = families.head_dim(width, count, ("d_model", f"{name}_attention_heads"))
  heads = attention_layer.plain_heads(count, dim)
  return encoder_decoder.Stack(get("layers"), heads, get("ffn_dim"))


def head_fields(arch, kind):
  """How the heads of BART's own classes read the decoder's hidden states."""
  return {**t5_layout.head_fields(arch, kind), "logits_bias": kind == "lm"}


def plain_head_fields(arch, kind):
  """Where transformers has no classes: a projection of the last token, or of every one."""
  return {"pool": "last", "bias": kind != "lm", "logits_bias": kind == "lm"}


# --- names -----------------------------------------------------------------------------


def names(arch, head, own):
  """The name table of both stacks and the head. own: the family's CLASSES."""
  tokens = "shared" if arch.source_vocab is None else "decoder.embed_tokens"
  base = [(f"{tokens}.weight", "embed/tokens/embedding")]
  if arch.source_vocab is not None:
    base.append(("encoder.embed_tokens.weight", "encoder/embed/tokens/embedding"))
  for stack in ("encoder", "decoder"):
    base += _stack_names(arch, stack)
  table = [Name(hf, path, "base") for hf, path in base]
  if head.kind != "lm":
    return table + t5_layout.head_names(head, own)
  row = View(0, arch.vocab, arch.vocab, row=True)
  table.append(Name("final_logits_bias", "lm_head/bias", "head", row))
  return table + ([] if arch.tied else [Name("lm_head.weight", "lm_head/kernel", "head")])


def _stack_names(arch, name):
  layer, path = f"{name}.layers.{{i}}", f"{name}/layers"
  found = []
  if arch.positions == "learned":
    found.append((f"{name}.embed_positions.weight", f"{name}/embed/positions/embedding"))
  if arch.embed_norm:
    found += _norm(f"{name}.layernorm_embedding", f"{name}/embed/norm")
  if arch.final_norm:
    found += _norm(f"{name}.layer_norm", f"{name}/norm")
  attentions = {"self_attn": "attn"} | ({"encoder_attn": "cross"} if name == "decoder" else {})
  for hf, leaf in attentions.items():
    for one, other in (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v"), ("out_proj", "o")):
      found += _linear(f"{layer}.{hf}.{one}", f"{path}/{leaf}/{other}")
    found += _norm(f"{layer}.{hf}_layer_norm", f"{path}/{leaf}_norm")
  for hf, leaf in (("fc1", "up"), ("fc2", "down")):
    found += _linear(f"{layer}.{hf}", f"{path}/mlp/{leaf}")
  return found + _norm(f"{layer}.final_layer_norm", f"{path}/mlp_norm")


def _linear(hf, path):
  return [(f"{hf}.weight", f"{path}/kernel"), (f"{hf}.bias", f"{path}/bias")]


def _norm(hf, path):
  return [(f"{hf}.weight", f"{path}/scale"), (f"{hf}.bias", f"{path}/bias")]


# --- export ----------------------------------------------------------------------------


def export_config(config, arch, head, labels, dtype, own, **more):
  """config.json of the exported model, for transformers 4 and 5; see t5_layout."""
  return {
    **families.with_labels(config, head, labels),
    **families.class_of(own, head.kind),
    "is_encoder_decoder": True,
    "decoder_start_token_id": arch.decoder_start,
    "scale_embedding": arch.embed_scale != 1,
    "classifier_dropout": arch.head_dropout,
    "tie_word_embeddings": arch.tied,
    "torch_dtype": dtype,
    "dtype": dtype,
    **more,
  }
