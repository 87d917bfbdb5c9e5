"""Text from a causal language model, greedy or sampled, with a cache of keys and values.

  python -m jaxsft.generate --model=DIR_OR_NAME --prompt="…" [--max_new_tokens=64]
                            [--temperature=0.7] [--top_k=40] [--top_p=0.9] [--min_p=0.05]
                            [--repetition_penalty=1.1] [--seed=0] [--sha256=…]

The prompt becomes one user message if the tokenizer has a chat template, else it is plain
text that the model continues. Temperature 0, the default, takes the likeliest token.
"""

import dataclasses
import weakref
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxsft import command, pretrained, sampling, start, weights
from jaxsft.data import chat
from jaxsft.errors import JaxsftError, UsageError
from jaxsft.models import decoder

READ = 512  # tokens of a prompt that are read at once; their scores are READ x room
STREAMED = 4  # new tokens between two looks of the host, when somebody watches
SMALLEST = 16  # tokens in the first bucket


# --- text ------------------------------------------------------------------------------


def answer(model, prompt, *, max_new_tokens=64, **settings):
  """The answer of a `pretrained.Model` to a text or to a list of messages.

  settings: of `sampling.Sampling` and `generate`. See `answers`.
  """
  _refuse_classifier(model)
  return answers(
    model.network,
    model.params,
    model.tokenizer,
    [prompt],
    stop_ids=stop_ids(model.base),
    template=model.context.chat_template,
    max_new_tokens=max_new_tokens,
    **settings,
  )[0]


def answers(network, params, tokenizer, prompts, *, stop_ids, template=None, **settings):
  """The answer to each prompt, a text or a list of messages, without its special tokens.

  template: Jinja text; None: the tokenizer's own. settings: of `sampling.Sampling` and
  `generate`.
  """
  ids = [encode(prompt, tokenizer, template) for prompt in prompts]
  known = 1 + max(tokenizer.get_vocab().values())
  settings = {"vocab_limit": known} | settings
  found = generate(network, params, ids, stop_ids=stop_ids, **settings)
  return [tokenizer.decode(new, skip_special_tokens=True) for new in found]


def encode(prompt, tokenizer, template=None):
  """Token ids of a prompt: those that training uses, up to where the answer begins.

  A text becomes one user message where there is a chat template. Elsewhere it is tokenised
  with the tokenizer's own special tokens, but none that would end it.
  """
  if isinstance(prompt, str):
    if template is None and not tokenizer.chat_template:
      ids = tokenizer(prompt)["input_ids"]
      return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids
    prompt = [{"role": "user", "content": prompt}]
  for i, message in enumerate(prompt):
    fields = (message.get(k) for k in ("role", "content")) if isinstance(message, dict) else ()
    if not (isinstance(message, dict) and all(isinstance(f, str) for f in fields)):
      raise JaxsftError(
        f"messages[{i}] is {message!r:.60}, expected {{'role': …, 'content': …}} with texts"
      )
  return chat.prompt_ids(prompt, tokenizer, template).tolist()


def stop_ids(base):
  """Sorted ids that end an answer of a `pretrained.Pretrained`.

  All that the checkpoint names: eos_token_id (one or a list) of generation_config.json and
  of config.json, and the tokenizer's end-of-text token.
  """
  found = set()
  named = (base.generation, base.config)
  for value in (*(d.get("eos_token_id") for d in named), base.tokenizer.eos_token_id):
    found |= set(value) if isinstance(value, list | tuple) else {value}
  return sorted(int(i) for i in found - {None})


# --- tokens ----------------------------------------------------------------------------


def generate(
  network,
  params,
  prompts,
  *,
  max_new_tokens,
  stop_ids,
  seed=0,
  vocab_limit=None,
  batch_size=16,
  on_token=None,
  **settings,
):
  """New token ids of each prompt (a list of ids), without the stop id that ended them.

  settings: of `sampling.Sampling`. The token at position i of a row is drawn with
  fold_in(key(seed), i): neither other prompts nor batch_size (rows at a time, of similar
  lengths) change what it is. seed: a number, or one for each prompt. Ids from vocab_limit
  on are never chosen. on_token(prompt's index, new ids) is called as they come; without it
  the device is waited for once a batch.
  Programs are compiled for buckets: of rows, of prompt lengths, of prompt and answer.
  Raises JaxsftError for an empty prompt, an id outside of the vocabulary, more tokens than
  the model has positions, and logits that are not numbers.
  """
  rules, limit = sampling.Sampling(**settings), int(max_new_tokens)
  _check(network, prompts, limit)
  numbers = rules.numbers | _limits(stop_ids, vocab_limit, network.arch.vocab)
  params = _straight(params)
  seeds = np.broadcast_to(np.asarray(seed).astype(np.uint32), len(prompts))
  order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
  found = [None] * len(prompts)
  for first in range(0, len(order), batch_size):
    mine = order[first : first + batch_size]
    batch = [prompts[i] for i in mine]
    numbers["seeds"] = seeds[mine]
    for rows in _steps(network, params, batch, numbers, rules.parts, limit, bool(on_token)):
      for i, row in zip(mine, rows, strict=True):
        new = row[len(found[i] or ()) :]
        found[i] = row
        if on_token and new:
          on_token(i, new)
  return found


