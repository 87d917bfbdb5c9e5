"""What a checkpoint asks of generation: generation_config.json, where it is silent config.json.

A model that answers by itself (`writing.answer`) follows what leaves its answer certain:
beams, lengths, penalties, banned tokens. It draws nothing unless the call says so. A setting
of the call comes before the checkpoint's. Whatever is asked for and not followed is said.
"""

import sys

from jaxsft import models
from jaxsft.generation import choices, stops

# Names and values of transformers that ask for nothing.
NEUTRAL = {
  "max_length": 20,  # the default of transformers, which older ones wrote into config.json
  "max_new_tokens": None,
  "min_length": 0,
  "min_new_tokens": 0,
  "num_beams": 1,
  "length_penalty": 1.0,
  "early_stopping": False,
  "repetition_penalty": 1.0,
  "no_repeat_ngram_size": 0,
  "stop_strings": None,
  "bad_words_ids": None,
  "suppress_tokens": None,
  "forced_bos_token_id": None,
  "force_bos_token_to_be_generated": False,
  "forced_eos_token_id": None,
  "do_sample": False,
  "num_return_sequences": 1,
  "num_beam_groups": 1,
  "diversity_penalty": 0.0,
  "encoder_repetition_penalty": 1.0,
  "encoder_no_repeat_ngram_size": 0,
  "begin_suppress_tokens": None,
  "sequence_bias": None,
  "exponential_decay_length_penalty": None,
  "remove_invalid_values": False,
  "renormalize_logits": False,
  "guidance_scale": 1.0,
  "max_time": None,
  "penalty_alpha": None,
  "dola_layers": None,
  "constraints": None,
  "force_words_ids": None,
  "watermarking_config": None,
  "token_healing": False,
}
SAMPLING = {  # these mean something beside do_sample alone
  "temperature": 1.0,
  "top_k": 50,
  "top_p": 1.0,
  "min_p": None,
  "typical_p": 1.0,
  "top_h": None,
  "epsilon_cutoff": 0.0,
  "eta_cutoff": 0.0,
}
SILENT = (  # ends of the name of what changes no answer, or is read elsewhere
  "bos_token_id",
  "eos_token_id",
  "pad_token_id",
  "decoder_start_token_id",
  "use_cache",
  "output_attentions",
  "output_hidden_states",
  "output_scores",
  "output_logits",
  "return_dict_in_generate",
  "cache_implementation",
  "cache_config",
  "transformers_version",
  "_from_model_config",
  "disable_compile",
  "compile_config",
  "low_memory",
)
ALIKE = (  # settings of ours that have the name and the meaning of transformers
  "num_beams",
  "length_penalty",
  "early_stopping",
  "repetition_penalty",
  "no_repeat_ngram_size",
  "min_new_tokens",
  "max_new_tokens",
)
BEAMS = ("num_beams", "length_penalty", "early_stopping")
FRAMED = ("bad_words_ids", "suppress_tokens", "forced_eos_token_id")  # see frames.py
FIRST = ("forced_bos_token_id", "force_bos_token_to_be_generated")
RENAMED = {  # what is not followed -> the choice of a call that means it
  "max_length": "max_new_tokens",
  "min_length": "min_new_tokens",
  "num_return_sequences": "num_return",
}
DRAWN = ("do_sample", "temperature", "top_k", "top_p", "min_p")


def merged(base):
  """config.json of a `pretrained.Pretrained` under what its generation_config.json says."""
  return {**base.config, **{k: v for k, v in base.generation.items() if v is not None}}


def followed(base, given, can=tuple(choices.CHOICES)):
  """Settings for `writing.written` that the call leaves to the checkpoint.

  What else a `pretrained.Pretrained` asks for is said, once. given: settings of the call; can:
  names of those that it could have given.
  """
  found, rest = settings_of(base, given)
  for sentence in sentences(base, rest, given, can):
    if (str(base.path), sentence) not in _said:
      _said.add((str(base.path), sentence))
      print(sentence, file=sys.stderr)
  return found


