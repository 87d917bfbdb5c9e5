"""The data sets of quality.py as rows with a task's fields: (training rows, held-out rows).

Where a set is larger than two slow cores like, its first rows are taken; the numbers are here.
"""

import csv
import gzip
import json


def tsv(path, skip=1):
  with open(path, encoding="utf-8-sig", newline="") as file:
    rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
  return rows[skip:]


def labels(task, rows, score):
  """Label names in id order; [] for numbers and texts."""
  if task == "tag":
    tags = sorted({tag for row in rows for tag in row["tags"]} - {"O"})
    return ["O", *tags]
  if task == "classify" and score != "pearson":
    return sorted({row["label"] for row in rows})
  return []


def sst2(data):
  make = lambda name: [
    {"text": r[0].strip(), "label": r[1]} for r in tsv(data / f"sst2_glue/{name}.tsv")
  ]
  return make("train")[:12000], make("dev")


def rte(data):
  make = lambda name: [
    {"text": r[1], "text_pair": r[2], "label": r[3]} for r in tsv(data / f"glue_RTE/{name}.tsv")
  ]
  return make("train"), make("dev")


def mrpc(data):
  make = lambda name: [
    {"text": r[3], "text_pair": r[4], "label": r[0]}
    for r in tsv(data / f"glue_MRPC/{name}.tsv")
  ]
  return make("train"), make("dev")


def stsb(data):
  make = lambda name: [
    {"text": r[7], "text_pair": r[8], "label": float(r[9])}
    for r in tsv(data / f"glue_STS-B/{name}.tsv")
  ]
  return make("train"), make("dev")


def chnsenticorp(data):
  make = lambda name: [
    {"text": r[1], "label": r[0]} for r in tsv(data / f"zh_chnsenticorp_split/{name}.tsv")
  ]
  return make("train")[:3000], make("dev")[:600]


def columns(path, token=0, tag=-1, sep=None):
  """Sentences of a CoNLL file."""
  found, tokens, tags = [], [], []
  with open(path, encoding="utf-8") as file:
    for line in [*file, ""]:
      if not line.strip() or line.startswith("-DOCSTART-"):
        if tokens:
          found.append({"tokens": tokens, "tags": tags})
        tokens, tags = [], []
        continue
      parts = line.rstrip("\n").split(sep)
      tokens.append(parts[token])
      tags.append(parts[tag])
  return found


def iob2(rows):
  """IOB1 to IOB2: an I that begins an entity becomes a B."""
  for row in rows:
    before = "O"
    for i, tag in enumerate(row["tags"]):
      begins = tag.startswith("I-") and before[2:] != tag[2:]
      row["tags"][i] = "B" + tag[1:] if begins else tag
      before = tag
  return rows


def conll2003(data):
  train, held_out = (iob2(columns(data / f"conll2003/eng.{n}")) for n in ("train", "testa"))
  return train[:4000], held_out[:1500]


def wnut17(data):
  files = sorted(p for p in (data / "wnut17").iterdir() if "PROV" not in p.name)
  pick = lambda word: next(p for p in files if word in p.name)
  return columns(pick("train")), columns(pick("dev"))


def weibo_ner(data):
  files = sorted(p for p in (data / "zh_weibo_ner").iterdir() if "PROV" not in p.name)
  pick = lambda word: next(p for p in files if word in p.name)
  made = []
  for word in ("train", "dev"):
    rows = columns(pick(word))
    made.append([{"tokens": [t[0] for t in r["tokens"]], "tags": r["tags"]} for r in rows])
  return tuple(made)


def squad(data):
  path = next(p for p in (data / "squad_v1_dev").iterdir() if ".json" in p.name)
  articles = json.load(gzip.open(path) if path.suffix == ".gz" else open(path))["data"]
  made = []
  for part, most in ((articles[:40], 3000), (articles[40:], 600)):
    rows = [
      {
        "question": q["question"],
        "context": p["context"],
        "answers": [{"text": a["text"], "start": a["answer_start"]} for a in q["answers"]],
      }
      for article in part
      for p in article["paragraphs"]
      for q in p["qas"]
    ]
    made.append(rows[:: max(1, len(rows) // most)][:most])
  return tuple(made)


def lines(path):
  with gzip.open(path, "rt", encoding="utf-8") as file:
    return [line.rstrip("\n") for line in file]


def multi30k(data):
  make = lambda name, most: [
    {"source": a, "target": b}
    for a, b in zip(
      *(lines(data / f"multi30k_en_de/{name}.{x}.gz") for x in ("en", "de")), strict=True
    )
  ][:most]
  return make("train", 3000), make("val", 300)


def scitldr(data):
  def make(name, most):
    rows = [json.loads(line) for line in lines(data / f"scitldr/{name}.jsonl.gz")][:most]
    return [
      {"source": " ".join(r["source"]), "target": r["target"][0], "targets": r["target"]}
      for r in rows
    ]

  return make("train", 600), make("dev", 100)
