"""A multilingual checkpoint keeps in its export the languages that it was trained with."""

import json

import pytest

from jaxsft import answering, export, models, pretrained, tasks
from tests import tiny

SPECIAL = ("<pad>", "</s>", "<s>", "<unk>", "en_XX", "de_DE", "fr_XX")
FORMS = {  # how the tokenizer writes a text -> what generation begins with, in German
  "$A </s> en_XX": {"decoder_start_token_id": 5},
  "en_XX $A </s>": {"decoder_start_token_id": 1, "forced_bos_token_id": 5},
}


@pytest.fixture(scope="module", params=FORMS)
def checkpoint(request, tmp_path_factory):
  """(form, directory) of a tiny mBART that was left by others: English to French."""
  directory = tmp_path_factory.mktemp("mbart") / "model"
  with pytest.MonkeyPatch.context() as patch:
    tokenizer = tiny.source_tokenizer(request.param, SPECIAL)
    patch.setattr(tiny, "source_tokenizer", lambda *_: tokenizer)
    tiny.checkpoint(directory, "bart")  # the vocabulary is what counts here
  config = json.loads((directory / "config.json").read_text())
  config |= {"model_type": "mbart", "architectures": ["MBartForConditionalGeneration"]}
  (directory / "config.json").write_text(json.dumps(config))
  generation = {"decoder_start_token_id": 1, "eos_token_id": [1], "num_beams": 2}
  if request.param[0] != "$":
    generation["forced_bos_token_id"] = 6
  (directory / "generation_config.json").write_text(json.dumps(generation))
  return request.param, directory


def test_what_generation_begins_with(checkpoint):
  form, directory = checkpoint
  base = pretrained.open_pretrained(directory)
  assert base.decoder_start is None
  context = tasks.Context(base.tokenizer, 64, languages=("en_XX", "de_DE"))
  frame = answering.frame_of(base, context)
  assert frame.start == FORMS[form]["decoder_start_token_id"]
  assert frame.first == FORMS[form].get("forced_bos_token_id")
  plain = answering.frame_of(base, tasks.Context(base.tokenizer, 64))
  assert plain.start == 1 and plain.first == (None if form[0] == "$" else 6)


def test_the_export_says_it(checkpoint, tmp_path):
  form, directory = checkpoint
  arch = tiny.families.FAMILIES["mbart"].architecture(
    json.loads((directory / "config.json").read_text())
  )
  base = pretrained.open_pretrained(directory)
  head = tiny.families.head_of(base.family, arch, "lm")
  network = models.Network(arch, head)
  params = tiny.unlike(network.init(tiny.jax.random.key(0)))
  facts = {
    "labels": (),
    "label_type": "single",
    "chat_template": None,
    "stop_ids": [1],
    "instruction": "formal: ",
    "languages": ["fr_XX", "de_DE"],
    "threshold": None,
  }
  export.write(base, network, params, tmp_path / "out", facts, "float32")
  config, generation = (
    json.loads((tmp_path / "out" / f"{name}.json").read_text())
    for name in ("config", "generation_config")
  )
  assert config["prefix"] == "formal: "
  assert FORMS[form].items() <= generation.items() and generation["num_beams"] == 2
  again = pretrained.open_pretrained(tmp_path / "out")
  assert again.instruction == "formal: "
  frame = answering.frame_of(again, tasks.Context(again.tokenizer, 64))
  assert frame.start == FORMS[form]["decoder_start_token_id"]
  assert frame.first == FORMS[form].get("forced_bos_token_id")
  written = again.tokenizer("a cat").input_ids
  assert (written[-1] if form[0] == "$" else written[0]) == SPECIAL.index("fr_XX")


def test_an_instruction_is_given_up(checkpoint):
  base = pretrained.open_pretrained(checkpoint[1])
  told = base.as_trained("say: ", None)
  assert told.instruction == "say: " and told.config["prefix"] == "say: "
  assert told.as_trained("", None).instruction == ""
  assert "prefix" not in base.as_trained("", None).config
