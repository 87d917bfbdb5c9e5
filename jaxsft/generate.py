"""Text from a language model, greedy or sampled, with a cache of keys and values.

  python -m jaxsft.generate --model=DIR_OR_NAME --prompt="…" [--max_new_tokens=64]
                            [--temperature=0.7] [--top_k=40] [--top_p=0.9] [--min_p=0.05]
                            [--repetition_penalty=1.1] [--seed=0] [--sha256=…]

The prompt becomes one user message if the tokenizer has a chat template, else it is plain
text that the model continues, or that an encoder-decoder reads. Temperature 0, the default,
takes the likeliest token.
"""

import dataclasses
import weakref
from functools import partial

import jax
import numpy as np

from jaxsft import command, generate_state, pretrained, sampling, start, target, weights
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
  if model.network.has_source:
    settings = {"frame": target.frame_of(model.base)} | settings
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
  read = encode_source if network.has_source else partial(encode, template=template)
  ids = [read(prompt, tokenizer=tokenizer) for prompt in prompts]
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


def encode_source(prompt, tokenizer):
  """Token ids of an encoder-decoder's source: a text and the tokenizer's special tokens."""
  if not isinstance(prompt, str):
    raise JaxsftError(
      f"the prompt is {prompt!r:.60}, expected a text: an encoder-decoder reads no messages"
    )
  return tokenizer(prompt)["input_ids"]


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
  frame=None,
  **settings,
):
  """New token ids of each prompt (a list of ids), without the stop id that ended them.

  settings: of `sampling.Sampling`. The token at position i of a row is drawn with
  fold_in(key(seed), i): neither other prompts nor batch_size (rows at a time, of similar
  lengths) change what it is. seed: a number, or one for each prompt. Ids from vocab_limit
  on are never chosen. on_token(prompt's index, new ids) is called as they come; without it
  the device is waited for once a batch. frame: a target.Frame, for encoder-decoders, whose
  prompts are sources; None: the architecture's start alone.
  Programs are compiled for buckets: of rows, of prompt lengths, of prompt and answer.
  Raises JaxsftError for an empty prompt, an id outside of the vocabulary, more tokens than
  the model has positions, and logits that are not numbers.
  """
  rules, limit = sampling.Sampling(**settings), int(max_new_tokens)
  _check(network, prompts, limit)
  if network.has_source:
    frame = frame or target.Frame(network.arch.decoder_start)
    if frame.start is None:
      raise JaxsftError("found no token that targets begin with: give `generate` a frame")
    if frame.last is not None:
      stop_ids, limit = {*stop_ids, frame.last}, limit - 1
  banned = () if frame is None else frame.banned
  numbers = rules.numbers | _limits(stop_ids, vocab_limit, network.arch.vocab, banned)
  if limit == 0:
    return [[] for _ in prompts]
  params = _straight(params)
  seeds = np.broadcast_to(np.asarray(seed).astype(np.uint32), len(prompts))
  order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
  found = [None] * len(prompts)
  for first in range(0, len(order), batch_size):
    mine = order[first : first + batch_size]
    batch = [prompts[i] for i in mine]
    numbers["seeds"] = seeds[mine]
    begin = partial(_sources, frame=frame) if network.has_source else _prompts
    first_state = begin(network, params, batch, numbers, rules.parts, limit)
    for rows in _steps(network, params, first_state, numbers, rules.parts, limit, on_token):
      for i, row in zip(mine, rows, strict=True):
        new = row[len(found[i] or ()) :]
        found[i] = row
        if on_token and new:
          on_token(i, new)
  return found


