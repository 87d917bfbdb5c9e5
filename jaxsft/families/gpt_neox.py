"""GPT-NeoX (arXiv:2204.06745) and Pythia: parallel branches, partly turned heads, fused qkv."""

from jaxsft import families
from jaxsft.families import llama_layout
from jaxsft.families import rope as ropes
from jaxsft.models import attention_layer, decoder, layers

BASE_PREFIX = "gpt_neox."
IGNORED = (
  r"^(lm_head|embed_out)\.",  # where the task has another head
  r"^(score|classifier|qa_outputs)\.",  # another head
  r"\.attention\.(bias|masked_bias)$",  # buffers, the causal mask
  r"rotary_emb\.inv_freq$",  # a buffer, computed from the config
)
TIED = (("embed_out.weight", "embed_in.weight"), ("lm_head.weight", "embed_in.weight"))
KNOWN = {
  "hidden_act",
  "num_attention_heads",
  "attention_bias",
  "attention_dropout",
  "layer_norm_eps",
  "rotary_pct",
  "rotary_emb_base",
  "rope_theta",
  "rope_scaling",
  "rope_parameters",
  "partial_rotary_factor",
}
CLASSES = llama_layout.classes("GPTNeoX")
FRACTION, BASE = 0.25, 10000.0  # where config.json says neither rotary_pct nor rope_parameters

head_fields = llama_layout.head_fields


def architecture(config):
  """DecoderConfig of a GPT-NeoX config.json (a dict); raises like llama.architecture."""
  get = lambda name, kind, *absent: families.field(config, name, kind, *absent)
  families.refuse_unknown(config, KNOWN)
  families.demand(config, "hidden_act", layers.ACTIVATIONS)
  width, heads = get("hidden_size", int), get("num_attention_heads", int)
  dim = families.head_dim(width, heads)
  count, bias = get("num_hidden_layers", int), get("attention_bias", bool, True)
  parallel = get("use_parallel_residual", bool)
  dropout = get("hidden_dropout", float, 0.0)
  return decoder.DecoderConfig(
    vocab=get("vocab_size", int),
    width=width,
    layers=count,
    heads=attention_layer.plain_heads(heads, dim, bias),
    mlp=get("intermediate_size", int),
    experts=None,
    max_positions=get("max_position_embeddings", int),
    activation=get("hidden_act", str),
    gated=False,
    mlp_bias=True,
    norm=layers.Norm("layer", get("layer_norm_eps", float), bias=True, offset=0.0),
    placement="parallel" if parallel else "before",
    final_norm=True,
    ropes=(_rope(config, width // heads),),
    kinds=llama_layout.windows(count, None, ()),
    position_rows=0,
    position_offset=0,
    embed_width=width,
    embed_scale=1.0,
    residual_scale=1.0,
    logit_scale=1.0,
    softcap=None,
    tied=get("tie_word_embeddings", bool),
    embed_dropout=dropout,
    dropout=dropout,
    attention_dropout=get("attention_dropout", float, 0.0),
    head_dropout=get("classifier_dropout", float, 0.1),
    std=get("initializer_range", float),
  )


def _rope(config, head_dim):
  """rotary_emb_base and rotary_pct are the old names of rope_theta and of the fraction."""
  config = dict(config)
  base, fraction = config.get("rotary_emb_base"), config.get("rotary_pct")
  if base is not None and config.get("rope_theta") is None:
    config["rope_theta"] = base
  if fraction is not None and config.get("partial_rotary_factor") is None:
    config["partial_rotary_factor"] = fraction
  return ropes.read(config, head_dim)


def names(arch, head):
  """The name table of the decoder and its head."""
  layer, H, N = "layers.{i}", arch.heads.dim, arch.heads.count
  linear, norm = llama_layout.linear, llama_layout.norm
  table = [families.Name("embed_in.weight", "embed/tokens/embedding", "base")]
  for i, one in enumerate("qkv"):  # of one head after another
    view = families.View(i * H, (i + 1) * H, 3 * H, groups=N)
    hf = f"{layer}.attention.query_key_value"
    table += linear(hf, f"layers/attn/{one}", arch.heads.bias, view)
  table += linear(f"{layer}.attention.dense", "layers/attn/o", arch.heads.out_bias)
  table += linear(f"{layer}.mlp.dense_h_to_4h", "layers/mlp/up", True)
  table += linear(f"{layer}.mlp.dense_4h_to_h", "layers/mlp/down", True)
  table += norm(f"{layer}.input_layernorm", "layers/attn_norm", arch.norm)
  table += norm(f"{layer}.post_attention_layernorm", "layers/mlp_norm", arch.norm)
  table += norm("final_layer_norm", "norm", arch.norm)
  own = llama_layout.head_names(arch, head, CLASSES, token="classifier")
  return table + [name._replace(hf=name.hf.replace("lm_head", "embed_out")) for name in own]


def export_config(config, arch, head, labels, dtype="float32"):
  """config.json of the exported model; see llama_layout.export_config."""
  rope, dim = arch.ropes[0], arch.heads.dim
  fraction = rope.dim / dim
  keys = ropes.write(rope, dim)
  keys["rope_parameters"]["partial_rotary_factor"] = fraction
  return {
    **families.with_labels(config, head, labels),
    **families.class_of(CLASSES, head.kind),
    **keys,
    "model_type": "gpt_neox",
    "rotary_emb_base": rope.theta,
    "rotary_pct": fraction,
    "partial_rotary_factor": fraction,
    "attention_bias": arch.heads.bias,
    "attention_dropout": arch.attention_dropout,
    "hidden_dropout": arch.dropout,
    "classifier_dropout": arch.head_dropout,
    "tie_word_embeddings": arch.tied,
    "torch_dtype": dtype,
    "dtype": dtype,
  }
