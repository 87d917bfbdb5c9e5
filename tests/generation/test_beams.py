"""Beam search: what transformers finds, with its scores, whatever is batched with what."""

import tempfile

import jax
import numpy as np
import pytest

from jaxsft import families, models, sharding
from jaxsft.errors import UsageError
from jaxsft.generation import batches, beams, frames, growth, sampling
from jaxsft.models import heads
from tests.families import torch_encoder_decoders
from tests.models import tiny, torch_weights

LLAMA = models.Network(
  families.FAMILIES["llama"].architecture(torch_weights.LLAMA | {"model_type": "llama"}),
  heads.Head("lm"),
)
W = 4
LENGTHS = (5, 16, 1, 12)
SOURCES = [[5, 9, 4, 30, 8, 1], [7, 1], [44, 12, 3, 29, 51, 6, 33, 18, 20, 2, 1]]
SMALL = {"max_position_embeddings": 128, "num_hidden_layers": 2}
LIMIT = 8  # in the bucket of 1 and 2
STOPS = {  # tokens that these random models say inside of their answers
  "llama": (40, 1),
  "t5-v1.1": (13, 1),
  "bart": (49, 1),
}
BASE = {"bart": {"no_repeat_ngram_size": 2, "repetition_penalty": 1.5}}  # it says one word else
SEARCHES = (
  {},
  {"length_penalty": 0.0},
  {"length_penalty": 2.0},
  {"length_penalty": -1.0},
  {"early_stopping": True},
  {"early_stopping": True, "length_penalty": 2.0},
  {"early_stopping": "never"},
  {"early_stopping": "never", "length_penalty": 2.0},
  {"early_stopping": "never", "length_penalty": -1.0},
  {"min_new_tokens": 5},
)
RULES = (  # both, so that they share a program; one of them means next to nothing
  {"repetition_penalty": 1.7, "no_repeat_ngram_size": 50},
  {"repetition_penalty": 1.0001, "no_repeat_ngram_size": 2},
  {"repetition_penalty": 1.0001, "no_repeat_ngram_size": 3, "min_new_tokens": 6},
  {"repetition_penalty": 1.3, "no_repeat_ngram_size": 1, "early_stopping": True},
)


@pytest.fixture(autouse=True)
def highest():
  with jax.default_matmul_precision("highest"):
    yield


@pytest.fixture(scope="module")
def kind(request, oracle):
  """(name, torch model, network, params, prompts) of a decoder and of encoder-decoders."""
  name = request.param
  if name == "llama":
    model, network, params, *_ = torch_weights.make(oracle, "llama", "lm", **SMALL)
    model.generation_config.update(pad_token_id=0)
    return name, model, network, params, [row.tolist() for row in tiny.rows(67, LENGTHS)]
  module = families.FAMILIES[name.split("-")[0]]
  with tempfile.TemporaryDirectory() as directory:
    torch_encoder_decoders.saved(oracle, name, directory)
    model, network, params = torch_encoder_decoders.opened(directory, module)
  model.generation_config.update(
    decoder_start_token_id=model.config.decoder_start_token_id, forced_eos_token_id=None
  )
  return name, model, network, params, SOURCES


def theirs(torch, kind, stops, limit=LIMIT, width=W, **settings):
  """[[(ids without their end, score)]] of torch, which pads decoders on the left."""
  name, model, network, _, prompts = kind
  longest = max(map(len, prompts))
  pads = [longest - len(prompt) for prompt in prompts]
  pad = lambda row, fill, size: (
    row + [fill] * size if network.has_source else [fill] * size + row
  )
  fill = model.config.pad_token_id
  out = model.generate(
    torch.tensor([pad(row, fill, size) for row, size in zip(prompts, pads, strict=True)]),
    attention_mask=torch.tensor(
      [pad([1] * len(row), 0, size) for row, size in zip(prompts, pads, strict=True)]
    ),
    max_new_tokens=limit,
    num_beams=width,
    num_return_sequences=width,
    do_sample=False,
    eos_token_id=list(stops) or None,
    return_dict_in_generate=True,
    output_scores=True,
    **BASE.get(name, {}) | settings,
  )
  rows = out.sequences[:, 1 if network.has_source else longest :].tolist()
  ends = [min([row.index(s) for s in stops if s in row], default=len(row)) for row in rows]
  found = [
    (row[:end], score)
    for row, end, score in zip(rows, ends, out.sequences_scores.tolist(), strict=True)
  ]
  return [found[i : i + width] for i in range(0, len(found), width)]


