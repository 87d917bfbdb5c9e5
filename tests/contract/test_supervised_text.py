"""What the feed delivers is what the rows say: the answers with their ends, and the labels."""

import numpy as np
import pytest

from jaxsft import train
from tests import tiny
from tests.contract import build

MULTI = [("bert", "multi")]
TOKENS = ("inputs", "targets", "weights", "positions", "token_types")


def segments(job, batch):
  """(row of data, its micro-batch as [T] arrays, place) for every example of a device batch."""
  by_id = {row.id: row for row in job.data.train.rows}
  row_of = lambda example: by_id[job.data.train.store.ids[example].partition("#")[0]]  # windows
  ids = np.asarray(batch["example_ids"])
  for at in np.argwhere(ids >= 0):
    a, r, m = map(int, at)
    row = row_of(ids[a, r, m])
    inside = np.asarray(batch["segments"])[a, r] == m + 1
    tokens = {k: batch[k][a, r][inside] for k in TOKENS if k in batch}
    yield row, tokens, (a, r, m)


@pytest.fixture
def delivered(files, monkeypatch):
  """(job, every (row, tokens, place, batch) of an epoch) of a pair, as the device gets them."""

  def collect(pair, **settings):
    model, data = files(*pair)
    config = tiny.config(*pair, model, data, steps=None, epochs=1.0, accumulate=2, **settings)
    job = build.job(config, tiny.devices(2))
    kept = []
    monkeypatch.setattr(train.feed, "validate", lambda batch, *_: kept.append(dict(batch)))
    arrived = list(train.batches(job, 0))
    assert len(arrived) == len(kept) == job.data.plan.num_steps
    for batch, host in zip(arrived, kept, strict=True):  # what validate saw has the ids too
      assert all(np.array_equal(batch[k], host[k]) for k in batch)
    return job, [(*found, batch) for batch in kept for found in segments(job, batch)]

  return collect


@pytest.mark.parametrize("packing", ["pack", "none", "buckets"])
@pytest.mark.parametrize("train_on", ["all", "last", "each"])
def test_answers_and_their_ends_are_supervised(delivered, packing, train_on):
  pair = ("llama", "chat")
  job, found = delivered(pair, data__packing=packing, data__train_on=train_on)
  ids = job.data.train.store.ids
  assert sorted(row.id for row, *_ in found) == sorted(id.partition("#")[0] for id in ids)
  tokenizer, turns = job.base.tokenizer, 0
  for row, tokens, place, batch in found:
    messages = row.fields["messages"]
    if train_on == "each":  # its number says which answer it is
      number = int(ids[batch["example_ids"][place]].partition("#")[2] or 0)
      ends = [i + 1 for i, m in enumerate(messages) if m["role"] == "assistant"]
      messages = messages[: ends[number]]
    answers = [m["content"] for m in messages if m["role"] == "assistant"]
    answers = answers if train_on == "all" else answers[-1:]
    supervised = tokens["targets"][tokens["weights"] > 0]
    assert tokenizer.decode(supervised) == "".join(f"{a}<|im_end|>" for a in answers)
    assert set(tokens["weights"]) == {0.0, 1.0}
    assert not tokens["targets"][tokens["weights"] == 0].any()
    turns += len(answers)
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text.startswith(tokenizer.decode(tokens["inputs"]))
    assert list(tokens["positions"]) == list(range(len(tokens["inputs"])))
  end = tokenizer.convert_tokens_to_ids("<|im_end|>")
  assert job.data.train.counts["stop_ids"] == [end]
  rows = len(job.data.train.rows)
  assert turns == rows if train_on == "last" else turns > rows  # some rows have two


@pytest.mark.parametrize("packing", ["pack", "none"])
@pytest.mark.parametrize("pair", [p for p in tiny.PAIRS if p[1] != "chat"] + MULTI, ids=str)
def test_labels_stand_at_their_texts(delivered, pair, packing):
  job, found = delivered(pair, data__packing=packing)
  assert sorted(row.id for row, *_ in found) == sorted(job.data.train.store.ids)
  for row, tokens, place, batch in found:
    label = batch["labels"][place]
    if pair[1] == "number":
      assert label == row.fields["label"] and label.dtype == np.float32
    elif pair in MULTI:
      names = np.array(job.data.context.labels)[label > 0]
      assert sorted(names) == sorted(row.fields["label"]) and set(label.tolist()) <= {0, 1}
    else:
      assert job.data.context.labels[label] == row.fields["label"]
    assert batch["label_weights"][place] == 1
    said = job.base.tokenizer.decode(tokens["inputs"], skip_special_tokens=True)
    assert said == row.fields["text"]
  for _, _, _, batch in found:
    assert batch["label_weights"][batch["example_ids"] < 0].sum() == 0


