"""A multilingual checkpoint keeps in its export the languages that it was trained with."""

import json

import pytest

from jaxsft import answering, export, models, predict, pretrained, tasks, train
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
    tiny.checkpoint(directory, "mbart")
  generation = {"decoder_start_token_id": 1, "eos_token_id": [1], "num_beams": 2}
  generation["forced_eos_token_id"] = 1
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


LIMIT = {"max_new_tokens": 6, "num_beams": 2, "do_sample": False}
SOURCES = ("a cat", "the film was good", "say it")


def written_by_torch(torch, directory, ids, **settings):
  """Texts of transformers for sources that are ids already."""
  import transformers

  model = transformers.MBartForConditionalGeneration.from_pretrained(directory).eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
  beyond = list(range(len(tokenizer), model.config.vocab_size))  # ids without a text
  write = lambda one: model.generate(
    torch.tensor([one]), suppress_tokens=beyond, **LIMIT, **settings
  )
  return [tokenizer.decode(write(one)[0], skip_special_tokens=True) for one in ids]


def ids_in(tokenizer, language, text):
  """The ids of a text with that language's code where the tokenizer has one."""
  ids, code = tokenizer(text)["input_ids"], SPECIAL.index(language)
  return [code if 4 <= i < 7 else i for i in ids]


def said(tmp_path, model, name, *flags):
  rows, out = tmp_path / "rows.jsonl", tmp_path / f"{name}.jsonl"
  rows.write_text("".join(json.dumps({"source": text}) + "\n" for text in SOURCES))
  predict.main([f"--model={model}", f"--data={rows}", f"--out={out}", *flags])
  return [json.loads(line)["text"] for line in out.read_text().splitlines()]


def test_predictions_are_in_the_languages_of_the_config(
  checkpoint, tmp_path, oracle, monkeypatch
):
  form, directory = checkpoint
  tiny.on_devices(monkeypatch, 1)
  config = tmp_path / "c.py"
  config.write_text(
    "from jaxsft.config import Config, Data, Evaluate, Model\n"
    "def get_config(arg=''):\n"
    "  return Config(task='seq2seq', model=Model(path='m'),\n"
    "    data=Data(path='d', languages=('fr_XX', 'de_DE')),\n"
    "    evaluate=Evaluate(max_new_tokens=6))\n"
  )
  tokenizer = pretrained.open_pretrained(directory).tokenizer
  french = [ids_in(tokenizer, "fr_XX", text) for text in SOURCES]
  expected = written_by_torch(oracle, directory, french, **FORMS[form])
  assert said(tmp_path, directory, "german", f"--config={config}") == expected
  own = written_by_torch(oracle, directory, tokenizer(list(SOURCES))["input_ids"])
  assert said(tmp_path, directory, "own", "--max_new_tokens=6") == own != expected
  shorter = said(tmp_path, directory, "b", f"--config={config}", "--max_new_tokens=3")
  assert shorter != expected  # begun anew, with what the flag says


@pytest.mark.parametrize("checkpoint", [list(FORMS)[1]], indirect=True)
def test_a_run_keeps_the_languages_that_it_trained_with(
  checkpoint, tmp_path, oracle, monkeypatch
):
  form, directory = checkpoint
  tiny.on_devices(monkeypatch, 1)
  rows = tiny.translations(tmp_path / "trained.jsonl", 8)
  languages = ("fr_XX", "de_DE")
  config = tiny.config("mbart", "seq2seq", directory, rows, steps=1, data__languages=languages)
  run = train.finetune(config, tmp_path / "run")
  model = pretrained.load(run.directory)
  french = [ids_in(model.tokenizer, "fr_XX", text) for text in SOURCES]
  assert [model.tokenizer(text)["input_ids"] for text in SOURCES] == french
  expected = written_by_torch(oracle, run.export, french, **FORMS[form])
  found = model.predict([{"source": text} for text in SOURCES], max_new_tokens=6)
  assert [one["text"] for one in found] == expected
  assert model.generate(SOURCES[1], 6) == expected[1]
