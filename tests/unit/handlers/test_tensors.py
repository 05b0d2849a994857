"""Tensors: every datatype of the protocol, raw and as values; what does not fit is refused in words."""

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.utils as triton
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from handlers.errors import InvalidRequest
from handlers.tensors import (
    DATATYPES,
    MAX_DIMENSIONS,
    NUMPY_DTYPES,
    Tensor,
    check_head,
    from_raw,
    from_values,
    to_raw,
)

AS_HELD = [datatype for datatype in NUMPY_DTYPES if datatype != "BF16"]
"""Datatypes whose raw form is numpy's own."""


@pytest.mark.parametrize("datatype", AS_HELD)
def test_datatype_means_what_public_clients_take_it_for(datatype: str) -> None:
    assert NUMPY_DTYPES[datatype] == np.dtype(triton.triton_to_np_dtype(datatype))


@given(st.data(), st.sampled_from(AS_HELD))
def test_numbers_survive_raw_form(data: st.DataObject, datatype: str) -> None:
    shape = data.draw(arrays.array_shapes(max_dims=3, min_side=0, max_side=4))
    values = data.draw(arrays.arrays(NUMPY_DTYPES[datatype], shape))
    raw = to_raw(Tensor("a", datatype, shape, values))
    assert raw == values.tobytes()
    back = from_raw("a", datatype, shape, memoryview(raw))
    assert isinstance(back.values, np.ndarray)
    np.testing.assert_array_equal(back.values, values.ravel())


@given(arrays.arrays(np.uint16, 8))
def test_bf16_is_held_as_fp32(halves: npt.NDArray[np.uint16]) -> None:
    expected = halves.view(ml_dtypes.bfloat16)
    tensor = from_raw("a", "BF16", (2, 4), memoryview(halves.tobytes()))
    assert isinstance(tensor.values, np.ndarray)
    assert tensor.values.dtype == np.float32
    np.testing.assert_array_equal(tensor.values, expected.astype(np.float32))
    back = np.frombuffer(to_raw(tensor), ml_dtypes.bfloat16)
    np.testing.assert_array_equal(back.astype(np.float32), expected.astype(np.float32))


@given(arrays.arrays(np.float32, 8))
def test_bf16_is_the_nearest(values: npt.NDArray[np.float32]) -> None:
    expected = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    raw = to_raw(Tensor("a", "BF16", (8,), values))
    np.testing.assert_array_equal(np.frombuffer(raw, ml_dtypes.bfloat16).astype(np.float32), expected)
    written = from_values("a", "BF16", (8,), values.tolist()).values
    np.testing.assert_array_equal(written, expected)


@pytest.mark.parametrize("bits", [0x7F800001, 0xFF800001, 0x7FFFFFFF])
def test_nan_stays_nan_in_bf16(bits: int) -> None:
    values = np.array([bits], np.uint32).view(np.float32)
    assert np.isnan(np.frombuffer(to_raw(Tensor("a", "BF16", (1,), values)), ml_dtypes.bfloat16)[0])


@given(st.lists(st.binary(max_size=300), min_size=1))
def test_bytes_survive_raw_form_as_public_clients_write_it(values: list[bytes]) -> None:
    raw = triton.serialize_byte_tensor(np.array(values, dtype=object)).item()
    assert to_raw(Tensor("a", "BYTES", (len(values),), values)) == raw
    assert from_raw("a", "BYTES", (len(values),), memoryview(raw)).values == values


def test_text_is_written_as_utf8() -> None:
    assert to_raw(Tensor("a", "BYTES", (1,), ["Å"])) == b"\x02\x00\x00\x00\xc3\x85"


def test_raw_numbers_are_not_copied() -> None:
    body = bytearray(8)
    tensor = from_raw("a", "FP32", (2,), memoryview(body))
    body[4:] = np.float32(2.5).tobytes()
    assert list(tensor.values) == [0.0, 2.5]


