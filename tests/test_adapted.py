"""Adapters beside PEFT: what either writes the other computes the same with."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsft
from jaxsft import adapted
from jaxsft.config import Lora
from jaxsft.tuning import lora, select
from jaxsft.weights import params as params_lib
from jaxsft.weights import peft_file, peft_names
from tests import tiny

# What PEFT asks of transformers, and what it says of GPT-2's transposed matrices.
pytestmark = [
  pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
  pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False"),
  pytest.mark.filterwarnings("ignore:Input and output embeddings are no longer tied"),
]
IDS = np.random.default_rng(0).integers(4, 44, (2, 9))
SOURCE = np.random.default_rng(1).integers(4, 44, (2, 7))
GPT2 = {
  "model_type": "gpt2",
  "n_embd": 24,
  "n_layer": 2,
  "n_head": 3,
  "n_inner": 40,
  "n_positions": 64,
  "initializer_range": 0.2,
  "resid_pdrop": 0.0,
  "embd_pdrop": 0.0,
  "attn_pdrop": 0.0,
}
SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "intermediate_size": 40}
SMALL |= {"max_position_embeddings": 64, "initializer_range": 0.2}
THEIRS = {  # of transformers, which writes the checkpoint
  "gpt2": GPT2,
  "gpt_neox": {**SMALL, "model_type": "gpt_neox", "num_attention_heads": 3},
  "phi3": {
    **SMALL,
    "model_type": "phi3",
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "pad_token_id": 0,
  },
}
ALL = "all-linear"
VARIANTS = {  # settings of a peft.LoraConfig; B starts at random, or nothing would be seen
  "default": {"target_modules": ALL},
  "rslora": {"target_modules": ALL, "use_rslora": True},
  "dora": {"target_modules": ALL, "use_dora": True},
  "ranks": {
    "target_modules": ALL,
    "rank_pattern": {r"\w+\.1\..*": 5},
    "alpha_pattern": {r".*(fc|proj|query|q|query_key_value)": 7},
  },
  "layers": {"target_modules": r".*(layers|h|layer|block)\.1\..*(q|_proj|query|wo|dense)"},
}
TASKS = {"bert": "SEQ_CLS", "t5": "SEQ_2_SEQ_LM"}
TASKS |= dict.fromkeys(("llama", *THEIRS), "CAUSAL_LM")


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
  """Family -> the directory of a random checkpoint, which never changes."""
  root, made = tmp_path_factory.mktemp("bases"), {}

  def base(family):
    if family not in made:
      directory = made[family] = root / family
      if family in THEIRS:
        words, transformers = tiny.letter_tokenizer(), pytest.importorskip("transformers")
        settings = THEIRS[family] | {"vocab_size": len(words) + 3}
        config = transformers.AutoConfig.for_model(**settings)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(directory)
        words.save_pretrained(directory)
      else:
        labels = ("neg", "pos") if family == "bert" else ()
        changes = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        tiny.checkpoint(directory, family, labels=labels, **(changes if labels else {}))
    return made[family]

  return base


def torch_base(directory, family):
  transformers = pytest.importorskip("transformers")
  name = {"SEQ_CLS": "SequenceClassification", "SEQ_2_SEQ_LM": "Seq2SeqLM"}
  kind = getattr(transformers, f"AutoModelFor{name.get(TASKS[family], 'CausalLM')}")
  return kind.from_pretrained(directory).eval()


def torch_inputs(family):
  import torch

  inputs = {"input_ids": torch.tensor(SOURCE if family == "t5" else IDS)}
  return inputs | ({"decoder_input_ids": torch.tensor(IDS)} if family == "t5" else {})


def ours(model, family):
  if family == "t5":
    return model.logits(SOURCE, decoder_tokens=IDS)
  return model.logits(IDS)


@pytest.fixture
def peft_models(bases, tmp_path):
  """(family, settings) -> (the directory that PEFT saved, its model)."""
  peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")

  def make(family, **settings):
    torch.manual_seed(0)
    plain = {"r": 3, "lora_alpha": 4, "init_lora_weights": False}
    config = peft.LoraConfig(task_type=TASKS[family], **plain | settings)
    model = peft.get_peft_model(torch_base(bases(family), family), config).eval()
    with torch.no_grad():
      for name, leaf in model.named_parameters():
        if "magnitude" in name:  # not what it starts as
          leaf.mul_(1 + 0.2 * torch.randn_like(leaf))
    model.save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs", model

  return make


def near(a, b, tolerance=2e-5):
  assert np.abs(np.asarray(b)).max() > 1e-3
  np.testing.assert_allclose(a, b, rtol=1e-4, atol=tolerance * max(1, np.abs(b).max()))


def logits_of(model, family):
  import torch

  with torch.no_grad():
    return model(**torch_inputs(family)).logits.numpy()


def cases(plain):
  every = [(family, variant) for family in TASKS for variant in VARIANTS]
  return [
    pytest.param(*case, marks=[] if case in plain else pytest.mark.full, id="-".join(case))
    for case in every
  ]


@pytest.mark.parametrize(
  ("family", "variant"),
  cases([("llama", "ranks"), ("gpt2", "dora"), ("bert", "rslora")]),
)
def test_an_adapter_of_peft_is_the_same_here_and_back(
  family, variant, bases, peft_models, tmp_path
):
  """Logits, gradients of every leaf, merged weights, and what we write in PEFT again."""
  peft = pytest.importorskip("peft")
  directory, theirs = peft_models(family, **VARIANTS[variant])
  model = jaxsft.load(directory)
  expected = logits_of(theirs, family)
  assert np.abs(expected - logits_of(torch_base(bases(family), family), family)).max() > 0.01
  near(ours(model, family), expected)
  same_gradients(model, theirs, family)
  write(model, tmp_path / "ours")
  again = peft.PeftModel.from_pretrained(torch_base(bases(family), family), tmp_path / "ours")
  near(logits_of(again.eval(), family), expected)
  left = dict(select.paths(lora.merged(model.params)))
  whole = theirs.merge_and_unload().state_dict()
  table = model.base.family.names(model.base.arch, model.network.head)
  tensors = params_lib.export_tensors(params_lib.nest(left), table, base_prefix=prefix(model))
  for name, values in tensors:
    loaded = name.replace("embed_out", "lm_head")  # of GPT-NeoX, renamed in memory alone
    np.testing.assert_allclose(values, whole[loaded].numpy(), rtol=1e-4, atol=1e-5)


def prefix(model):
  return adapted._table(model.base, model.network)[1]


def write(model, directory):
  """A loaded adapter as a directory of ours."""
  directory.mkdir()
  paths = [path for path, _ in select.paths(model.params)]
  chosen = {p for p in paths if p.rpartition("/")[2] in lora.TRAINED or p.startswith("head/")}
  facts = {"base": "", "revision": None, "dropout": 0.0, "rslora": False, "chosen": chosen}
  adapted.store(
    directory, base=model.base, network=model.network, params=model.params, adapter=facts
  )


def same_gradients(model, theirs, family):
  """Of a sum over logits, for A, B and magnitude of every module."""
  import torch

  weigh = np.random.default_rng(2).normal(size=logits_of(theirs, family).shape)
  loss = (
    theirs(**torch_inputs(family)).logits * torch.tensor(weigh, dtype=torch.float32)
  ).sum()
  loss.backward()
  batch = {"inputs": jnp.asarray(IDS, jnp.int32)}
  if family == "t5":
    batch["source"] = jnp.asarray(SOURCE, jnp.int32)
  own = {p for p, _ in select.paths(model.params) if p.rpartition("/")[2] in lora.TRAINED}
  adapters, rest = select.split(model.params, select.Choice(frozenset(own)))

  def sum_of(adapters):
    from jaxsft import step

    logits = model.network.logits(step.merge(adapters, rest), batch)
    return jnp.sum(logits.reshape(weigh.shape) * weigh)

  own = dict(select.paths(jax.jit(jax.grad(sum_of))(adapters)))
  named = {n: p.grad.numpy() for n, p in theirs.named_parameters() if p.grad is not None}
  named = {
    n.replace(".default", "").removesuffix("_vector.weight"): g for n, g in named.items()
  }
  tensors = {n + ("_vector" if "magnitude" in n else ""): g for n, g in named.items()}
  tensors = {n.removeprefix(peft_file.PREFIX): g for n, g in tensors.items() if "lora_" in n}
  file = dataclasses.replace(model.base.adapted.file, tensors=tensors)
  table, before = adapted._table(model.base, model.network)
  shapes = dict(select.paths(model.network.shapes()))
  found = peft_names.modules(table, shapes, before)
  inner = [m for m in found if lora.SEAM.search(m.names[0].path)]
  expected, _ = peft_names.from_file(file, inner, shapes)
  together = {n.path: [o.path for o in m.names] for m in inner for n in m.names}
  for path, leaves in expected.items():
    for name in set(leaves) - {"scale"}:
      parts = [path]
      if name == "a":  # one A there, the sum of ours in a module of several projections
        parts = [p.removesuffix("/kernel") for p in together[f"{path}/kernel"]]
      near(sum(own[f"{p}/lora_{name}"] for p in parts), leaves[name], 1e-4)


@pytest.mark.parametrize("init", ["olora", pytest.param("pissa", marks=pytest.mark.full)])
def test_decomposed_starts_are_those_of_peft_and_leave_as_plain_adapters(init, bases, tmp_path):
  peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
  settings = Lora(rank=3, alpha=4.0, init=init)
  model = jaxsft.load(bases("llama"))
  start = lora.add(model.params, settings, seed=0)
  near(ours(dataclasses.replace(model, params=start), "llama"), ours(model, "llama"))
  config = peft.LoraConfig(
    r=3, lora_alpha=4, init_lora_weights=init, target_modules="all-linear"
  )
  theirs = peft.get_peft_model(torch_base(bases("llama"), "llama"), config)
  flat, state = dict(select.paths(start)), theirs.state_dict()
  for i in range(2):
    name = f"base_model.model.model.layers.{i}.mlp.up_proj"
    near(flat["layers/mlp/up/kernel"][i], state[f"{name}.base_layer.weight"].numpy())
    product = state[f"{name}.lora_B.default.weight"] @ state[f"{name}.lora_A.default.weight"]
    near(flat["layers/mlp/up/lora_b"][i] @ flat["layers/mlp/up/lora_a"][i], product.numpy())
  moved = {
    p: leaf * 1.1 if p.endswith(("lora_a", "lora_b")) else leaf for p, leaf in flat.items()
  }
  moved = params_lib.nest(moved)
  expected = ours(dataclasses.replace(model, params=moved), "llama")
  plain = dataclasses.replace(model, params=lora.plain(moved, start, init))
  write(plain, tmp_path / "plain")
  read = peft.PeftModel.from_pretrained(torch_base(bases("llama"), "llama"), tmp_path / "plain")
  near(logits_of(read.eval(), "llama"), expected)
  theirs.save_pretrained(tmp_path / "unconverted")  # A and B alone: the base is decomposed anew
  config = tmp_path / "unconverted" / peft_file.CONFIG
  config.write_text(
    json.dumps(
      json.loads(config.read_text()) | {"base_model_name_or_path": str(bases("llama"))}
    )
  )
  with torch.no_grad():
    expected = theirs.eval()(**torch_inputs("llama")).logits.numpy()
  near(ours(jaxsft.load(tmp_path / "unconverted"), "llama"), expected)


@pytest.mark.parametrize("init", ["olora", pytest.param("pissa", marks=pytest.mark.full)])
@pytest.mark.parametrize(
  "settings",
  [
    {"layers_to_transform": [1]},
    pytest.param({"rank_pattern": {"layers.0.self_attn.o_proj": 2}}, marks=pytest.mark.full),
  ],
  ids=["layers", "ranks"],
)
def test_decomposed_starts_of_some_layers_or_other_ranks(init, settings, bases, peft_models):
  """Every layer of the base is decomposed at the rank of its own adapter, if it has one."""
  settings |= {"init_lora_weights": init, "target_modules": ["o_proj"]}
  directory, theirs = peft_models("llama", **settings)
  near(ours(jaxsft.load(directory), "llama"), logits_of(theirs, "llama"))
