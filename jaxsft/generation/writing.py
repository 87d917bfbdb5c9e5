"""Texts from a language model: one answer, answers to many prompts, what it reads for each."""

from functools import partial
from typing import NamedTuple

from jaxsft.data import chat
from jaxsft.errors import JaxsftError, UsageError
from jaxsft.generation import batches, defaults, frames, stop_strings

LIMIT = 64  # new tokens where neither the call nor the checkpoint says


class Answer(NamedTuple):
  """A text that a model has written."""

  text: str
  score: float
  """See batches.Continuation."""
  full: bool
  """Whether it took all of max_new_tokens, which may have cut it."""


# --- one prompt ------------------------------------------------------------------------


def answer(model, prompt, **settings):
  """The answer of a `pretrained.Model` to a text or to a list of messages.

  settings: of `written`; those not given are the checkpoint's.
  """
  if "num_return" in settings:
    raise UsageError(
      f"num_return is {settings['num_return']}, but `generate` returns one text: use `n_best`"
    )
  return answers_of(model, prompt, 1, **settings)[0].text


def answers_of(model, prompt, num_return, **settings):
  """The num_return best `Answer`s of a `pretrained.Model` to a prompt, best first.

  With a temperature they are drawn; otherwise give as many num_beams at least.
  """
  if model.network.head.kind != "lm":
    raise JaxsftError(
      f"the model is a {model.config['architectures'][0]}, which does not write text; use "
      "python -m jaxsft.predict"
    )
  given = {name: value for name, value in settings.items() if value is not None}
  prompt = _instructed(model, prompt)
  followed, rest = defaults.settings_of(model.base, given)
  defaults.say(model.base, rest)
  settings = {"max_new_tokens": LIMIT, "frame": frames.frame_of(model.base)} | followed | given
  return n_best(
    model.network,
    model.params,
    model.tokenizer,
    [prompt],
    stop_ids=stop_ids(model.base),
    template=model.context.chat_template,
    num_return=num_return,
    **settings,
  )[0]


def _instructed(model, prompt):
  """The prompt behind what an encoder-decoder was trained to see before every source.

  It may begin with it already.
  """
  before = model.context.instruction
  return (
    before + prompt if isinstance(prompt, str) and not prompt.startswith(before) else prompt
  )


# --- many prompts ----------------------------------------------------------------------


def answers(network, params, tokenizer, prompts, **settings):
  """The answer to each prompt, a text or a list of messages, without its special tokens.

  settings: of `n_best`.
  """
  found = n_best(network, params, tokenizer, prompts, num_return=1, **settings)
  return [best[0].text for best in found]


def n_best(network, params, tokenizer, prompts, *, num_return, template=None, **settings):
  """The num_return best `Answer`s to each prompt, best first, in the order of the prompts.

  template: Jinja text; None: the tokenizer's own. settings: of `written`.
  """
  read = encode_source if network.has_source else partial(encode, template=template)
  ids = [read(prompt, tokenizer=tokenizer) for prompt in prompts]
  return written(network, params, tokenizer, ids, num_return=num_return, **settings)


def written(
  network,
  params,
  tokenizer,
  prompts,
  *,
  max_new_tokens,
  stop_ids,
  num_return=1,
  frame=None,
  stop=(),
  on_text=None,
  **settings,
):
  """The num_return best `Answer`s to each prompt (a list of ids), best first.

  stop: a text or several; an answer ends as soon as it contains one, and its text before it.
  on_text(prompt's index, text) is called with the text so far, as much of it as is certain,
  and at last with all of it. settings: of `batches.continuations` (seed, batch_size,
  progress, …) and `sampling.Rules`.
  """
  stops, more = stop_strings.split(stop, tokenizer)
  known = 1 + max(tokenizer.get_vocab().values())
  found = batches.continuations(
    network,
    params,
    prompts,
    max_new_tokens=max_new_tokens,
    num_return=num_return,
    frame=frame,
    stop_ids={*stop_ids, *more},
    until=stop_strings.until(tokenizer, stops),
    on_token=on_text and _texts_of_tokens(tokenizer, stops, on_text),
    **{"vocab_limit": known} | settings,
  )
  full = max_new_tokens - (frame is not None and frame.last is not None)  # last ends it there

  def answer_of(one):
    text = stop_strings.decode(tokenizer, one.ids)
    return Answer(stop_strings.cut(text, stops), one.score, len(one.ids) >= full)

  result = [[answer_of(one) for one in best] for best in found]
  for i, best in enumerate(result if on_text else ()):
    on_text(i, best[0].text)
  return result


def _texts_of_tokens(tokenizer, stops, on_text):
  """on_token of `batches.continuations` that tells what is certain of each text."""
  ids, told = {}, {}

  def on_token(i, new):
    ids[i] = ids.get(i, []) + new
    text = stop_strings.certain(stop_strings.decode(tokenizer, ids[i]), stops)
    if text != told.get(i, ""):
      told[i] = text
      on_text(i, text)

  return on_token


# --- what is read ----------------------------------------------------------------------


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
