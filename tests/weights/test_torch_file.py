"""pytorch_model.bin beside torch.save, and every way in which one could do harm."""

import io
import json
import os
import pathlib
import pickle
import zipfile
from typing import NamedTuple

import numpy as np
import pytest

from jaxsft import weights
from jaxsft.errors import JaxsftError
from jaxsft.weights import torch_file


class Global(NamedTuple):
  module: str
  name: str


class Call(NamedTuple):
  function: object
  args: tuple


class Stored(NamedTuple):
  kind: object
  key: str
  size: int


class Pickler(pickle._Pickler):
  """Writes the names of torch without torch, and whatever else it is given."""

  dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012
  dispatch[Global] = lambda self, it: self.write(f"c{it.module}\n{it.name}\n".encode())

  def save(self, thing, save_persistent_id=True):
    if isinstance(thing, Call):
      self.save(thing.function)
      self.save(thing.args)
      self.write(b"R")
    elif isinstance(thing, Stored):
      self.save(("storage", thing.kind, thing.key, "cpu", thing.size))
      self.write(b"Q")
    else:
      super().save(thing, save_persistent_id)


FLOAT = Global("torch", "FloatStorage")
REBUILD = Global("torch._utils", "_rebuild_tensor_v2")
ORDERED = Global("collections", "OrderedDict")


def tensor(key, shape, strides, *, kind=FLOAT, size=24, offset=0):
  hooks = Call(ORDERED, ())
  return Call(REBUILD, (Stored(kind, key, size), offset, shape, strides, False, hooks))


VALUES = np.arange(24, dtype="<f4")
GOOD = {
  "whole": tensor("0", (4, 6), (6, 1)),
  "turned": tensor("0", (6, 4), (1, 6)),
  "inner": tensor("0", (2, 3), (12, 2), offset=3),
  "last": tensor("0", (), (), offset=23),
  "none": tensor("0", (0, 3), (3, 1)),
}


def pickled(thing):
  stream = io.BytesIO()
  Pickler(stream, 2).dump(thing)
  return stream.getvalue()


def write(directory, content, *, name="pytorch_model.bin", members=(), **settings):
  """A directory with one file of torch.save's format; content: an object or raw pickle."""
  directory.mkdir(exist_ok=True)
  (directory / "config.json").write_text('{"model_type": "toy"}')
  raw = content if isinstance(content, bytes) else pickled(content)
  files = {"m/data.pkl": raw, "m/byteorder": b"little", "m/data/0": VALUES.tobytes()}
  with zipfile.ZipFile(directory / name, "w", **settings) as archive:
    for file, data in (files | dict(members)).items():
      archive.writestr(file, data)
  return directory


def read(directory):
  source = weights.open_source(directory, allow_pytorch_bin=True)
  return {name: source.read(name) for name in source.tensors}


def test_strides_offsets_and_shared_storages(tmp_path):
  source = weights.open_source(write(tmp_path, GOOD), allow_pytorch_bin=True)
  assert source.config == {"model_type": "toy"}
  assert source.tensors["inner"] == ((2, 3), "float32")
  whole = VALUES.reshape(4, 6)
  expected = {
    "whole": whole,
    "turned": whole.T,
    "inner": [[3, 5, 7], [15, 17, 19]],
    "last": 23,
    "none": np.zeros((0, 3)),
  }
  assert source.tensors.keys() == expected.keys()
  for name, value in expected.items():
    read = source.read(name)
    assert read.dtype == np.float32
    assert read.flags.c_contiguous and read.flags.owndata
    np.testing.assert_array_equal(read, value)
  part = source.read("turned", (slice(1, 5), slice(2, 3)))
  np.testing.assert_array_equal(part, whole.T[1:5, 2:3])


