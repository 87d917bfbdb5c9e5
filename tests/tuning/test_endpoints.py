"""The ends of a line: read, combined and written as torch would; refused where they differ."""

import dataclasses
import json
import shutil
import tracemalloc

import jax
import numpy as np
import pytest
import safetensors.numpy

from jaxsft import export, pretrained, sharding, weights
from jaxsft import tokenizer as tokenizers
from jaxsft.errors import JaxsftError, UsageError
from jaxsft.tuning import alphas, endpoints
from tests import tiny
from tests.families.torch_same import same_outputs

SIZES = {
  "bert": {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3,
    "intermediate_size": 40, "max_position_embeddings": 64, "id2label": {0: "neg", 1: "pos"},
  },
  "gpt2": {
    "n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 64, "bos_token_id": 1,
    "eos_token_id": 2,
  },
  "t5": {
    "d_model": 24, "d_kv": 10, "d_ff": 44, "num_layers": 2, "num_decoder_layers": 1,
    "num_heads": 3, "decoder_start_token_id": 0,
  },
}  # fmt: skip
CLASSES = {  # pretrained, tuned
  "bert": ("BertForMaskedLM", "BertForSequenceClassification"),
  "gpt2": ("GPT2LMHeadModel", "GPT2LMHeadModel"),
  "t5": ("T5ForConditionalGeneration", "T5ForConditionalGeneration"),
}
TOKENIZERS = {
  "bert": tiny.word_tokenizer,
  "gpt2": tiny.letter_tokenizer,
  "t5": tiny.source_tokenizer,
}


def torch_model(torch, family, which, directory, seed):
  """A random torch model, written to `directory` with its tokenizer."""
  import transformers

  words = TOKENIZERS[family]()
  config = transformers.AutoConfig.for_model(family, vocab_size=len(words) + 3, **SIZES[family])
  torch.manual_seed(seed)
  model = getattr(transformers, CLASSES[family][which])(config).eval()
  with torch.no_grad():
    for p in model.parameters():
      p.add_(0.1 * torch.randn_like(p))
  model.save_pretrained(directory)
  tokenizers.save_tokenizer(words, directory)
  return model


def combined(directory, base, tuned, alpha, **how):
  """Writes the model at `alpha` of checkpoints and returns the directory."""
  base = pretrained.open_pretrained(base)
  model = pretrained.model_of(pretrained.open_pretrained(tuned[0]))
  own = [pretrained.open_pretrained(path) for path in tuned]
  ends, how = endpoints.ends(base, own, model.network), endpoints.How(**how)
  end = dict(endpoints.tuned_end(ends, how))
  every = alphas.assign(ends.shapes, ends.stacks, {}, alpha)
  params = weights.params.nest(dict(endpoints.between(ends, end, every, how)))
  export.save(dataclasses.replace(model, params=params), directory)
  return directory


@pytest.mark.parametrize("family", SIZES)
def test_torch_reads_the_mean_of_its_state_dicts(oracle, tmp_path, family):
  """Conv1D, tied tables, integers beside the weights, a head that only one has."""
  p = torch_model(oracle, family, 0, tmp_path / "p", 0)
  if family == "gpt2":  # a tied table that was saved twice all the same
    file = tmp_path / "p" / "model.safetensors"
    saved = safetensors.numpy.load_file(file)
    saved["lm_head.weight"] = saved["transformer.wte.weight"]
    safetensors.numpy.save_file(saved, file)
  t = torch_model(oracle, family, 1, tmp_path / "t", 1)
  theirs, expected = p.state_dict(), t.state_dict()
  for name, tensor in expected.items():
    if name in theirs and tensor.is_floating_point():
      expected[name] = 0.3 * theirs[name] + 0.7 * tensor
  m = type(t).from_pretrained(combined(tmp_path / "m", tmp_path / "p", [tmp_path / "t"], 0.3))
  found = m.state_dict()
  assert found.keys() == expected.keys()
  for name, tensor in expected.items():
    assert oracle.equal(found[name], tensor), name
  t.load_state_dict(expected)
  ids = oracle.tensor([[5, 9, 7, 11, 6, 8]])
  inputs = {"decoder_input_ids": ids} if family == "t5" else {}
  with oracle.no_grad():
    same_outputs(t(ids, **inputs).logits, m.eval()(ids, **inputs).logits)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  root = tmp_path_factory.mktemp("ends")
  tiny.checkpoint(root / "base", "bert", kind="masked_lm")
  for seed, name in enumerate("abc", 1):
    tiny.checkpoint(root / name, "bert", seed, labels=("neg", "pos"))
  return root