def _limits(stop_ids, vocab_limit, vocab):
  """Arguments of a program that say where it ends; padded, so that their count is no part."""
  stops = np.full(bucket(len(stop_ids)), -1, np.int32)  # no token is -1
  stops[: len(stop_ids)] = list(stop_ids)
  limit = vocab if vocab_limit is None else min(vocab_limit, vocab)
  return {"stop_ids": stops, "vocab_limit": limit}


def _check(network, prompts, limit):
  arch = network.arch
  if network.head.kind != "lm":
    raise JaxsftError(
      f"found a network with a {network.head.kind!r} head, expected a language model; "
      "only those generate text"
    )
  if limit < 1:
    raise UsageError(f"max_new_tokens is {limit}, expected at least 1")
  for i, prompt in enumerate(prompts):
    if not len(prompt):
      raise JaxsftError(f"prompt {i} is empty, expected at least one token to go on from")
    wrong = [int(t) for t in prompt if not 0 <= t < arch.vocab]
    if wrong:
      raise JaxsftError(
        f"prompt {i} contains the token {wrong[0]}, the model's vocabulary ends at "
        f"{arch.vocab - 1}; use the tokenizer that belongs to the model"
      )
    if len(prompt) + limit > arch.max_positions:
      raise JaxsftError(
        f"prompt {i} has {len(prompt)} tokens, with max_new_tokens={limit} that is more "
        f"than the model's {arch.max_positions} positions; shorten it or ask for fewer"
      )


def bucket(n):
  """The first of 16, 24, 32, 48, 64, 96, 128, … that is not less than n."""
  size = SMALLEST
  while size < n:
    size = size * 3 // 2 if size * 3 // 2 >= n else size * 2
  return size


_kept = []  # [weak references to stacked leaves, the layers unstacked from them]


def _straight(params):
  """The parameters with unstacked layers where that is faster: on one CPU.

  The copy is kept for the next call, until one of the leaves it was made of is gone.
  """
  leaves = jax.tree.leaves(params["layers"])
  alone = all(isinstance(x, jax.Array) and len(x.sharding.device_set) == 1 for x in leaves)
  if not alone or isinstance(params["layers"], tuple) or jax.default_backend() != "cpu":
    return params
  kept = list(_kept)
  if not kept or not all(ref() is x for ref, x in zip(kept[0], leaves, strict=True)):
    refs = [weakref.ref(x, lambda _: _kept.clear()) for x in leaves]
    _kept[:] = kept = [refs, decoder.unstack(params)["layers"]]
  return {**params, "layers": kept[1]}


# --- one batch -------------------------------------------------------------------------
# The state of a batch, beside the cache: x [B,D], the hidden states that the next tokens are
# chosen from; tokens [B,S], prompts and answers; live [B], rows that go on; broken [B], rows
# whose logits are not numbers; seen [B,V], where repetitions are penalised. Of a row, the
# cache holds lengths tokens; while it is live, its newest token is not among them.