def test_torch_and_its_names_are_read_without_torch(tmp_path, oracle):
  base = oracle.arange(60, dtype=oracle.float32).reshape(6, 10) / 7
  state = {
    **{str(kind): (base * 9).to(kind) for kind in (oracle.float64, oracle.float16)},
    **{str(kind): (base * 9).to(kind) for kind in (oracle.bfloat16, oracle.int64)},
    **{str(kind): (base * 9).to(kind) for kind in (oracle.int32, oracle.int16, oracle.int8)},
    **{str(kind): (base * 9).to(kind) for kind in (oracle.uint8, oracle.bool)},
    "turned": base.T,
    "part": base[1:5:2, 3:],
    "same": base,
    "spread": oracle.ones(1, 4).expand(3, 4),
    "scalar": oracle.tensor(2.5),
    "empty": oracle.zeros(0, 3),
    "parameter": oracle.nn.Parameter(base + 1),
    "permuted": oracle.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1),
  }
  (tmp_path / "config.json").write_text("{}")
  for protocol in (2, 4):
    oracle.save(state, tmp_path / "pytorch_model.bin", pickle_protocol=protocol)
    found = read(tmp_path)
    assert found.keys() == state.keys()
    for name, value in state.items():
      assert str(found[name].dtype) == str(value.dtype).removeprefix("torch.")
      np.testing.assert_array_equal(
        found[name].astype(np.float64), value.detach().double().numpy(), err_msg=name
      )


def test_a_state_dict_of_a_module_with_tied_weights(tmp_path, oracle):
  model = oracle.nn.Sequential(oracle.nn.Linear(3, 5), oracle.nn.BatchNorm1d(5))
  model.again = model[0]
  oracle.save(model.state_dict(), tmp_path / "pytorch_model.bin")
  (tmp_path / "config.json").write_text("{}")
  found = read(tmp_path)
  assert found.keys() == model.state_dict().keys()
  for name, value in model.state_dict().items():
    np.testing.assert_array_equal(found[name], value.numpy())


def shard(tmp_path, weight_map):
  write(tmp_path, {"a": GOOD["whole"]}, name="pytorch_model-00001-of-00002.bin")
  write(tmp_path, {"b": GOOD["inner"]}, name="pytorch_model-00002-of-00002.bin")
  (tmp_path / torch_file.INDEX).write_text(json.dumps({"weight_map": weight_map}))
  return tmp_path


def test_many_files_with_an_index(tmp_path):
  files = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
  found = read(shard(tmp_path, dict(zip("ab", files, strict=True))))
  np.testing.assert_array_equal(found["a"], VALUES.reshape(4, 6))
  np.testing.assert_array_equal(found["b"][1], [15, 17, 19])
  with pytest.raises(JaxsftError, match="2 tensors whose file differs"):
    read(shard(tmp_path, dict(zip("ba", files, strict=True))))
  (tmp_path / files[1]).unlink()
  with pytest.raises(JaxsftError, match=r"1 of 2 weight files .*00002-of-00002.bin, which pyt"):
    read(tmp_path)


@pytest.mark.parametrize("file", ["../elsewhere.bin", "/etc/hosts", "a/b.bin"])
def test_an_index_cannot_point_elsewhere(tmp_path, file):
  write(tmp_path, {"a": GOOD["whole"]}, name="elsewhere.bin")
  inside = shard(tmp_path / "model", {"a": file, "b": "pytorch_model-00002-of-00002.bin"})
  with pytest.raises(JaxsftError, match="expected names of files beside the index"):
    read(inside)


def test_only_behind_its_setting_and_after_safetensors(tmp_path):
  write(tmp_path, GOOD)
  with pytest.raises(JaxsftError, match=r"convert it to safetensors.*allow_pytorch_bin=True"):
    weights.open_source(tmp_path)
  weights.save_safetensors(tmp_path, [("other", VALUES)])
  assert list(read(tmp_path)) == ["other"]


class Evil:
  def __reduce__(self):
    return os.system, ("touch ran",)


class Attribute(NamedTuple):
  """BUILD: sets attributes of what it is given."""

  thing: object
  state: object


Pickler.dispatch[Attribute] = lambda self, it: (
  self.save(it.thing),
  self.save(it.state),
  self.write(b"b"),
)

NAMED = {
  "system": (Evil(), r"the global (posix|nt).system"),
  "eval": (Call(Global("builtins", "eval"), ("1",)), "the global builtins.eval"),
  "python 2": (Call(Global("__builtin__", "eval"), ("1",)), "the global __builtin__.eval"),
  "getattr": (Call(Global("builtins", "getattr"), ("", "x")), "the global builtins.getattr"),
  "numpy": (
    Call(Global("numpy.core.multiarray", "scalar"), ()),
    "the global numpy.core.multiarray.scalar",
  ),
  "torch.load": (Call(Global("torch", "load"), ("x",)), "the global torch.load"),
  "storage": (
    Call(Global("torch.storage", "_load_from_bytes"), (b"",)),
    "the global torch.storage._load",
  ),
  "v3": (
    Call(Global("torch._utils", "_rebuild_tensor_v3"), ()),
    "the global torch._utils._rebuild_tensor_v3",
  ),
  "dotted": (
    Global("collections", "OrderedDict.fromkeys"),
    "the global collections.OrderedDict.from",
  ),
  "hidden": (
    Attribute(Call(ORDERED, ()), {"_metadata": Evil()}),
    r"the global (posix|nt).system",
  ),
  "change": (Attribute(REBUILD, (None, {"function": 1})), "a change of a function"),
}


