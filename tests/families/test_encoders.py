"""Every encoder beside torch transformers: logits, gradients, padding, packing, export."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.families import encoder_configs, record, torch_encoders, torch_same

QUICK = {"xla_backend_optimization_level": 0}  # compiling is most of the time
# What adds the same to the scores of all keys.
IGNORED_BY_SOFTMAX = ("['k']['bias']", "['pos_k']['bias']", "['relative']['norm']['bias']")


@pytest.fixture(autouse=True)
def highest():
  with jax.default_matmul_precision("highest"):
    yield


def problem(torch, case, kind, **changes):
  """(torch model, network, module, config, params, batch)."""
  module = torch_encoders.module_of(case)
  model, network, config = torch_encoders.make(torch, case, kind, **changes)
  params, arch = torch_encoders.read(model, network, module), network.arch
  start = arch.max_positions - torch_encoders.LENGTH
  batch = torch_encoders.rows(arch.vocab, arch.types, start)
  return model, network, module, config, params, batch


def of_texts(network, logits):
  """Our logits [B,M,C] or [B,T,C], one entry for each of torch_encoders.ROWS."""
  if network.head.kind == "sequence":
    return [logits[row, segment - 1] for row, _, segment in torch_encoders.ROWS]
  return [logits[row, columns] for row, columns, _ in torch_encoders.ROWS]


def same_gradients(ours, theirs):
  """Largest difference; of each leaf's own size where that is above 1."""
  flat = jax.tree_util.tree_leaves_with_path
  assert len(flat(ours)) == len(flat(theirs))
  worst = 0.0
  for (path, a), (_, b) in zip(flat(ours), flat(theirs), strict=True):
    name, size = jax.tree_util.keystr(path), np.abs(b).max()
    assert size > 1e-3 or name.endswith(IGNORED_BY_SOFTMAX), name
    worst = max(worst, np.abs(a - b).max() / max(1.0, size))
    assert worst < 1e-3, f"{name}: {worst}"
  return worst


def parity(torch, directory, case, kind, learn):
  """Compares a case with torch, there and back; learn: gradients too."""
  model, network, module, config, params, batch = problem(torch, case, kind)
  theirs = [out for *_, out in torch_encoders.outputs(torch, model, network, batch)]
  shape = jax.eval_shape(network.logits, params, batch).shape
  pull = np.random.default_rng(1).normal(size=shape).astype(np.float32)

  def loss(params):
    logits = network.logits(params, batch)
    parts = zip(of_texts(network, logits), of_texts(network, pull), strict=True)
    return sum(jnp.sum(logits * pull) for logits, pull in parts), logits

  run = jax.grad(loss, has_aux=True) if learn else lambda params: (None, loss(params)[1])
  grads, logits = jax.jit(run).lower(params).compile(QUICK)(params)
  ours = of_texts(network, np.asarray(logits))
  worst = max(np.abs(a - b.detach().numpy()).max() for a, b in zip(ours, theirs, strict=True))
  assert worst < 1e-4 and min(abs(out).max() for out in theirs) > 0.1
  torch_encoders.write(directory, network, params, module, config)
  again = type(model).from_pretrained(directory, attn_implementation="eager").eval()
  torch_same.same_weights(torch, model, again)
  for old, (*_, new) in zip(
    theirs, torch_encoders.outputs(torch, again, network, batch), strict=True
  ):
    torch_same.same_outputs(old.detach(), new.detach())
  found = {"logits": worst}
  if learn:
    picked = [torch.tensor(part) for part in of_texts(network, pull)]
    sum((out * part).sum() for out, part in zip(theirs, picked, strict=True)).backward()
    theirs = torch_encoders.gradients(torch, model, network, module)
    found["gradients"] = same_gradients(grads, theirs)
  print(case, kind, *(f"{name} {value:.1e}" for name, value in found.items()))
  record.parity(config["model_type"], "tiny", **found)


@pytest.mark.parametrize(("case", "kind"), encoder_configs.HEADS)
def test_logits_gradients_and_export_are_those_of_torch(oracle, tmp_path, case, kind):
  # A token or span head is one projection more than nothing; its gradients are long.
  parity(oracle, tmp_path, case, kind, learn=kind in ("masked_lm", "sequence"))


@pytest.mark.full
@pytest.mark.parametrize(
  ("case", "kind"),
  [(case, kind) for case in encoder_configs.TINY for kind in encoder_configs.EVERY],
)
def test_gradients_of_every_head_are_those_of_torch(oracle, tmp_path, case, kind):
  parity(oracle, tmp_path, case, kind, learn=True)
