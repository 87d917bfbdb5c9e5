import errno
import os
import resource
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from jaxsft.data import store
from jaxsft.errors import JaxsftError

KEY = {"data": "ab", "tokenizer": "cd", "template": "{{ x }}", "max_length": 64}


def examples(count=5, start=10):
  for i in range(count):
    tokens = np.arange(start * i, start * i + i + 1)
    yield (
      f"x.jsonl:{i + 1}",
      {
        "inputs": tokens,
        "targets": tokens + 1,
        "weights": (tokens % 2).astype(np.float64),
        "label": np.int64(i % 3),
        "label_weight": np.float32(0.5),
      },
    )


def test_examples_come_back_as_they_were(tmp_path):
  built = store.build(examples(), KEY, tmp_path)
  assert len(built) == 5
  assert built.ids == [f"x.jsonl:{i}" for i in range(1, 6)]
  assert built.lengths.tolist() == [1, 2, 3, 4, 5] and built.lengths.dtype == np.int32
  assert set(built.keys) == {"inputs", "targets", "weights", "label", "label_weight"}
  for i, (_, expected) in enumerate(examples()):
    found = built.example(i)
    assert found.keys() == expected.keys()
    for key in expected:
      np.testing.assert_array_equal(found[key], expected[key])
      assert found[key].dtype == (np.float32 if "weight" in key else np.int32)


def test_ids_keep_any_character(tmp_path):
  ids = ['a"b', "line\nbreak", "\u2028", "日本", "\ud800", ""]
  built = store.build(((i, {"inputs": np.ones(2, int)}) for i in ids), KEY, tmp_path)
  assert built.ids == ids


def test_a_view_cannot_be_written(tmp_path):
  view = store.build(examples(), KEY, tmp_path).example(1)["inputs"]
  assert not view.flags.owndata
  with pytest.raises(ValueError):
    view[0] = 1


def test_the_second_build_reads_nothing_and_keeps_the_counts(tmp_path):
  counts = {}

  def counting():
    for item in examples():
      counts["dropped"] = counts.get("dropped", 0) + 1
      yield item

  first = store.build(counting(), KEY, tmp_path, counts)
  assert first.counts == {"dropped": 5}
  again = store.build(iter(lambda: pytest.fail("encoded again"), 0), KEY, tmp_path)
  assert again.counts == {"dropped": 5} and again.fingerprint == first.fingerprint


@pytest.mark.parametrize("name", KEY)
def test_any_changed_input_is_another_store(tmp_path, name):
  first = store.build(examples(), KEY, tmp_path)
  value = KEY[name]
  changed = KEY | {name: value + 1 if isinstance(value, int) else value + "x"}
  other = store.build(examples(start=20), changed, tmp_path)
  assert other.directory != first.directory
  assert other.example(2)["inputs"][0] == 40


def test_the_builder_version_is_in_the_key(tmp_path, monkeypatch):
  first = store.build(examples(), KEY, tmp_path)
  monkeypatch.setattr(store, "VERSION", store.VERSION + 1)
  assert store.build(examples(), KEY, tmp_path).directory != first.directory


def test_the_order_of_the_key_does_not_matter(tmp_path):
  first = store.build(examples(), KEY, tmp_path)
  again = store.build(examples(), dict(reversed(KEY.items())), tmp_path)
  assert again.directory == first.directory


def test_another_stored_key_raises(tmp_path):
  built = store.build(examples(), KEY, tmp_path)
  file = built.directory / "key.json"
  file.write_text(file.read_text().replace("ab", "aB"))
  with pytest.raises(JaxsftError, match="other settings"):
    store.build(examples(), KEY, tmp_path)


@pytest.mark.parametrize("name", ["token.inputs.npy", "offsets.npy", "value.label.npy"])
def test_a_cut_file_raises(tmp_path, name):
  built = store.build(examples(), KEY, tmp_path)
  file = built.directory / name
  os.truncate(file, file.stat().st_size - 4)
  with pytest.raises(JaxsftError, match="damaged"):
    store.build(examples(), KEY, tmp_path)


@pytest.mark.parametrize("name", ["token.inputs.npy", "value.label.npy"])
def test_a_file_of_another_store_raises(tmp_path, name):
  built = store.build(examples(), KEY, tmp_path)
  np.save(built.directory / name, np.zeros(3, np.int32))
  with pytest.raises(JaxsftError, match="do not belong together"):
    store.build(examples(), KEY, tmp_path)


def test_a_lost_id_raises(tmp_path):
  built = store.build(examples(), KEY, tmp_path)
  file = built.directory / "ids.jsonl"
  file.write_text("\n".join(file.read_text().splitlines()[:-1]))
  with pytest.raises(JaxsftError, match="damaged"):
    store.open_store(built.directory)


def test_the_fingerprint_is_of_the_content(tmp_path):
  one = store.build(examples(), KEY, tmp_path / "a").fingerprint
  assert store.build(examples(), {"other": 1}, tmp_path / "b").fingerprint == one
  seen = {one}
  for change in ("inputs", "label", "id", "lengths"):

    def changed(change=change):
      for k, (id, example) in enumerate(examples()):
        if k == 3 and change == "id":
          id = "other"
        elif k == 3 and change == "lengths":
          example = example | {n: example[n][:-1] for n in ("inputs", "targets", "weights")}
        elif k == 3:
          example[change] = example[change] + 1
        yield id, example

    seen.add(store.build(changed(), KEY, tmp_path / change).fingerprint)
  assert len(seen) == 5