def settings_of(base, given):
  """(settings for `written`, {name: value} of what is asked for and not followed).

  given: settings of the call; what they name is neither.
  """
  neutral, every, found, rest = NEUTRAL | SAMPLING, merged(base), {}, {}
  for name, value in every.items():
    if value is None or name in SILENT or (name in neutral and value == neutral[name]):
      continue
    if name not in (*neutral, *base.generation):  # of the architecture
      continue
    if name in SAMPLING and not every.get("do_sample"):
      continue
    ours, value = _ours(name, value, models.has_source(base.arch), given)
    if ours is None:
      rest[name] = value
    elif ours and (name == ours or ours not in found):
      found[ours] = value
  _leave_to_the_call(base, found, rest, given)
  least, most = found.get("min_new_tokens", 0), {**found, **given}.get("max_new_tokens")
  if most is None and least > choices.LIMIT:
    found["max_new_tokens"] = least
  elif most is not None and least > most:
    found["min_new_tokens"] = most  # no stop comes before the limit
  if most is not None:
    rest.pop("max_length", None)  # transformers does not read it then
  if found.get("early_stopping") and given.get("num_beams", found.get("num_beams", 1)) == 1:
    rest["early_stopping"] = found.pop("early_stopping")
  says = {*given, *(name for name, ours in RENAMED.items() if ours in given)}
  return found, {name: value for name, value in rest.items() if name not in says}


def _ours(name, value, has_source, given):
  """(our setting, its value); None for the setting: not followed; "": followed elsewhere."""
  if name in BEAMS and given.get("temperature"):
    return None, value
  if name in ALIKE:
    return name, value
  if name == "stop_strings":
    return "stop", value
  if has_source and name in ("max_length", "min_length"):  # with the token that begins
    return name.replace("length", "new_tokens"), value - 1
  elsewhere = name in FRAMED or (has_source and name in FIRST)
  elsewhere |= name == "do_sample" and bool(given.get("temperature"))
  return ("" if elsewhere else None), value


def _leave_to_the_call(base, found, rest, given):
  """Moves to `rest` what cannot be beside the call: beams and stop strings exclude another."""
  both = {"num_beams": 1, "stop": None} | found | given
  if both["num_beams"] == 1 or not both["stop"]:
    return
  if not stops.split(both["stop"], base.tokenizer)[0]:  # ids end beams as well
    return
  if "num_beams" not in given and "stop" in given:
    rest |= {name: found.pop(name) for name in BEAMS if name in found}
  elif "num_beams" in given and "stop" in found:
    rest["stop_strings"] = found.pop("stop")


_said = set()


def sentences(base, rest, given, can):
  """What to say of `rest`: in which file it stands, and what can be done about it."""
  by_file = {}
  for name, value in sorted(rest.items()):
    own = base.generation.get(name) is not None
    where = f"{base.path}/{'generation_config' if own else 'config'}.json"
    words = by_file.setdefault((where, _advice(name, given, can)), [])
    words.append(f"{name}={value!r:.60}")
  return [
    f"{where} asks for {', '.join(words)} when it generates, which is not followed: {advice}"
    for (where, advice), words in by_file.items()
  ]


def _advice(name, given, can):
  """What gives one the setting `name` all the same, if anything does."""
  if name in BEAMS and given.get("temperature"):
    return "a search draws nothing; give no temperature to have it"
  if name in BEAMS and given.get("stop"):
    return "a search ends at stop ids alone; give no stop to have it"
  if name == "early_stopping":
    return "it ends searches; give num_beams above 1 to have one"
  if name == "stop_strings":
    return "a search ends at stop ids alone; give num_beams=1 to have none"
  if name not in (*DRAWN, *RENAMED):
    return "jaxsft has no such setting"
  if RENAMED.get(name, "temperature") not in can:
    return "it cannot be asked for here"
  if name in DRAWN:
    return "give a temperature, and top_k, top_p or min_p, with the call to draw"
  return f"give {RENAMED[name]} with the call"
