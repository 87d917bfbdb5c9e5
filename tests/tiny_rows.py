"""Tiny rows of every task, written as files."""

import json
import pathlib

import numpy as np

GOOD = ("good", "great", "fine", "superb", "lovely")
BAD = ("bad", "awful", "poor", "dull", "weak")
FILLERS = (
  "the",
  "a",
  "film",
  "was",
  "story",
  "and",
  "plot",
  "very",
  "it",
  "with",
  "cast",
  "end",
)
CHATS = (
  ("2 plus 2", "four"),
  ("3 plus 4", "it is seven"),
  ("a cat", "meow meow meow"),
  ("say no", "no"),
  ("a dog says", "woof"),
  ("1 plus 1", "two ok"),
)

TRANSLATED = (
  ("2 plus 2", "four"),
  ("one two three", "eins zwei drei"),
  ("a cat", "die katze"),
  ("the house is old", "alt ist das haus"),
  ("no", "nein, nein"),
  ("a dog says woof", "ein hund"),
)


def sentence(rng, words, length):
  """`length` fillers with one of `words` somewhere among them."""
  chosen = [str(w) for w in rng.choice(FILLERS, length)]
  chosen.insert(int(rng.integers(0, length + 1)), str(rng.choice(words)))
  return " ".join(chosen)


def sentences(path, count=60, seed=0, number=False, multi=False):
  """Writes JSONL of ragged sentences, labelled by the one word that says it.

  multi: and by two of its fillers, as a list or as text.
  """
  rng = np.random.default_rng(seed)
  with open(path, "w", encoding="utf-8") as file:
    for i in range(count):
      good = bool(rng.integers(0, 2))
      text = sentence(rng, GOOD if good else BAD, int(rng.integers(1, 9)))
      label = (1.5 if good else -0.5) if number else ("pos" if good else "neg")
      if multi:
        label = ["pos"] * good + [word for word in ("film", "the") if word in text.split()]
        label = ",".join(label) if i % 2 else label
      row = {"name": f"s{i}", "text": text, "label": label}
      file.write(json.dumps(row) + "\n")
  return pathlib.Path(path)


def chats(path, count=24, turns=True):
  """Writes JSONL of conversations; with `turns` every third has two exchanges."""
  with open(path, "w", encoding="utf-8") as file:
    for i in range(count):
      pairs = [CHATS[i % len(CHATS)]]
      if turns and i % 3 == 2:
        pairs.append(CHATS[(i + i // 6 + 1) % len(CHATS)])
      messages = []
      for asked, answered in pairs:
        messages.append({"role": "user", "content": asked})
        messages.append({"role": "assistant", "content": answered})
      file.write(json.dumps({"name": f"c{i}", "messages": messages}) + "\n")
  return pathlib.Path(path)


def questions(path, count=24, seed=0):
  """Writes JSONL of questions after the word that is no filler; some contexts take windows.

  Every fourth has no answer, some have two words with two spaces between them.
  """
  rng = np.random.default_rng(seed)
  with open(path, "w", encoding="utf-8") as file:
    for i in range(count):
      good, length = bool(rng.integers(0, 2)), int(rng.integers(3, 12) if i % 3 else 36)
      words = [str(w) for w in rng.choice(FILLERS, length)]
      answers, at = [], int(rng.integers(0, length + 1))
      if i % 4 < 3:
        answer = str(rng.choice(GOOD if good else BAD))
        answer = f"{answer}  {answer}" if i % 3 == 2 else answer
        answers = [{"text": answer, "start": len(" ".join([*words[:at], ""]))}] * (1 + i % 2)
        words.insert(at, answer)
      row = {"name": f"q{i}", "question": "the end was", "context": " ".join(words)}
      row |= {"answers": answers, "impossible": not answers}
      file.write(json.dumps(row) + "\n")
  return pathlib.Path(path)


def translations(path, count=24):
  """Writes JSONL of sources and targets; every third has a second, longer source."""
  with open(path, "w", encoding="utf-8") as file:
    for i in range(count):
      source, target = TRANSLATED[i % len(TRANSLATED)]
      if i % 3 == 2:
        source = f"{source}, {TRANSLATED[(i + i // 6 + 1) % len(TRANSLATED)][0]}"
      file.write(json.dumps({"name": f"p{i}", "source": source, "target": target}) + "\n")
  return pathlib.Path(path)


def entities(path, count=24, seed=0):
  """Writes JSONL of fillers with words that are GOOD, alone, and pairs that are BAD.

  Two of three rows have tokens and IOB1 tags, the others text and spans of its characters.
  """
  rng = np.random.default_rng(seed)
  with open(path, "w", encoding="utf-8") as file:
    for i in range(count):
      tokens, tags, spans = [], [], []
      for _ in range(int(rng.integers(1, 5))):
        tokens += [str(w) for w in rng.choice(FILLERS, int(rng.integers(1, 4)))]
        kind = str(rng.choice(["GOOD", "BAD"]))
        found = [str(w) for w in rng.choice(*((GOOD, 1) if kind == "GOOD" else (BAD, 2)))]
        start = len(" ".join([*tokens, ""]))
        spans.append({"start": start, "end": start + len(" ".join(found)), "label": kind})
        tags += ["O"] * (len(tokens) - len(tags)) + [f"I-{kind}"] * len(found)
        tokens += found
      row = {"tokens": tokens, "tags": tags}
      row = row if i % 3 else {"text": " ".join(tokens), "entities": spans}
      file.write(json.dumps({"name": f"e{i}", **row}) + "\n")
  return pathlib.Path(path)


def rows(path, task, **settings):
  """The rows file that suits a task of tiny.PAIRS."""
  if task == "chat":
    return chats(path, **settings)
  if task == "answer":
    return questions(path, **settings)
  if task == "seq2seq":
    return translations(path, **settings)
  if task == "tag":
    return entities(path, **settings)
  return sentences(path, number=task == "number", multi=task == "multi", **settings)
