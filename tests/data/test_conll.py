"""Sentences of CoNLL files: columns, ends, documents, comments, and what is no such file."""

import os
import pathlib
import random
import runpy

import pytest

from jaxsft.data import read
from jaxsft.errors import JaxsftError, UsageError
from tests.data.test_read import fields_of, refused, rows_of

CONLL2003 = """\
-DOCSTART- -X- O O

EU NNP I-NP I-ORG
rejects VBZ I-VP O

Peter NNP I-NP I-PER
-DOCSTART- -X- O O
. . O O
"""


def test_four_columns(write):
  file = write("eng.train", CONLL2003)
  first, second, third = rows_of(file, format="conll")
  assert first == read.Row(
    "eng.train:3",
    "eng.train:3",
    {
      "document": 1,
      "tokens": ["EU", "rejects"],
      "tags": ["I-ORG", "O"],
      "1": ["NNP", "VBZ"],
      "2": ["I-NP", "I-VP"],
    },
  )
  assert (second.where, second.fields["tokens"]) == ("eng.train:6", ["Peter"])
  # A document's line ends a sentence too; every such line counts.
  assert (third.where, third.fields["document"]) == ("eng.train:8", 2)


CONLLU = """\
# sent_id = 1
# text = vámonos al mar
1-2\tvámonos\t_\t_\t_\t_\t_\t_\t_\t_
1\tvamos\tir\tVERB\t_\t_\t0\troot\t_\t_
2\tnos\tnosotros\tPRON\t_\t_\t1\tobj\t_\t_
3-4\tal\t_\t_\t_\t_\t_\t_\t_\t_
3\ta\ta\tADP\t_\t_\t5\tcase\t_\t_
4\tel\tel\tDET\t_\t_\t5\tdet\t_\t_
4.1\tbello\tbello\tADJ\t_\t_\t_\t_\t_\t_
5\t2-1\tmar\tNOUN\t_\t_\t1\tobl\t_\t_

# sent_id = 2
1\tsí\tsí\tINTJ\t_\t_\t0\troot\t_\t_
"""


def test_words_of_universal_dependencies(write):
  """Every word once: neither what is written for two, nor what nobody wrote."""
  first, second = rows_of(write("es.conllu", CONLLU))
  assert first.fields["tokens"] == ["vamos", "nos", "a", "el", "2-1"]
  assert first.fields["tags"] == ["VERB", "PRON", "ADP", "DET", "NOUN"]
  assert [line.split("\t")[1] for line in first.fields["ranges"]] == ["vámonos", "al", "bello"]
  assert first.fields["comments"] == ["sent_id = 1", "text = vámonos al mar"]
  assert first.where == "es.conllu:4" and first.fields["0"] == ["1", "2", "3", "4", "5"]
  assert second.fields["tokens"] == ["sí"] and "ranges" not in second.fields
  lemmas = fields_of(write("a.txt", CONLLU), format="conll", columns={"tags": 2})
  assert lemmas[0]["tags"] == ["ir", "nosotros", "a", "el", "mar"]
  scores = write("b.conll", "2-1 CD O\n3-4 CD O\n")  # elsewhere they are words
  assert fields_of(scores)[0]["tokens"] == ["2-1", "3-4"]


def test_columns_choose(write):
  file = write("a.conll", "1 EU NNP\n2 rejects VBZ\n")
  assert fields_of(file, columns={"tokens": 1}) == [
    {"tokens": ["EU", "rejects"], "tags": ["NNP", "VBZ"], "0": ["1", "2"]}
  ]
  chosen = fields_of(file, columns={"tags": 1, "number": 0, "tokens": 2})
  assert chosen == [{"tags": ["EU", "rejects"], "number": ["1", "2"], "tokens": ["NNP", "VBZ"]}]
  one = write("b.conll", "EU\n\nrejects\nit\n")  # to predict the tags of
  assert fields_of(one) == [{"tokens": ["EU"]}, {"tokens": ["rejects", "it"]}]