@pytest.mark.parametrize("case", NAMED)
def test_every_other_name_is_refused_and_never_called(tmp_path, case, monkeypatch):
  monkeypatch.chdir(tmp_path)
  thing, sentence = NAMED[case]
  for content in (thing, {"a": thing}, {"a": GOOD["whole"], "b": (thing,)}):
    with pytest.raises(JaxsftError, match=f"found {sentence}.*expected names with tensors"):
      read(write(tmp_path / "model", content))
  assert not (tmp_path / "ran").exists()


def test_names_built_on_the_stack_are_refused(tmp_path, monkeypatch):
  """Protocol 4 looks names up by strings that lie on the stack."""
  monkeypatch.chdir(tmp_path)
  with pytest.raises(JaxsftError, match=r"the global (posix|nt).system"):
    read(write(tmp_path / "model", pickle.dumps({"a": Evil()}, 4)))
  assert not (tmp_path / "ran").exists()


def number(kind, key="0", size=24):
  return {"a": tensor(key, (2, 2), (2, 1), kind=kind, size=size)}


def sizes(shape=(4, 6), strides=(6, 1), offset=0):
  return {"a": tensor("0", shape, strides, offset=offset)}


LIES = {
  "past the end": (sizes(offset=1), r"\[4, 6\] with strides \[6, 1\] at 1, outside"),
  "long stride": (sizes(strides=(7, 1)), "outside of its storage of 24 values"),
  "large": (sizes((1 << 40, 6)), "outside of its storage"),
  "overflow": (sizes((3, 2), (1 << 63, 1)), "outside of its storage"),
  "negative stride": (sizes(strides=(-6, 1)), "no natural numbers"),
  "negative offset": (sizes(offset=-1), "no natural numbers"),
  "negative size": (sizes((-1, 6)), "no natural numbers"),
  "true": (sizes((True, 6)), "no natural numbers"),
  "real": (sizes((2.0, 6)), "no natural numbers"),
  "ranks": (sizes((4, 6), (6,)), "no natural numbers"),
  "no tuple": (sizes("46"), "without storage, shape or strides"),
  "short storage": (number(FLOAT, size=25), "the storage '0' of 25 float32 in 96 bytes"),
  "wide storage": (number(Global("torch", "DoubleStorage")), "24 float64 in 96 bytes"),
  "negative storage": (number(FLOAT, size=-24), "the storage '0' of -24"),
  "no member": (number(FLOAT, "7"), "no member for the storage '7'"),
  "path": (number(FLOAT, "../../../etc/passwd"), "no member for the storage '../../../etc"),
  "root": (number(FLOAT, "../data.pkl"), "no member for the storage"),
  "kind": (number("FloatStorage"), "the storage '0' of type 'FloatStorage'"),
  "key": (number(FLOAT, ("0",)), r"a storage of \[.*tuple"),
  "text": ({"a": "text"}, "'a' to name a str"),
  "a list": ([GOOD["whole"]], "found a list"),
  "nested": ({"model": {"a": GOOD["whole"]}}, "'model' to name a dict"),
  "a number's name": ({1: GOOD["whole"]}, "a int to name a tensor"),
  "nothing": ({}, "found a "),
  "negated": (
    {"a": Call(REBUILD, (*GOOD["whole"].args, {"neg": True}))},
    "negated or conjugated",
  ),
}


@pytest.mark.parametrize("case", LIES)
def test_sizes_and_places_are_checked(tmp_path, case):
  content, sentence = LIES[case]
  with pytest.raises(JaxsftError, match=f"{sentence}.*expected names with tensors"):
    read(write(tmp_path, content))


RAW = {  # the first asks for 32 GB of memory, the second for 16
  "LONG_BINPUT 4294967295": b"\x80\x02}r\xff\xff\xff\xff.",
  "BYTEARRAY8": b"\x80\x05\x96\x00\x00\x00\x00\x04\x00\x00\x00.",
  "INST": b"(iposix\nsystem\n.",
  "EXT1": b"\x80\x02\x82\x01.",
  "NEWOBJ": b"\x80\x02ccollections\nOrderedDict\n)\x81.",
  "STRING": b"S'a'\n.",
}


