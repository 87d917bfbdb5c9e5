"""Token ids: equal to torch and to the full forward, whatever is batched with what."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft import models, sharding
from jaxsft.errors import JaxsftError
from jaxsft.generation import batches, growth, sampling
from jaxsft.generation.frames import Frame
from tests.generation import continued
from tests.models import tiny, torch_weights

LENGTHS = (5, 31, 1, 33, 32)  # both sides of buckets, out of order
SMALL = {"max_position_embeddings": 128, "num_hidden_layers": 2}


@pytest.fixture(scope="module")
def llama():
  return tiny.network("llama", "lm", changes=SMALL)


def prompts(lengths=LENGTHS, seed=0):
  return [row.tolist() for row in tiny.rows(67, lengths, seed)]


def run(llama, rows, tokens=9, stops=(), **settings):
  return continued.best_ids(*llama, rows, max_new_tokens=tokens, stop_ids=stops, **settings)


def by_full_forward(llama, prompt, tokens):
  """Greedy continuation without any cache."""
  network, params = llama
  forward = jax.jit(
    lambda ids, segments: network.logits(params, {"inputs": ids, "segments": segments})
  )
  ids, size = list(prompt), len(prompt) + tokens
  for _ in range(tokens):
    padded = np.zeros((1, size), np.int32)
    padded[0, : len(ids)] = ids
    ids.append(
      int(
        np.argmax(
          forward(padded, (np.arange(size) < len(ids))[None].astype(int))[0, len(ids) - 1]
        )
      )
    )
  return ids[len(prompt) :]


@pytest.fixture(scope="module")
def greedy(llama):
  """What every row says alone."""
  return [run(llama, [row])[0] for row in prompts()]


# --- the same tokens -------------------------------------------------------------------


@pytest.mark.parametrize(
  ("tied", "settings"), [(True, {}), (False, {}), (True, {"repetition_penalty": 1.9})]
)
def test_greedy_is_that_of_torch(oracle, tied, settings):
  changes = {"tie_word_embeddings": tied} | SMALL
  model, network, params, *_ = torch_weights.make(oracle, "llama", "lm", **changes)
  rows = prompts()
  ours = run((network, params), rows, 12, **settings)
  for row, found in zip(rows, ours, strict=True):
    ids = oracle.tensor([row])
    theirs = model.generate(
      ids,
      attention_mask=oracle.ones_like(ids),
      max_new_tokens=12,
      do_sample=False,
      eos_token_id=None,
      **settings,
    )
    assert found == theirs[0, len(row) :].tolist()
  assert len({tuple(found) for found in ours}) == len(rows)


def test_cached_is_the_full_forward(llama, greedy):
  for i in (0, 1, 3):
    assert greedy[i] == by_full_forward(llama, prompts()[i], 9)


@pytest.mark.parametrize("batch_size", [4, 8])
def test_batch_mates_change_nothing(llama, greedy, batch_size):
  assert run(llama, prompts(), batch_size=batch_size) == greedy


def test_a_prompt_read_in_pieces(llama, greedy, monkeypatch):
  monkeypatch.setattr(batches, "READ", 12)
  assert run(llama, prompts()) == greedy


def test_one_token(llama, greedy):
  assert run(llama, prompts(), tokens=1) == [row[:1] for row in greedy]


def test_no_prompts(llama):
  assert run(llama, []) == []


def test_parameters_on_a_mesh(llama, greedy, monkeypatch):
  """The same; rows lie over data and fsdp, and calls hand each other what they take."""
  network, params = llama
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  params = jax.device_put(params, sharding.shardings_for(params, mesh))
  extend, seen = growth.extend, []

  def looking(network, params, state, *rest, **how):
    seen.append({x.sharding.shard_shape(x.shape) for x in jax.tree.leaves(state["cache"])})
    return extend(network, params, state, *rest, **how)

  monkeypatch.setattr(growth, "extend", looking)
  before = extend._cache_size()
  with jax.set_mesh(mesh):
    found = run((network, params), prompts()[:2], on_token=lambda *_: None)
  assert found == greedy[:2] and len(seen) == 2 and extend._cache_size() == before + 1
  K, room, H = network.arch.heads.kv, 48, network.arch.heads.dim
  assert (
    seen == [{(network.arch.layers, K, room, H), (1, room), (1,)}] * 2
  )  # a row of four each


# --- where rows end --------------------------------------------------------------------


def until(row, stops):
  """The row up to its first stop id."""
  at = [i for i, token in enumerate(row) if token in stops]
  return row[: at[0]] if at else row


@pytest.mark.parametrize("watched", [False, True])
def test_stop_ids_end_each_row_by_itself(llama, greedy, watched):
  stops = {greedy[0][3], greedy[1][2], greedy[3][4]}
  expected = [until(row, stops) for row in greedy]
  assert len({len(row) for row in expected}) > 2  # rows end at different times
  for stop in stops:  # each of them is needed
    assert expected != [until(row, stops - {stop}) for row in greedy]
  settings = {"on_token": lambda row, ids: None} if watched else {}
  assert run(llama, prompts(), stops=sorted(stops), **settings) == expected


CALLS = []


class Counting(models.Network):
  """Tells how often its decoder ran."""

  def decode(self, *args, **kwargs):
    jax.debug.callback(lambda: CALLS.append(1))
    return super().decode(*args, **kwargs)


def test_nothing_runs_after_the_last_row_has_stopped(llama, greedy):
  network = Counting(llama[0].arch, llama[0].head)
  stops = [greedy[1][3], greedy[3][1]]
  expected = [until(greedy[i], stops) for i in (1, 3)]
  found = run((network, llama[1]), [prompts()[i] for i in (1, 3)], tokens=60, stops=stops)
  jax.effects_barrier()
  assert found == expected
  assert len(CALLS) == 1 + max(map(len, expected))  # the prompts; then what was not the end


def test_ids_beyond_the_tokenizer_are_never_chosen(llama, greedy):
  limit = sorted({token for row in greedy for token in row})[-2]
  assert max(map(max, greedy)) >= limit
  assert max(map(max, run(llama, prompts(), vocab_limit=limit))) < limit


def test_streaming_is_the_result_in_parts(llama, greedy):
  heard, calls = [[] for _ in greedy], []
  stops = [greedy[2][6]]

  def on_token(row, ids):
    heard[row] += ids
    calls.append(row)

  found = run(llama, prompts(), stops=stops, on_token=on_token, batch_size=4)
  assert heard == found == [until(row, stops) for row in greedy]
  assert calls.count(4) == 3  # the first token, then 4 and 4


# --- what is drawn ---------------------------------------------------------------------

DRAWN = {"temperature": 3.0, "top_p": 0.95}


def test_the_same_seed_draws_the_same(llama, greedy):
  rows = prompts()[:4]
  once = run(llama, rows, seed=3, **DRAWN)
  assert once == run(llama, rows, seed=3, **DRAWN)
  assert once != run(llama, rows, seed=4, **DRAWN) and once != greedy[:4]
  assert once[3:] == run(llama, rows[3:], seed=3, **DRAWN)


def test_a_seed_for_each_prompt(llama):
  rows = [prompts()[3]] * 4
  one, two, again, _ = run(llama, rows, seed=[1, 2, 1, 7], **DRAWN)
  assert one == again != two
  assert two == run(llama, rows[:1], seed=2, **DRAWN)[0]


def test_prompts_and_answers_share_no_noise(llama):
  """Of a flat distribution every prompt, answer and seed draws its own."""
  network, params = llama
  flat = params | {"norm": {"scale": params["norm"]["scale"] * 0}}
  ask = lambda seed, count: batches.continuations(
    network,
    flat,
    [[5, 6], [5, 7]],
    max_new_tokens=8,
    stop_ids=(),
    temperature=1.0,
    seed=seed,
    num_return=count,
  )
  found = [tuple(one.ids) for seed in (7, 8) for best in ask(seed, 3) for one in best]
  assert len(set(found)) == 12
  assert set(found[:3]) > {tuple(one.ids) for one in ask(7, 2)[0]}  # fewer are among them


def test_one_token_left_is_greedy(llama, greedy):
  assert run(llama, prompts(), temperature=5.0, top_k=1) == greedy


def test_a_heavy_penalty_repeats_nothing(llama, greedy):
  assert any(len(set(row)) < len(row) for row in greedy)
  for prompt, row in zip(prompts(), run(llama, prompts(), repetition_penalty=1e9), strict=True):
    assert len(set(row)) == len(row) and not set(row) & set(prompt)


# --- cost ------------------------------------------------------------------------------


def test_one_program_for_each_bucket():
  llama = tiny.network("llama", "lm", changes={"max_position_embeddings": 96})
  compiled = lambda: (growth.read._cache_size(), growth.extend._cache_size())
  read, extend = compiled()
  run(llama, prompts((3, 8)), 9)
  run(llama, prompts((16, 2), 1), 7, stops=[1, 2, 3])
  run(llama, prompts((9, 16)), 8, on_token=lambda *_: None)
  assert compiled() == (read + 1, extend + 1)
  run(llama, prompts((9, 16)), 9)  # prompt and answer are in the next bucket
  assert compiled() == (read + 2, extend + 2)
  run(llama, prompts((3, 8)), 9, temperature=0.5)
  run(llama, prompts((3, 8)), 9, temperature=1, seed=5)
  assert compiled() == (read + 3, extend + 3)


def test_buckets():
  sizes = [batches.bucket(n) for n in (0, 1, 16, 17, 24, 25, 33, 48, 49, 97, 4097)]
  assert sizes == [16, 16, 16, 24, 24, 32, 48, 48, 64, 128, 6144]


def test_weights_are_arguments(llama):
  """Not constants of the program."""
  network, params = llama
  params = batches._straight(jax.device_put(params))
  text = growth.read.lower(
    network,
    params,
    None,
    jnp.ones((1, 16), int),
    jnp.ones((1, 16), int),
    sampling.Rules().numbers
    | batches._limits(network.arch.vocab, [], None, Frame(), 9)
    | {"seeds": np.zeros((1, 3), np.uint32), "prompts": np.ones(1, np.int32)},
    parts=sampling.Rules().parts(),
    room=32,
    last=True,
  ).as_text()
  assert len(text) < 400_000 and "dense_resource" not in text


def test_the_copy_of_the_weights_is_never_stale(llama):
  network, params = llama
  params = jax.device_put(params)
  first = run((network, params), prompts()[:2])
  layers, refs = batches._kept[1], batches._kept[0]
  run((network, params), prompts()[:2])
  assert batches._kept[1] is layers
  # one leaf is another, as after an update with everything else frozen
  down = params["layers"]["mlp"]["down"]["kernel"]
  mlp = params["layers"]["mlp"] | {"down": {"kernel": -down}}
  changed = params | {"layers": params["layers"] | {"mlp": mlp}}
  found = run((network, changed), prompts()[:2])
  assert found != first
  assert found[0] == by_full_forward((network, changed), prompts()[0], 9)
  assert batches._kept[0] is not refs
  del changed, mlp, layers
  gc.collect()
  assert not batches._kept  # its memory is free again


# --- bad inputs ------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("rows", "settings", "sentence"),
  [
    ([[1], []], {}, "prompt 1 is empty"),
    ([[1, 67]], {}, "contains the token 67, the model's vocabulary ends at 66"),
    ([[-1]], {}, "contains the token -1"),
    ([[1] * 100], {"tokens": 29}, "has 100 tokens, with max_new_tokens=29 that is more than"),
    ([[1]], {"tokens": 0}, "max_new_tokens is 0, expected a whole number of at least 1"),
    ([[1]], {"stops": [67]}, "a stop id is 67, the model's vocabulary ends at 66"),
    ([[1]], {"stops": [-2]}, "a stop id is -2"),
    ([[1]], {"frame": Frame(first=67)}, "the first token of answers is 67"),
    ([[1]], {"frame": Frame(last=(1, 67))}, "their last token is 67"),
    ([[1]], {"frame": Frame(banned=(1, 67))}, "a banned token is 67"),
    ([[1]], {"top_p": 7}, "top_p is 7, expected more than 0 and at most 1"),
  ],
)
def test_bad_inputs(llama, rows, settings, sentence):
  with pytest.raises(JaxsftError, match=sentence):
    run(llama, rows, **settings)


def test_the_last_position_can_be_used(llama):
  assert len(run(llama, [[1] * 100], tokens=28)[0]) == 28


@pytest.mark.parametrize("rules", [{}, {"temperature": 1.0}, {"num_beams": 2}])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite(llama, value, rules):
  """With one infinite term, the logits are infinite themselves, and not NaN."""
  network, params = llama
  scale = np.zeros(params["norm"]["scale"].shape, np.float32)
  scale[0] = value
  params = params | {"norm": {"scale": scale}}
  with pytest.raises(JaxsftError, match="the logits of row 0 of a batch are not finite"):
    run((network, params), [[1, 2]], **rules)


@pytest.mark.parametrize("rules", [{}, {"temperature": 1.0}, {"num_beams": 2}])
def test_rows_in_which_no_token_may_come(llama, rules):
  """Four tokens, none of them twice: the fifth has none left; nor has the third, nearly."""
  few = {"vocab_limit": 4, "no_repeat_ngram_size": 1}
  found = run(llama, [[9]], tokens=4, **few, **rules)[0]
  assert sorted(found) == [0, 1, 2, 3]
  with pytest.raises(JaxsftError, match="no token may come next in row 0 of a batch"):
    run(llama, [[9]], tokens=5, **few, **rules)


@pytest.mark.parametrize("rules", [{"temperature": 1.0}, {"num_beams": 2}])
def test_a_long_prompt_in_copies(llama, monkeypatch, rules):
  """What is read in pieces and then copied hands back no buffers that JAX warns of."""
  rows = prompts((5, 31))
  expected = batches.continuations(
    *llama, rows, max_new_tokens=9, stop_ids=(), num_return=2, **rules
  )
  monkeypatch.setattr(batches, "READ", 12)
  found = batches.continuations(
    *llama, rows, max_new_tokens=9, stop_ids=(), num_return=2, **rules
  )
  assert [[one.ids for one in best] for best in found] == [
    [one.ids for one in best] for best in expected
  ]


def test_a_network_without_a_vocabulary():
  with pytest.raises(JaxsftError, match="'sequence' head, expected a language model"):
    run(tiny.network("llama", "sequence"), [[1]])
