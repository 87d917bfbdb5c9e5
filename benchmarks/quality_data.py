"""The data sets of quality.py as rows with a task's fields: (training rows, held-out rows).

Read as training reads them. Where a set is larger than two slow cores like, its first rows are
taken; the numbers are here.
"""

from jaxsft.data import read
from jaxsft.metrics import tagging


def rows(path, columns=None, format="auto", header=None):
  """The fields of the rows of a file; quotes are part of the text."""
  settings = {"encoding": "utf-8", "header": header, "quoting": False, "id": None}
  found = read.read_rows(path, format=format, columns=columns, **settings)
  names = columns and format != "conll"
  return [{k: r.fields[k] for k in columns} if names else r.fields for r in found]


def labels(task, rows, score):
  """Label names in id order; [] for numbers and texts."""
  if task == "tag":
    tags = sorted({tag for row in rows for tag in row["tags"]} - {"O"})
    return ["O", *tags]
  if task == "classify" and score != "pearson":
    return sorted({row["label"] for row in rows})
  return []


def sst2(data):
  columns = {"text": "sentence", "label": "label"}
  make = lambda name: [
    row | {"text": row["text"].strip()} for row in rows(data / f"sst2_glue/{name}.tsv", columns)
  ]
  return make("train")[:12000], make("dev")


def rte(data):
  columns = {"text": "sentence1", "text_pair": "sentence2", "label": "label"}
  return tuple(rows(data / f"glue_RTE/{name}.tsv", columns) for name in ("train", "dev"))


def mrpc(data):
  columns = {"text": "#1 String", "text_pair": "#2 String", "label": "Quality"}
  return tuple(rows(data / f"glue_MRPC/{name}.tsv", columns) for name in ("train", "dev"))


def stsb(data):
  columns = {"text": "sentence1", "text_pair": "sentence2", "label": "score"}
  make = lambda name: [
    row | {"label": float(row["label"])}
    for row in rows(data / f"glue_STS-B/{name}.tsv", columns)
  ]
  return make("train"), make("dev")


def chnsenticorp(data):
  columns = {"text": "text_a", "label": "label"}
  make = lambda name: rows(data / f"zh_chnsenticorp_split/{name}.tsv", columns)
  return make("train")[:3000], make("dev")[:600]


def sentences(path):
  """Tokens and tags of a CoNLL file, IOB2 where it has IOB1."""
  found = rows(path, format="conll")
  old = tagging.scheme_of([row["tags"] for row in found]) == "IOB1"
  tags = lambda row: tagging.convert(row["tags"], "IOB1") if old else row["tags"]
  return [{"tokens": row["tokens"], "tags": tags(row)} for row in found]


def conll2003(data):
  train, held_out = (sentences(data / f"conll2003/eng.{n}") for n in ("train", "testa"))
  return train[:4000], held_out[:1500]


def wnut17(data):
  files = ("wnut17train.conll", "emerging.dev.conll")
  return tuple(sentences(data / "wnut17" / name) for name in files)


def weibo_ner(data):
  files = (data / f"zh_weibo_ner/weiboNER_2nd_conll.{name}" for name in ("train", "dev"))
  bare = lambda row: row | {"tokens": [token[0] for token in row["tokens"]]}  # "科0"
  return tuple([bare(row) for row in sentences(file)] for file in files)


def squad(data):
  return by_article(rows(data / "squad_v1_dev/dev-v1.1.json.gz"), 40)


def squad2(data):
  """Half of the questions have no answer."""
  return by_article(rows(data / "squad_v2_cs224n/dev-v2.0.json"), 13)


def by_article(found, count):
  """Questions about the first `count` articles are trained on, those about others asked."""
  titles = list(dict.fromkeys(row["title"] for row in found))
  made = []
  for part, most in ((titles[:count], 3000), (titles[count:], 600)):
    mine = [
      {name: row[name] for name in ("question", "context", "answers")}
      for row in found
      if row["title"] in part
    ]
    made.append(mine[:: max(1, len(mine) // most)][:most])
  return tuple(made)


def multi30k(data):
  columns = {"source": "en", "target": "de"}
  make = lambda name: rows(f"{data}/multi30k_en_de/{name}.{{en,de}}.gz", columns)
  return make("train")[:3000], make("val")[:300]


def scitldr(data):
  def make(name, most):
    return [
      {"source": " ".join(r["source"]), "target": r["target"][0], "targets": r["target"]}
      for r in rows(data / f"scitldr/{name}.jsonl.gz")[:most]
    ]

  return make("train", 600), make("dev", 100)


def gsm8k(data):
  columns = {"prompt": "question", "completion": "answer"}
  train, test = (rows(data / f"gsm8k/{name}.jsonl", columns) for name in ("train", "test"))
  return train[:160], test[:40]
