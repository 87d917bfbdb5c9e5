"""The configs read the files that those who made the data give out."""

import pathlib

import pytest

from jaxsft import config as config_lib
from jaxsft import sources, tasks
from jaxsft.errors import UsageError

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
# Heads of the files in GLUE's archives, a row of each, and what it says.
FILES = {
  "cola": ("CoLA", ["gj04\t1\t\tA b."], ("A b.", None, "acceptable")),
  "sst2": ("SST-2", ["sentence\tlabel", 'a "good b \t1'], ('a "good b ', None, "positive")),
  "mrpc": (
    "MRPC",
    ["\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String", '1\t7\t8\tA "b\tC'],
    ('A "b', "C", "equivalent"),
  ),
  "stsb": (
    "STS-B",
    [
      "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
      "0\tm\tM\t2012\t1\tn\tn\tA.\tB.\t3.800",
    ],
    ("A.", "B.", 3.8),
  ),
  "qqp": (
    "QQP",
    ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "1\t2\t3\tA?\tB?\t0"],
    ("A?", "B?", "not_duplicate"),
  ),
  "mnli": (
    "MNLI",
    [
      "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\t"
      "sentence1_parse\tsentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label",
      "0\t1\t2\tg\t(\t(\t(\t(\tA.\tB.\tneutral\tcontradiction",
    ],
    ("A.", "B.", "contradiction"),
  ),
  "qnli": (
    "QNLI",
    ["index\tquestion\tsentence\tlabel", "0\tA?\tB.\tnot_entailment"],
    ("A?", "B.", "not_entailment"),
  ),
  "rte": (
    "RTE",
    ["index\tsentence1\tsentence2\tlabel", "0\tA.\tB.\tentailment"],
    ("A.", "B.", "entailment"),
  ),
  "wnli": (
    "WNLI",
    ["index\tsentence1\tsentence2\tlabel", "0\tA.\tB.\t1"],
    ("A.", "B.", "entailment"),
  ),
}


def rows_of(config):
  return sources.read_data(config.data, tasks.TASKS[config.task])


@pytest.mark.parametrize("name", FILES)
def test_the_columns_of_glue_s_own_files(tmp_path, name):
  folder, lines, expected = FILES[name]
  place = tmp_path / folder
  place.mkdir()
  matched = "_matched" if name == "mnli" else ""
  for file in ("train.tsv", f"dev{matched}.tsv"):
    (place / file).write_text("\n".join(lines) + "\n", encoding="utf-8")
  config = config_lib.load_config(f"{CONFIGS}/glue.py:{name},{tmp_path}")
  rows = rows_of(config)
  for row in (*rows.train, *rows.held_out):
    fields = row.fields
    assert (fields["text"], fields.get("text_pair"), fields["label"]) == expected
  assert len(rows.train) == len(rows.held_out) == 1


@pytest.mark.parametrize("name", FILES)
def test_the_names_and_labels_of_tfds(name):
  """As tensorflow_datasets itself declares them, whose rows then carry these names."""
  glue = pytest.importorskip("tensorflow_datasets.text.glue")
  config = config_lib.load_config(f"{CONFIGS}/glue.py:{name}")
  known = next(c for c in glue.Glue.BUILDER_CONFIGS if c.name == name)
  fields = config.data.columns
  assert [fields[f] for f in ("text", "text_pair") if f in fields] == list(known.text_features)
  assert config.data.labels == (known.label_classes and tuple(known.label_classes))
  assert config.data.path == f"tfds:glue/{name}/train"
  metrics = tasks.TASKS["classify"].METRICS[config.data.label_type]
  assert config.evaluate.metric in metrics


def test_an_unknown_task_is_told():
  with pytest.raises(UsageError, match=r"glue.py:rle: no such task, .* cola, sst2"):
    config_lib.load_config(f"{CONFIGS}/glue.py:rle")


def test_sentiment_files(tmp_path):
  for name, head, line, expected in (
    ("sst2", "sentence\tlabel", "a good b \t1", ("a good b ", "positive")),
    ("sentiment_zh", "label\ttext_a", '0\t房间"很小', ('房间"很小', "negative")),
  ):
    place = tmp_path / name
    place.mkdir()
    for file in ("train.tsv", "dev.tsv", "test.tsv"):
      (place / file).write_text(f"{head}\n{line}\n", encoding="utf-8")
    config = config_lib.load_config(f"{CONFIGS}/{name}.py:{place}")
    found = [rows_of(config).train[0], rows_of(config).held_out[0]]
    found += [rows.train[0] for rows in sources.further_sets(config).values()]
    assert [(r.fields["text"], r.fields["label"]) for r in found] == [expected] * len(found)
    assert len(found) == (3 if name == "sentiment_zh" else 2)


def test_a_file_of_texts(tmp_path):
  (tmp_path / "texts.txt").write_text("".join(f"text {i}\n" for i in range(60)) + "\n \n")
  config = config_lib.load_config(f"{CONFIGS}/masked_lm.py:{tmp_path / 'texts.txt'}")
  rows = rows_of(config)
  assert len(rows.train) + len(rows.held_out) == 60 and rows.left_out == {"empty text": 2}
