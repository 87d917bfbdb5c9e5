"""Tiny torch models with random weights, and the same weights as our parameter trees."""

import numpy as np

from jaxsft import families, models

BERT = {
  "vocab_size": 61,
  "hidden_size": 24,
  "num_hidden_layers": 3,
  "num_attention_heads": 3,
  "intermediate_size": 40,
  "hidden_act": "gelu",
  "hidden_dropout_prob": 0.1,
  "attention_probs_dropout_prob": 0.2,
  "max_position_embeddings": 48,
  "type_vocab_size": 2,
  "layer_norm_eps": 1e-3,  # large enough that a wrong one shows
  "initializer_range": 0.3,
  "pad_token_id": 0,
}
LLAMA = {
  "vocab_size": 67,
  "hidden_size": 24,
  "num_hidden_layers": 3,
  "num_attention_heads": 6,
  "num_key_value_heads": 2,
  "head_dim": 8,  # 6 x 8 is not 24
  "intermediate_size": 44,
  "hidden_act": "silu",
  "max_position_embeddings": 16384,
  "rms_norm_eps": 1e-3,
  "initializer_range": 0.3,
  "tie_word_embeddings": True,
  "attention_bias": False,
  "mlp_bias": False,
  "attention_dropout": 0.0,
  "pad_token_id": 0,
  "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
}
LLAMA3 = {
  "rope_type": "llama3",
  "rope_theta": 500.0,
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 64,
}


def make(torch, family, kind, labels=3, **changes):
  """(torch model, network, params, family module, config): tiny, random, eval mode."""
  import transformers

  module = families.FAMILIES[family]
  base = {"bert": BERT, "llama": LLAMA}[family]
  config_class = {"bert": "BertConfig", "llama": "LlamaConfig"}[family]
  config = getattr(transformers, config_class)(**{**base, **changes}, num_labels=labels)
  torch.manual_seed(0)
  model = getattr(transformers, module.CLASSES[kind])._from_config(
    config, attn_implementation="eager"
  )
  with torch.no_grad():
    for name, tensor in model.named_parameters():
      if "norm" in name.lower() or name.endswith("bias"):  # torch makes them 1 and 0
        tensor.add_(0.3 * torch.randn_like(tensor))
  ours = {**config.to_dict(), "model_type": family}
  arch = module.architecture(ours)
  head = families.head_of(module, arch, kind, labels if kind != "lm" else 0)
  network = models.Network(arch, head)
  return model.eval(), network, load(model.state_dict(), module, network), module, ours


def load(tensors, module, network):
  """Our tree from a torch state_dict, by the family's table; every tensor must be used."""
  table = module.names(network.arch, network.head)
  tensors = {name: tensor.detach().float().numpy() for name, tensor in tensors.items()}
  params, used = {}, set()
  prefixed = any(name.startswith(module.BASE_PREFIX) for name in tensors)
  for hf, path, part, _ in table:
    full = (module.BASE_PREFIX if part != "head" and prefixed else "") + hf
    stack = [full.replace("{i}", str(i)) for i in range(network.arch.layers)]
    used |= set(stack)
    leaf = np.stack([tensors[n] for n in stack]) if "{i}" in hf else tensors[full]
    node = params
    *parents, last = path.split("/")
    for key in parents:
      node = node.setdefault(key, {})
    node[last] = leaf
  rest = set(tensors) - used
  rest -= {"lm_head.weight"} if network.tied else set()
  assert not rest, rest
  return params


def gradients(model, module, network):
  """The torch gradients as our tree."""
  named = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
  return load(named, module, network)


def store(params, model, network, family):
  """Writes our tree into a torch model, by the same table."""
  import torch

  module, tensors = families.FAMILIES[family], dict(model.named_parameters())
  for hf, path, part, _ in module.names(network.arch, network.head):
    leaf = params
    for key in path.split("/"):
      leaf = leaf[key]
    full = (module.BASE_PREFIX if part != "head" else "") + hf
    layers = range(len(leaf)) if "{i}" in hf else (None,)
    for i in layers:
      value = leaf if i is None else leaf[i]
      with torch.no_grad():
        tensors[full.replace("{i}", str(i))].copy_(torch.tensor(np.asarray(value)))
