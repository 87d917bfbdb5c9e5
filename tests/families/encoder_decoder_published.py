"""config.json of well-known checkpoints, as published (task settings and labels left out)."""

T5_SMALL = {
  "architectures": ["T5ForConditionalGeneration"],
  "d_ff": 2048,
  "d_kv": 64,
  "d_model": 512,
  "decoder_start_token_id": 0,
  "dropout_rate": 0.1,
  "eos_token_id": 1,
  "initializer_factor": 1.0,
  "is_encoder_decoder": True,
  "layer_norm_epsilon": 1e-06,
  "model_type": "t5",
  "n_positions": 512,
  "num_heads": 8,
  "num_layers": 6,
  "output_past": True,
  "pad_token_id": 0,
  "relative_attention_num_buckets": 32,
  "vocab_size": 32128,
}
FLAN_T5_BASE = T5_SMALL | {
  "d_model": 768,
  "feed_forward_proj": "gated-gelu",
  "dense_act_fn": "gelu_new",
  "is_gated_act": True,
  "num_decoder_layers": 12,
  "num_heads": 12,
  "num_layers": 12,
  "relative_attention_max_distance": 128,
  "tie_word_embeddings": False,
  "torch_dtype": "float32",
  "transformers_version": "4.23.1",
  "use_cache": True,
}
MT5_SMALL = {
  "architectures": ["MT5ForConditionalGeneration"],
  "d_ff": 1024,
  "d_kv": 64,
  "d_model": 512,
  "decoder_start_token_id": 0,
  "dropout_rate": 0.1,
  "eos_token_id": 1,
  "feed_forward_proj": "gated-gelu",
  "initializer_factor": 1.0,
  "is_encoder_decoder": True,
  "layer_norm_epsilon": 1e-06,
  "model_type": "mt5",
  "num_decoder_layers": 8,
  "num_heads": 6,
  "num_layers": 8,
  "pad_token_id": 0,
  "relative_attention_num_buckets": 32,
  "tie_word_embeddings": False,
  "tokenizer_class": "T5Tokenizer",
  "vocab_size": 250112,
}
UMT5_SMALL = MT5_SMALL | {
  "architectures": ["UMT5ForConditionalGeneration"],
  "classifier_dropout": 0.0,
  "dense_act_fn": "gelu_new",
  "is_gated_act": True,
  "model_type": "umt5",
  "relative_attention_max_distance": 128,
  "scalable_attention": True,
  "transformers_version": "4.31.0.dev0",
  "vocab_size": 256384,
}
BART_BASE = {
  "activation_dropout": 0.1,
  "activation_function": "gelu",
  "add_bias_logits": False,
  "add_final_layer_norm": False,
  "architectures": ["BartModel"],
  "attention_dropout": 0.1,
  "bos_token_id": 0,
  "classif_dropout": 0.1,
  "classifier_dropout": 0.0,
  "d_model": 768,
  "decoder_attention_heads": 12,
  "decoder_ffn_dim": 3072,
  "decoder_layerdrop": 0.0,
  "decoder_layers": 6,
  "decoder_start_token_id": 2,
  "dropout": 0.1,
  "early_stopping": True,
  "encoder_attention_heads": 12,
  "encoder_ffn_dim": 3072,
  "encoder_layerdrop": 0.0,
  "encoder_layers": 6,
  "eos_token_id": 2,
  "forced_eos_token_id": 2,
  "forced_bos_token_id": 0,
  "gradient_checkpointing": False,
  "init_std": 0.02,
  "is_encoder_decoder": True,
  "max_position_embeddings": 1024,
  "model_type": "bart",
  "no_repeat_ngram_size": 3,
  "normalize_before": False,
  "normalize_embedding": True,
  "num_beams": 4,
  "num_hidden_layers": 6,
  "pad_token_id": 1,
  "scale_embedding": False,
  "use_cache": True,
  "vocab_size": 50265,
}
LARGE = {
  f"{stack}_{name}": value
  for stack in ("encoder", "decoder")
  for name, value in (("layers", 12), ("ffn_dim", 4096), ("attention_heads", 16))
} | {"d_model": 1024, "num_hidden_layers": 12}
BART_LARGE_CNN = (
  BART_BASE
  | LARGE
  | {
    "_num_labels": 3,
    "architectures": ["BartForConditionalGeneration"],
    "force_bos_token_to_be_generated": True,
    "output_past": True,
    "prefix": " ",
    "vocab_size": 50264,
  }
)
BART_LARGE_MNLI = (
  BART_BASE
  | LARGE
  | {
    "architectures": ["BartForSequenceClassification"],
    "id2label": {"0": "contradiction", "1": "neutral", "2": "entailment"},
    "label2id": {"contradiction": 0, "entailment": 2, "neutral": 1},
  }
)
MBART_EN_RO = (
  BART_BASE
  | LARGE
  | {
    "activation_function": "gelu",
    "add_final_layer_norm": True,
    "architectures": ["MBartForConditionalGeneration"],
    "decoder_start_token_id": 250020,
    "model_type": "mbart",
    "normalize_before": True,
    "scale_embedding": True,
    "static_position_embeddings": False,
    "vocab_size": 250027,
  }
)
MBART_50 = MBART_EN_RO | {
  "activation_function": "relu",
  "decoder_start_token_id": 2,
  "tokenizer_class": "MBart50Tokenizer",
  "vocab_size": 250054,
}
MARIAN_EN_DE = BART_BASE | {
  "activation_dropout": 0.0,
  "activation_function": "swish",
  "architectures": ["MarianMTModel"],
  "attention_dropout": 0.0,
  "bad_words_ids": [[58100]],
  "d_model": 512,
  "decoder_attention_heads": 8,
  "decoder_ffn_dim": 2048,
  "decoder_start_token_id": 58100,
  "decoder_vocab_size": 58101,
  "encoder_attention_heads": 8,
  "encoder_ffn_dim": 2048,
  "eos_token_id": 0,
  "forced_eos_token_id": 0,
  "max_position_embeddings": 512,
  "model_type": "marian",
  "normalize_embedding": False,
  "num_beams": 6,
  "pad_token_id": 58100,
  "scale_embedding": True,
  "share_encoder_decoder_embeddings": True,
  "static_position_embeddings": True,
  "vocab_size": 58101,
}
PEGASUS_XSUM = (
  BART_BASE
  | LARGE
  | {
    "activation_function": "relu",
    "add_final_layer_norm": True,
    "architectures": ["PegasusForConditionalGeneration"],
    "decoder_layers": 16,
    "decoder_start_token_id": 0,
    "encoder_layers": 16,
    "eos_token_id": 1,
    "extra_pos_embeddings": 1,
    "force_bos_token_to_be_generated": False,
    "forced_eos_token_id": 1,
    "length_penalty": 0.6,
    "max_position_embeddings": 512,
    "model_type": "pegasus",
    "num_hidden_layers": 16,
    "normalize_before": True,
    "normalize_embedding": False,
    "pad_token_id": 0,
    "scale_embedding": True,
    "static_position_embeddings": True,
    "vocab_size": 96103,
  }
)
PUBLISHED = {
  "t5-small": T5_SMALL,
  "flan-t5-base": FLAN_T5_BASE,
  "mt5-small": MT5_SMALL,
  "umt5-small": UMT5_SMALL,
  "bart-base": BART_BASE,
  "bart-large-cnn": BART_LARGE_CNN,
  "bart-large-mnli": BART_LARGE_MNLI,
  "mbart-large-en-ro": MBART_EN_RO,
  "mbart-large-50-many-to-many-mmt": MBART_50,
  "opus-mt-en-de": MARIAN_EN_DE,
  "pegasus-xsum": PEGASUS_XSUM,
}
