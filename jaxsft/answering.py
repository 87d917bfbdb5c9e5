"""Answers to rows that have one already: generated for some of them, to be scored.

The prompts are those that training sees (`task.prompt`), the stop ids all that it supervised.
Which rows are answered follows from their ids alone, so that evaluations can be compared.
"""

import hashlib

from jaxsft.errors import JaxsftError, UsageError
from jaxsft.generation import frames, prompts, writing
from jaxsft.metrics import generated


def settings(config):
  """The keyword arguments of `answered` that a config's `evaluate` group decides."""
  wanted = config.evaluate
  return {
    "count": wanted.generate,
    "batch_size": wanted.batch_size or max(config.batch_size, 16),  # which may count rows
    "max_new_tokens": wanted.max_new_tokens,
    "num_beams": wanted.num_beams,
    "length_penalty": wanted.length_penalty,
  }


def answered(found, network, params, task, context, *, count, **rules):
  """([tasks.Found], some of them with an answer; what was counted) of rows with references.

  count: rows to answer, those of the smallest sha256 of their id; -1: all. rules: of
  `writing.written`. Counted are the rows that were "answered", "answers_at_limit", which
  max_new_tokens may have cut, and "unanswerable" rows, whose place the next one takes: without
  a question, without an answer to compare with, or with a prompt that leaves no room for one.
  Raises JaxsftError where no row is left.
  """
  asked, passed, limit = {}, 0, rules["max_new_tokens"]
  for i in by_hash([one.row.id for one in found]):
    if len(asked) == count:
      break
    prompt = task.prompt(found[i].row, context) if task.references(found[i].row) else None
    if prompt is None or prompts.room(network, len(prompt), limit):
      passed += 1
    else:
      asked[i] = prompt
  if not asked:
    raise JaxsftError(
      f"none of {len(found)} held-out rows can be answered: they have no question and answer, "
      f"or their prompts leave no room for {limit} new tokens; set config.evaluate.generate to "
      "0, or lower config.evaluate.max_new_tokens"
    )
  said = writing.written(network, params, context.tokenizer, list(asked.values()), **rules)
  said = {i: best for i, (best,) in zip(asked, said, strict=True)}
  counts = {"answered": len(said), "answers_at_limit": sum(one.full for one in said.values())}
  counts |= {"unanswerable": passed} if passed else {}
  return [
    one._replace(texts=(said[i].text,)) if i in said else one for i, one in enumerate(found)
  ], counts


def by_hash(ids):
  """Indices of the ids in an order that follows from each of them alone."""
  digest = lambda i: hashlib.sha256(ids[i].encode(errors="surrogatepass")).digest()
  return sorted(range(len(ids)), key=lambda i: (digest(i), i))


def frame_of(base, context):
  """The `frames.Frame` of a checkpoint that was trained as the context says."""
  return frames.frame_of(base.as_trained(context.instruction, context.languages))


def check(config, data, network):
  """Raises what the first scored evaluation would raise, before the first update.

  data: prepare.Prepared. The references are scored as if they were answers.
  """
  if not config.evaluate.generate:
    return
  limit, most = config.evaluate.max_new_tokens, network.arch.max_positions
  if limit >= most:
    raise UsageError(
      f"config.evaluate.max_new_tokens is {limit}, expected less than the model's {most} "
      "positions; lower it"
    )
  gold = [data.task.references(row) for row in data.held_out.rows]
  gold = [texts for texts in gold if texts]
  for names, rows in (
    ([n for n in data.context.text_metrics if n in generated.NUMBERS], gold),
    (data.context.text_metrics, gold[:20]),
  ):
    if names and rows:
      answers = [texts[0] for texts in rows]
      generated.scores(answers, rows, names, data.context.bleu_tokenizer)