def ours(kind, stops, limit=LIMIT, width=W, **settings):
  name, _, network, params, prompts = kind
  settings = {"num_beams": width, "num_return": width} | BASE.get(name, {}) | settings
  return batches.continuations(
    network, params, prompts, max_new_tokens=limit, stop_ids=stops, **settings
  )


def check(found, expected):
  for some, others in zip(found, expected, strict=True):
    assert [one.ids for one in some] == [ids for ids, _ in others]
    np.testing.assert_allclose([one.score for one in some], [s for _, s in others], rtol=1e-4)


def ids_of(found):
  return [[one.ids for one in best] for best in found]


# --- what transformers finds -----------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "t5-v1.1"], indirect=True)
def test_searches(oracle, kind):
  """All n best, in their order; ends inside, different lengths; one program for all."""
  stops, seen, programs = STOPS[kind[0]], [], []
  for settings in SEARCHES:
    found = ours(kind, stops, **settings)
    check(found, theirs(oracle, kind, stops, **settings))
    seen.append(ids_of(found))
    programs.append(growth.extend._cache_size())
  assert len(set(programs)) == 1
  lengths = {len(ids) for best in seen[0] for ids in best}
  assert len(lengths) > 2 and max(lengths) == LIMIT, lengths
  different = {str(best) for best in seen}
  assert len(different) > 4, len(different)  # the settings mean something here


@pytest.mark.parametrize("kind", ["llama", "bart"], indirect=True)
def test_rules(oracle, kind):
  stops, seen = STOPS[kind[0]], []
  for settings in RULES:
    found = ours(kind, stops, **settings)
    check(found, theirs(oracle, kind, stops, **settings))
    seen.append(str(ids_of(found)))
  assert len({*seen, str(ids_of(ours(kind, stops)))}) > 3


@pytest.mark.parametrize("kind", ["llama"], indirect=True)
def test_more_stops_and_fewer_rows_at_a_time(oracle, kind):
  stops, few = (3, 4, 5, 6, 40), {"batch_size": 7}  # two prompts with their beams
  for some in (stops, ()):
    check(ours(kind, some, width=3, **few), theirs(oracle, kind, some, width=3))


@pytest.mark.parametrize("kind", ["llama", "bart"], indirect=True)
def test_forced_and_banned_tokens(oracle, kind):
  name, model, network, *_ = kind
  stops, start = STOPS[name], model.generation_config.decoder_start_token_id
  seen = {i for best in ours(kind, stops) for one in best for i in one.ids[1:3]} - {*stops, 7}
  banned = sorted(seen)[:3]
  frame = frames.Frame(start, 7 if network.has_source else None, stops, tuple(banned))
  theirs_is = {"forced_bos_token_id": frame.first, "forced_eos_token_id": list(frame.last)}
  theirs_is |= {"bad_words_ids": [[i] for i in banned]}
  for settings in ({}, {"length_penalty": 2.0, "early_stopping": "never"}):
    found = ours(kind, stops, frame=frame, **settings)
    check(found, theirs(oracle, kind, stops, **theirs_is, **settings))
  assert {len(one.ids) for best in found for one in best} >= {LIMIT - 1}  # ended at the limit
  assert not {i for best in found for one in best for i in one.ids} & {*banned}


@pytest.mark.parametrize("limit", [1, 2])
@pytest.mark.parametrize("kind", ["llama", "bart"], indirect=True)
def test_short_answers(oracle, kind, limit):
  stops = STOPS[kind[0]]
  check(ours(kind, stops, limit), theirs(oracle, kind, stops, limit))


