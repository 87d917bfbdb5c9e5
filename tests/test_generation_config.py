"""What a checkpoint asks of generation: followed, or said."""

import json
from types import SimpleNamespace

import jaxsft
from jaxsft import families, generation_config, target
from tests import tiny as checkpoints
from tests.families import encoder_decoder_published as published

PROMPT = "2 plus 2"


def asked(config, generation=None, given=None):
  base = SimpleNamespace(
    config=config,
    generation=generation or {},
    arch=families.FAMILIES[config["model_type"]].architecture(config),
    path="dir",
  )
  return generation_config.settings_of(base, given or {})


def test_what_published_checkpoints_ask_for():
  cnn = published.BART_BASE | {"length_penalty": 2.0, "max_length": 142, "min_length": 56}
  followed = {
    "num_beams": 4,
    "early_stopping": True,
    "no_repeat_ngram_size": 3,
    "length_penalty": 2.0,
    "max_new_tokens": 141,  # without the token that begins
    "min_new_tokens": 55,
  }
  assert asked(cnn) == (followed, {})
  assert asked(cnn, {"num_beams": 2, "max_new_tokens": 30})[0] == followed | {
    "num_beams": 2,
    "max_new_tokens": 30,
  }
  # what is drawn is not searched for
  found, rest = asked(cnn, given={"temperature": 0.7})
  assert "num_beams" not in found and rest["num_beams"] == 4
  assert asked(published.T5_SMALL) == ({}, {})


def test_what_is_not_followed():
  config = checkpoints.LLAMA | {"vocab_size": 61}
  chat_model = {
    "do_sample": True,
    "temperature": 0.6,
    "top_p": 0.95,
    "repetition_penalty": 1.05,
    "max_length": 4096,
    "eos_token_id": [1, 2],
    "transformers_version": "5.0",
    "suppress_tokens": [3],
    "stop_strings": ["Q:"],
    "own_idea": 7,
  }
  found, rest = asked(config, chat_model)
  assert found == {"repetition_penalty": 1.05, "stop": ["Q:"]}
  drawn = {"do_sample": True, "temperature": 0.6, "top_p": 0.95}
  assert rest == drawn | {"max_length": 4096, "own_idea": 7}
  assert asked(config, chat_model, {"temperature": 0.5, "top_p": 1.0})[1] == {
    "max_length": 4096,
    "own_idea": 7,
  }
  assert asked(config, chat_model | {"do_sample": False})[1] == {
    "max_length": 4096,
    "own_idea": 7,
  }


def test_a_model_answers_as_its_checkpoint_asks(tmp_path, capsys):
  path = checkpoints.checkpoint(tmp_path / "model", "llama")
  chatty = jaxsft.load(str(path))
  plain = chatty.generate(PROMPT, 12)
  file = path / "generation_config.json"
  banned = chatty.tokenizer(plain[0], add_special_tokens=False)["input_ids"]
  asks = {"num_beams": 3, "no_repeat_ngram_size": 2, "max_new_tokens": 12}
  asks |= {"do_sample": True, "top_p": 0.9, "suppress_tokens": banned}
  file.write_text(json.dumps(json.loads(file.read_text()) | asks))
  model = jaxsft.load(str(path))
  frame = target.Frame(banned=tuple(banned))
  settings = {"num_beams": 3, "no_repeat_ngram_size": 2}
  assert model.generate(PROMPT) == chatty.generate(PROMPT, 12, frame=frame, **settings) != plain
  shown = capsys.readouterr().err
  assert "asks for do_sample=True, top_p=0.9 in its generation_config.json, which" in shown
  model.generate(PROMPT)
  assert not capsys.readouterr().err  # once is enough
  free = {"num_beams": 1, "no_repeat_ngram_size": 0, "frame": target.Frame()}
  assert model.generate(PROMPT, 12, **free) == plain
