"""Tiny configs of every decoder family: unequal sizes, every special feature on.

Windows are 5 tokens and original rope lengths 8, so that rows of 14 tokens go beyond both.
"""

TOKENS = {"vocab_size": 61, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {
  **TOKENS,
  "hidden_size": 24,
  "num_hidden_layers": 3,
  "num_attention_heads": 6,
  "num_key_value_heads": 2,
  "head_dim": 8,  # 6 x 8 is not 24
  "intermediate_size": 44,
  "hidden_act": "silu",
  "max_position_embeddings": 16384,
  "rms_norm_eps": 1e-3,  # large enough that a wrong one shows
  "initializer_range": 0.3,
  "attention_dropout": 0.0,
  "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
}
GPT2 = {
  **TOKENS,
  "n_embd": 24,
  "n_head": 3,
  "n_layer": 3,
  "n_inner": 44,
  "n_positions": 40,
  "layer_norm_epsilon": 1e-3,
  "initializer_range": 0.3,
}
NEOX = {
  **TOKENS,
  "hidden_size": 24,
  "num_attention_heads": 2,
  "num_hidden_layers": 3,
  "intermediate_size": 44,
  "hidden_act": "gelu",
  "max_position_embeddings": 16384,
  "layer_norm_eps": 1e-3,
  "initializer_range": 0.3,
  "tie_word_embeddings": False,
}
OPT = {
  **TOKENS,
  "hidden_size": 24,
  "num_attention_heads": 3,
  "num_hidden_layers": 3,
  "ffn_dim": 44,
  "max_position_embeddings": 40,
  "init_std": 0.3,
}
OWN = {"GPT2Config": GPT2, "GPTNeoXConfig": NEOX, "OPTConfig": OPT}  # the others have SIZES
LLAMA3 = {
  "rope_type": "llama3",
  "rope_theta": 500.0,
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 8,
}
YARN = {
  "rope_type": "yarn",
  "rope_theta": 500.0,
  "factor": 4.0,
  "original_max_position_embeddings": 8,
}
FULL, SLIDING = "full_attention", "sliding_attention"

WINDOWED = {"sliding_window": 5, "use_sliding_window": True}
GEMMA = {
  "hidden_act": ...,
  "hidden_activation": "gelu_pytorch_tanh",
  "num_hidden_layers": 4,
  "query_pre_attn_scalar": 11,
  "sliding_window": 5,
  "final_logit_softcapping": 3.0,
}
LONGROPE = {
  "rope_type": "longrope",
  "rope_theta": 500.0,
  "short_factor": [1.0, 1.3, 1.1],
  "long_factor": [1.9, 3.0, 7.0],
  "partial_rotary_factor": 0.75,
  "original_max_position_embeddings": 12,
}
CONFIGS = {  # case -> (class of the config, changes of SIZES; "..." leaves a key out)
  "llama": (
    "LlamaConfig",
    {
      "attention_bias": True,
      "mlp_bias": True,
      "tie_word_embeddings": False,
      "rope_parameters": LLAMA3,
    },
  ),
  "llama-tied": ("LlamaConfig", {"tie_word_embeddings": True}),
  "mistral": ("MistralConfig", {"sliding_window": 5, "tie_word_embeddings": False}),
  "qwen2": (
    "Qwen2Config",
    {
      **WINDOWED,
      "max_window_layers": 1,
      "head_dim": ...,
      "hidden_size": 30,
      "num_attention_heads": 5,
      "num_key_value_heads": 1,
      "tie_word_embeddings": True,
      "rope_parameters": YARN,
    },
  ),
  "qwen3": (
    "Qwen3Config",
    {
      **WINDOWED,
      "attention_bias": True,
      "layer_types": [FULL, SLIDING, FULL],
      "tie_word_embeddings": False,
    },
  ),
  "gemma": ("GemmaConfig", {"hidden_act": "gelu_pytorch_tanh", "attention_bias": True}),
  "gemma2": ("Gemma2Config", {**GEMMA, "attn_logit_softcapping": 2.0}),
  "gemma3_text": (
    "Gemma3TextConfig",
    {
      **GEMMA,
      "layer_types": [SLIDING, SLIDING, FULL, SLIDING],
      "rope_parameters": {
        FULL: {"rope_type": "linear", "rope_theta": 900.0, "factor": 8.0},
        SLIDING: {"rope_type": "default", "rope_theta": 30.0},
      },
    },
  ),
  "gpt2": ("GPT2Config", {"scale_attn_by_inverse_layer_idx": True}),
  "gpt2-plain": ("GPT2Config", {"n_inner": None, "activation_function": "relu"}),
  "gpt_neox": (
    "GPTNeoXConfig",
    {
      "use_parallel_residual": True,
      "rope_parameters": {
        "rope_type": "linear",
        "factor": 2.0,
        "rope_theta": 500.0,
        "partial_rotary_factor": 0.34,
      },
    },
  ),
  "gpt_neox-sequential": (
    "GPTNeoXConfig",
    {
      "attention_bias": False,
      "use_parallel_residual": False,
      "rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 0.5},
    },
  ),
  "opt": ("OPTConfig", {"do_layer_norm_before": True}),
  "opt-350m": (
    "OPTConfig",
    {
      "word_embed_proj_dim": 20,
      "do_layer_norm_before": False,
      "activation_function": "gelu",
      "tie_word_embeddings": False,
    },
  ),
  "phi3": (
    "Phi3Config",
    {
      "hidden_size": 48,
      "max_position_embeddings": 96,
      "initializer_range": 0.2,
      "tie_word_embeddings": False,
      "sliding_window": 5,
      "original_max_position_embeddings": 12,
      "rope_parameters": LONGROPE,
    },
  ),
  "smollm3": (
    "SmolLM3Config",
    {
      **WINDOWED,
      "num_hidden_layers": 5,
      "no_rope_layers": [1, 0, 1, 0, 1],
      "attention_bias": True,
      "mlp_bias": True,
    },
  ),
  "olmo2": ("Olmo2Config", {"attention_bias": True, "tie_word_embeddings": False}),
  "granite": (
    "GraniteConfig",
    {
      "attention_bias": True,
      "mlp_bias": True,
      "embedding_multiplier": 3.0,
      "attention_multiplier": 0.3,
      "residual_multiplier": 0.7,
      "logits_scaling": 2.5,
      "tie_word_embeddings": True,
    },
  ),
  "glm4": (
    "Glm4Config",
    {
      "attention_bias": True,
      "tie_word_embeddings": False,
      "rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 0.5},
    },
  ),
  "mixtral": (
    "MixtralConfig",
    {
      "sliding_window": 5,
      "num_local_experts": 5,
      "num_experts_per_tok": 2,
      "tie_word_embeddings": False,
    },
  ),
  "qwen3_moe": (
    "Qwen3MoeConfig",
    {
      **WINDOWED,
      "num_experts": 7,
      "num_experts_per_tok": 3,
      "moe_intermediate_size": 20,
      "norm_topk_prob": False,
      "attention_bias": True,
      "tie_word_embeddings": False,
    },
  ),
  "qwen3_moe-normalised": (
    "Qwen3MoeConfig",
    {
      "num_experts": 4,
      "num_experts_per_tok": 2,
      "moe_intermediate_size": 20,
      "norm_topk_prob": True,
      "tie_word_embeddings": True,
    },
  ),
}
SHORT = dict.fromkeys(["gpt2", "gpt2-plain", "opt", "opt-350m"], 20)
FAR = {
  **SHORT,
  "phi3": 70,
}  # case -> what is added to positions, where 8200 is more than the model has


def family_of(case):
  """The model_type of a case, which may have a suffix: "opt-350m" is of "opt"."""
  return case.split("-")[0]


def config_of(case, **changes):
  """A config object of transformers."""
  import transformers

  name, own = CONFIGS[case]
  fields = {**OWN.get(name, SIZES), **own, **changes}
  fields = {k: v for k, v in fields.items() if v is not ...}
  return getattr(transformers, name)(**fields)
