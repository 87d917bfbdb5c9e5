"""Parallel text: files in step, sides as fields, and paths that name no such text."""

import os

import pytest

from jaxsft.data import fetch, read
from jaxsft.errors import JaxsftError, UsageError
from tests.data.test_read import fields_of, refused, rows_of


def test_sides_are_fields(write):
  write("d/t.en.gz", "a dog\n\ntwo\x85 cats")
  write("d/t.de.gz", "ein Hund\r\n \r\nzwei Katzen\r\n")
  rows = rows_of("d/t.{en,de}.gz")
  assert rows == rows_of("d/t.{en,de}.gz", format="parallel")
  assert rows[0] == read.Row(
    "t.{en,de}.gz:1", "d/t.{en,de}.gz:1", {"en": "a dog", "de": "ein Hund"}
  )
  assert rows[1].fields == {"en": "", "de": " "}  # left out, and counted, by `clean`
  assert rows[2].fields == {"en": "two\x85 cats", "de": "zwei Katzen"}


def test_columns_and_more_than_two_sides(write):
  for side in ("cs", "en", "de"):
    write(f"{side}/t.txt", f"{side} 1\n{side} 2\n")
  found = fields_of("{en,cs,de}/t.txt", columns={"source": "en", "target": "de"})
  assert found[1] == {"source": "en 2", "target": "de 2", "cs": "cs 2"}
  refused("{en,de}/t.txt", "'fr'", "'target'", "en, de", columns={"target": "fr"})
  refused("{en,de}/t.txt", "position", error=UsageError, columns={"target": 1})


def test_a_file_of_that_very_name_is_itself(write):
  file = write("{a,b}.txt", "x\n")
  assert fields_of(file) == fields_of(file, format="text") == [{"text": "x"}]


@pytest.mark.parametrize(
  ("first", "second", "said"),
  [
    ("1\n2\n3\n", "1\n2\n", ("t.a has 3 lines", "t.b has 2 lines")),
    ("1\n", "1\n2\n3\n4", ("t.a has 1 lines", "t.b has 4 lines")),
    ("", "1\n2\n", ("t.a has 0 lines", "t.b has 2 lines")),
    ("1\n\n", "1\n", ("t.a has 2 lines", "t.b has 1 lines")),
  ],
)
def test_sides_of_different_length(write, first, second, said):
  write("t.a", first)
  write("t.b", second)
  refused("t.{a,b}", *said, "same number")


def test_no_lines_and_wrong_bytes(write):
  write("t.a", "")
  write("t.b", "")
  refused("t.{a,b}", "t.{a,b} holds no rows")
  write("t.a", b"x\n\xe9\n")
  write("t.b", "x\ny\n")
  refused("t.{a,b}", "t.a:2", "0xe9", "data.encoding")


@pytest.mark.parametrize(
  ("path", "said"),
  [
    ("t.en", "in braces"),
    ("{a,b}/t.{en,de}", "once in braces"),
    ("t.{en,{de,fr}}", "once in braces"),
    ("t.{en,de}}", "once in braces"),
    ("*/t.{en,de}", "a glob cannot pair"),
    ("t?.{en,de}", "a glob cannot pair"),
    ("t.{en,en}", "different sides"),
    ("t.{en,}", "different sides"),
    ("t.{en, de}", "without spaces"),
  ],
)
def test_paths_that_name_no_parallel_text(write, path, said):
  write("t.en", "x\n")
  refused(path, "data.path", repr(path), said, error=UsageError, format="parallel")


def test_other_formats_have_no_sides(write):
  write("t.en", "x\n")
  write("t.de", "x\n")
  refused("t.{en,de}", "'text'", "'parallel' or 'auto'", error=UsageError, format="text")


def test_fetch_finds_both_files_or_names_the_missing_one(write):
  write("d/t.en", "x\n")
  write("d/t.du", "x\n")
  with pytest.raises(JaxsftError, match=r"eval_path.* d/t\.de; did you mean 't\.en'"):
    fetch.resolve("d/t.{en,de}", None, key="data.eval_path")
  assert str(fetch.resolve("d/t.{en,du}", None)) == os.path.join("d", "t.{en,du}")
  with pytest.raises(UsageError, match=r"data\.sha256 pins one file"):
    fetch.resolve("d/t.{en,du}", "ab" * 32)
  with pytest.raises(UsageError, match=r"data\.eval_path is .*a glob cannot"):
    fetch.resolve("*/t.{en,du}", None, key="data.eval_path")


@pytest.mark.full
@pytest.mark.skipif(not os.environ.get("JAXSFT_DATA"), reason="needs the data in JAXSFT_DATA")
@pytest.mark.parametrize(
  ("part", "count"), [("train", 29000), ("val", 1014), ("test_2016_flickr", 1000)]
)
def test_official_counts(part, count):
  path = os.path.join(os.environ["JAXSFT_DATA"], "multi30k_en_de", f"{part}.{{en,de}}.gz")
  found = fields_of(path)
  assert len(found) == count and all(row["en"].strip() and row["de"].strip() for row in found)
