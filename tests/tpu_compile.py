"""Compiles the real train step for TPU chips on a machine without one; run by test_tpu.py.

  python tests/tpu_compile.py MODEL TOPOLOGY DATA FSDP TENSOR EXPERT DTYPE

MODEL is one of MODELS. Prints a JSON object: bytes a chip needs, and what the program calls.
"""

import os

os.environ.update(
  JAX_PLATFORMS="cpu",
  TPU_SKIP_MDS_QUERY="1",
  TPU_WORKER_HOSTNAMES="localhost",
  TPU_ACCELERATOR_TYPE="v5litepod-8",
)

import json
import sys
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from jaxsft import config, families, job, models, sharding, step, tasks

BERT = {
  "model_type": "bert",
  "vocab_size": 30522,
  "hidden_size": 384,
  "num_hidden_layers": 6,
  "num_attention_heads": 12,
  "intermediate_size": 1536,
  "max_position_embeddings": 512,
  "type_vocab_size": 2,
  "layer_norm_eps": 1e-12,
  "hidden_act": "gelu",
  "hidden_dropout_prob": 0.1,
  "attention_probs_dropout_prob": 0.0,  # splash attention has no dropout
  "initializer_range": 0.02,
}
LLAMA = {
  "model_type": "llama",
  "vocab_size": 49152,
  "hidden_size": 576,
  "num_hidden_layers": 30,
  "num_attention_heads": 9,
  "num_key_value_heads": 3,
  "head_dim": 64,
  "intermediate_size": 1536,
  "max_position_embeddings": 8192,
  "rms_norm_eps": 1e-5,
  "hidden_act": "silu",
  "rope_theta": 1e5,
  "tie_word_embeddings": True,
  "initializer_range": 0.02,
}
DECODER = {
  "vocab_size": 32000,
  "hidden_size": 512,
  "num_hidden_layers": 4,
  "num_attention_heads": 8,
  "num_key_value_heads": 4,
  "head_dim": 128,
  "intermediate_size": 1024,
  "max_position_embeddings": 8192,
  "rms_norm_eps": 1e-6,
  "hidden_act": "silu",
  "rope_theta": 1e4,
  "attention_dropout": 0.0,
  "tie_word_embeddings": False,
  "initializer_range": 0.02,
}
GEMMA2 = {  # windows in every other layer, softcaps on scores and logits
  **DECODER,
  "model_type": "gemma2",
  "hidden_activation": "gelu_pytorch_tanh",
  "attention_bias": False,
  "query_pre_attn_scalar": 128,
  "sliding_window": 256,
  "attn_logit_softcapping": 50.0,
  "final_logit_softcapping": 30.0,
  "tie_word_embeddings": True,
}
MIXTRAL = {
  **DECODER,
  "model_type": "mixtral",
  "num_local_experts": 8,
  "num_experts_per_tok": 2,
  "router_aux_loss_coef": 0.02,
  "router_jitter_noise": 0.0,
  "sliding_window": None,
}
DEBERTA = {  # scores with biases: no kernel for them
  **BERT,
  "model_type": "deberta-v2",
  "type_vocab_size": 0,
  "relative_attention": True,
  "position_buckets": 256,
  "max_relative_positions": -1,
  "norm_rel_ebd": "layer_norm",
  "share_att_key": True,
  "pos_att_type": ["p2c", "c2p"],
  "position_biased_input": False,
  "pad_token_id": 0,
  "pooler_dropout": 0.0,
  "pooler_hidden_act": "gelu",
  "pooler_hidden_size": 384,
}
T5 = {  # scores with biases, and a source
  "model_type": "t5",
  "vocab_size": 32128,
  "d_model": 512,
  "d_kv": 64,
  "d_ff": 1024,
  "num_layers": 8,
  "num_heads": 6,
  "relative_attention_num_buckets": 32,
  "dropout_rate": 0.1,
  "layer_norm_epsilon": 1e-6,
  "initializer_factor": 1.0,
  "feed_forward_proj": "gated-gelu",
  "tie_word_embeddings": False,
  "pad_token_id": 0,
}
MODELS = {  # name -> (task, config.json)
  "bert": ("classify", BERT),
  "bert reader": ("answer", BERT),
  "llama": ("chat", LLAMA),
  "gemma2": ("chat", GEMMA2),
  "mixtral": ("chat", MIXTRAL),
  "deberta-v2": ("classify", DEBERTA),
  "t5": ("seq2seq", T5),
  "bert masked": ("masked_lm", BERT),
  "tagger": ("tag", BERT),
}


