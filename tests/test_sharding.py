"""The mesh and the table of shardings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxsft import sharding
from jaxsft.errors import JaxsftError, UsageError


def test_mesh_takes_what_is_left():
  mesh = sharding.make_mesh(data=-1, fsdp=2, tensor=2)
  assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2, "context": 1, "expert": 1}
  assert sharding.row_shards(mesh) == 4


@pytest.mark.parametrize("sizes", [{"data": 3}, {"data": -1, "fsdp": 3}, {"data": 1}])
def test_mesh_must_fit_the_devices(sizes):
  with pytest.raises(UsageError, match=r"found 8; the sizes must multiply"):
    sharding.make_mesh(**sizes)


def test_specs_follow_the_table():
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  spec = lambda path, shape: sharding.spec_for(path, shape, mesh)
  assert spec("layers/attn/q/kernel", (3, 8, 12)) == P(None, "tensor", "fsdp")
  assert spec("opt_state/0/mu/layers/mlp/down/kernel", (3, 8, 12)) == P(None, "fsdp", "tensor")
  assert spec("embed/tokens/embedding", (31, 12)) == P(None, "fsdp")  # 31 rows do not split
  assert spec("layers/attn_norm/scale", (3, 8)) == P(None, None)
  assert spec("step", ()) == P()


def test_a_missing_or_wrong_rule_raises():
  mesh = sharding.make_mesh()
  with pytest.raises(JaxsftError, match=r"layers/attn/z/kernel \(3, 8, 12\): no rule"):
    sharding.spec_for("layers/attn/z/kernel", (3, 8, 12), mesh)
  with pytest.raises(JaxsftError, match="has another rank"):
    sharding.spec_for("layers/attn/q/kernel", (12,), mesh)
  with pytest.raises(JaxsftError, match="has another rank"):
    sharding.spec_for("lm_head/kernel", (8, 12, 3), mesh)


def test_rules_match_whole_names_only():
  with pytest.raises(JaxsftError, match="no rule"):
    sharding.spec_for("ahead/kernel", (8, 12), sharding.make_mesh())


def test_rows_are_spread_and_constraints_hold():
  mesh = sharding.make_mesh(data=4, fsdp=2)
  batch = {"inputs": np.arange(64).reshape(2, 8, 4), "labels": np.zeros((2, 8, 3))}
  placed = sharding.put_batch(batch, mesh, row_axis=1)
  assert {s.data.shape for s in placed["inputs"].addressable_shards} == {(2, 1, 4)}
  np.testing.assert_array_equal(placed["inputs"], batch["inputs"])
  with jax.set_mesh(mesh):
    out = jax.jit(lambda x: sharding.constrain(x * 1.0, ("data", "fsdp"), None))(
      jnp.ones((8, 4))
    )
  assert out.sharding.spec[0] == ("data", "fsdp")


def test_constrain_without_a_mesh_is_nothing():
  x = jnp.ones((3, 2))
  assert sharding.constrain(x, ("data", "fsdp"), None) is x