def test_tabs_hold_spaces_and_a_line_of_a_tab_ends_a_sentence(write):
  file = write("a.bio", "of course\tO\n\u3000\u3000x\tO\n\t\nEU\tB-ORG\r\n \n\n\ngo\tO")
  rows = rows_of(file)
  assert [row.fields["tokens"] for row in rows] == [
    ["of course", "\u3000\u3000x"],
    ["EU"],
    ["go"],
  ]
  assert [row.fields["tags"] for row in rows] == [["O", "O"], ["B-ORG"], ["O"]]
  assert [row.where for row in rows] == ["a.bio:1", "a.bio:4", "a.bio:8"]


def test_runs_of_spaces_and_other_white_space_in_a_token(write):
  file = write("a.iob", "\n10\xa0000   CD  O\n  km NN   O  \na\u2028b NN O\n")
  assert fields_of(file)[0]["tokens"] == ["10\xa0000", "km", "a\u2028b"]


def test_a_hash_is_a_token_where_it_has_its_columns(write):
  text = "# id = 7\n# text = a # b\na\tO\n#\tO\n#b\tB-X\n\n# sign\n\n# # #\tO\n"
  first, second = rows_of(write("a.iob2", text))
  assert first.fields == {
    "comments": ["id = 7", "text = a # b"],
    "tokens": ["a", "#", "#b"],
    "tags": ["O", "O", "B-X"],
  }
  assert first.where == "a.iob2:3"
  assert second.fields == {"comments": ["sign"], "tokens": ["# # #"], "tags": ["O"]}
  # MultiCoNER: the comment has a tab, the tokens have spaces.
  file = write("b.conll", "# id 5a\tdomain=en\nx _ _ O\n# _ _ O\n")
  assert fields_of(file)[0] | {"1": 0, "2": 0} == {
    "comments": ["id 5a\tdomain=en"],
    "tokens": ["x", "#"],
    "tags": ["O", "O"],
    "1": 0,
    "2": 0,
  }


def test_what_was_written_is_read(write):
  draw = random.Random(0)
  letters = "a#é中🙂-_.\xa0x"
  for trial, end in enumerate(("\n", "\r\n", "\n\t\n", "\n \n\n") * 5):
    tabs = trial % 2
    sentences = [
      [
        ("".join(draw.choices(letters + " " * tabs, k=draw.randint(1, 4))) + "x", f"T{k}")
        for k in range(draw.randint(1, 5))
      ]
      for _ in range(8)
    ]
    lines = [[("\t" if tabs else "  ").join(pair) for pair in s] for s in sentences]
    text = f"{end}\n".join("\n".join(sentence) for sentence in lines)
    found = fields_of(write("a.conll", text))
    assert [list(zip(f["tokens"], f["tags"], strict=True)) for f in found] == sentences


