"""Numbers and patch maps on their way into the page."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from clt_lightning.report.numbers import to_list
from clt_lightning.report.packing import (
    RESOLUTION,
    pack_column,
    pack_maps,
    pack_numbers,
    pack_shares,
    unpack_column,
    unpack_maps,
    unpack_numbers,
)

codes = st.floats(-1e4, 1e4, width=32, allow_nan=False)
maps = hnp.arrays(np.float32, st.tuples(st.integers(0, 6), st.integers(1, 20)), elements=st.one_of(st.just(0.0), codes))


@given(maps, st.floats(1.0, 3.0))
def test_maps_come_back_within_half_a_step_of_the_scale(array: np.ndarray, room: float) -> None:
    peaks = np.abs(array).max(1, initial=0.0).astype(np.float64) * room
    back = unpack_maps(pack_maps(array, peaks), peaks, array.shape[1])
    # one step, not a half, for codes that would vanish: what is active stays active
    assert (np.abs(back - array) <= np.maximum(peaks, 1e-30)[:, None] * 2 * RESOLUTION * 1.001).all()
    big = np.abs(array) > 2 * RESOLUTION * peaks[:, None]
    assert (np.abs(back - array)[big] <= np.broadcast_to(peaks[:, None], array.shape)[big] * RESOLUTION * 1.001).all()
    assert ((back != 0) == (array != 0))[np.broadcast_to(peaks[:, None], array.shape) > 1e-30].all()
    assert (np.sign(back) == np.sign(array))[big].all()


@given(hnp.arrays(np.float64, st.tuples(st.integers(0, 4), st.integers(0, 5)), elements=st.floats(width=64)))
def test_lists_keep_the_shape_and_five_digits(array: np.ndarray) -> None:
    listed = to_list(array)
    assert len(listed) == array.shape[0]
    for row, numbers in zip(array, listed, strict=True):
        assert len(numbers) == len(row)
        for value, number in zip(row, numbers, strict=True):
            if math.isfinite(value) and number is not None:
                assert math.isclose(value, number, rel_tol=5.1e-5, abs_tol=1e-320)
            elif math.isfinite(value):
                assert abs(value) > 1.797e308  # five digits of the very largest are infinite
            else:
                assert number is None


def test_whole_numbers_stay_whole() -> None:
    assert to_list(np.array([[1, -1], [123456789, 0]])) == [[1, -1], [123456789, 0]]


@given(hnp.arrays(st.sampled_from([np.int8, np.int16, np.int32, np.float32]), st.integers(0, 30)))
def test_columns_come_back_whole(array: np.ndarray) -> None:
    back = unpack_column(pack_column(array))
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_wide_numbers_fit_into_a_column() -> None:
    np.testing.assert_array_equal(unpack_column(pack_column(np.array([-1, 70000]))), [-1, 70000])
    np.testing.assert_array_equal(
        unpack_column(pack_column(np.array([0.5, np.nan]))), np.array([0.5, np.nan], np.float32)
    )


def test_shares_are_read_against_their_largest() -> None:
    assert pack_shares(np.zeros(3)) == {"top": 0.0, "values": "AAAA"}
    assert pack_shares(np.array([0.0, 0.1, 0.2]))["top"] == 0.2


def test_numbers_keep_their_order_and_what_is_missing() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(0, 4, (7, 3))
    values[2, 1] = np.nan
    back = unpack_numbers(pack_numbers(values), (7, 3))
    assert np.isnan(back[2, 1])
    np.testing.assert_allclose(back, values, atol=0.51 * np.nanmax(np.abs(values)) / 32767)
    assert (unpack_numbers(pack_numbers(np.zeros((2, 2))), (2, 2)) == 0).all()
    assert unpack_numbers(pack_numbers(np.zeros((0, 2))), (0, 2)).shape == (0, 2)
    assert np.isnan(unpack_numbers(pack_numbers(np.full(3, np.nan)), (3,))).all()
