"""Tiny configs of every encoder-decoder family: unequal sizes, every special feature on.

Distances beyond 9 share T5's last bucket; rows of a source are 17 tokens long.
"""

T5 = {
  "vocab_size": 61,
  "d_model": 24,
  "d_kv": 10,  # 3 x 10 is not 24
  "d_ff": 44,
  "num_layers": 3,
  "num_decoder_layers": 2,
  "num_heads": 3,
  "relative_attention_num_buckets": 8,
  "relative_attention_max_distance": 9,
  "dropout_rate": 0.1,
  "classifier_dropout": 0.1,
  "layer_norm_epsilon": 1e-3,  # large enough that a wrong one shows
  "initializer_factor": 1.0,
  "feed_forward_proj": "gated-gelu",
  "tie_word_embeddings": False,
  "pad_token_id": 0,
  "eos_token_id": 1,
  "decoder_start_token_id": 0,
}

BART = {
  "vocab_size": 61,
  "d_model": 24,
  "encoder_layers": 3,
  "encoder_attention_heads": 3,
  "encoder_ffn_dim": 40,
  "decoder_layers": 2,
  "decoder_attention_heads": 4,
  "decoder_ffn_dim": 52,
  "max_position_embeddings": 20,
  "activation_function": "gelu",
  "scale_embedding": True,
  "dropout": 0.1,
  "attention_dropout": 0.1,
  "activation_dropout": 0.1,
  "classifier_dropout": 0.1,
  "init_std": 0.3,
  "tie_word_embeddings": True,
  "bos_token_id": 0,
  "pad_token_id": 1,
  "eos_token_id": 2,
  "decoder_start_token_id": 2,
}
START_IS_PAD = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
MARIAN = {**BART, **START_IS_PAD, "activation_function": "silu"}

CONFIGS = {  # case -> (name of the config's class, fields)
  "t5": ("T5Config", {**T5, "feed_forward_proj": "relu", "tie_word_embeddings": True}),
  "t5-v1.1": ("T5Config", T5),
  "mt5": ("MT5Config", {**T5, "feed_forward_proj": "gated-silu"}),
  "umt5": ("UMT5Config", T5),
  "bart": ("BartConfig", BART),
  "mbart": ("MBartConfig", {**BART, "activation_function": "relu"}),
  "marian": ("MarianConfig", MARIAN),
  "marian-separate": (
    "MarianConfig",
    {**MARIAN, "share_encoder_decoder_embeddings": False, "decoder_vocab_size": 53},
  ),
  "pegasus": ("PegasusConfig", {**BART, **START_IS_PAD, "activation_function": "relu"}),
}


def family_of(case):
  """The model_type of a case, which may have a suffix: "t5-v1.1" is of "t5"."""
  return case.split("-")[0]


def config_of(case, **changes):
  """A config object of transformers."""
  import transformers

  name, fields = CONFIGS[case]
  return getattr(transformers, name)(**fields | changes)
