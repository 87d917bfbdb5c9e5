"""Files of answers: values that every reader takes, and other rows that begin anew."""

import csv

import numpy as np

from jaxsft import row_file


def test_other_rows_or_another_model_begin_anew(tmp_path):
  first = row_file.RowFile(tmp_path / "out.jsonl", "a" * 64)
  first.write([{"n": 1}])
  first.leave()
  for identity, done in (("b", 0), ("a", 1)):
    again = row_file.RowFile(tmp_path / "out.jsonl", identity * 64)
    again.leave()
    assert again.done == done


def test_a_number_that_is_none_is_null(tmp_path):
  out = row_file.RowFile(tmp_path / "out.jsonl", "a" * 64)
  out.write([{"n": float("nan"), "list": [float("inf"), 1.5], "f": np.float32(0.5)}])
  out.close()
  assert (tmp_path / "out.jsonl").read_text() == '{"n": null, "list": [null, 1.5], "f": 0.5}\n'


def test_a_table_has_a_column_for_every_key(tmp_path):
  out = row_file.RowFile(tmp_path / "out.csv", "a" * 64)
  out.write([{"a": 'x,"y"'}, {"b": [1, "ü"]}])
  out.close()
  with (tmp_path / "out.csv").open(newline="") as file:
    assert list(csv.reader(file)) == [["a", "b"], ['x,"y"', ""], ["", '[1, "ü"]']]