def _steps(network, params, prompts, numbers, parts, limit, watched):
  """Yields the new ids of each prompt so far; once, at the end, unless somebody watches."""
  lengths = [len(prompt) for prompt in prompts]
  rows, width = 1 << (len(prompts) - 1).bit_length(), bucket(max(lengths))
  if width > READ:
    width = -(-max(lengths) // READ) * READ
  inputs, segments = np.zeros((2, rows, width), np.int32)
  for row, prompt in enumerate(prompts):
    inputs[row, : len(prompt)], segments[row, : len(prompt)] = prompt, 1
  numbers["seeds"] = np.pad(numbers["seeds"], (0, rows - len(prompts)))
  state, how = None, {"parts": parts, "room": bucket(max(lengths) + limit)}
  for at in range(0, width, READ):
    piece = np.s_[:, at : at + READ]
    last = at + READ >= width
    state = _read(
      network, params, state, inputs[piece], segments[piece], numbers, last=last, **how
    )
  done = 1
  while done < limit:
    if watched:
      new, live = _new(state, lengths)
      yield new
      if not live:
        return
    steps = min(STREAMED if watched else limit, limit - done)
    state = _extend(network, params, state, steps, numbers, parts=parts)
    done += steps
  yield _new(state, lengths)[0]


def _new(state, lengths):
  """(new ids of each row so far, whether any row goes on); waits for the device."""
  names = ("tokens", "live", "broken")
  tokens, live, broken = (weights.params.on_host(state[name]) for name in names)
  held = weights.params.on_host(state["cache"]["lengths"]) + live
  if broken.any():
    raise JaxsftError(
      f"the logits of row {int(np.argmax(broken))} of a batch are not numbers; the weights "
      "are damaged, or overflow in this dtype: check the checkpoint or use float32"
    )
  rows = [tokens[i, n : held[i]].tolist() for i, n in enumerate(lengths)]
  return rows, bool(live.any())


@partial(jax.jit, static_argnames=("network", "parts", "room", "last"), donate_argnames="state")
def _read(network, params, state, inputs, segments, numbers, *, parts, room, last):
  """The state after one more piece of the prompts [B,T]; after the last, a token each."""
  if state is None:
    state = _empty(network, params, inputs.shape[0], room, parts)
  x, cache = network.decode(params, inputs, state["cache"], segments=segments)
  some = jnp.sum(segments, 1)
  x = jnp.take_along_axis(x, jnp.maximum(some - 1, 0)[:, None, None], 1)[:, 0]
  state |= {"x": jnp.where(some[:, None] > 0, x, state["x"]), "cache": cache}
  state["live"] = state["live"] | (some > 0)
  if parts.penalised:
    ids = jnp.where(segments > 0, inputs, network.arch.vocab)
    rows = jnp.arange(inputs.shape[0])[:, None]
    state["seen"] = state["seen"].at[rows, ids].set(True, mode="drop")
  return _choose(network, params, state, numbers, parts) if last else state


@partial(jax.jit, static_argnames=("network", "parts"), donate_argnames="state")
def _extend(network, params, state, steps, numbers, *, parts):
  """The state after at most `steps` more tokens in each row."""

  def goes_on(carry):
    return (carry[0] < steps) & jnp.any(carry[1]["live"])

  def step(carry):
    done, state = carry
    newest = jnp.take_along_axis(state["tokens"], state["cache"]["lengths"][:, None], 1)
    live = state["live"].astype(jnp.int32)[:, None]
    x, cache = network.decode(params, newest, state["cache"], segments=live)
    state = state | {"x": x[:, 0], "cache": cache}
    return done + 1, _choose(network, params, state, numbers, parts)

  return jax.lax.while_loop(goes_on, step, (jnp.int32(0), state))[1]


def _empty(network, params, rows, room, parts):
  state = {
    "cache": network.empty_cache(params, rows, room),
    "x": jnp.zeros((rows, network.arch.width), network.dtype),
    "tokens": jnp.zeros((rows, room), jnp.int32),
    "live": jnp.zeros(rows, bool),
    "broken": jnp.zeros(rows, bool),
  }
  if parts.penalised:
    state["seen"] = jnp.zeros((rows, network.arch.vocab), bool)
  return state


def _choose(network, params, state, numbers, parts):
  """The state with the next token of each live row, or with the row ended by a stop id."""
  places = state["cache"]["lengths"]
  logits = network.vocabulary_logits(params, state["x"])
  broken = jnp.isnan(jnp.max(logits, -1))
  logits = jnp.where(jnp.arange(logits.shape[1]) < numbers["vocab_limit"], logits, -jnp.inf)
  token = sampling.choose(logits, numbers, parts, state.get("seen"), numbers["seeds"], places)
  live = state["live"] & ~broken & jnp.all(token[:, None] != numbers["stop_ids"], -1)
  rows, room = jnp.arange(len(token)), state["tokens"].shape[1]
  at = jnp.where(live, places, room)
  chosen = {
    "tokens": state["tokens"].at[rows, at].set(token, mode="drop"),
    "live": live,
    "broken": state["broken"] | (state["live"] & broken),
  }
  if parts.penalised:
    chosen["seen"] = state["seen"].at[rows, token].set(True)
  return state | chosen


# --- the verb --------------------------------------------------------------------------


def _refuse_classifier(model):
  if model.base.task != "chat":
    raise JaxsftError(
      f"the model is a {model.config['architectures'][0]}, which does not write text; use "
      "python -m jaxsft.predict"
    )


def _printer(tokenizer):
  """(on_token of `generate` that prints the text so far, list of what it has printed)."""
  ids, printed = [], [""]

  def on_token(_, new):
    ids.extend(new)
    text = tokenizer.decode(ids, skip_special_tokens=True)
    text = text.rstrip("\ufffd")  # the first bytes of a character whose last are to come
    if text.startswith(printed[0]):
      print(text[len(printed[0]) :], end="", flush=True)
      printed[0] = text

  return on_token, printed


def main(argv):
  numbers = {k.name: k.default for k in dataclasses.fields(sampling.Sampling)}
  flags = {"model": "", "prompt": "", "max_new_tokens": 64, "seed": 0, **numbers}
  flags |= {"sha256": None, "revision": None}
  _, flags = command.parse(argv, flags, needs_config=False)
  start.quiet()
  start.compilation_cache()
  sampling.Sampling(**{name: flags[name] for name in numbers})  # before the weights are read
  path, *pins = (flags.pop(name) for name in ("model", "sha256", "revision"))
  model = pretrained.load(path, *pins)
  on_token, printed = _printer(model.tokenizer)
  text = answer(model, flags.pop("prompt"), on_token=on_token, **flags)
  print(text[len(printed[0]) :] if text.startswith(printed[0]) else f"\n{text}")


if __name__ == "__main__":
  command.run(main)