def of(place, names="abc", base="base"):
  """`Ends` of checkpoints of `place`."""
  tuned = [pretrained.open_pretrained(place / name) for name in names]
  network = tuned[0].network_of("sequence", 2)
  return endpoints.ends(pretrained.open_pretrained(place / base), tuned, network)


def test_what_the_pretrained_lacks_is_averaged_and_the_rest_merged(place):
  ends = of(place)
  assert set(ends.own) == {"dense/kernel", "dense/bias", "head/kernel", "head/bias"}
  read = lambda path: [one[path]() for one in ends.tuned]
  path = "layers/attn/q/kernel"
  p, t = ends.pretrained[path](), read(path)
  expected = {
    "soup": sum(t[1:], start=t[0]) / np.float32(3),
    "task_arithmetic": p + sum(one - p for one in t),
  }
  for name in ("soup", "task_arithmetic", "ties", "dare"):
    end = dict(endpoints.tuned_end(ends, endpoints.How(name)))
    assert end.keys() == weights.params.flatten(ends.shapes).keys()
    for own in ends.own:
      a, b, c = read(own)
      np.testing.assert_array_equal(end[own], (a + b + c) / np.float32(3))
    if name in expected:
      np.testing.assert_allclose(end[path], expected[name], atol=1e-6)
  kept = np.mean((end[path] - p) != 0, (1, 2))  # dare: of three changes a fifth each
  assert (np.abs(kept - (1 - 0.8**3)) < 0.1).all()


def test_a_draw_belongs_to_its_seed_and_tensor(place):
  ends = of(place, "a")
  end = lambda seed: dict(endpoints.tuned_end(ends, endpoints.How("dare", 0.5, seed=seed)))
  path, other = "layers/attn/q/kernel", "layers/attn/k/kernel"
  first, again, another = end(0), end(0), end(1)
  np.testing.assert_array_equal(first[path], again[path])
  stays = lambda end, path: (end[path] - ends.pretrained[path]()) != 0
  assert (stays(first, path) != stays(another, path)).any()
  assert (stays(first, path) != stays(first, other)).any()
  assert (stays(first, path)[0] != stays(first, path)[1]).any()


def test_an_arc_has_an_alpha_for_each_layer(place):
  ends, how = of(place, "a"), endpoints.How("slerp")
  end = dict(endpoints.tuned_end(ends, how))
  every = alphas.assign(ends.shapes, ends.stacks, {"layers.0": 0.0}, 1.0)
  found = dict(endpoints.between(ends, end, every, how))
  for path in ("layers/attn/q/kernel", "layers/mlp/up/bias"):
    np.testing.assert_allclose(found[path][0], end[path][0], atol=1e-6)
    np.testing.assert_allclose(found[path][1], ends.pretrained[path]()[1], atol=1e-6)
  assert found["head/kernel"] is end["head/kernel"]


def test_memory_holds_two_models_and_a_few_leaves(place):
  """The tuned end and one model on the devices: the old one goes as the new one comes."""
  ends, how = of(place, "a"), endpoints.How()
  shardings = sharding.shardings_for(ends.shapes, tiny.devices(8, fsdp=8))
  shardings = weights.params.flatten(shardings)
  sizes = [4 * leaf.size for leaf in jax.tree.leaves(ends.shapes)]
  model, leaf, held = sum(sizes), max(sizes), []
  before = sum(x.nbytes for x in jax.live_arrays())
  arrays = tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)

  def watched(leaves):
    for one in leaves:
      host = tracemalloc.take_snapshot().filter_traces([arrays]).traces
      host = sum(trace.size for trace in host)
      held.append(host + sum(x.nbytes for x in jax.live_arrays()) - before)
      yield one

  tracemalloc.start()
  try:
    end, filled = dict(endpoints.tuned_end(ends, how)), {}
    for alpha in (1.0, 0.5, 0.0):
      every = alphas.assign(ends.shapes, ends.stacks, {}, alpha)
      endpoints.put(filled, watched(endpoints.between(ends, end, every, how)), shardings)
  finally:
    tracemalloc.stop()

  assert model > 4 * leaf
  assert 1.9 * model < max(held) < 2 * model + 2 * leaf
  for path, value in filled.items():
    assert value.sharding == shardings[path]
    np.testing.assert_array_equal(np.asarray(value), end[path])


