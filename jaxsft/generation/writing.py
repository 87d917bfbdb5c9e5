"""Texts from a language model: one answer, or answers to many prompts."""

from typing import NamedTuple

from jaxsft import sharding
from jaxsft.data.cleaning import fields
from jaxsft.errors import JaxsftError, UsageError
from jaxsft.generation import batches, choices, defaults, frames, sampling, stops
from jaxsft.generation import prompts as reading

SETTINGS = (*choices.CHOICES, "batch_size", "frame", "vocab_limit", "on_text")


class Answer(NamedTuple):
  """A text that a model has written."""

  text: str
  score: float
  """See batches.Continuation."""
  full: bool
  """Whether max_new_tokens may have cut it: it took them all, and no stop string ended it."""


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
  """At most num_return `Answer`s of a `pretrained.Model` to a prompt, the best first.

  With a temperature they are drawn; otherwise give as many num_beams at least.
  """
  if model.network.head.kind != "lm":
    raise JaxsftError(
      f"the model is a {model.config['architectures'][0]}, which does not write text; use "
      "python -m jaxsft.predict"
    )
  sampling.check_names(settings, SETTINGS)
  given = {name: value for name, value in settings.items() if value is not None}
  settings = {"max_new_tokens": choices.LIMIT, "frame": frames.frame_of(model.base)}
  several = {} if num_return == 1 else {"num_return": num_return}
  settings |= defaults.followed(model.base, given | several) | given
  with sharding.within(model.mesh):
    return n_best(
      model.network,
      model.params,
      model.tokenizer,
      [fields.prompt(prompt, model.context.text_steps)],
      stop_ids=stops.stop_ids(model.base, model.context.chat_template),
      template=model.context.chat_template,
      instruction=model.context.instruction,
      escape=model.context.control_tokens == "escape",
      num_return=num_return,
      **settings,
    )[0]


# --- many prompts ----------------------------------------------------------------------


def answers(network, params, tokenizer, prompts, **settings):
  """The answer to each prompt, a text or a list of messages, without its special tokens.

  settings: of `n_best`.
  """
  found = n_best(network, params, tokenizer, prompts, num_return=1, **settings)
  return [best[0].text for best in found]


def n_best(
  network,
  params,
  tokenizer,
  prompts,
  *,
  num_return,
  template=None,
  instruction="",
  escape=False,
  **settings,
):
  """At most num_return `Answer`s to each prompt, the best first, in the order of the prompts.

  template, escape, instruction: see `prompts.encode` and, of encoder-decoders,
  `prompts.encode_source`. settings: of `written`.
  """
  own = {"template": template, "escape": escape}
  own = {"instruction": instruction} if network.has_source else own
  read = reading.encode_source if network.has_source else reading.encode
  ids = [read(prompt, tokenizer, **own) for prompt in prompts]
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
  """At most num_return `Answer`s to each prompt (a list of ids), the best first.

  stop: a text, several or None; an answer ends as soon as it contains one, and its text before
  it. on_text(prompt's index, text) is called with the text so far, as much of it as is certain,
  and at last with all of it. A character that the limit has cut is left out. settings: of
  `batches.continuations` (seed, batch_size, …) and `sampling.Rules`.
  """
  strings, more = stops.split(stop, tokenizer)
  known = 1 + max(tokenizer.get_vocab().values())
  found = batches.continuations(
    network,
    params,
    prompts,
    max_new_tokens=max_new_tokens,
    num_return=num_return,
    frame=frame,
    stop_ids={*stop_ids, *more},
    until=stops.until(tokenizer, strings),
    on_token=on_text and _texts_of_tokens(tokenizer, strings, on_text),
    **{"vocab_limit": known} | settings,
  )
  full = max_new_tokens - bool(frame and frame.last)  # which ends it there

  def answer_of(one):
    whole = stops.decode(tokenizer, one.ids)
    text = stops.cut(whole, strings)
    at_limit = text == whole and len(one.ids) >= full
    return Answer(text.rstrip(stops.HALF) if at_limit else text, one.score, at_limit)

  result = [[answer_of(one) for one in best] for best in found]
  for i, best in enumerate(result if on_text else ()):
    on_text(i, best[0].text)
  return result


def _texts_of_tokens(tokenizer, strings, on_text):
  """on_token of `batches.continuations` that tells what is certain of each text."""
  ids, told = {}, {}

  def on_token(i, new):
    ids[i] = ids.get(i, []) + new
    text = stops.certain(stops.decode(tokenizer, ids[i]), strings)
    if text != told.get(i, ""):
      told[i] = text
      on_text(i, text)

  return on_token
