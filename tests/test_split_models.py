"""Models that are spread over devices as they are read: the same answers, no whole copy."""

import gc
import json
import weakref

import jax
import numpy as np
import pytest

import jaxsft
from jaxsft import evaluate, generate, predict, pretrained, sharding, weights
from jaxsft.errors import UsageError
from jaxsft.generation import writing
from tests import tiny

ROOM = 8
ASKED = ("2 plus 2", "a cat", "say it")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
  return tiny.checkpoint(tmp_path_factory.mktemp("m") / "llama", "llama")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
  return tiny.checkpoint(tmp_path_factory.mktemp("m") / "bert", "bert", labels=("neg", "pos"))


@pytest.fixture
def watched(monkeypatch):
  """[(shapes of the leaves as they were put down, leaves as the verb has them)] of loads."""
  seen, load, put = [], pretrained.load_params, jax.device_put

  def spy(*args, **how):
    pieces = []
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(
        weights.params.jax, "device_put", lambda x, d: pieces.append(x.shape) or put(x, d)
      )
      params, new = load(*args, **how)
    seen.append((pieces, weights.params.flatten(params)))
    return params, new

  monkeypatch.setattr(pretrained, "load_params", spy)
  return seen


def check_split(watched, fsdp, tensor):
  """The one load put no whole matrix anywhere, and every leaf lies as the table has it."""
  ((pieces, flat),) = watched
  mesh = sharding.make_mesh(fsdp=fsdp, tensor=tensor)
  shardings = weights.params.flatten(sharding.shardings_for(weights.params.nest(flat), mesh))
  assert all(leaf.sharding == shardings[path] for path, leaf in flat.items())
  query = flat["layers/attn/q/kernel"]
  L, out, inside = query.shape
  part = (L, out // tensor, inside // fsdp)
  assert {shard.data.shape for shard in query.addressable_shards} == {part}
  assert part in pieces and query.shape not in pieces
  # with tensor alone the tiny vocabulary of 53 does not divide
  split = [leaf for leaf in flat.values() if not leaf.is_fully_replicated]
  assert sum(leaf.size for leaf in split) > 0.8 * sum(leaf.size for leaf in flat.values())


@pytest.mark.parametrize(
  ("fsdp", "tensor", "settings"),
  [
    (4, 2, {"num_beams": 3}),
    pytest.param(1, 2, {"temperature": 1.2, "seed": 3}, marks=pytest.mark.full),
    pytest.param(2, 1, {}, marks=pytest.mark.full),
  ],
)
def test_a_model_that_is_loaded_over_a_mesh(
  llama, watched, monkeypatch, fsdp, tensor, settings
):
  mesh = sharding.make_mesh(fsdp=fsdp, tensor=tensor)
  model = jaxsft.load(llama, mesh=mesh)
  check_split(watched, fsdp, tensor)
  alone = jaxsft.load(llama)
  assert {len(x.sharding.device_set) for x in jax.tree.leaves(alone.params)} == {1}
  known = []  # the mesh that whatever is compiled knows of
  for module, name in ((pretrained, "_logits"), (writing, "written")):
    whole = getattr(module, name)
    spy = lambda *args, whole=whole, **how: (
      known.append(dict(jax.sharding.get_abstract_mesh().shape)) or whole(*args, **how)
    )
    monkeypatch.setattr(module, name, spy)
  tokens = np.arange(4, 24, dtype=np.int32).reshape(4, 5)[:3]
  np.testing.assert_allclose(model.logits(tokens), alone.logits(tokens), atol=1e-5)
  settings = {"max_new_tokens": ROOM, **settings}
  expected = [alone.generate(text, **settings) for text in ASKED]
  assert model.generate(ASKED[0], **settings) == expected[0]
  monkeypatch.setattr(sharding, "make_mesh", lambda: pytest.fail("spread over another mesh"))
  said = model.predict([{"prompt": text} for text in ASKED], **settings)
  assert [one["text"] for one in said] == expected
  assert known == [dict(mesh.shape), {}, *[{}] * len(ASKED), *[dict(mesh.shape)] * 2]


def test_it_is_saved_whole(llama, tmp_path):
  mesh = sharding.make_mesh(fsdp=4, tensor=2)
  jaxsft.load(llama, mesh=mesh).save(tmp_path / "saved")
  jax.tree.map(
    np.testing.assert_array_equal,
    jaxsft.load(tmp_path / "saved").params,
    jaxsft.load(llama).params,
  )


def test_the_verbs_split_what_they_are_told_to(llama, tmp_path, watched, capsys, monkeypatch):
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
  alone = jaxsft.load(llama)
  expected = [alone.generate(text, ROOM) for text in ASKED]
  watched.clear()
  argv = [f"--model={llama}", f"--max_new_tokens={ROOM}"]
  generate.main([*argv, f"--prompt={ASKED[1]}", "--fsdp=4", "--tensor=2"])
  check_split(watched, 4, 2)
  assert capsys.readouterr().out == f"{expected[1]}\n"
  watched.clear()
  generate.main([*argv, f"--prompt={ASKED[1]}"])
  assert {len(x.sharding.device_set) for x in watched[0][1].values()} == {1}
  rows, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
  rows.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ASKED))
  for flags, (fsdp, tensor) in ((("--fsdp=2", "--tensor=2"), (2, 2)), ((), (1, 1))):
    watched.clear()
    predict.main([*argv, f"--data={rows}", f"--out={out}", *flags])
    ((_, flat),) = watched
    mesh = flat["layers/attn/q/kernel"].sharding.mesh
    assert mesh.devices.size == 8 and (mesh.shape["fsdp"], mesh.shape["tensor"]) == (
      fsdp,
      tensor,
    )
    said = [json.loads(line)["text"] for line in out.read_text().splitlines()]
    assert said == expected
  with pytest.raises(UsageError, match="--fsdp=16 --tensor=1: split a model into 16 parts"):
    generate.main([*argv, "--prompt=a", "--fsdp=16"])