def changed(place, name, of, **keys):
  """A copy of a checkpoint with other weights and another config.json."""
  if (place / name).exists():
    shutil.rmtree(place / name)
  shutil.copytree(place / of, place / name)
  file = place / name / "config.json"
  file.write_text(json.dumps(json.loads(file.read_text()) | keys))
  return name


def swapped_vocabulary(place):
  name = changed(place, "words", "base")
  text = (place / name / "tokenizer.json").read_text()
  a, b = '"good": 16', '"great": 17'
  assert a in text and b in text
  text = text.replace(a, '"good": 17').replace(b, '"great": 16')
  (place / name / "tokenizer.json").write_text(text)
  return name


def test_what_only_training_reads_may_differ(place):
  base = changed(place, "dropped", "base", hidden_dropout_prob=0.3, initializer_range=0.5)
  assert of(place, "a", base).tuned


REFUSED = (
  (lambda p: changed(p, "eps", "base", layer_norm_eps=1e-5), "a", r"differ in norm.*1e-05"),
  (swapped_vocabulary, "a", r"differ in the token 'good' \(ids 17 and 16\)"),
  (lambda p: "a", "a", "is the same model as"),
  (lambda p: "base", ("a", "multi"), "label type 'single' and 'multi'"),
  (lambda p: "base", ("a", "order"), r"labels \('neg', 'pos'\) and \('pos', 'neg'\)"),
  (lambda p: "order", "a", "the labels of .*order are pos, neg, those of .*a are neg, pos"),
)


@pytest.mark.parametrize(("base", "tuned", "said"), REFUSED, ids=[r[2] for r in REFUSED])
def test_what_cannot_be_combined_is_refused(place, base, tuned, said):
  if not (place / "order").exists():
    tiny.checkpoint(place / "order", "bert", 5, labels=("pos", "neg"))
    changed(place, "multi", "b", problem_type="multi_label_classification")
  with pytest.raises(UsageError, match=said):
    of(place, tuned, base(place))


def test_a_tied_table_that_was_saved_twice_must_be_one(tmp_path):
  for seed, name in enumerate(("p", "a")):
    tiny.checkpoint(tmp_path / name, "llama", seed, tie_word_embeddings=True)
  file = tmp_path / "p" / "model.safetensors"
  saved = safetensors.numpy.load_file(file)
  saved["lm_head.weight"] = saved["model.embed_tokens.weight"] + 1
  safetensors.numpy.save_file(saved, file)
  p, a = (pretrained.open_pretrained(tmp_path / name) for name in ("p", "a"))
  with pytest.raises(JaxsftError, match=r"'lm_head.weight' in .* to differ from"):
    endpoints.ends(p, [a], a.network_of("lm"))


def test_a_constant_that_a_file_leaves_out_is_zero(tmp_path):
  tiny.checkpoint(tmp_path / "a", "bart")
  file = tmp_path / "a" / "model.safetensors"
  saved = safetensors.numpy.load_file(file)
  assert saved.pop("final_logits_bias").any()
  safetensors.numpy.save_file(saved, file)
  base = pretrained.open_pretrained(tmp_path / "a")
  found = endpoints.readers(base, base.network_of("lm"))
  assert found.keys() == weights.params.flatten(base.network_of("lm").shapes()).keys()
  assert not found["lm_head/bias"]().any()


def test_an_adapter_is_refused(place):
  base, tuned = (pretrained.open_pretrained(place / name) for name in ("base", "a"))
  adapted = dataclasses.replace(tuned, adapted=object())
  with pytest.raises(UsageError, match=r"--model: .*is an adapter, expected whole models"):
    endpoints.check(base, [adapted])
  with pytest.raises(UsageError, match=r"--base: .*is an adapter"):
    endpoints.check(adapted, [base])


def test_a_head_of_other_labels_is_not_mixed_in(place):
  tiny.checkpoint(place / "stars", "bert", 9, labels=("1", "2", "3"))
  assert "head/kernel" in of(place, "a", "stars").own
  tiny.checkpoint(place / "earlier", "bert", 9, labels=("neg", "pos"))
  assert of(place, "a", "earlier").own == ()