@pytest.mark.parametrize("datatype", NUMPY_DTYPES)
@pytest.mark.parametrize("off", [-1, 1])
def test_raw_numbers_of_the_wrong_length_are_refused(datatype: str, off: int) -> None:
    expected = 6 * (2 if datatype == "BF16" else NUMPY_DTYPES[datatype].itemsize)
    with pytest.raises(InvalidRequest) as refused:
        from_raw("wind", datatype, (2, 3), memoryview(bytes(expected + off)))
    assert str(refused.value) == (
        f"input 'wind': raw bytes do not fit datatype {datatype} and shape [2, 3]; "
        f"found {expected + off} bytes; allowed: {expected} bytes"
    )


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"\x01\x00\x00\x00", "element 0 of the raw BYTES is cut off; found 4 bytes"),
        (b"\x01\x00\x00\x00ab", "element 1 of the raw BYTES is cut off; found 6 bytes"),
        (b"\xff\xff\xff\xffabc", "element 0 of the raw BYTES is cut off; found 7 bytes"),
        (b"\x01\x00\x00", "element 0 of the raw BYTES is cut off; found 3 bytes"),
        (b"\x01\x00\x00\x00a", "does not fit the shape; found 1 elements; allowed: 2 elements"),
        (b"\x00\x00\x00\x00" * 3, "does not fit the shape; found 3 elements; allowed: 2 elements"),
        (b"", "does not fit the shape; found 0 elements; allowed: 2 elements"),
    ],
)
def test_raw_bytes_that_do_not_fit_are_refused(raw: bytes, problem: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^input 'carrier': ") as refused:
        from_raw("carrier", "BYTES", (2,), memoryview(raw))
    assert problem in str(refused.value)


@given(st.sampled_from([*AS_HELD, "BYTES"]), st.lists(st.integers(0, 5), min_size=1, max_size=3), st.binary())
def test_any_raw_bytes_are_a_tensor_or_refused(datatype: str, shape: list[int], raw: bytes) -> None:
    try:
        tensor = from_raw("a", datatype, tuple(shape), memoryview(raw))
    except InvalidRequest:
        return
    assert to_raw(tensor) == raw


LONG = [2**63 - 1] * (MAX_DIMENSIONS + 1)


@pytest.mark.parametrize(
    ("name", "datatype", "shape", "message"),
    [
        (None, "FP32", [1], "inputs[].name: every input needs a name; found null; allowed: a non-empty string"),
        ("", "FP32", [1], "inputs[].name: every input needs a name; found ''; allowed: a non-empty string"),
        (7, "FP32", [1], "inputs[].name: every input needs a name; found 7; allowed: a non-empty string"),
        ("a", "FP8", [1], f"input 'a': unknown datatype; found 'FP8'; allowed: {', '.join(DATATYPES)}"),
        ("a", None, [1], f"input 'a': unknown datatype; found null; allowed: {', '.join(DATATYPES)}"),
        ("a", ["FP32"], [1], f"input 'a': unknown datatype; found ['FP32']; allowed: {', '.join(DATATYPES)}"),
        ("a", "FP32", None, "input 'a': a shape is needed; found null; allowed: a list of non-negative integers"),
        ("a", "FP32", [], "input 'a': a shape is needed; found []; allowed: a list of non-negative integers"),
        ("a", "FP32", "12", "input 'a': a shape is needed; found '12'; allowed: a list of non-negative integers"),
        (
            "a",
            "FP32",
            {"0": 1},
            "input 'a': a shape is needed; found {'0': 1}; allowed: a list of non-negative integers",
        ),
        ("a", "FP32", [2, -1], "input 'a': wrong shape; found [2, -1]; allowed: a list of non-negative integers"),
        ("a", "FP32", [True], "input 'a': wrong shape; found [true]; allowed: a list of non-negative integers"),
        ("a", "FP32", [1.0], "input 'a': wrong shape; found [1.0]; allowed: a list of non-negative integers"),
        ("a", "FP32", LONG, "input 'a': wrong shape; found 17 dimensions; allowed: at most 16 dimensions"),
    ],
)
def test_wrong_head_is_refused(name: object, datatype: object, shape: object, message: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_head(name, datatype, shape)
    assert str(refused.value) == message


def test_largest_shape_is_refused_in_words_and_not_by_a_limit_of_the_language() -> None:
    name, datatype, shape = check_head("a", "FP64", [2**63 - 1] * MAX_DIMENSIONS)
    with pytest.raises(InvalidRequest, match="found 0 bytes"):
        from_raw(name, datatype, shape, memoryview(b""))
    with pytest.raises(InvalidRequest, match="found 1 values"):
        from_values(name, datatype, shape, [1])


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("BOOL", [True, False]),
        ("UINT64", [0, 2**64 - 1]),
        ("INT64", [-(2**63), 2**63 - 1]),
        ("INT8", [-128, 127]),
        ("FP16", [1.5, 2]),
        ("FP32", [0.1, 7]),
        ("BF16", [0.5, 7]),
        ("FP64", [0.1, 2**64 - 1]),
    ],
)
def test_values_take_the_datatypes_dtype(datatype: str, values: list[Any]) -> None:
    tensor = from_values("a", datatype, (1, 2), values)
    assert isinstance(tensor.values, np.ndarray)
    assert tensor.values.dtype == NUMPY_DTYPES[datatype]
    np.testing.assert_array_equal(tensor.values, np.array(values, dtype=NUMPY_DTYPES[datatype]))


def test_null_is_a_missing_number_and_overflow_is_infinite() -> None:
    missing, large = from_values("a", "FP16", (2,), [None, 1e6]).values
    assert np.isnan(missing)
    assert np.isposinf(large)


@pytest.mark.parametrize(
    ("datatype", "value", "allowed"),
    [("INT8", 128, "-128 to 127"), ("UINT16", -1, "0 to 65535"), ("INT64", 2**63, f"{-(2**63)} to {2**63 - 1}")],
)
def test_integer_beyond_its_datatype_is_refused(datatype: str, value: int, allowed: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        from_values("gate", datatype, (3,), [0, 1, value])
    assert str(refused.value) == f"input 'gate', value 2: does not fit {datatype}; found {value}; allowed: {allowed}"


def test_too_few_values_are_refused() -> None:
    with pytest.raises(InvalidRequest) as refused:
        from_values("a", "FP32", (2, 2), [1, 2, 3])
    assert str(refused.value) == "input 'a': the data does not fill shape [2, 2]; found 3 values; allowed: 4 values"
