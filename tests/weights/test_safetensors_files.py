import errno
import json
import resource
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from jaxsft import weights
from jaxsft.errors import JaxsftError
from jaxsft.weights import safetensors_files

SQUARE = np.arange(16, dtype=np.float32).reshape(4, 4)
LAYOUTS = {
  "plain": np.arange(6, dtype=np.float32).reshape(2, 3),
  "transposed_square": SQUARE.T,
  "fortran": np.asfortranarray(SQUARE),
  "strided": np.arange(24, dtype=np.float32).reshape(4, 6)[::2, 1::2],
  "reversed": SQUARE[::-1, ::-1],
  "permuted": np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1),
  "big_endian": SQUARE.astype(">f4"),
  "scalar": np.array(3.5, np.float32),
  "empty": np.zeros((0, 3), np.float32),
  "broadcast": np.broadcast_to(np.float32([1, 2]), (3, 2)),
  "bfloat16_transposed": SQUARE.astype(ml_dtypes.bfloat16).T,
  "float16_strided": SQUARE.astype(np.float16)[:, ::3],
  "integers": np.arange(5),
  "nan": np.float32([np.nan, np.inf, -0.0]),
}


def write(directory, tensors, config=None):
  directory.mkdir(exist_ok=True)
  (directory / "config.json").write_text(json.dumps(config or {"model_type": "toy"}))
  safetensors.numpy.save_file(tensors, directory / "model.safetensors")
  return directory


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_of_memory_is_written_in_c_order(tmp_path, name):
  array = LAYOUTS[name]
  weights.save_safetensors(tmp_path, [(name, array)])
  file = safetensors.safe_open(tmp_path / "model.safetensors", framework="numpy")
  read = file.get_tensor(name)
  assert read.shape == array.shape
  assert read.dtype == array.dtype.newbyteorder("=")
  np.testing.assert_array_equal(read, array)
  assert file.metadata() == {"format": "pt"}


def test_torch_reads_what_was_written(tmp_path, oracle):
  import safetensors.torch

  weights.save_safetensors(tmp_path, list(LAYOUTS.items()))
  read = safetensors.torch.load_file(tmp_path / "model.safetensors")
  for name, array in LAYOUTS.items():
    expected = array.astype(np.float64)
    np.testing.assert_array_equal(read[name].double().numpy(), expected)


def test_others_may_read_what_may_be_read(tmp_path):
  """The umask decides, as for config.json beside it."""
  weights.save_safetensors(tmp_path, [("a", SQUARE)])
  (tmp_path / "config.json").touch()
  mode = lambda name: (tmp_path / name).stat().st_mode
  assert mode("model.safetensors") == mode("config.json")


def test_a_device_array_is_written(tmp_path):
  weights.save_safetensors(tmp_path, [("w", jnp.arange(6.0).reshape(2, 3).T)])
  read = safetensors.numpy.load_file(tmp_path / "model.safetensors")["w"]
  np.testing.assert_array_equal(read, np.arange(6.0).reshape(2, 3).T)


def test_large_models_are_split_and_read_back(tmp_path):
  (tmp_path / "config.json").write_text('{"model_type": "toy"}')
  tensors = {f"t{i}": np.full((4, 5), i, np.float32) for i in range(7)}  # 80 bytes each
  weights.save_safetensors(tmp_path, [("old", SQUARE)])
  files = weights.save_safetensors(tmp_path, tensors.items(), shard_bytes=200)
  assert files == [
    *(f"model-{i:05}-of-00004.safetensors" for i in range(1, 5)),
    "model.safetensors.index.json",
  ]
  index = json.loads((tmp_path / files[-1]).read_text())
  assert index["metadata"] == {"total_size": 560}
  assert index["weight_map"]["t6"] == "model-00004-of-00004.safetensors"
  source = weights.open_source(tmp_path)
  assert source.tensors.keys() == tensors.keys()  # "old" is gone
  for name, array in tensors.items():
    np.testing.assert_array_equal(source.read(name), array)
  weights.save_safetensors(tmp_path, [("new", SQUARE)])
  assert sorted(p.name for p in tmp_path.iterdir()) == [
    "config.json",
    "model.safetensors",
  ]