BROKEN = {
  "few columns": ("EU NNP O\nrejects VBZ\n", "a.conll:2", "found 2 columns", "expected 3", "1"),
  "many columns": (
    "EU\tO\n\nof\tcourse\tO\n",
    "a.conll:3",
    "found 3",
    "2 as in line 1",
    "tabs",
  ),
  "spaces among tabs": ("EU\tO\nit O\n", "a.conll:2", "found 1 columns", "split at tabs"),
  "tabs among spaces": ("EU O\nit\tO\n", "a.conll:2", "found 1 columns", "split at spaces"),
  "no token": ("EU\tO\n\tB-ORG\n", "a.conll:2", "column 0", "the tokens", "is empty"),
  "no tag": ("EU\tO\nit\t \n", "a.conll:2", "column 1", "the tags", "is empty"),
  "a tag alone": ("EU O\n O\n", "a.conll:2", "found 1 columns"),
  "a hash without a tag": ("a\tO\n#\n", "a.conll:2", "found 1 columns"),
  "a hash tag without a tag": ("a\tO\n\n#b\nc\tO\n", "a.conll:3", "found 1 columns"),
  "a comment in a sentence": ("a\tO\n# b\nc\tO\n", "a.conll:2", "found 1 columns"),
  "nothing": ("", "a.conll holds no rows"),
  "comments alone": ("# a\n# b c\n-DOCSTART- O\n", "a.conll holds no rows"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files(write, case):
  text, *parts = BROKEN[case]
  refused(write("a.conll", text), *parts)


def test_columns_that_cannot_be(write):
  file = write("a.conll", "\nEU NNP O\n")
  refused(file, "'text'", "position", error=UsageError, columns={"tokens": "text"})
  refused(file, "a.conll:2", "no column 3", "'tags'", "there are 3", columns={"tags": 3})
  refused(file, "no column -1", columns={"tags": -1})
  refused(file, "column 0", "both", "tokens", error=UsageError, columns={"tags": 0})


def test_a_good_sentence_comes_before_a_bad_one_is_seen(write):
  stream = iter(read.read_rows(write("a.conll", "a O\n\nb\n"), **settings()))
  assert next(stream).fields == {"tokens": ["a"], "tags": ["O"]}
  with pytest.raises(JaxsftError, match=r"a\.conll:3"):
    next(stream)


def settings(**changed):
  unset = dict.fromkeys(("header", "columns", "id"))
  return unset | {"format": "auto", "encoding": "utf-8", "quoting": True} | changed


WEIBO = pathlib.Path(__file__).parents[2] / "configs" / "data" / "weibo_ner.py"


def test_weibo_without_its_digits(write, capsys):
  script = runpy.run_path(str(WEIBO))
  file = write("weibo.train", "科0\tO\n技1\tB-ORG.NOM\n\n00\tO\n🙂2\tO\n")
  script["main"](file, "out.jsonl")
  assert rows_of("out.jsonl", id="id") == [
    read.Row(id, f"out.jsonl:{i}", {"id": id, "tokens": tokens, "tags": tags})
    for i, (id, tokens, tags) in enumerate(
      [
        ("weibo.train:1", ["科", "技"], ["O", "B-ORG.NOM"]),
        ("weibo.train:4", ["0", "🙂"], ["O", "O"]),
      ],
      1,
    )
  ]
  assert capsys.readouterr().out == "2 sentences in out.jsonl\n"
  with pytest.raises(JaxsftError, match=r"b\.train:1: the token '科'"):
    list(script["rows"](write("b.train", "科\tO\n")))


OFFICIAL = {
  "conll2003/eng.train": (14041, 203621, 946),
  "conll2003/eng.testa": (3250, 51362, 216),
  "conll2003/eng.testb": (3453, 46435, 231),
  "wnut17/wnut17train.conll": (3394, 62730, None),
  "wnut17/emerging.dev.conll": (1009, 15733, None),
  "wnut17/emerging.test.annotated": (1287, 23394, None),
  "zh_weibo_ner/weiboNER_2nd_conll.train": (1350, 73778, None),
  "zh_weibo_ner/weiboNER_2nd_conll.dev": (270, 14509, None),
  "zh_weibo_ner/weiboNER_2nd_conll.test": (270, 14842, None),
}


@pytest.mark.full
@pytest.mark.skipif(not os.environ.get("JAXSFT_DATA"), reason="needs the data in JAXSFT_DATA")
@pytest.mark.parametrize("name", OFFICIAL)
def test_official_counts(name):
  file = os.path.join(os.environ["JAXSFT_DATA"], name)
  rows = rows_of(file, format="conll")
  tokens = [token for row in rows for token in row.fields["tokens"]]
  counts = (len(rows), len(tokens), rows[-1].fields.get("document"))
  assert counts == OFFICIAL[name]
  # What was read is the file: joined again, it differs in blank and document lines alone.
  columns = [k for k in rows[0].fields if k.isdigit()]
  order = ["tokens", *columns, "tags"]
  joined = [line for r in rows for line in zip(*(r.fields[k] for k in order), strict=True)]
  with open(file, encoding="utf-8", newline="") as stream:
    lines = [line.split() for line in stream.read().split("\n")]
  assert [list(j) for j in joined] == [x for x in lines if x and x[0] != "-DOCSTART-"]


@pytest.mark.full
@pytest.mark.skipif(not os.environ.get("JAXSFT_DATA"), reason="needs the data in JAXSFT_DATA")
def test_every_token_of_weibo_has_its_digit():
  file = os.path.join(os.environ["JAXSFT_DATA"], "zh_weibo_ner", "weiboNER_2nd_conll.train")
  found = list(runpy.run_path(str(WEIBO))["rows"](file))
  assert len(found) == 1350 and "".join(found[0]["tokens"]).startswith("科技全方位")