def test_an_error_in_the_encoder_leaves_nothing(tmp_path):
  def failing():
    yield from examples()
    raise KeyError("row 6")

  with pytest.raises(KeyError):
    store.build(failing(), KEY, tmp_path)
  assert list(tmp_path.iterdir()) == []
  assert len(store.build(examples(), KEY, tmp_path)) == 5


def test_a_killed_build_is_not_opened(tmp_path):
  code = f"""
import os, pathlib, numpy as np
from jaxsft.data import store
def examples():
  for i in range(100_000):
    yield str(i), {{"inputs": np.arange(9)}}
  os._exit(9)
store.build(examples(), {KEY!r}, pathlib.Path({str(tmp_path)!r}))
"""
  done = subprocess.run([sys.executable, "-c", code], cwd=os.getcwd())
  assert done.returncode == 9
  left = list(tmp_path.iterdir())
  assert [p.name.startswith(".building-") for p in left] == [True]
  assert len(store.build(examples(), KEY, tmp_path)) == 5
  # Too young to be removed: it might still be written. A day later it is.
  assert left[0].exists()
  old = time.time() - store.STALE - 9
  for path in (*left[0].iterdir(), left[0]):
    os.utime(path, (old, old))
  store.build(examples(), {"other": 1}, tmp_path)
  assert not left[0].exists()


def test_builders_at_the_same_time_agree(tmp_path):
  barrier, stores = threading.Barrier(4), []

  def meeting():
    barrier.wait()
    yield from examples()
    barrier.wait()

  def work():
    stores.append(store.build(meeting(), KEY, tmp_path))

  threads = [threading.Thread(target=work) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len({s.fingerprint for s in stores}) == 1 and len(stores) == 4
  assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_gives_a_sentence_and_leaves_nothing(tmp_path):
  limit = resource.getrlimit(resource.RLIMIT_FSIZE)
  big = ((str(i), {"inputs": np.zeros(1000, int)}) for i in range(1000))
  resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limit[1]))
  try:
    with pytest.raises(JaxsftError, match=r"disk is full.*JAXSFT_CACHE"):
      store.build(big, KEY, tmp_path)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
  assert list(tmp_path.iterdir()) == []


def test_a_full_disk_at_the_last_flush(tmp_path, monkeypatch):
  def full(descriptor):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(JaxsftError, match="disk is full"):
    store.build(examples(), KEY, tmp_path)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  "example, message",
  [
    ({"inputs": np.ones(3), "targets": np.ones(2)}, "lengths"),
    ({"inputs": np.ones(0)}, "lengths"),
    ({"label": np.int32(1)}, "lengths"),
    ({"inputs": np.ones((2, 2))}, "flat array"),
    ({"inputs": np.array(["a"])}, "flat array"),
    ({"inputs": np.array([2**31])}, "beyond 32 bits"),
    ({"inputs": np.ones(2, int), "more": np.ones(2)}, "alike"),
    ({"inputs": np.ones(2)}, "alike"),
  ],
)
def test_a_bad_example_is_named(tmp_path, example, message):
  good = {"inputs": np.ones(2, int)}
  pairs = [("first", good), ("a.csv:7", example)]
  with pytest.raises(JaxsftError, match=rf"a\.csv:7[\s\S]*{message}|{message}.*a\.csv:7"):
    store.build(pairs, KEY, tmp_path)
  assert list(tmp_path.iterdir()) == []


def test_no_example_is_an_error(tmp_path):
  with pytest.raises(JaxsftError, match=r"no example.*too long"):
    store.build(iter(()), KEY, tmp_path, {"too long": 3})


def test_supervised_counts(tmp_path):
  built = store.build(examples(), KEY, tmp_path / "a")
  expected = [int((e["weights"] > 0).sum()) for _, e in examples()]
  assert store.supervised(built).tolist() == expected

  def labelled(weights):
    for k, weight in enumerate(weights):
      values = {"label": np.int32(0), "label_weight": np.float32(weight)}
      yield str(k), {"inputs": np.ones(2, int)} | values

  one = store.build(labelled([1, 0, 0.5]), KEY, tmp_path / "b")
  assert store.supervised(one).tolist() == [1, 0, 1]


def test_a_store_in_memory_is_like_one_on_disk(tmp_path):
  disk, memory = store.build(examples(), KEY, tmp_path), store.in_memory(examples())
  assert memory.ids == disk.ids and memory.keys == disk.keys
  assert memory.lengths.tolist() == disk.lengths.tolist()
  assert memory.lengths.dtype == disk.lengths.dtype
  for i in range(5):
    for key, values in disk.example(i).items():
      np.testing.assert_array_equal(memory.example(i)[key], values)
      assert memory.example(i)[key].dtype == values.dtype
  assert store.in_memory(examples()).fingerprint == memory.fingerprint
  assert store.in_memory(examples(start=11)).fingerprint != memory.fingerprint
  with pytest.raises(JaxsftError, match="no example"):
    store.in_memory([])
  with pytest.raises(JaxsftError, match=r"example 7 .*alike"):
    store.in_memory([*examples(), ("7", {"inputs": np.ones(2)})])