@pytest.mark.parametrize("packing", ["pack", "none"])
@pytest.mark.parametrize("pair", tiny.TAGS, ids=str)
def test_tags_stand_at_the_first_tokens_of_their_words(delivered, pair, packing):
  """Every word of a row once, in whichever window; what is between them weighs nothing."""
  job, found = delivered(pair, data__packing=packing)
  tokenizer, said, windows = job.base.tokenizer, {}, {}
  ids = job.data.train.store.ids
  for row, tokens, (a, r, m), batch in found:
    order = ids[batch["example_ids"][a, r, m]].partition("#")[2]
    here = tokens["weights"] > 0
    assert set(tokens["weights"]) <= {0.0, 1.0} and here.any()
    assert not tokens["targets"][~here].any()
    texts = [tokenizer.decode(int(i)).strip() for i in tokens["inputs"][here]]
    names = [job.data.context.labels[i] for i in tokens["targets"][here]]
    windows.setdefault(row.id, []).append(
      (int(order or 0), list(zip(texts, names, strict=True)))
    )
  for row in job.data.train.rows:
    said = [pair for _, part in sorted(windows[row.id]) for pair in part]
    words = row.fields.get("tokens") or row.fields["text"].split()
    assert len(said) == len(words)
    kinds = ["GOOD" if w in tiny.GOOD else "BAD" if w in tiny.BAD else "" for w in words]
    for n, ((text, name), word) in enumerate(zip(said, words, strict=True)):
      assert text and word.startswith(text) and (text == word or pair[0] == "llama")
      begins = kinds[n] == "GOOD" or [*kinds[: n + 1][::-1], ""].index("") % 2 == 1
      assert name == (f"{'B' if begins else 'I'}-{kinds[n]}" if kinds[n] else "O"), (
        words,
        said,
      )
  assert len(found) > len(windows) == len(job.data.train.rows)  # some rows take two


@pytest.mark.parametrize("packing", ["pack", "none"])
@pytest.mark.parametrize("pair", tiny.SPANS, ids=str)
def test_answers_stand_at_their_tokens(delivered, pair, packing):
  """The first answer of a row, in windows that show all of it; in others the first token."""
  job, found = delivered(pair, data__packing=packing)
  ids, tokenizer = {row.id for row in job.data.train.rows}, job.base.tokenizer
  assert {row.id for row, *_ in found} == ids and len(found) > len(ids)
  silent = 0
  for row, tokens, place, batch in found:
    start, end = int(batch["starts"][place]), int(batch["ends"][place])
    assert batch["label_weights"][place] == 1
    if start == end == 0:
      silent += 1
      continue
    said = tokenizer.decode(tokens["inputs"][start : end + 1])
    assert said.split() == row.fields["answers"][0]["text"].split()
  learnt = [row for row, _, place, batch in found if batch["starts"][place]]
  answered = {row.id for row in job.data.train.rows if row.fields["answers"]}
  assert {row.id for row in learnt} == answered and silent > len(ids) - len(answered)


@pytest.mark.parametrize("packing", ["pack", "none"])
@pytest.mark.parametrize("pair", tiny.SEQ2SEQ, ids=str)
def test_a_target_and_its_end_stand_beside_their_source(delivered, pair, packing):
  job, found = delivered(pair, data__packing=packing, data__instruction="de: ")
  assert sorted(row.id for row, *_ in found) == sorted(job.data.train.store.ids)
  tokenizer, start = job.base.tokenizer, job.network.arch.decoder_start
  begin = "<s>" if pair[0] == "bart" else ""
  for row, tokens, (a, r, m), batch in found:
    assert (tokens["weights"] == 1).all()
    assert tokenizer.decode(tokens["targets"]) == f"{begin}{row.fields['target']}</s>"
    assert tokens["inputs"].tolist() == [start, *tokens["targets"][:-1]]
    mine = batch["source_segments"][a, r] == m + 1
    source = tokenizer.decode(batch["source"][a, r][mine])
    assert source == f"{begin}de: {row.fields['source']}</s>"
    assert list(batch["source_positions"][a, r][mine]) == list(range(mine.sum()))
    assert list(tokens["positions"]) == list(range(len(tokens["inputs"])))
  assert job.data.train.counts["stop_ids"] == [tokenizer.eos_token_id]
  rows = [batch["example_ids"] >= 0 for *_, batch in found]
  assert any((held.sum(-1) > 1).any() for held in rows) == (packing == "pack")
