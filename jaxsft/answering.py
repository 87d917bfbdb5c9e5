"""Answers to rows that have one already: generated for some of them, to be scored.

The prompts are those that training sees (`task.prompt`), the stop ids all that it supervised.
Which rows are answered follows from their ids alone, so that evaluations can be compared.
"""

import hashlib

from jaxsft.errors import JaxsftError, UsageError
from jaxsft.generation import defaults, frames, prompts, writing
from jaxsft.metrics import generated, text

NAMES = ("max_new_tokens", "num_beams", "length_penalty")  # of config.evaluate


def settings(config, base):
  """The keyword arguments of `answered` that a config's `evaluate` group and the checkpoint
  decide: answers are scored as `predict` and `generate` write them.
  """
  wanted, given = config.evaluate, rules_of(config)
  followed = defaults.followed(base, given, can=NAMES)
  size = wanted.batch_size or max(config.batch_size, 16)  # which may count rows
  return {"count": wanted.generate, "batch_size": size} | followed | given


def rules_of(config):
  """What a config's `evaluate` group says of how answers are written."""
  found = {name: getattr(config.evaluate, name) for name in NAMES}
  return {name: value for name, value in found.items() if value is not None}


def answered(found, network, params, task, context, *, count, **rules):
  """([tasks.Found], some of them with an answer; what was counted) of rows with references.

  count: rows to answer, those of the smallest sha256 of their id; -1: all. rules: of
  `writing.written`. Counted are the rows that were "answered", "answers_at_limit", which
  max_new_tokens may have cut, and "unanswerable" rows, whose place the next one takes: without
  a question, without an answer to compare with, or with a prompt that leaves no room for one.
  Raises JaxsftError where no row is left.
  """
  rows = [one.row for one in found]
  asked, passed = _asked(rows, network, task, context, count, rules["max_new_tokens"])
  said = writing.written(network, params, context.tokenizer, list(asked.values()), **rules)
  said = {i: best for i, (best,) in zip(asked, said, strict=True)}
  counts = {"answered": len(said), "answers_at_limit": sum(one.full for one in said.values())}
  counts |= {"unanswerable": passed} if passed else {}
  return [
    one._replace(texts=(said[i].text,)) if i in said else one for i, one in enumerate(found)
  ], counts


def _asked(rows, network, task, context, count, limit, what="held-out rows"):
  """({index: prompt} of the rows that are answered, how many were passed over for them)."""
  asked, passed = {}, 0
  for i in by_hash([row.id for row in rows]):
    if len(asked) == count:
      break
    prompt = task.prompt(rows[i], context) if task.references(rows[i]) else None
    if prompt is None or prompts.room(network, len(prompt), limit):
      passed += 1
    else:
      asked[i] = prompt
  if not asked:
    raise JaxsftError(
      f"none of {len(rows)} {what} can be answered: they have no question and answer, or their "
      f"prompts leave no room for {limit} new tokens; set config.evaluate.generate to 0, or "
      "lower config.evaluate.max_new_tokens"
    )
  return asked, passed


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
  wanted, task, context = config.evaluate, data.task, data.context
  limit, most = config.evaluate.max_new_tokens, network.arch.max_positions
  if limit >= most:
    raise UsageError(
      f"config.evaluate.max_new_tokens is {limit}, expected less than the model's {most} "
      "positions; lower it"
    )
  best = wanted.metric if wanted.metric in context.text_metrics else None
  for what, part in data.evaluated.items():
    rows = part.taken
    chosen = part is data.held_out and best is not None  # every answered row counts
    count = wanted.generate if chosen else 1
    asked, _ = _asked(rows, network, task, context, count, limit, what)
    gold = [texts for texts in map(task.references, rows) if texts]
    _score([n for n in context.text_metrics if n in text.NUMBERS], gold, context)
    _score(context.text_metrics, gold[:20], context)
    if not chosen:
      continue
    found = _score([best], [task.references(rows[i]) for i in asked], context)
    if best not in found:
      raise UsageError(
        f"config.evaluate.metric: {best!r} is undefined on the {len(asked)} {what} that are "
        f"answered ({found['undefined'][best]}), so nothing would be the best; choose another"
      )


def _score(names, gold, context):
  """The metrics `names` of references as if each row's first were its answer."""
  answers = [texts[0] for texts in gold]
  how = context.bleu_tokenizer, context.rouge_stemmer
  return generated.scores(answers, gold, names, *how) if names else {}