@pytest.mark.parametrize("case", RAW)
def test_operations_that_no_weights_need_are_refused(tmp_path, case):
  sentence = f"the pickle operation {case}"
  if case == "BYTEARRAY8":  # found too long before it is found to be unknown
    sentence = "expected 17179869184 bytes"
  with pytest.raises(JaxsftError, match=sentence):
    read(write(tmp_path, RAW[case]))


@pytest.mark.parametrize("keep", [0, 3, 50, 300, -30, -1])
def test_a_file_cut_short_is_explained(tmp_path, keep):
  path = write(tmp_path, GOOD) / "pytorch_model.bin"
  path.write_bytes(path.read_bytes()[:keep])
  with pytest.raises(JaxsftError, match=r"unreadable as a file of torch.save.*copy or"):
    read(tmp_path)


def test_a_pickle_cut_short_is_explained(tmp_path):
  whole = pickled(GOOD)
  for keep in (0, 1, 40, len(whole) // 2, len(whole) - 1):
    with pytest.raises(JaxsftError, match=r"unreadable as a file of torch\.save"):
      read(write(tmp_path, whole[:keep]))


def test_an_old_file_is_told_apart(tmp_path, oracle):
  (tmp_path / "config.json").write_text("{}")
  path = tmp_path / "pytorch_model.bin"
  oracle.save({"a": oracle.ones(2)}, path, _use_new_zipfile_serialization=False)
  with pytest.raises(JaxsftError, match=r"torch before 1.6.*convert it \(in PyTorch: torch.s"):
    read(tmp_path)


def test_members_must_be_plain_and_inside(tmp_path):
  with pytest.raises(JaxsftError, match=r"'m/data.pkl', which is compressed or encrypted"):
    read(write(tmp_path, GOOD, compression=zipfile.ZIP_DEFLATED))
  with pytest.raises(JaxsftError, match="another byte order"):
    read(write(tmp_path, GOOD, members={"m/byteorder": b"big"}))
  with pytest.raises(JaxsftError, match=r"2 members data.pkl"):
    read(write(tmp_path, GOOD, members={"n/data.pkl": b"."}))
  outside = {"../evil": b"x", "/etc/evil": b"x", "m/data/../../evil": b"x"}
  assert read(write(tmp_path / "model", GOOD, members=outside)).keys() == GOOD.keys()
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    *("config.json", "model", "pytorch_model.bin")
  ]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_refused(tmp_path):
  write(tmp_path, GOOD)
  with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "a") as archive:
    archive.writestr("m/data/0", bytes(96))
  with pytest.raises(JaxsftError, match="two members of one name"):
    read(tmp_path)


@pytest.mark.parametrize("claim", ["size", "offset"])
def test_a_member_that_ends_behind_the_file_is_refused(tmp_path, claim):
  """The zip's directory lies: data/0 is larger, or begins later, than the file goes."""
  path = write(tmp_path, number(FLOAT, size=1 << 20)) / "pytorch_model.bin"
  raw = bytearray(path.read_bytes())
  entry = raw.rindex(b"PK\x01\x02")  # data/0 is the last member
  place, value = {"size": (20, 1 << 22), "offset": (42, len(raw) - 8)}[claim]
  raw[entry + place : entry + place + 4] = value.to_bytes(4, "little")
  if claim == "size":
    raw[entry + 24 : entry + 28] = value.to_bytes(4, "little")
  path.write_bytes(raw)
  sentence = {"size": "end behind the end of the file", "offset": "no header of the member"}
  with pytest.raises(JaxsftError, match=sentence[claim]):
    read(tmp_path)


@pytest.mark.full
def test_a_real_file_equals_its_safetensors():
  root = os.environ.get("JAXSFT_CHECKPOINTS")
  if root is None or not (pathlib.Path(root) / "m3e-small/torch_bin").is_dir():
    pytest.skip("needs JAXSFT_CHECKPOINTS with m3e-small")
  directory = pathlib.Path(root) / "m3e-small"
  found, reference = read(directory / "torch_bin"), weights.open_source(directory)
  assert found.keys() - reference.tensors.keys() == {"embeddings.position_ids"}
  for name in reference.tensors:
    np.testing.assert_array_equal(found[name], reference.read(name))