class Tokenizer:
  """What masked_lm asks of one."""

  mask_token_id, all_special_ids = 103, (0, 100, 101, 102, 103)

  def __len__(self):
    return BERT["vocab_size"]

  def get_vocab(self):
    return {str(i): i for i in range(len(self))}


# What a batch has beside inputs, positions and segments, and what the supervised ones have.
TOKENS = {"masked_lm": [], "chat": ["targets"], "tag": ["token_types", "targets"]}
TOKENS |= {task: ["token_types"] for task in ("answer", "classify")}
TOKENS |= {"seq2seq": ["targets", "source", "source_positions", "source_segments"]}
LABELS = {"answer": ("starts", "ends"), "classify": ("labels",)}


def main(model, topology, data, fsdp, tensor, expert, dtype):
  # A v4 chip runs as one device, as it does unless told otherwise; here it must be told so.
  more = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
  found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **more)
  sizes = (int(data), int(fsdp), int(tensor), 1, int(expert))
  mesh = sharding.make_mesh(*sizes, devices=found.devices)
  task, raw = MODELS[model]
  family = families.FAMILIES[raw["model_type"]]
  arch = family.architecture(raw)
  head = families.head_of(family, arch, tasks.TASKS[task].HEAD, 2)
  network = models.Network(arch, head, dtype=dtype, remat="dots")
  settings = config.Config(task=task)
  chosen = job.choose(settings, network)
  rule = job.make_rule(settings, network, chosen, 100)
  context = tasks.Context(Tokenizer(), 512, labels=("a", "b"))
  options = tasks.options_of(tasks.TASKS[task], settings.loss, context)
  compiled = job.make_train_step(settings, tasks.TASKS[task], options, network, rule)
  shapes = jax.eval_shape(partial(step.init_state, rule=rule), network.shapes(), {})

  def place(leaf, where):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

  state = jax.tree.map(place, shapes, sharding.shardings_for(shapes, mesh))
  rows = 4 * sharding.row_shards(mesh)
  token, value = ((1, rows, n) for n in (512, 8))
  names = ["inputs", "positions", "segments", *TOKENS[task]]
  batch = {name: jax.ShapeDtypeStruct(token, jnp.int32) for name in names}
  if task in LABELS:
    batch |= {name: jax.ShapeDtypeStruct(value, jnp.int32) for name in LABELS[task]}
    batch["label_weights"] = jax.ShapeDtypeStruct(value, jnp.float32)
  else:
    batch["weights"] = jax.ShapeDtypeStruct(token, jnp.float32)
  if task == "masked_lm":
    batch["seeds"] = jax.ShapeDtypeStruct(value, jnp.uint32)
  batch = {k: place(x, sharding.batch_sharding(mesh, x.ndim, 1)) for k, x in batch.items()}
  with jax.set_mesh(mesh):
    lowered = compiled.trace(state, batch).lower(lowering_platforms=("tpu",))
  program = lowered.compile()
  memory = program.memory_analysis()
  print(
    json.dumps(
      {
        "arguments": memory.argument_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "kernels": lowered.as_text().count("tpu_custom_call"),
      }
    )
  )


if __name__ == "__main__":
  main(*sys.argv[1:])
