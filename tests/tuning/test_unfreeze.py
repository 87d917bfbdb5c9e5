"""From which update on what trains: by pattern, and layer by layer from the top."""

import numpy as np
import pytest

from jaxsft import optim, preflight
from jaxsft.errors import JaxsftError, UsageError
from jaxsft.tuning import select, unfreeze
from tests.tuning.test_select import LATER, STACKS, TREE


def starts(method="all", **more):
  return unfreeze.starts(TREE, select.choose(TREE, method, stacks=STACKS), STACKS, **more)


def test_one_more_layer_from_the_top_every_few_updates():
  found = starts(every=10)
  assert found["layers/attn/q/kernel"].tolist() == [30, 20, 10]
  assert found[LATER].tolist() == [20, 10] and found["embed/tokens/embedding"] == 40
  assert not {"norm/scale", "head/kernel"} & found.keys()
  alone = starts(every=10, has_head=False)  # or nothing would train at first
  assert alone["layers/attn/q/kernel"].tolist() == [20, 10, 0]
  assert starts("last:2", every=10)["layers/attn/q/kernel"].tolist() == [20, 10]


def test_patterns_say_when():
  found = starts(patterns={r"layers\.2/": 0, "layers/": 7, "^embed": 9})
  assert (
    found["layers/attn/q/bias"].tolist() == [7, 7, 0] and found["embed/tokens/embedding"] == 9
  )
  assert starts(patterns={"layers/": 7})["layers/attn/q/bias"] == 7
  assert starts() == {}
  with pytest.raises(UsageError, match=r"tune\.unfreeze: 'lairs/' matches no parameter"):
    starts(patterns={"lairs/": 1})


def test_what_would_never_train_is_refused():
  rule = optim.Rule(None, None, starts={"layers/attn/q/kernel": np.array([20, 10])})
  preflight.check_starts(rule, 21)
  with pytest.raises(JaxsftError, match="would train from update 20 on, but the run has 20"):
    preflight.check_starts(rule, 20)
