"""What the benchmark makes of pauses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.series import Of, Sample, ratios, series

KEPT, LIMIT = Of("kept", 512), Of("limit", 512)


def samples(of: Of, *felt: float) -> list[Sample]:
    return [Sample(of, one, None) for one in felt]


def test_each_kind_is_a_series_in_the_order_of_its_first() -> None:
    mixed = [Sample(KEPT, 3.0, 2.5), Sample(LIMIT, 1.0, None), Sample(KEPT, 1.0, None), Sample(KEPT, 2.0, 1.5)]
    kept, limit = series(mixed)
    assert (kept.of, kept.felt, kept.reported, kept.median) == (KEPT, (3.0, 1.0, 2.0), (2.5, 1.5), 2.0)
    assert (limit.of, limit.felt, limit.reported) == (LIMIT, (1.0,), ())


@pytest.mark.parametrize(("count", "rank"), [(1, 1), (7, 7), (19, 19), (20, 19), (40, 38), (100, 95)])
def test_the_nearest_rank(count: int, rank: int) -> None:
    (found,) = series(samples(KEPT, *(float(one) for one in range(count, 0, -1))))
    assert found.p95 == rank


@given(st.lists(st.floats(0.001, 60.0), min_size=1, max_size=50))
def test_it_is_one_of_them_and_not_below_the_median(felt: list[float]) -> None:
    (found,) = series(samples(KEPT, *felt))
    assert found.p95 in felt
    assert min(felt) <= found.median <= found.p95


def test_ratios_are_of_medians_and_name_any_other_size() -> None:
    one = series([*samples(KEPT, 0.2, 0.4, 0.3), *samples(LIMIT, 0.1)])
    assert ratios(one, [("kept", "limit"), ("kept", "nothing")], 512) == {"kept/limit": 3.0}
    several = (*one, *series([*samples(Of("kept", 2048), 0.5), *samples(Of("limit", 2048), 0.25)]))
    assert ratios(several, [("kept", "limit")], 2048) == {"kept/limit at 512 MiB": 3.0, "kept/limit": 2.0}


def test_of_several_guests_nothing_is_compared_with_a_single_one() -> None:
    found = series([*samples(Of("kept", 512, 16), 5.0), *samples(LIMIT, 0.1)])
    assert ratios(found, [("kept", "limit")], 512) == {}
