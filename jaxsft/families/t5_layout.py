"""What T5 and its successors share: fields of config.json, tensor names, the export."""

from jaxsft import families
from jaxsft.errors import JaxsftError
from jaxsft.families import Name
from jaxsft.models import attention_layer, encoder_decoder, layers, relative

BASE_PREFIX = ""
PREFIXES = {"sequence": "transformer."}
IGNORED = (
  r"^(transformer\.)?(encoder|decoder)\.embed_tokens\.weight$",  # shared.weight once more
  # Never used: cross-attention has no positions.
  r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$",
  r"^lm_head\.",  # another head (the table's own names come first)
  r"^(classification_head|qa_outputs|classifier)\.",
)
TIED = (
  ("lm_head.weight", "shared.weight"),
  ("encoder.embed_tokens.weight", "shared.weight", True),
  ("decoder.embed_tokens.weight", "shared.weight", True),
)
KNOWN = {
  "relative_attention_num_buckets",
  "relative_attention_max_distance",
  "layer_norm_epsilon",
  "scale_decoder_outputs",
  "is_gated_act",
  "scalable_attention",  # of UMT5; nothing reads it
}
UNLIMITED = 1 << 20  # tokens: the last bucket holds all that is far away


def classes(name):
  """{kind: class} of transformers."""
  return {
    "none": f"{name}Model",
    "lm": f"{name}ForConditionalGeneration",
    "sequence": f"{name}ForSequenceClassification",
    "span": f"{name}ForQuestionAnswering",
  }


def tied(config, absent):
  """Whether the token table is the projection to the vocabulary too, which then scales.

  transformers 5 writes that it ties although it does not, and beside it in
  `scale_decoder_outputs` what the file had said. absent: what no tie_word_embeddings means.
  """
  said = families.field(config, "tie_word_embeddings", bool, absent)
  scaled = families.field(config, "scale_decoder_outputs", bool, said)
  if scaled and not said:
    raise JaxsftError(
      "config.json: tie_word_embeddings is false and scale_decoder_outputs true, which "
      "transformers 4 and 5 read as different models: remove the one that is wrong"
    )
  return scaled


def activation(config, absent=families.REQUIRED):
  """(activation, whether the MLP is gated) of feed_forward_proj: "relu", "gated-gelu" …"""
  name = families.field(config, "feed_forward_proj", str, absent)
  gated, act = name.startswith("gated-"), name.removeprefix("gated-")
  act = "gelu_new" if name == "gated-gelu" else act
  said = (config.get("dense_act_fn", act), config.get("is_gated_act", gated))
  if act not in layers.ACTIVATIONS or said != (act, gated):
    raise JaxsftError(
      f"config.json: feed_forward_proj is {name!r} beside dense_act_fn and is_gated_act "
      f"{said}; expected one of {list(layers.ACTIVATIONS)}, or gated-… of one, and the same "
      "in all three"
    )
  return act, gated


def architecture(config, *, is_tied, act, per_layer):
  """EncoderDecoderConfig. act: of `activation`. per_layer: see relative.Relative."""
  get = lambda name, kind, *absent: families.field(config, name, kind, *absent)
  families.refuse_unknown(config, KNOWN)
  families.demand(config, "is_decoder", (False,), False)
  width, num_layers, mlp = get("d_model", int), get("num_layers", int), get("d_ff", int)
  count, dim = get("num_heads", int), get("d_kv", int)
  heads = attention_layer.plain_heads(count, dim, bias=False, scale=1.0)
  buckets = get("relative_attention_num_buckets", int)
  far = get("relative_attention_max_distance", int, 128)  # younger than the format
  if buckets < 4 or far <= buckets // 2:
    raise JaxsftError(
      f"config.json: {buckets} relative_attention_num_buckets up to the distance {far} "
      "(relative_attention_max_distance), expected at least 4 and a distance of more than "
      "half of them"
    )
  dropout = get("dropout_rate", float)
  stack = lambda count: encoder_decoder.Stack(count, heads, mlp)
  return encoder_decoder.EncoderDecoderConfig(
    vocab=get("vocab_size", int),
    source_vocab=None,
    width=width,
    encoder=stack(num_layers),
    decoder=stack(get("num_decoder_layers", int, num_layers)),
    max_positions=UNLIMITED,
    positions="relative",
    relative=relative.Relative(buckets, far, per_layer),
    position_offset=0,
    embed_scale=1.0,
    embed_norm=False,
    norm=layers.Norm("rms", get("layer_norm_epsilon", float), bias=False, offset=0.0),
    placement="before",
    final_norm=True,
    activation=act[0],
    gated=act[1],
    mlp_bias=False,
    logit_scale=width**-0.5 if is_tied else 1.0,
    logits_bias=False,
    tied=is_tied,
    frozen_token=None,
    decoder_start=start(config),
    dropout=dropout,
    attention_dropout=dropout,
    mlp_dropout=dropout,
    final_dropout=dropout,
    head_dropout=get("classifier_dropout", float, 0.0),
    std=get("initializer_factor", float) * width**-0.5,
  )


