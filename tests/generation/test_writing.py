"""Texts: what is read, where answers end, how they are shown, and which is the best."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import jaxsft
from jaxsft import command, families, generate, hf_directory, models
from jaxsft.data import chat
from jaxsft.errors import UsageError
from jaxsft.generation import batches, frames, growth, stops, writing
from jaxsft.generation import prompts as reading
from tests import tiny as checkpoints
from tests.generation import continued
from tests.templates import tiny as templates

PROMPT = "2 plus 2"
DRAWN = {"temperature": 1.5, "seed": 3, "min_new_tokens": 24}  # stop ids end none


def test_an_answer_goes_on_from_the_prompt_of_training(chatty):
  messages = [{"role": "user", "content": "2 plus 2"}]
  ids = chat.prompt_ids(messages, chatty.tokenizer).tolist()
  new = continued.best_ids(
    chatty.network,
    chatty.params,
    [ids],
    max_new_tokens=20,
    stop_ids=stops.stop_ids(chatty.base),
    vocab_limit=len(chatty.tokenizer),
  )
  text = chatty.tokenizer.decode(new[0], skip_special_tokens=True)
  assert text and chatty.generate("2 plus 2", 20) == chatty.generate(messages, 20) == text
  assert reading.encode("2 plus 2", chatty.tokenizer) == ids


def test_the_verb_streams_the_answer(chatty, capsys, monkeypatch):
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
  argv = [f"--model={chatty.base.path}", "--prompt=a cat", "--max_new_tokens=20"]
  generate.main([*argv, "--temperature=0.9", "--seed=2"])
  expected = chatty.generate("a cat", 20, temperature=0.9, seed=2)
  assert capsys.readouterr().out == f"{expected}\n"
  with pytest.raises(UsageError, match="top_p is"):
    generate.main([*argv, "--top_p=2"])


def test_a_printed_character_is_whole(capsys):
  tokenizer = templates.tokenizer("chatml")  # a token a byte
  on_token = writing._texts_of_tokens(tokenizer, (), generate._printer())
  for token in tokenizer("né 🙂.", add_special_tokens=False)["input_ids"]:
    on_token(0, [token])
  assert capsys.readouterr().out == "né 🙂."


def test_a_classifier_is_sent_to_predict(tmp_path, capsys):
  base = checkpoints.BERT | {"vocab_size": 61, "id2label": {"0": "a", "1": "b"}}
  arch = families.FAMILIES["bert"].architecture(base)
  head = families.head_of(families.FAMILIES["bert"], arch, "sequence", 2)
  params = models.Network(arch, head).init(jax.random.key(0))
  hf_directory.write(
    tmp_path / "model",
    source_config=base,
    family=families.FAMILIES["bert"],
    arch=arch,
    head=head,
    params=params,
    tokenizer=checkpoints.word_tokenizer(),
    labels=["a", "b"],
  )
  with pytest.raises(SystemExit) as stop:
    command.run(generate.main, [f"--model={tmp_path / 'model'}", "--prompt=x"])
  assert stop.value.code == 1
  assert (
    "BertForSequenceClassification, which does not write text; use python -m jaxsft.predict"
    in (capsys.readouterr().err)
  )


# --- several answers -------------------------------------------------------------------


def test_answers_that_are_drawn_have_their_scores(chatty):
  """Best first; fewer are some of them; stop ids count, and are no text."""
  ends, rules = [9, 17], {"length_penalty": 2.0, "temperature": 1.5, "top_k": 30}
  prompt = reading.encode(PROMPT, chatty.tokenizer)
  ask = lambda count, seed: batches.continuations(
    chatty.network,
    chatty.params,
    [prompt],
    max_new_tokens=12,
    stop_ids=ends,
    num_return=count,
    seed=seed,
    **rules,
  )[0]
  found = ask(5, 8)
  assert found == sorted(found, key=lambda one: -one.score)
  same = lambda answers: sorted((one.ids, round(one.score, 4)) for one in answers)
  for few in (ask(1, 8), ask(3, 8)):
    assert all(one in same(found) for one in same(few))
  assert len({tuple(one.ids) for one in found}) == 5
  assert any(len(one.ids) < 12 for one in found) and any(len(one.ids) == 12 for one in found)
  rows = np.zeros((5, len(prompt) + 12), np.int32)
  for row, one in zip(rows, found, strict=True):
    row[: len(prompt) + len(one.ids)] = [*prompt, *one.ids]
  log_p = jax.nn.log_softmax(jax.jit(chatty.network.logits)(chatty.params, {"inputs": rows}))
  for row, one, each in zip(rows, found, log_p, strict=True):
    begin, end = len(prompt), len(prompt) + len(one.ids)
    total = float(each[np.arange(begin - 1, end - 1), row[begin:end]].sum())
    likely = [total] if len(one.ids) == 12 else [total + float(each[end - 1, s]) for s in ends]
    count = min(len(one.ids) + 1, 12)
    assert any(np.isclose(one.score, score / count**2, rtol=1e-4) for score in likely)


def test_the_best_of_a_search(chatty):
  best = chatty.n_best(PROMPT, 3, 12, num_beams=4)
  assert [one.score for one in best] == sorted((one.score for one in best), reverse=True)
  assert best[0].text == chatty.generate(PROMPT, 12, num_beams=4)
  assert best[:2] == chatty.n_best(PROMPT, 2, 12, num_beams=4)
  assert best[0].score >= chatty.n_best(PROMPT, 1, 12)[0].score  # that of the greedy answer
  with pytest.raises(UsageError, match="`generate` returns one text"):
    chatty.generate(PROMPT, 12, num_beams=4, num_return=2)


@pytest.mark.parametrize(
  ("settings", "sentence"),
  [
    ({"do_sample": True}, "found the setting do_sample; draw by a temperature above 0"),
    ({"num_beam": 2}, "found the setting num_beam; did you mean 'num_beams'"),
    ({"stop_ids": [1]}, "found the setting stop_ids; "),
    ({"top_k": 5}, "top_k is 5 with temperature 0"),
    ({"early_stopping": True}, "early_stopping is True with num_beams=1"),
    ({"num_beams": 4, "num_return": 5}, "num_return is 5 with num_beams=4"),
  ],
)
def test_settings_that_mean_nothing(chatty, settings, sentence):
  with pytest.raises(UsageError, match=sentence):
    chatty.n_best(PROMPT, **{"num_return": 1, **settings})


def test_a_character_that_the_limit_has_cut(monkeypatch):
  """It is not shown half, neither on the way nor at the end; what a stop id ends stays."""
  tokenizer = templates.tokenizer("chatml")  # a token a byte
  ids = tokenizer("né", add_special_tokens=False)["input_ids"][:-1]
  assert tokenizer.decode(ids) == "n\ufffd"
  told, network = [], SimpleNamespace(arch=None)
  found = lambda *_, **how: [[batches.Continuation(ids, 0.0)]]
  monkeypatch.setattr(batches, "continuations", found)
  for limit, shown in ((2, "n"), (3, "n\ufffd")):
    ((one,),) = writing.written(
      network,
      {},
      tokenizer,
      [[1]],
      max_new_tokens=limit,
      stop_ids=(),
      on_text=lambda _, text: told.append(text),
    )
    assert (one.text, one.full) == (shown, limit == 2) and told[-1] == shown


def test_many_prompts(chatty):
  """In their order, by one program for each bucket."""
  prompts = [f"say {'a ' * (i * 7 % 11)}{i}" for i in range(23)]
  network = models.Network(chatty.network.arch, chatty.network.head, attention="xla")
  before = growth.read._cache_size()
  settings = {"stop_ids": stops.stop_ids(chatty.base), "max_new_tokens": 6}
  ask = lambda prompts: writing.answers(
    network, chatty.params, chatty.tokenizer, prompts, batch_size=4, stop=None, **settings
  )
  found = ask(prompts)
  widths = {batches.bucket(len(reading.encode(prompt, chatty.tokenizer))) for prompt in prompts}
  assert growth.read._cache_size() - before <= len(widths) + 1  # rooms differ as well
  assert ask(prompts[::-1]) == found[::-1]
  assert len(set(found)) > 5


def test_the_verb_lists_the_best(chatty, capsys, monkeypatch):
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
  argv = [f"--model={chatty.base.path}", f"--prompt={PROMPT}", "--max_new_tokens=12"]
  generate.main([*argv, "--num_beams=4", "--num_return=3", "--length_penalty=2"])
  lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  expected = chatty.n_best(PROMPT, 3, 12, num_beams=4, length_penalty=2.0)
  assert [(line["text"], line["score"]) for line in lines] == [one[:2] for one in expected]
  written = chatty.generate(PROMPT, 12)
  generate.main([*argv, f"--stop={written[3:5]}"])
  assert capsys.readouterr().out == written.split(written[3:5])[0] + "\n"
  generate.main([*argv, "--stop", json.dumps(["nowhere", written[3:5]])])
  assert capsys.readouterr().out == written.split(written[3:5])[0] + "\n"
  for flag, sentence in (
    ("--early_stopping=soon", "early_stopping is soon"),
    ("--num_return=2", "num_return is 2 with num_beams=1"),
    ("--stop=[1", "--stop=.*expected JSON"),
  ):
    with pytest.raises(UsageError, match=sentence):
      generate.main([*argv, flag])


def test_a_stop_of_the_call_comes_before_beams_of_the_checkpoint(chatty, tmp_path, capsys):
  path = checkpoints.checkpoint(tmp_path / "model", "llama")
  file, plain = path / "generation_config.json", chatty.generate(PROMPT, 12)
  asks = {"num_beams": 3, "early_stopping": True, "length_penalty": 2.0}
  file.write_text(json.dumps(json.loads(file.read_text()) | asks))
  model = jaxsft.load(str(path))
  assert model.generate(PROMPT, 12, stop=plain[3:5]) == plain.split(plain[3:5])[0]
  shown = capsys.readouterr().err
  words = "generation_config.json asks for early_stopping=True, length_penalty=2.0, num_beams=3"
  assert shown.startswith(f"{path}/{words} ") and shown.count("\n") == 1
  model.generate(PROMPT, 12, stop=plain[3:5])
  assert not capsys.readouterr().err
  with pytest.raises(UsageError, match="stop strings for a search with num_beams=3"):
    model.generate(PROMPT, 12, stop=plain[3:5], num_beams=3)


def test_whoever_asks_for_several_answers_is_not_told_to(tmp_path, capsys):
  path = checkpoints.checkpoint(tmp_path / "model", "llama")
  file = path / "generation_config.json"
  file.write_text(json.dumps(json.loads(file.read_text()) | {"num_return_sequences": 2}))
  model = jaxsft.load(str(path))
  assert len(model.n_best(PROMPT, 2, 2, num_beams=2)) == 2
  model.predict([{"prompt": PROMPT}], num_return=2, num_beams=2, max_new_tokens=2)
  assert not capsys.readouterr().err
  model.generate(PROMPT, 2)
  assert "num_return_sequences=2 when it generates" in capsys.readouterr().err


def test_a_model_answers_as_its_checkpoint_asks(chatty, tmp_path, capsys):
  path = checkpoints.checkpoint(tmp_path / "model", "llama")
  plain = chatty.generate(PROMPT, 12)
  file = path / "generation_config.json"
  banned = chatty.tokenizer(plain[0], add_special_tokens=False)["input_ids"]
  asks = {"num_beams": 3, "no_repeat_ngram_size": 2, "max_new_tokens": 12}
  asks |= {"do_sample": True, "top_p": 0.9, "suppress_tokens": banned}
  asks |= {"num_beams": 3.0, "early_stopping": True}  # JSON has one kind of number
  file.write_text(json.dumps(json.loads(file.read_text()) | asks))
  model = jaxsft.load(str(path))
  frame = frames.Frame(banned=tuple(banned))
  settings = {"num_beams": 3, "no_repeat_ngram_size": 2, "early_stopping": True}
  assert model.generate(PROMPT) == chatty.generate(PROMPT, 12, frame=frame, **settings) != plain
  shown = capsys.readouterr().err
  assert "asks for do_sample=True, top_p=0.9 when it generates, which is not followed" in shown
  model.generate(PROMPT)
  assert not capsys.readouterr().err  # once is enough
  free = {"num_beams": 1, "no_repeat_ngram_size": 0, "frame": frames.Frame()}
  assert model.generate(PROMPT, 12, **free) == plain