def test_transformers_reads_the_split_model(tmp_path, oracle):
  transformers = pytest.importorskip("transformers")
  config = transformers.BertConfig(
    vocab_size=11,
    hidden_size=6,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=10,
    max_position_embeddings=7,
  )
  model = transformers.BertModel(config)
  config.save_pretrained(tmp_path)
  tensors = {name: value.numpy() for name, value in model.state_dict().items()}
  weights.save_safetensors(tmp_path, tensors.items(), shard_bytes=500)
  again = transformers.BertModel.from_pretrained(tmp_path).state_dict()
  for name, value in tensors.items():
    np.testing.assert_array_equal(again[name].numpy(), value)


def test_a_slice_reads_only_its_part(tmp_path):
  big = np.arange(12, dtype=np.float32).reshape(3, 4).astype(ml_dtypes.bfloat16)
  write(tmp_path, {"w": big, "s": np.array(2.0)})
  source = weights.open_source(tmp_path)
  assert source.tensors == {
    "s": weights.Info((), "float64"),
    "w": weights.Info((3, 4), "bfloat16"),
  }
  index = (slice(1, 3), slice(0, 4, 1))
  np.testing.assert_array_equal(source.read("w", index), big[1:3])
  np.testing.assert_array_equal(source.read("w"), big)
  assert source.read("s") == 2.0
  with pytest.raises(JaxsftError, match="no tensor 'x'"):
    source.read("x")


def test_a_name_that_comes_twice_is_refused(tmp_path):
  with pytest.raises(JaxsftError, match="'w' twice"):
    weights.save_safetensors(tmp_path, [("w", SQUARE), ("w", SQUARE)])
  assert not list(tmp_path.iterdir())


def test_nothing_to_write_is_refused(tmp_path):
  with pytest.raises(JaxsftError, match="no tensors"):
    weights.save_safetensors(tmp_path, [])


def test_a_wrong_read_back_is_noticed(tmp_path, monkeypatch):
  save = safetensors.numpy.save_file

  def careless(tensors, path, metadata):
    save({k: np.ascontiguousarray(v.T) for k, v in tensors.items()}, path, metadata)

  weights.save_safetensors(tmp_path, [("w", 2 * SQUARE)])
  before = (tmp_path / "model.safetensors").read_bytes()
  monkeypatch.setattr(safetensors.numpy, "save_file", careless)
  with pytest.raises(JaxsftError, match=r"'w' read back .* differs"):
    weights.save_safetensors(tmp_path, [("w", SQUARE)])
  assert (tmp_path / "model.safetensors").read_bytes() == before
  assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_foreseen(tmp_path, monkeypatch):
  usage = shutil.disk_usage(tmp_path)._replace(free=50)
  monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
  with pytest.raises(JaxsftError, match=r"found 0.0 MB free.*free some space"):
    weights.save_safetensors(tmp_path, [("w", SQUARE)])
  assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_leaves_nothing(tmp_path, monkeypatch):
  def full(tensors, path, metadata):
    path.write_bytes(b"half")
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(safetensors.numpy, "save_file", full)
  with pytest.raises(JaxsftError, match=r"MB free.*nothing was left half-written"):
    weights.save_safetensors(tmp_path, [("w", SQUARE)])
  assert not list(tmp_path.iterdir())


def test_a_write_that_the_system_stops_leaves_nothing(tmp_path):
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
  try:
    with pytest.raises(JaxsftError, match=r"writing 40000 bytes|MB free"):
      weights.save_safetensors(tmp_path, [("w", np.zeros(10000, np.float32))])
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert not list(tmp_path.iterdir())


def truncated(directory):
  path = directory / "model.safetensors"
  path.write_bytes(path.read_bytes()[:-3])


def garbage(directory):
  (directory / "model.safetensors").write_bytes(b"\xff" * 100)


def empty(directory):
  (directory / "model.safetensors").write_bytes(b"")


