"""Real decoders beside torch: `pytest -m full`, env JAXSFT_CHECKPOINTS.

The directory holds those of CHECKPOINTS. Real text is compared: on random tokens torch itself
is 8e-3 away from its own float64. All is computed in float32, one library after the other.
"""

import functools
import gc
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors

from jaxsft import hf_directory, pretrained
from tests.families import record

pytestmark = pytest.mark.full
TEXT = (
  "The history of computing is longer than the history of computing hardware and modern "
  "computing technology. It includes methods intended for pen and paper or for chalk and "
  "slate, with or without the aid of tables. "
)
LENGTHS, NEW = {"gemma3-270m": 560}, 24  # beyond its window
CHECKPOINTS = {  # name -> first positions of the text
  "minimind2-small": (0, 4000, 32000),
  "smollm2-135m-instruct": (0, 4000, 8000),
  "gemma3-270m": (0, 4000, 32000),
  "qwen2.5-coder-1.5b-instruct": (0,),
}


@pytest.fixture(params=CHECKPOINTS)
def checkpoint(request):
  if "JAXSFT_CHECKPOINTS" not in os.environ:
    pytest.skip("needs JAXSFT_CHECKPOINTS")
  path = pathlib.Path(os.environ["JAXSFT_CHECKPOINTS"]) / request.param
  if not path.is_dir():
    pytest.skip(f"needs {path}")
  with jax.default_matmul_precision("highest"):
    yield path
  _torch_side.cache_clear()
  gc.collect()


def ids_of(path):
  """(the text, a prompt that asks for an answer where the model has a template)."""
  import transformers

  tokenizer = transformers.AutoTokenizer.from_pretrained(path)
  text = np.array(tokenizer(TEXT * 20)["input_ids"], np.int32)[: LENGTHS.get(path.name, 120)]
  if not tokenizer.chat_template:
    return text, text[:30]
  question = [{"role": "user", "content": "Why is the sky blue?"}]
  prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True)
  prompt = prompt if isinstance(prompt, list) else prompt["input_ids"]
  return text, np.array(prompt, np.int32)


def places_of(start, length):
  return np.arange(start, start + length, dtype=np.int32)[None]


@functools.cache
def _torch_side(path):
  """({start: logits [T,V]}, greedy ids), after which the torch model is gone."""
  import torch
  import transformers

  model = transformers.AutoModelForCausalLM.from_pretrained(
    path, attn_implementation="eager", dtype="float32"
  ).eval()
  ids, prompt = (torch.tensor(x[None]).long() for x in ids_of(path))
  logits = {}
  with torch.no_grad():
    for start in CHECKPOINTS[path.name]:
      places = torch.tensor(places_of(start, ids.shape[1])).long()
      mask = torch.ones_like(ids)
      logits[start] = model(ids, position_ids=places, attention_mask=mask).logits[0].numpy()
    eos = model.generation_config.eos_token_id
    plain = transformers.GenerationConfig(
      max_new_tokens=NEW, do_sample=False, eos_token_id=eos, pad_token_id=0
    )
    found = model.generate(
      prompt, attention_mask=torch.ones_like(prompt), generation_config=plain
    )
  return logits, found[0, prompt.shape[1] :].tolist()


def greedy(network, params, prompt, count):
  """`count` ids after the prompt, from the cache; stacked, so that no second copy is made."""
  step = jax.jit(lambda p, x, cache: network.decode(p, x, cache), donate_argnums=2)
  choose = jax.jit(lambda p, x: jnp.argmax(network.vocabulary_logits(p, x[:, -1]), -1))
  x, found = prompt[None], []
  cache = network.empty_cache(params, 1, len(prompt) + count)
  for _ in range(count):
    hidden, cache = step(params, x, cache)
    x = choose(params, hidden)[:, None]
    found.append(int(x[0, 0]))
  return found


def test_a_real_decoder(oracle, checkpoint, tmp_path):
  """Logits near and far, greedy text, and an export whose tensors are the file's own bits."""
  expected, text = _torch_side(checkpoint)
  _torch_side.cache_clear()
  gc.collect()
  base, (ids, prompt) = pretrained.open_pretrained(checkpoint), ids_of(checkpoint)
  network = base.network("chat")
  params, new = pretrained.load_params(base, network)
  assert not new
  run, worst = jax.jit(lambda p, batch: network.logits(p, batch)[0]), 0.0
  for start, theirs in expected.items():
    found = run(params, {"inputs": ids[None], "positions": places_of(start, len(ids))})
    worst = max(worst, float(np.abs(np.asarray(found) - theirs).max()))
    print(f"{checkpoint.name} from position {start}: {worst:.1e}")
  assert worst < 1e-4 * max(1.0, max(np.abs(x).max() for x in expected.values()) / 30)
  assert len(text) > 8
  assert greedy(network, params, prompt, len(text)) == text, base.tokenizer.decode(text)
  record.parity(base.config["model_type"], checkpoint.name, logits=worst)
  same_bits(base, network, params, checkpoint, tmp_path / "export")


def same_bits(base, network, params, checkpoint, out):
  stored = base.config["torch_dtype"]
  hf_directory.write(
    out,
    source_config=base.config,
    family=base.family,
    arch=base.arch,
    head=network.head,
    params=params,
    tokenizer=base.tokenizer,
    dtype=stored,
    generation_config=base.generation,
  )
  names = {}
  for path in sorted(out.glob("*.safetensors")):
    names |= dict.fromkeys(safetensors.safe_open(path, "numpy").keys(), path)
  with safetensors.safe_open(checkpoint / "model.safetensors", "numpy") as original:
    assert set(names) == set(original.keys())
    for name, path in names.items():
      with safetensors.safe_open(path, "numpy") as written:
        np.testing.assert_array_equal(
          written.get_tensor(name).view(np.uint16),
          original.get_tensor(name).view(np.uint16),
          err_msg=name,
        )
  assert json.loads((out / "config.json").read_text())["dtype"] == stored
