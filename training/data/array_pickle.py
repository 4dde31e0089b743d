"""Read pickles of plain containers and NumPy arrays without calling anything that a file names."""

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
    """Unpickle plain containers, texts and numbers; an array becomes a Record for `as_array`.

    Raises:
        pickle.UnpicklingError: The pickle asks for anything else.
        Exception: The pickle is broken; of many classes.
    """
    return _Unpickler(io.BytesIO(data), encoding="latin1").load()


class Record:
    """Record what a pickle asks to call, with which arguments, and the result's state, without calling anything."""

    __slots__ = ("arguments", "name", "state")

    def __init__(self, name: str, arguments: tuple = ()) -> None:
        self.name, self.arguments, self.state = name, arguments, None

    def __call__(self, *arguments: object) -> "Record":
        return Record(self.name, arguments)

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Unpickler(pickle._Unpickler):  # in Python: the C version allocates as many objects as a file claims
    def find_class(self, module: str, name: str) -> Record:
        if not CALLED.fullmatch(f"{module}.{name}"):
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a file of arrays")
        return Record(name)


def as_array(record: Record) -> np.ndarray:
    """Build the array of numbers that a record describes, sharing the record's bytes.

    Raises:
        Exception: The record describes anything else; of many classes.
    """
    if record.name == "_frombuffer":  # pickle protocol 5 and above
        data, dtype, shape, order = record.arguments
    else:
        _, shape, dtype, is_fortran, data = record.state
        order = "F" if is_fortran else "C"
    if min(shape, default=0) < 0:
        raise ValueError(f"{shape} is not a shape")
    return np.frombuffer(_as_bytes(data), _as_dtype(dtype)).reshape(shape, order=order)


def _as_dtype(record: Record) -> np.dtype:
    code = record.arguments[0]
    if record.name != "dtype" or not NUMBERS.fullmatch(code):
        raise ValueError(f"{code!r} is not a type of plain numbers")
    byte_order = record.state[1] if record.state else "="
    if byte_order not in ("<", ">", "=", "|"):
        raise ValueError(f"{byte_order!r} is not an order of bytes")
    return np.dtype(byte_order + code)


def _as_bytes(data: object) -> bytes:
    if isinstance(data, Record):  # how protocols below 3 write bytes
        data = data.arguments[0] if data.arguments else ""
    return data.encode("latin1") if isinstance(data, str) else bytes(memoryview(data))