def only_pickle(directory):
  (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def only_gguf(directory):
  (directory / "model.safetensors").rename(directory / "tiny.gguf")


def other_name(directory):
  (directory / "model.safetensors").rename(directory / "weights.safetensors")


def no_weights(directory):
  (directory / "model.safetensors").unlink()


def no_config(directory):
  (directory / "config.json").unlink()


def only_adapter(directory):
  (directory / "config.json").rename(directory / "adapter_config.json")


def broken_config(directory):
  (directory / "config.json").write_text('{"model_type": ')


def list_config(directory):
  (directory / "config.json").write_text("[1]")


def split(directory):
  tensors = {name: np.zeros((4, 5), np.float32) for name in ("a", "b", "c")}
  weights.save_safetensors(directory, tensors.items(), shard_bytes=100)


def missing_shard(directory):
  split(directory)
  (directory / "model-00002-of-00003.safetensors").unlink()


def truncated_shard(directory):
  split(directory)
  path = directory / "model-00002-of-00003.safetensors"
  path.write_bytes(path.read_bytes()[:-1])


def index_of_another_save(directory):
  split(directory)
  one, two = (directory / f"model-0000{i}-of-00003.safetensors" for i in (1, 2))
  shutil.copy(one, two)


def empty_index(directory):
  split(directory)
  (directory / "model.safetensors.index.json").write_text("{}")


@pytest.mark.parametrize(
  ("spoil", "sentence"),
  [
    (truncated, r"model.safetensors unreadable as safetensors \(\d+ bytes.*truncated"),
    (garbage, "unreadable as safetensors"),
    (empty, r"unreadable as safetensors \(0 bytes"),
    (only_pickle, "pytorch_model.bin .* are not opened, so convert it to safetensors"),
    (only_gguf, "to use the GGUF file give its own path, .*tiny.gguf"),
    (other_name, "found weights.safetensors .* neither model.safetensors"),
    (no_weights, r"no weights in .*holds \['config.json'\]"),
    (no_config, "no config.json in .*expected a Hugging Face model directory"),
    (only_adapter, "adapter_config.json is there: give the base model"),
    (broken_config, "config.json unreadable as JSON"),
    (list_config, "found a list in .*config.json"),
    (missing_shard, "2 of 3 weight files .*missing model-00002-of-00003.safetensors"),
    (truncated_shard, "model-00002-of-00003.safetensors unreadable"),
    (index_of_another_save, "2 tensors whose file differs from .*index.json, such as"),
    (empty_index, "no weight_map"),
  ],
)
def test_a_spoiled_directory_is_explained(tmp_path, spoil, sentence):
  write(tmp_path, {"w": SQUARE})
  weights.open_source(tmp_path)
  spoil(tmp_path)
  with pytest.raises(JaxsftError, match=sentence):
    weights.open_source(tmp_path)


def test_other_paths_are_explained(tmp_path):
  with pytest.raises(JaxsftError, match=r"nothing at .*nowhere; .*check model.path"):
    weights.open_source(tmp_path / "nowhere")
  write(tmp_path, {"w": SQUARE})
  with pytest.raises(JaxsftError, match=f"set model.path to {tmp_path}"):
    weights.open_source(tmp_path / "model.safetensors")
  with pytest.raises(JaxsftError, match=r"config.json; expected a Hugging Face dir"):
    weights.open_source(tmp_path / "config.json")


def test_same_bits_sees_types_shapes_and_nan():
  same = safetensors_files.same_bits
  nan = np.float32([np.nan, 1])
  assert same(nan, nan.copy())
  assert same(SQUARE.T, SQUARE.T.copy())
  assert not same(SQUARE, SQUARE.T)
  assert not same(SQUARE, SQUARE.reshape(2, 8))
  assert not same(np.float32([0.0]), np.float32([-0.0]))
  assert not same(SQUARE, SQUARE.astype(np.float64))


def test_a_float8_checkpoint_opens_under_its_own_type_name(tmp_path):
  eight = jax.numpy.ones((2, 2), jnp.float8_e4m3fn)
  write(tmp_path, {"w": np.asarray(eight)})
  assert weights.open_source(tmp_path).tensors["w"].dtype == "f8_e4m3"
