"""TFRecord files: the rows that TensorFlow wrote, and every cut and damage in a sentence."""

import gzip
import os

import pytest

from tests.data.test_read import fields_of, refused, rows_of

ROWS = [
  {"text": "é", "label": 1, "score": 0.5},
  {"text": "zwei", "label": -2, "score": 1.5},
  {"words": ["a", "b"], "ids": [1, 2, 3], "none": None},
]


def example(tf, fields):
  """A serialised tf.train.Example."""
  features = {}
  for name, value in fields.items():
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not values:
      feature = tf.train.Feature()
    elif isinstance(values[0], str):
      values = [text.encode() for text in values]
      feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
    elif isinstance(values[0], int):
      feature = tf.train.Feature(int64_list=tf.train.Int64List(value=values))
    else:
      feature = tf.train.Feature(float_list=tf.train.FloatList(value=values))
    features[name] = feature
  return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def records(path, messages):
  """TensorFlow's own file of these messages, as bytes."""
  import tensorflow as tf  # late: seconds to import

  with tf.io.TFRecordWriter(str(path)) as out:
    for message in messages:
      out.write(message)
  return path.read_bytes()


@pytest.fixture
def whole(tmp_path):
  import tensorflow as tf

  return records(tmp_path / "whole", [example(tf, row) for row in ROWS])


@pytest.mark.parametrize(
  "name", ["a.tfrecord", "a.tfrecords.gz", "a.tfrecord-00000-of-00001", "a.tfrecord.zst"]
)
def test_rows(write, whole, name):
  rows = rows_of(write(name, whole))
  assert [row.fields for row in rows] == ROWS
  assert (rows[1].id, rows[1].where) == (f"{name}:2", f"{name}:2")


def test_shards(write, whole):
  for part in range(2):
    write(f"d/a.tfrecord-0000{part}-of-00002", whole)
  rows = rows_of("d/a.tfrecord-*")
  assert len(rows) == 6 and rows[3].id == "a.tfrecord-00001-of-00002:1"


def test_every_cut_is_found(write, whole):
  sizes, at = [], 0
  while at < len(whole):
    at += int.from_bytes(whole[at : at + 8], "little") + 16
    sizes.append(at)
  for cut in range(1, len(whole)):
    file = write("a.tfrecord", whole[:cut])
    if cut in sizes:  # a file of fewer records
      assert len(rows_of(file)) == sizes.index(cut) + 1
    else:
      number = 1 + sum(size < cut for size in sizes)
      refused(file, f"a.tfrecord:{number}: the record is damaged or cut off")


def test_damage_and_other_messages(write, whole, tmp_path):
  import tensorflow as tf

  first = int.from_bytes(whole[:8], "little") + 16
  for at in (2, 9, 14, first - 1):  # length, its checksum, the message, its checksum
    spoilt = bytearray(whole)
    spoilt[first + at] ^= 1
    refused(write("a.tfrecord", bytes(spoilt)), "a.tfrecord:2: the record is damaged")
  sequence = tf.train.SequenceExample()
  sequence.context.CopyFrom(tf.train.Example.FromString(example(tf, ROWS[0])).features)
  sequence.feature_lists.feature_list["a"].feature.add().int64_list.value.append(1)
  pixels = tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"\xff\xd8"]))
  picture = tf.train.Example(features=tf.train.Features(feature={"image": pixels}))
  for message, said in {
    b"plain text": "no tf.train.Example",
    b"": "no tf.train.Example",
    sequence.SerializeToString(): "no tf.train.Example",
    picture.SerializeToString(): "the feature 'image' holds b'\\xff\\xd8', which is not UTF-8",
  }.items():
    made = records(tmp_path / "made", [example(tf, ROWS[0]), message])
    refused(write("a.tfrecord", made), "a.tfrecord:2: ", said)


def test_compressed_and_cut_off(write, whole):
  with open("a.tfrecord.gz", "wb") as out:
    out.write(gzip.compress(whole)[:-9])
  refused("a.tfrecord.gz", "a.tfrecord.gz: the gzip stream is damaged or cut off")
  assert os.listdir(".").count("a.tfrecord.gz") == 1
  refused(write("b.tfrecord", b""), "b.tfrecord holds no rows")
  assert fields_of(write("c.rec", whole), format="tfrecord") == ROWS