def _limits(stop_ids, vocab_limit, vocab, banned=()):
  """Arguments of a program that say what it chooses; padded, so that counts are no part."""
  never = np.full(bucket(len(banned)), -1, np.int32)
  never[: len(banned)] = list(banned)
  stops = np.full(bucket(len(stop_ids)), -1, np.int32)  # no token is -1
  stops[: len(stop_ids)] = list(stop_ids)
  limit = vocab if vocab_limit is None else min(vocab_limit, vocab)
  return {"stop_ids": stops, "vocab_limit": limit, "banned": never}


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
    vocab = getattr(arch, "source_vocab", None) or arch.vocab
    wrong = [int(t) for t in prompt if not 0 <= t < vocab]
    if wrong:
      raise JaxsftError(
        f"prompt {i} contains the token {wrong[0]}, the model's vocabulary ends at "
        f"{vocab - 1}; use the tokenizer that belongs to the model"
      )
    apart = network.has_source and max(len(prompt), 1 + limit) <= arch.max_positions
    if not apart and len(prompt) + limit > arch.max_positions:
      raise JaxsftError(
        f"prompt {i} has {len(prompt)} tokens, with max_new_tokens={limit} that is more "
        f"than the model's {arch.max_positions} positions; shorten it or ask for fewer"
      )
    if not network.has_source:
      decoder.check_growth(arch, len(prompt), limit)


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
  own = params.get("decoder", params)  # an encoder reads its source but once
  leaves = jax.tree.leaves(own["layers"])
  alone = all(isinstance(x, jax.Array) and len(x.sharding.device_set) == 1 for x in leaves)
  if not alone or isinstance(own["layers"], tuple) or jax.default_backend() != "cpu":
    return params
  kept = list(_kept)
  if not kept or not all(ref() is x for ref, x in zip(kept[0], leaves, strict=True)):
    refs = [weakref.ref(x, lambda _: _kept.clear()) for x in leaves]
    _kept[:] = kept = [refs, decoder.unstack(own)["layers"]]
  own = {**own, "layers": kept[1]}
  return {**params, "decoder": own} if "decoder" in params else own


# --- one batch -------------------------------------------------------------------------


def _steps(network, params, first_state, numbers, parts, limit, watched):
  """Yields the new ids of each prompt so far; once, at the end, unless somebody watches."""
  state, lengths, done = first_state
  while done < limit:
    if watched:
      new, live = _new(state, lengths)
      yield new
      if not live:
        return
    steps = min(STREAMED if watched else limit, limit - done)
    state = generate_state.extend(network, params, state, steps, numbers, parts=parts)
    done += steps
  yield [new[:limit] for new in _new(state, lengths)[0]]


def _prompts(network, params, prompts, numbers, parts, limit):
  """(state with one new token in each row, lengths of what is not new, 1)."""
  lengths = [len(prompt) for prompt in prompts]
  inputs, segments = _padded(prompts, READ)
  spare = (0, len(inputs) - len(prompts))
  numbers["seeds"] = np.pad(numbers["seeds"], spare)
  numbers["prompts"] = np.pad(np.array(lengths, np.int32), spare)
  state, how = None, {"parts": parts, "room": bucket(max(lengths) + limit)}
  for at in range(0, inputs.shape[1], READ):
    piece = np.s_[:, at : at + READ]
    last = at + READ >= inputs.shape[1]
    state = generate_state.read(
      network, params, state, inputs[piece], segments[piece], numbers, last=last, **how
    )
  return state, lengths, 1


def _sources(network, params, sources, numbers, parts, limit, frame):
  """Like `_prompts`; the frame's first token is a new one too."""
  source, segments = _padded(sources)
  numbers["seeds"] = np.pad(numbers["seeds"], (0, len(source) - len(sources)))
  begin = np.array([i for i in (frame.start, frame.first) if i is not None], np.int32)
  room = bucket(len(begin) + limit)
  state = generate_state.open_target(
    network, params, source, segments, begin, numbers, parts=parts, room=room
  )
  return state, [1] * len(sources), len(begin)


def _padded(prompts, step=None):
  """(ids, segments), of a bucket's size; beyond `step` tokens of a multiple of it."""
  longest = max(len(prompt) for prompt in prompts)
  rows, width = 1 << (len(prompts) - 1).bit_length(), bucket(longest)
  if step is not None and width > step:
    width = -(-longest // step) * step
  inputs, segments = np.zeros((2, rows, width), np.int32)
  for row, prompt in enumerate(prompts):
    inputs[row, : len(prompt)], segments[row, : len(prompt)] = prompt, 1
  return inputs, segments


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


# --- the verb --------------------------------------------------------------------------


def _refuse_classifier(model):
  if model.network.head.kind != "lm":
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