def test_an_evaluation_loads_onto_its_mesh(bert, tmp_path, watched, capsys):
  rows = tiny.sentences(tmp_path / "rows.jsonl")
  config = tmp_path / "c.py"
  config.write_text(
    "from jaxsft.config import Config, Data, Mesh, Model\n"
    "def get_config(arg=''):\n"
    "  return Config(model=Model(path='m'), data=Data(path=arg, split=0.0, id='name'),\n"
    "    mesh=Mesh(fsdp=2, tensor=1), batch_size=8)\n"
  )
  argv = [f"--model={bert}", f"--config={config}:{rows}"]
  evaluate.main(argv)
  check_split(watched, 2, 1)
  split = json.loads(capsys.readouterr().out)
  watched.clear()
  evaluate.main([*argv, "--config.mesh.fsdp=1"])
  whole = json.loads(capsys.readouterr().out)
  assert split["loss"] == pytest.approx(whole["loss"], rel=1e-5)
  assert split["accuracy"] == whole["accuracy"]


def test_models_that_are_compared_are_in_memory_one_after_the_other(
  bert, tmp_path, monkeypatch
):
  other = tiny.checkpoint(tmp_path / "other", "bert", seed=1, labels=("neg", "pos"))
  rows, config = tiny.sentences(tmp_path / "rows.jsonl"), tmp_path / "c.py"
  config.write_text(
    "from jaxsft.config import Config, Data, Model\n"
    "def get_config(arg=''):\n"
    "  return Config(model=Model(path='m'), data=Data(path=arg, split=0.0), batch_size=8)\n"
  )
  tiny.on_devices(monkeypatch, 1)
  alive, counts, load = [], [], pretrained.load_params

  def spy(*args):
    gc.collect()
    assert not [ref for ref in alive if ref() is not None]
    params, new = load(*args)
    alive.extend(map(weakref.ref, jax.tree.leaves(params)))
    counts.append(len(alive))
    return params, new

  monkeypatch.setattr(pretrained, "load_params", spy)
  evaluate.main(["--runs", str(bert), str(other), f"--config={config}:{rows}"])
  assert len(counts) == 2


def test_an_evaluation_leaves_a_model_on_its_own_mesh(bert, tmp_path, monkeypatch):
  rows = tiny.sentences(tmp_path / "rows.jsonl")
  model = jaxsft.load(bert, mesh=sharding.make_mesh(fsdp=8))
  config = tiny.config("bert", "classify", bert, rows)
  seen, measure = [], evaluate.measure
  monkeypatch.setattr(
    evaluate,
    "measure",
    lambda step, params, *rest: seen.append(params) or measure(step, params, *rest),
  )
  evaluate.evaluate(model, config)
  ours, theirs = jax.tree.leaves(seen[0]), jax.tree.leaves(model.params)
  assert all(a.sharding == b.sharding for a, b in zip(ours, theirs, strict=True))


def test_a_mesh_of_other_axes_is_refused(llama):
  mesh = jax.make_mesh((8,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
  with pytest.raises(UsageError, match=r"the axes rows, expected data, fsdp.*make_mesh"):
    jaxsft.load(llama, mesh=mesh)
