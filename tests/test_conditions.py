import pytest

from medsynth.conditions import ConditionSchema


@pytest.mark.parametrize(
    ("found", "low", "high"),
    [([23.4, 87.2, 61.0], 20.0, 90.0), ([0.013, 0.5], 0.0, 0.5), ([-7.0, 1200.0], -1000.0, 2000.0), ([40.0, 40.0], 40.0, 40.0)],
)
def test_a_schema_tells_nobodys_extreme_value(found, low, high):
    (attribute,) = ConditionSchema.of(["age"], [{"age": value} for value in found]).attributes
    assert (attribute.low, attribute.high) == pytest.approx((low, high))
    assert all(0.0 <= attribute.encode(value)[1] <= 1.0 for value in found)
