"""Pickles of plain containers and NumPy arrays, read without calling anything that a file names."""

import io
import pickle
import re
from typing import Any

import numpy as np

CALLED = re.compile(
    r"numpy\.(ndarray|dtype)|numpy\._?core\.(multiarray\._reconstruct|numeric\._frombuffer)"
    r"|_codecs\.encode|(__builtin__|builtins)\.bytes"
)
NUMBERS = re.compile("[biuf][1248]")  # booleans, integers and floats: no dtype that holds pointers or fields


def load(data: bytes) -> Any:
    """Unpickle plain containers, texts and numbers; whatever stands for an array is a Record for `as_array`.

    Raises:
        pickle.UnpicklingError: The pickle asks for anything else.
        Exception: It is broken, in one of many ways.
    """
    return _Unpickler(io.BytesIO(data), encoding="latin1").load()


class Record:
    """What a pickle asks to be called, with what, and what state the result should have; nothing is called."""

    __slots__ = ("arguments", "name", "state")

    def __init__(self, name: str, arguments: tuple = ()) -> None:
        self.name, self.arguments, self.state = name, arguments, None

    def __call__(self, *arguments: object) -> "Record":
        return Record(self.name, arguments)

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Unpickler(pickle._Unpickler):  # in Python: the one in C makes room for as many objects as a file claims to hold
    def find_class(self, module: str, name: str) -> Record:
        if not CALLED.fullmatch(f"{module}.{name}"):
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a file of arrays")
        return Record(name)


def as_array(record: Record) -> np.ndarray:
    """Build the array of numbers that a record stands for, over its own bytes.

    Raises:
        Exception: It stands for anything else, in one of many ways.
    """
    if record.name == "_frombuffer":  # pickle protocols from 5 on
        data, dtype, shape, order = record.arguments
    else:
        _, shape, dtype, is_fortran, data = record.state
        order = "F" if is_fortran else "C"
    if min(shape, default=0) < 0:
        raise ValueError(f"{shape} is no shape")
    return np.frombuffer(_as_bytes(data), _as_dtype(dtype)).reshape(shape, order=order)


def _as_dtype(record: Record) -> np.dtype:
    code = record.arguments[0]
    if record.name != "dtype" or not NUMBERS.fullmatch(code):
        raise ValueError(f"{code!r} is no type of plain numbers")
    byte_order = record.state[1] if record.state else "="
    if byte_order not in ("<", ">", "=", "|"):
        raise ValueError(f"{byte_order!r} is no order of bytes")
    return np.dtype(byte_order + code)


def _as_bytes(data: object) -> bytes:
    if isinstance(data, Record):  # how protocols below 3 write bytes
        data = data.arguments[0] if data.arguments else ""
    return data.encode("latin1") if isinstance(data, str) else bytes(memoryview(data))
