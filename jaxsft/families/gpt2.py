"""GPT-2 as Hugging Face stores it: learned positions, transposed and fused projections."""

from jaxsft import families
from jaxsft.families import llama_layout
from jaxsft.models import attention_layer, decoder, layers

BASE_PREFIX = "transformer."
IGNORED = (
  r"^lm_head\.",  # where the task has another head (the table's own names come first)
  r"^(score|classifier|qa_outputs|multiple_choice_head)\.",  # another head
  r"\.attn\.(bias|masked_bias)$",  # buffers, the causal mask
)
TIED = (("lm_head.weight", "wte.weight"),)
KNOWN = {
  "add_cross_attention",
  "attn_pdrop",
  "activation_function",
  "layer_norm_epsilon",
  "n_head",
  "scale_attn_weights",
  "scale_attn_by_inverse_layer_idx",
  "reorder_and_upcast_attn",  # the order of operations, not what is computed
  "summary_activation",
}
CLASSES = {
  "none": "GPT2Model",
  "lm": "GPT2LMHeadModel",
  "sequence": "GPT2ForSequenceClassification",
  "token": "GPT2ForTokenClassification",
  "span": "GPT2ForQuestionAnswering",
}

head_fields = llama_layout.head_fields


def architecture(config):
  """DecoderConfig of a GPT-2 config.json (a dict); raises like llama.architecture."""
  get = lambda name, kind, *absent: families.field(config, name, kind, *absent)
  families.refuse_unknown(config, KNOWN)
  families.demand(config, "add_cross_attention", (False,), False)
  families.demand(config, "activation_function", layers.ACTIVATIONS)
  width, heads, count = get("n_embd", int), get("n_head", int), get("n_layer", int)
  dim = families.head_dim(width, heads, ("n_embd", "n_head"))
  scale = None if get("scale_attn_weights", bool, True) else 1.0
  kinds = (decoder.Kind(None, None, None),) * count
  if get("scale_attn_by_inverse_layer_idx", bool, False):
    scale = dim**-0.5 if scale is None else scale
    kinds = tuple(decoder.Kind(None, None, scale / (i + 1)) for i in range(count))
  return decoder.DecoderConfig(
    vocab=get("vocab_size", int),
    width=width,
    layers=count,
    heads=attention_layer.plain_heads(heads, dim, scale=None if kinds[0].scale else scale),
    mlp=get("n_inner", int, 4 * width),  # null: that
    experts=None,
    max_positions=get("n_positions", int),
    activation=get("activation_function", str),
    gated=False,
    mlp_bias=True,
    norm=layers.Norm("layer", get("layer_norm_epsilon", float), bias=True, offset=0.0),
    placement="before",
    final_norm=True,
    ropes=(),
    kinds=kinds,
    position_rows=get("n_positions", int),
    position_offset=0,
    embed_width=width,
    embed_scale=1.0,
    residual_scale=1.0,
    logit_scale=1.0,
    softcap=None,
    tied=get("tie_word_embeddings", bool, True),
    embed_dropout=get("embd_pdrop", float),
    dropout=get("resid_pdrop", float),
    attention_dropout=get("attn_pdrop", float),
    head_dropout=llama_layout.head_dropout(config),
    std=get("initializer_range", float),
  )


def names(arch, head):
  """The name table of the decoder and its head."""
  layer, D, F = "h.{i}", arch.width, arch.mlp
  linear, norm = llama_layout.linear, llama_layout.norm
  table = [
    families.Name("wte.weight", "embed/tokens/embedding", "base"),
    families.Name("wpe.weight", "embed/positions/embedding", "base"),
  ]
  for i, one in enumerate("qkv"):
    view = families.View(i * D, (i + 1) * D, 3 * D, transposed=True)
    table += linear(f"{layer}.attn.c_attn", f"layers/attn/{one}", True, view)
  for hf, path, rows in (
    ("attn.c_proj", "attn/o", D),
    ("mlp.c_fc", "mlp/up", F),
    ("mlp.c_proj", "mlp/down", D),
  ):
    view = families.View(0, rows, rows, transposed=True)
    table += linear(f"{layer}.{hf}", f"layers/{path}", True, view)
  table += norm(f"{layer}.ln_1", "layers/attn_norm", arch.norm)
  table += norm(f"{layer}.ln_2", "layers/mlp_norm", arch.norm)
  table += norm("ln_f", "norm", arch.norm)
  return table + llama_layout.head_names(arch, head, CLASSES, token="classifier")


def export_config(config, arch, head, labels, dtype="float32"):
  """config.json of the exported model; see llama_layout.export_config."""
  return {
    **families.with_labels(config, head, labels),
    **families.class_of(CLASSES, head.kind),
    "model_type": "gpt2",
    "n_inner": arch.mlp,
    "tie_word_embeddings": arch.tied,
    "torch_dtype": dtype,
    "dtype": dtype,
  }
