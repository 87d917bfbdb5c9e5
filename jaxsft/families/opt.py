"""OPT (arXiv:2205.01068): learned positions from row 2 on; the 350M projects its narrower
token vectors in and out, and its norms follow the residuals."""

from jaxsft import families
from jaxsft.families import llama_layout
from jaxsft.models import attention_layer, decoder, layers

BASE_PREFIX = "model."
IGNORED = llama_layout.IGNORED
TIED = (("lm_head.weight", "decoder.embed_tokens.weight"),)
KNOWN = {
  "activation_function",
  "attention_dropout",
  "num_attention_heads",
  "do_layer_norm_before",
  "_remove_final_layer_norm",
  "layer_norm_elementwise_affine",
  "enable_bias",
}
CLASSES = llama_layout.classes("OPT", ("sequence", "span"))
OFFSET = 2  # row of position 0
EPS = 1e-5  # torch's, of all its norms: config.json has no key for it

head_fields = llama_layout.head_fields


def architecture(config):
  """DecoderConfig of an OPT config.json (a dict); raises like llama.architecture."""
  get = lambda name, kind, *absent: families.field(config, name, kind, *absent)
  families.refuse_unknown(config, KNOWN)
  families.demand(config, "activation_function", layers.ACTIVATIONS)
  families.demand(config, "layer_norm_elementwise_affine", (True,), True)
  families.demand(config, "layerdrop", (0, 0.0), 0.0)
  width, heads = get("hidden_size", int), get("num_attention_heads", int)
  dim = families.head_dim(width, heads)
  bias, before = get("enable_bias", bool, True), get("do_layer_norm_before", bool)
  count, longest = get("num_hidden_layers", int), get("max_position_embeddings", int)
  return decoder.DecoderConfig(
    vocab=get("vocab_size", int),
    width=width,
    layers=count,
    heads=attention_layer.plain_heads(heads, dim, bias),
    mlp=get("ffn_dim", int),
    experts=None,
    max_positions=longest,
    activation=get("activation_function", str),
    gated=False,
    mlp_bias=bias,
    norm=layers.Norm("layer", EPS, bias=True, offset=0.0),
    placement="before" if before else "residual",
    final_norm=before and not get("_remove_final_layer_norm", bool, False),
    ropes=(),
    kinds=(decoder.Kind(None, None, None),) * count,
    position_rows=longest + OFFSET,
    position_offset=OFFSET,
    embed_width=get("word_embed_proj_dim", int, width),  # null: that
    embed_scale=1.0,
    residual_scale=1.0,
    logit_scale=1.0,
    softcap=None,
    tied=get("tie_word_embeddings", bool, True),
    embed_dropout=0.0,
    dropout=get("dropout", float),
    attention_dropout=get("attention_dropout", float),
    head_dropout=llama_layout.head_dropout(config),
    std=get("init_std", float),
  )


def names(arch, head):
  """The name table of the decoder and its head."""
  layer, bias = "decoder.layers.{i}", arch.heads.bias
  linear, norm = llama_layout.linear, llama_layout.norm
  table = [
    families.Name("decoder.embed_tokens.weight", "embed/tokens/embedding", "base"),
    families.Name("decoder.embed_positions.weight", "embed/positions/embedding", "base"),
  ]
  if arch.embed_width != arch.width:
    table += linear("decoder.project_in", "embed/project")
    table += linear("decoder.project_out", "project")
  for one in "qkv":
    table += linear(f"{layer}.self_attn.{one}_proj", f"layers/attn/{one}", bias)
  table += linear(f"{layer}.self_attn.out_proj", "layers/attn/o", bias)
  table += linear(f"{layer}.fc1", "layers/mlp/up", bias)
  table += linear(f"{layer}.fc2", "layers/mlp/down", bias)
  table += norm(f"{layer}.self_attn_layer_norm", "layers/attn_norm", arch.norm)
  table += norm(f"{layer}.final_layer_norm", "layers/mlp_norm", arch.norm)
  table += norm("decoder.final_layer_norm", "norm", arch.norm) if arch.final_norm else []
  return table + llama_layout.head_names(arch, head, CLASSES)


def export_config(config, arch, head, labels, dtype="float32"):
  """config.json of the exported model; see llama_layout.export_config."""
  return {
    **families.with_labels(config, head, labels),
    **families.class_of(CLASSES, head.kind),
    "model_type": "opt",
    "word_embed_proj_dim": arch.embed_width,
    "enable_bias": arch.heads.bias,
    "_remove_final_layer_norm": arch.placement == "before" and not arch.final_norm,
    "layer_norm_elementwise_affine": True,
    "layerdrop": 0.0,
    "tie_word_embeddings": arch.tied,
    "torch_dtype": dtype,
    "dtype": dtype,
  }
