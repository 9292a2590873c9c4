"""What the benchmark says of what was to be reached."""

import pytest

from bench.reach import reached
from bench.series import Of, Sample, Series, series

STEPS = {"pause": 0.1, "save": 0.25, "restore": 0.3, "resume": 0.01}


def found(of: Of, *felt: float, reported: float | None = None) -> Series:
    (one,) = series(Sample(of, each, reported, phases=STEPS) for each in felt)
    return one


def aims(*of: Series, away: dict[int, float] | None = None, cores: int = 2) -> dict[str, float]:
    return {one.name: one.found for one in reached(of, away or {}, cores)}


def test_of_one_guest_by_its_size() -> None:
    told = aims(
        found(Of("limit", 512), 0.010),
        found(Of("handover_kept", 512), 0.012, 0.012, 0.018),
        found(Of("hold", 512), 0.56, reported=0.6),
        found(Of("raw_hold", 512), 0.1),
    )
    assert told == pytest.approx(
        {
            "handover_kept/limit at 512 MiB": 1.2,
            "hold/raw_hold at 512 MiB": 5.6,
            "handover_kept p95/median at 512 MiB": 1.5,
            "handover_kept - limit at 512 MiB": 2.0,
            "hold outside of libvirt's save and restore at 512 MiB": 10.0,
        }
    )


def test_of_sizes_the_largest_beside_the_smallest() -> None:
    told = aims(
        *(found(Of(method, size), 0.010) for method in ("limit", "raw_hold") for size in (512, 2048, 6144)),
        found(Of("handover_kept", 128), 0.001),
        *(found(Of("handover_kept", size), felt) for size, felt in ((512, 0.010), (2048, 0.5), (6144, 0.011))),
        found(Of("save_restore", 6144), 2.2),
    )
    assert told["handover_kept at 6144 MiB/at 512 MiB"] == pytest.approx(1.1)
    assert told["handover_kept/save_restore at 6144 MiB"] == pytest.approx(1 / 200)


def test_of_many_beside_as_many_single_ones() -> None:
    told = aims(
        found(Of("handover_kept", 128), 0.010),
        found(Of("handover_kept", 128, 4), 0.010, 0.014),
        found(Of("held_together", 128), 0.5),
        found(Of("held_together", 128, 4), 0.8, 1.0),
        away={4: 1.25},
    )
    assert told == pytest.approx(
        {
            "handover_kept of 4 guests, sum/4 single ones": 1.2,
            "longest of 4 held together/(4 single holds/2 cores)": 1.0,
            "libvirt away for 4 guests": 1.25,
        }
    )


def test_a_guest_with_something_to_do_is_no_single_one() -> None:
    assert aims(found(Of("handover_kept", 128, load="writes"), 0.1), found(Of("handover_kept", 128, 4), 0.1)) == {}


def test_its_row_says_whether_it_was_reached() -> None:
    four, sixteen = reached([], {4: 1.1, 16: 2.25}, 2)
    assert four.row() == ("libvirt away for 4 guests", "1.2 s", "1.1 s", "yes")
    assert sixteen.row() == ("libvirt away for 16 guests", "1.8 s", "2.25 s", "no")
