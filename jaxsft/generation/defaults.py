"""What a checkpoint asks of generation: generation_config.json, where it is silent config.json.

A model that answers by itself (`writing.answer`) follows what leaves its answer certain:
beams, lengths, penalties, banned tokens. It draws nothing unless the call says so. A setting
of the call comes before the checkpoint's. Whatever is asked for and not followed is said.
"""

import sys

from jaxsft import models

LIMIT = 64  # new tokens where neither the call nor the checkpoint says
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


def merged(base):
  """config.json of a `pretrained.Pretrained` under what its generation_config.json says."""
  return {**base.config, **{k: v for k, v in base.generation.items() if v is not None}}


def settings_of(base, given):
  """(settings for `generate`, {name: value} of what is asked for and not followed).

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
  least, most = found.get("min_new_tokens", 0), {**found, **given}.get("max_new_tokens")
  if most is None and least > LIMIT:
    found["max_new_tokens"] = least
  elif most is not None and least > most:
    found["min_new_tokens"] = most  # no stop comes before the limit
  if found.get("early_stopping") and given.get("num_beams", found.get("num_beams", 1)) == 1:
    rest["early_stopping"] = found.pop("early_stopping")
  return found, {name: value for name, value in rest.items() if name not in given}


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


_said = set()


def say(base, rest):
  """Tells once of each checkpoint what it asks for and does not get."""
  if rest and (key := (str(base.path), *sorted(rest))) not in _said:
    _said.add(key)
    words = ", ".join(f"{name}={value!r:.60}" for name, value in sorted(rest.items()))
    print(
      f"{base.path} asks for {words} when it generates, which is not followed: give what you "
      "want of it with the call",
      file=sys.stderr,
    )
