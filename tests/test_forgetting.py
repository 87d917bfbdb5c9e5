"""What is forgotten, as a share of what the pretrained model has."""

import math

import pytest

from jaxsft import forgetting


@pytest.mark.parametrize(
  ("first", "value", "mode", "share"),
  (
    (20.0, 21.0, "min", 0.05),
    (20.0, 19.0, "min", -0.05),
    (0.8, 0.6, "max", 0.25),
    (-0.5, -0.6, "max", 0.2),
    (0.8, None, "max", math.inf),
    (0.0, 0.1, "max", math.inf),
  ),
)
def test_forgetting_is_the_share_by_which_a_number_is_worse(first, value, mode, share):
  assert forgetting.share(first, value, mode) == pytest.approx(share)


@pytest.mark.parametrize(
  ("found", "value"), ((3, 3.0), (0.5, 0.5), (math.inf, None), (None, None))
)
def test_a_number_that_is_none_has_no_value(found, value):
  judge = forgetting.Judge(
    "f1", "max", lambda params: {"f1": found, "rows": 4, "labels": ["a"]}
  )
  said = forgetting.numbers(judge, {})
  assert said["value"] == value and said["metrics"]["rows"] == 4
  assert "labels" not in said["metrics"]