@pytest.mark.parametrize(("V", "k"), [(61, 4), (64 * 5, 4), (64 * 64 * 3 + 5, 7), (200, 4)])
def test_the_largest_of_a_vocabulary(V, k):
  x = np.random.default_rng(0).normal(size=(3, V)).astype(np.float32)
  x[0, V // 2 :] = -np.inf
  for ours_is, theirs_is in zip(beams.largest(x, k), jax.lax.top_k(x, k), strict=True):
    np.testing.assert_array_equal(ours_is, theirs_is)


# --- what must not matter --------------------------------------------------------------


@pytest.mark.parametrize("kind", ["t5-v1.1"], indirect=True)
def test_a_beam_is_a_row_of_its_source(kind):
  """The keys and values of a source are made and held once, those of answers for each beam."""
  _, _, network, params, prompts = kind
  ids, segments = batches._padded(prompts, 4)
  begin = np.array([network.arch.decoder_start], np.int32)
  rules = sampling.Rules(num_beams=W)
  numbers = rules.numbers | batches._limits(61, (), None, frames.Frame(0), LIMIT)
  numbers |= {"seeds": np.zeros((4 * W, 3), np.uint32), "prompts": np.ones(4, np.int32)}
  state = growth.open_target(
    network, params, ids, segments, begin, numbers, parts=rules.parts(), room=16
  )
  kv = network.arch.heads.kv
  rows = lambda name: {x.shape[-3] for x in jax.tree.leaves(state["cache"][name])}
  assert rows("kept") == {4 * kv} and rows("own") == {4 * W * kv}


@pytest.mark.parametrize("kind", ["t5-v1.1"], indirect=True)
def test_on_a_mesh(kind):
  """Over data, fsdp and tensor: what one device finds."""
  name, _, network, params, prompts = kind
  whole = ours(kind, STOPS[name])
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  params = jax.device_put(params, sharding.shardings_for(params, mesh))
  with jax.set_mesh(mesh):
    found = ours((name, None, network, params, prompts), STOPS[name])
  check(found, [[(one.ids, one.score) for one in best] for best in whole])


# --- refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("settings", "sentence"),
  [
    ({"num_beams": 0}, "num_beams is 0, expected a whole number of at least 1"),
    ({"num_beams": 2.5}, "num_beams is 2.5, expected a whole number"),
    ({"num_beams": 99}, "num_beams is 99, expected at most the vocabulary of 67"),
    ({"length_penalty": float("inf")}, "length_penalty is inf, expected a finite number"),
    ({"early_stopping": "always"}, "early_stopping is always, expected True, False or 'never'"),
    ({"temperature": 0.5}, "temperature is 0.5 and num_beams 3, expected one of them"),
    ({"num_return": 4}, "num_return is 4 with num_beams=3, expected from 1 to num_beams"),
    ({"num_return": 0}, "num_return is 0"),
    ({"num_return": 2, "num_beams": 1}, "num_return is 2 with num_beams=1"),
    ({"num_return": 2, "on_token": print}, "for answers that are shown as they come"),
    ({"until": len}, "stop strings for a search with num_beams=3"),
    ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size is -1"),
    ({"min_new_tokens": 1.5}, "min_new_tokens is 1.5"),
    ({"min_new_tokens": 3}, "min_new_tokens is 3, expected at most max_new_tokens=2"),
    ({"num_beams": 1, "early_stopping": True}, "early_stopping is True with num_beams=1"),
    ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5, expected a whole number"),
    ({"top_pp": 0.5}, "found the setting top_pp; did you mean 'top_p'"),
    ({"do_sample": True}, "found the setting do_sample; draw by a temperature"),
    ({"seed": -1}, "seed is -1, expected a whole number of at least 0"),
    ({"seed": 2**32}, "seed is 4294967296, expected a whole number .* at most 4294967295"),
    ({"seed": [1, 2]}, "seed has 2 numbers for 1 prompts"),
  ],
)
def test_bad_settings(settings, sentence):
  settings = {"num_beams": 3, "max_new_tokens": 2, "stop_ids": ()} | settings
  with pytest.raises(UsageError, match=sentence):
    batches.continuations(LLAMA, {}, [[1]], **settings)
