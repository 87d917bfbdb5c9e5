"""Real taggers, tokenizers and corpora: `pytest -m full`, env JAXSFT_CHECKPOINTS, JAXSFT_DATA.

The corpora are CoNLL-2003, WNUT-17 and Weibo NER, each a directory with the files as published.
"""

import importlib.util
import json
import os
import pathlib
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import transformers
from tokenizers import Tokenizer

import jaxsft
from jaxsft import tokenizer as tokenizers
from jaxsft.data import read, spelling, words
from jaxsft.metrics import tagging
from jaxsft.tasks import tag

pytestmark = pytest.mark.full
TEXTS = (
  "They was there, without the aid of tables.",
  "She go to school. He have two cat. I is happy. We was late. It were an good idea.",
  "The history of computing is longer then the history of computing hardware!",
  "He don't  know what she want (or needs) : 20°C, naïve Äpfel, U.S. troops.",
  "Me and him goes to school every days \N{HUGGING FACE} since\u200b 2019.",
)
CORPORA = {  # file -> sentences, entities (as published), types
  "conll2003/eng.train": (14_041, 23_499, 4),
  "conll2003/eng.testa": (3_250, 5_942, 4),
  "conll2003/eng.testb": (3_453, 5_648, 4),
  "wnut17/wnut17train.conll": (3_394, 1_975, 6),
  "wnut17/emerging.dev.conll": (1_009, 836, 6),
  "wnut17/emerging.test.annotated": (1_287, 1_079, 6),
  "zh_weibo_ner/weiboNER_2nd_conll.train": (1_350, 1_895, 8),
  "zh_weibo_ner/weiboNER_2nd_conll.dev": (270, 389, 8),
  "zh_weibo_ner/weiboNER_2nd_conll.test": (270, 418, 8),
}

BROKEN = {  # entities that begin with an I: rows in IOB2 are left as they are
  "zh_weibo_ner/weiboNER_2nd_conll.train": 10,
  "zh_weibo_ner/weiboNER_2nd_conll.test": 4,
}


def root(name):
  if name not in os.environ:
    pytest.skip(f"needs {name}")
  return pathlib.Path(os.environ[name])


def corpus(file):
  path = root("JAXSFT_DATA") / file
  if "weibo" in file:
    place = pathlib.Path(__file__).parents[2] / "configs/data/weibo_ner.py"
    spec = importlib.util.spec_from_file_location("weibo_ner", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [read.Row(fields["id"], str(path), fields) for fields in module.rows(path)]
  settings = {"encoding": "utf-8", "header": None, "quoting": True, "columns": None, "id": None}
  return list(read.read_rows(path, format="conll", **settings))


@pytest.mark.parametrize("file", CORPORA)
def test_entities_are_as_many_as_published(file):
  rows = corpus(file)
  sentences, entities, types = CORPORA[file]
  names = spelling.label_names(rows)
  found = spelling.settled(rows, names)
  assert len(found) == sentences and len(names) == 1 + 2 * types and names[0] == "O"
  tags = [row.fields["tags"] for row in found]
  assert sum(len(tagging.spans(x, "IOB2")) for x in tags) == entities
  begun = sum(name.startswith("B-") for x in tags for name in x)
  assert entities - begun == BROKEN.get(file, 0)
  if "conll" in file and "2003" in file:  # the published tags are IOB1
    assert any(a.fields["tags"] != b.fields["tags"] for a, b in zip(rows, found, strict=True))


@pytest.mark.parametrize(
  ("name", "file"),
  [
    ("distilbert-cased-grammar-tagger", "conll2003/eng.testa"),
    ("all-minilm-l6-v2", "wnut17/emerging.dev.conll"),
    ("m3e-small", "zh_weibo_ner/weiboNER_2nd_conll.dev"),
    ("flan-t5-small-titler", "wnut17/emerging.dev.conll"),
    ("granite-embedding-30m-english", "wnut17/emerging.dev.conll"),
  ],
)
def test_first_tokens_are_those_of_the_library(name, file):
  """Words given one by one, RoBERTa's with the space before them that it needs."""
  tokenizer = tokenizers.load_tokenizer(root("JAXSFT_CHECKPOINTS") / name)
  state = json.loads(tokenizer.backend_tokenizer.to_str())
  spaced = state["pre_tokenizer"].get("add_prefix_space") is False
  if spaced:
    state["pre_tokenizer"]["add_prefix_space"] = True
  theirs = transformers.PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer.from_str(json.dumps(state))
  )
  lost = 0
  for row in corpus(file)[:400]:
    tokens = row.fields["tokens"]
    ours = words.read(row.fields, tokenizer)
    found = theirs(tokens, is_split_into_words=True, verbose=False)
    own, seen = found.word_ids(0), set()
    first = [-1 if w is None or w in seen else (seen.add(w) or w) for w in own]
    behind = lambda ids, word: [(i, w) for i, w in zip(ids, word, strict=True) if w > 0]
    assert behind(ours.inputs.tolist(), ours.word.tolist()) == behind(found["input_ids"], first)
    if not spaced:
      assert ours.word.tolist() == first
    lost += ours.lost
  assert lost < (100 if "weibo" in file else 10)  # U+FFFD, which BERT drops


@pytest.mark.parametrize("given", ["text", "tokens"])
def test_a_real_tagger_says_what_torch_says(oracle, given):
  """The pipeline of transformers at the first token of every word, and its probability."""
  path = root("JAXSFT_CHECKPOINTS") / "distilbert-cased-grammar-tagger"
  with jax.default_matmul_precision("highest"):
    model = jaxsft.load(path)
    assert model.base.task == "tag" and len(model.context.labels) == 213
    assert tag.kind(model.context) == "plain"
    rows = [{"text": t} if given == "text" else {"tokens": t.split()} for t in TEXTS]
    said = model.predict(rows)
  pipe = transformers.pipeline(
    "token-classification", model=str(path), ignore_labels=[], aggregation_strategy="none"
  )
  changed = 0
  for text, row, one in zip(TEXTS, rows, said, strict=True):
    text = text if given == "text" else " ".join(text.split())
    whole, places = words.spans(row, model.tokenizer)
    assert whole == text
    theirs = {token["start"]: token for token in pipe(text)}
    assert len(one["tags"]) == len(places) == len(one["scores"])
    for (start, _), label, score in zip(places, one["tags"], one["scores"], strict=True):
      assert label == theirs[start]["entity"], (text, start)
      assert score == pytest.approx(float(theirs[start]["score"]), abs=1e-3)
      changed += label != "$KEEP"
  assert changed > 5  # and it does find mistakes


def test_real_sentences_in_windows():
  """As whole: every word of long texts is read once, in windows of 40 tokens too."""
  tokenizer = tokenizers.load_tokenizer(root("JAXSFT_CHECKPOINTS") / "all-minilm-l6-v2")
  rows = corpus("wnut17/wnut17train.conll")[:200]
  labels = spelling.label_names(rows)
  context = SimpleNamespace(
    tokenizer=tokenizer, max_length=20, too_long="windows", stride=6, labels=labels
  )
  several = 0
  for row in spelling.settled(rows, labels):
    examples = tag.encode(row, context).examples
    learnt = {
      int(e["word"][t]): labels[e["targets"][t]]
      for e in examples
      for t in np.flatnonzero(e["weights"])
    }
    assert len(learnt) == sum(int(e["weights"].sum()) for e in examples)
    assert all(row.fields["tags"][word] == name for word, name in learnt.items())
    several += len(examples) > 1
  assert several > 50