def start(config):
  """decoder_start_token_id; where it is not written, T5 starts with the padding token."""
  names = ("decoder_start_token_id", "pad_token_id")
  found = next((config[n] for n in names if config.get(n) is not None), None)
  if not isinstance(found, int):
    raise JaxsftError(
      f"config.json: decoder_start_token_id is {found!r}, expected the id of the token that "
      "every target begins with: add it"
    )
  return found


def head_fields(arch, kind):
  """How the heads read the decoder's hidden states."""
  if kind != "sequence":
    return {"pool": "last", "bias": kind != "lm"}
  dropout = arch.head_dropout
  return {"pool": "last", "dropout_in": dropout, "dense": "tanh", "dropout": dropout}


# --- names -----------------------------------------------------------------------------


def names(arch, head, own):
  """The name table. own: the family's CLASSES."""
  base = [
    ("shared.weight", "embed/tokens/embedding"),
    *_stack(arch, "encoder", ("SelfAttention", "DenseReluDense")),
    *_stack(arch, "decoder", ("SelfAttention", "EncDecAttention", "DenseReluDense")),
  ]
  table = [Name(hf, path, "base") for hf, path in base]
  if head.kind == "lm":
    return table + ([] if arch.tied else [Name("lm_head.weight", "lm_head/kernel", "head")])
  return table + head_names(head, own)


def head_names(head, own):
  """Names of the heads that T5 and BART call alike; our own where there is no class."""
  if head.kind == "none":
    return []
  last = {"sequence": "classification_head.out_proj", "span": "qa_outputs", "token": "head"}
  modules = [("classification_head.dense", "dense")] if head.dense else []
  modules.append((last[head.kind], "head"))
  if head.kind not in own:
    modules = [(path, path) for _, path in modules]
  return [
    Name(f"{hf}.{end}", f"{path}/{leaf}", "head")
    for hf, path in modules
    for end, leaf in (("weight", "kernel"), ("bias", "bias"))
  ]


def _stack(arch, name, parts):
  table = [(f"{name}.final_layer_norm.weight", f"{name}/norm/scale")]
  paths = {"SelfAttention": "attn", "EncDecAttention": "cross", "DenseReluDense": "mlp"}
  mlp = {"wi_0": "gate", "wi_1": "up"} if arch.gated else {"wi": "up"}
  for place, part in enumerate(parts):
    hf, path = f"{name}.block.{{i}}.layer.{place}", f"{name}/layers/{paths[part]}"
    inner = (
      mlp | {"wo": "down"}
      if part == "DenseReluDense"
      else dict(zip("qkvo", "qkvo", strict=True))
    )
    table += [(f"{hf}.{part}.{k}.weight", f"{path}/{v}/kernel") for k, v in inner.items()]
    table.append((f"{hf}.layer_norm.weight", f"{path}_norm/scale"))
  bias = "layer.0.SelfAttention.relative_attention_bias.weight"
  if arch.relative.per_layer:
    return [*table, (f"{name}.block.{{i}}.{bias}", f"{name}/layers/relative/embedding")]
  return [*table, (f"{name}.block.0.{bias}", f"{name}/relative/embedding")]


# --- export ----------------------------------------------------------------------------


def export_config(config, arch, head, labels, dtype, own, **more):
  """config.json of the exported model, for transformers 4 and 5.

  config: the one it was loaded with. labels: names in id order, () for a regression. own:
  the family's CLASSES. more: keys of the family. Every key is written that a default of
  transformers could fill.
  """
  gated = "gated-" if arch.gated else ""
  name = "gelu" if (gated, arch.activation) == ("gated-", "gelu_new") else arch.activation
  return {
    **families.with_labels(config, head, labels),
    **families.class_of(own, head.kind),
    "is_encoder_decoder": True,
    "num_decoder_layers": arch.decoder.layers,
    "relative_attention_max_distance": arch.relative.max_distance,
    "feed_forward_proj": gated + name,
    "dense_act_fn": arch.activation,
    "is_gated_act": arch.gated,
    "decoder_start_token_id": arch.decoder_start,
    "classifier_dropout": arch.head_dropout,
    "tie_word_embeddings": arch.tied,
    "torch_dtype": dtype,
    "dtype": dtype,
    **more,
  }
