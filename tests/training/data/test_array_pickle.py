"""Pickles of arrays: every protocol is read, and no file can have code run or memory read that isn't its own."""

import copyreg
import pickle

import numpy as np
import pytest

import datasets
from training.data import array_pickle


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(3, dtype=">i8"),
        np.array([True, False]),
        np.zeros((0, 5), np.float32),
    ],
    ids=str,
)
def test_arrays_are_read(array, protocol):
    found = array_pickle.as_array(array_pickle.load(pickle.dumps({"data": array}, protocol))["data"])
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype


def test_containers_are_read():
    plain = {"labels": [1, 2], "names": ["a", "\xe9"], "nested": ({"x": 1.5}, None, True)}
    assert array_pickle.load(pickle.dumps(plain, 2)) == plain


@pytest.mark.parametrize("name", ["builtins.eval", "numpy.load", "numpy.memmap", "numpy.core.multiarray.scalar"])
def test_nothing_else_is_called(name):
    module, _, function = name.rpartition(".")
    with pytest.raises(pickle.UnpicklingError, match=name):
        array_pickle.load(b"c" + f"{module}\n{function}\n.".encode())


# Attacks: each a pickle that says it is an array. With NumPy's own functions the first ones end the process.


class Says:
    """Pickles as a call of a function, and the state to give to the result."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.call


RECONSTRUCT = np.empty(0).__reduce_ex__(2)[0]
FROMBUFFER = np.empty(0).__reduce_ex__(5)[0]
POINTER = (0x4141414141414141).to_bytes(8, "little")
FIELDS = (3, "|", None, ("p",), {"p": (np.dtype("O"), 0)}, 8, 1, 27)


def array(dtype, data=POINTER, shape=(1,)):
    return Says(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, shape, dtype, False, data))


ATTACKS = {
    "pointer": array(Says(np.dtype, "O", False, True, state=(3, "|", None, None, None, -1, -1, 63))),
    "pointer in a field": array(Says(np.dtype, "V8", False, True, state=FIELDS)),
    "pointer in a plain type's field": array(Says(np.dtype, "u8", False, True, state=FIELDS)),
    "pointer by frombuffer": Says(FROMBUFFER, POINTER, Says(np.dtype, "O"), (1,), "C"),
    "pointer in a field of a foreign buffer": Says(
        np.ndarray, (1,), Says(np.dtype, "V8", False, True, state=FIELDS), POINTER
    ),
    "foreign buffer": Says(np.ndarray, (1 << 20,), Says(np.dtype, "u1"), b"x"),
    "far stride": Says(np.ndarray, (2,), Says(np.dtype, "u1"), b"xy", 0, (1 << 40,)),
    "more than there is": array(Says(np.dtype, "u1"), b"x", (1 << 30,)),
    "minus": array(Says(np.dtype, "u1"), b"x", (-5,)),
    "as large as can be": array(Says(np.dtype, "u1"), b"", (0, 1 << 62, 1 << 62)),
    "wide text": array(Says(np.dtype, "U1", False, True, state=(3, "<", None, None, None, 1 << 30, 4, 0))),
    "no state": Says(RECONSTRUCT, np.ndarray, (0,), b"b"),
    "state of a type": Says(np.dtype, "u1", state=FIELDS),
    "state that is a number": Says(RECONSTRUCT, np.ndarray, (0,), b"b", state=7),
}
BYTES = {
    # What BUILD, NEWOBJ and OBJ can do with a stand-in itself, and a place in the memo that is far away.
    "attributes of a stand-in": b"cnumpy\nndarray\n(NX\x09\x00\x00\x00arguments(K\x01tdtb.",
    "a new object": b"\x80\x02cnumpy\nndarray\nK\x01\x85\x81.",
    "an old instance": b"(cnumpy\nndarray\nK\x01o.",
    "a long memo": b"\x80\x02]r\xff\xff\xff\xff.",
    "a long frame": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7fK\x01.",
    "long bytes": b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
    "deep lists": b"]" * 50_000 + b"a" * 49_999 + b".",
    "deep calls": b"\x80\x02" + b"cnumpy\ndtype\n" * 50_000 + b"\x85R" * 49_999 + b".",
    "an extension": b"\x82\x01.",
    "a persistent one": b"Px\n.",
}


@pytest.mark.parametrize("name", [*ATTACKS, *BYTES])
def test_attacks_fail_as_errors(name, tmp_path):
    data = BYTES[name] if name in BYTES else pickle.dumps(ATTACKS[name], 4)
    try:
        found = array_pickle.as_array(array_pickle.load(data))
    except Exception:
        return
    assert found.tobytes() in (b"", POINTER)  # its own bytes


@pytest.mark.parametrize("name", ATTACKS)
def test_a_cifar_file_of_attacks_is_named(name, tmp_path):
    """With all that reading CIFAR does to images and labels."""
    for images, labels in ((ATTACKS[name], [0]), (np.zeros((1, 3072), np.uint8), ATTACKS[name])):
        (tmp_path / "attack").write_bytes(pickle.dumps({"data": images, "labels": labels}, 4))
        with pytest.raises(ValueError, match="attack: not a batch of CIFAR"):
            datasets._read_cifar(tmp_path / "attack")


def test_extensions_of_the_process_stay_out():
    copyreg.add_extension("os", "system", 0xF0)
    try:
        with pytest.raises(pickle.UnpicklingError, match="os.system"):
            array_pickle.load(b"\x80\x02\x82\xf0.")
    finally:
        copyreg.remove_extension("os", "system", 0xF0)
