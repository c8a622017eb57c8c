"""PyTorch's files as inert data: which are read, which are refused, and that nothing ever runs."""

import io
import os
import pickle
import struct
import subprocess
import sys
import textwrap
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from fuzz_torch import fuzz, peak_memory
from golden import CASES, CHECKPOINTS, DATA

from waveglow_jax.errors import UserError
from waveglow_jax.files import torch_file
from waveglow_jax.files.mels import read_mel
from waveglow_jax.files.torch_file import open_torch, tensors_in, write_torch
from waveglow_jax.files.torch_values import Array, Holder, Tensor, Token
from waveglow_jax.weights.nvidia import read_published

LEGACY = [pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2)]
LEGACY += [pickle.dumps({"protocol_version": 1001, "little_endian": True}, 2)]


def zipped(path: Path, program: bytes, storages: dict[str, bytes] | None = None, **extra) -> Path:
    """A file as torch.save lays it out, around any pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        for key, content in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", content)
        for name, content in extra.items():
            archive.writestr(f"archive/{name}", content)
    return path


def legacy(path: Path, program: bytes, storages: dict[str, bytes], itemsize: int = 4) -> Path:
    body = b"".join([*LEGACY, program, pickle.dumps(list(storages), 2)])
    for content in storages.values():
        body += struct.pack("<q", len(content) // itemsize) + content
    path.write_bytes(body)
    return path


def storage(kind: str, key: str, numel: int, tail: bytes = b"") -> bytes:
    """The opcodes of a persistent id."""
    return (
        b"(U\x07storagectorch\n" + kind.encode() + b"\nU" + bytes([len(key)]) + key.encode()
        + b"U\x03cpuJ" + struct.pack("<i", numel) + tail + b"tQ"
    )  # fmt: skip


def integers(*values: int) -> bytes:
    return b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", v) for v in values) + b"t"


def tensor(
    of: bytes, offset: int = 0, shape: tuple[int, ...] = (2,), strides: tuple[int, ...] = (1,)
) -> bytes:
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + of + b"\x8a\x08" + struct.pack("<q", offset)
        + integers(*shape) + integers(*strides) + b"\x89ccollections\nOrderedDict\n)RtR"
    )  # fmt: skip


def program(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def read(path: Path) -> object:
    with open_torch(path) as file:
        return file.tree


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and text.isprintable()
    return text


# ------------------------------------------------------------------------------ what is read


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        ("FloatStorage", np.array([1.5, -2, 3, 4], "<f4")),
        ("HalfStorage", np.array([1.5, -2, 3, 4], "<f2")),
        ("DoubleStorage", np.array([1.5, -2, 3, 4], "<f8")),
        ("LongStorage", np.array([1, -2, 3, 2**40], "<i8")),
        ("IntStorage", np.array([1, -2, 3, 4], "<i4")),
        ("ShortStorage", np.array([1, -2, 3, 4], "<i2")),
        ("ByteStorage", np.array([1, 2, 3, 255], "u1")),
        ("BoolStorage", np.array([True, False, True, True])),
    ],
)
@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_every_type_in_both_containers(tmp_path, kind, numbers, container):
    raw = numbers.tobytes()
    none = b"N" if container == "legacy" else b""
    body = program(tensor(storage(kind, "7", 4, none), 1, (3,)))
    if container == "zip":
        path = zipped(tmp_path / "a.pt", body, {"7": raw})
    else:
        path = legacy(tmp_path / "a.pt", body, {"7": raw}, numbers.itemsize)
    with open_torch(path) as file:
        ours = file.array(file.tree)
    np.testing.assert_array_equal(ours, numbers[1:])
    assert ours.dtype == numbers.dtype


def test_bfloat16_is_widened(tmp_path):
    values = np.array([1.0, -2.5, 3e38, 1e-30], np.float32)
    upper = (values.view(np.uint32) >> 16).astype("<u2")
    path = zipped(
        tmp_path / "a.pt",
        program(tensor(storage("BFloat16Storage", "0", 4), 0, (4,))),
        {"0": upper.tobytes()},
    )
    with open_torch(path) as file:
        ours = file.array(file.tree)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, values, rtol=2**-7)


def test_strides_offsets_and_views(tmp_path):
    numbers = np.arange(24, dtype="<f4")
    body = tensor(storage("FloatStorage", "0", 24), 2, (3, 4), (1, 5))
    with open_torch(zipped(tmp_path / "a.pt", program(body), {"0": numbers.tobytes()})) as file:
        ours = file.array(file.tree)
    np.testing.assert_array_equal(ours, 2 + np.arange(3)[:, None] + 5 * np.arange(4))
    # The older container's view of a storage: (key, first number, how many).
    view = b"(U\x01vK\x0aK\x05t"
    body = tensor(storage("FloatStorage", "0", 24, view), 1, (3,))
    with open_torch(legacy(tmp_path / "b.pt", program(body), {"0": numbers.tobytes()})) as file:
        np.testing.assert_array_equal(file.array(file.tree), [11, 12, 13])


def test_untyped_storage_with_a_typed_tensor(tmp_path):
    numbers = np.arange(4, dtype="<f4")
    body = (
        b"ctorch._utils\n_rebuild_tensor_v3\n(" + storage("UntypedStorage", "0", 16) + b"K\x01"
        + integers(2) + integers(1) + b"\x89ccollections\nOrderedDict\n)Rctorch\nfloat32\ntR"
    )  # fmt: skip
    with open_torch(zipped(tmp_path / "a.pt", program(body), {"0": numbers.tobytes()})) as file:
        np.testing.assert_array_equal(file.array(file.tree), [1, 2])
    # Three bytes more than numbers.
    body = body.replace(storage("UntypedStorage", "0", 16), storage("UntypedStorage", "0", 19))
    path = zipped(tmp_path / "b.pt", program(body), {"0": numbers.tobytes() + b"abc"})
    with open_torch(path) as file:
        np.testing.assert_array_equal(file.array(file.tree), [1, 2])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_as_pickle_has_them(tmp_path, protocol):
    """The standard library writes the files, and the values must be the same."""
    value = {
        "a": [1, -1, 255, 256, 65536, -(2**31), 2**40, -(2**70)],
        "b": (1.5, float("inf"), None, True, False, "text \u20ac", b"raw"),
        3: {"deep": [[], {}, ()]},
        "long": list(range(2000)),
    }
    value["shared"] = value["a"]
    value["empty"] = b""
    tree = read(zipped(tmp_path / "a.pt", pickle.dumps(value, protocol)))
    if protocol == 2:  # bytes are a call of _codecs.encode there
        assert isinstance(tree["b"][-1], Holder)
        tree["b"] = (*tree["b"][:-1], b"raw")
    assert tree == value
    assert tree["shared"] is tree["a"]


NUMPY = [
    np.arange(6, dtype="<f4").reshape(2, 3),
    np.asfortranarray(np.arange(6, dtype="<f8").reshape(2, 3)),
    np.arange(6, dtype=">f4").reshape(3, 2),
    np.arange(24, dtype="<f2").reshape(2, 3, 4)[:, ::2],
    np.array([1, -2, 300], "<i8"),
    np.array([True, False]),
    np.zeros((80, 0), "<f4"),
    np.array(1.5),
]


@pytest.mark.parametrize("container", ["zip", "legacy"])
@pytest.mark.parametrize(
    ("protocol", "core"), [(2, b"core"), (2, b"_core"), (3, b"core"), (4, b"_core"), (5, b"_core")]
)
def test_arrays_of_numpy(tmp_path, protocol, core, container):
    """NumPy itself writes the files; before NumPy 2 its core module had another name."""
    for number, array in enumerate(NUMPY):
        pickled = pickle.dumps({"a": array, "list": [array]}, protocol)
        if protocol < 4:  # later ones say how long a name is
            pickled = pickled.replace(b"numpy._core.", b"numpy." + core + b".")
        if container == "zip":
            path = zipped(tmp_path / f"{number}.pt", pickled)
        else:
            path = legacy(tmp_path / f"{number}.pt", pickled, {})
        with open_torch(path) as file:
            (name, found), (inside, again) = tensors_in(file.tree)
            assert (name, inside) == ("a", "list[0]") and found is again
            assert found.shape == array.shape
            ours = file.array(found)
        np.testing.assert_array_equal(ours, array)
        assert ours.dtype == array.dtype.newbyteorder("=") and ours.flags.c_contiguous


def test_arrays_that_are_not_of_plain_numbers_are_named_and_not_read(tmp_path):
    arrays = {
        "objects": np.array([{}, 1], object),
        "text": np.array(["a"]),
        "complex": np.zeros(2, complex),
        "record": np.zeros(2, [("x", "f4")]),
        "date": np.zeros(2, "datetime64[s]"),
    }
    with open_torch(zipped(tmp_path / "a.pt", pickle.dumps(arrays, 2))) as file:
        for found in file.tree.values():
            assert isinstance(found, Array)
            with pytest.raises(UserError, match="is not read"):
                file.array(found)


def test_an_array_of_numpy_that_lies_about_its_size_is_refused(tmp_path):
    pickled = pickle.dumps(np.zeros((3, 5), "<f4"), 2)
    assert "60 bytes" in refusal(
        zipped(tmp_path / "a.pt", pickled.replace(b"K\x03K\x05", b"K\x03K\x7f"))
    )
    letters = pickle.dumps(np.full((3, 5), 255, "u1"), 2).replace(
        "\xff".encode(), "\u0101".encode()
    )
    path = zipped(tmp_path / "b.pt", letters)
    with open_torch(path) as file, pytest.raises(UserError, match="no latin-1"):
        file.array(file.tree)


def test_one_text_for_many_arrays_takes_no_memory(tmp_path):
    """A few bytes of the file suffice to make another array of the same memoized text."""
    size = 1 << 20
    remembered = b"X" + struct.pack("<I", size) + bytes(size) + b"q\0" + b"0"
    array = (
        b"cnumpy._core.multiarray\n_reconstruct\n)R(K\x01J" + struct.pack("<i", size)
        + b"\x85cnumpy\ndtype\nX\x02\0\0\0u1\x85R\x89c_codecs\nencode\n"
        + b"h\0X\x06\0\0\0latin1\x86Rtb"
    )  # fmt: skip
    path = zipped(tmp_path / "a.pt", program(remembered + b"](" + 200 * array + b"e"))
    tracemalloc.start()
    with open_torch(path) as file:
        assert len(file.tree) == 200
        with pytest.raises(UserError, match="overlap"):
            for each in file.tree:
                file.array(each)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 * size


def device_tensor(name: str, data: bytes) -> bytes:
    """As PyTorch pickles a tensor of a device that has no storage: (data, dtype, device, grad)."""
    return (
        b"ctorch._utils\n"
        + name.encode()
        + b"\n("
        + data
        + b"ctorch\nfloat32\nX\x05\0\0\0xla:0\x89tR"
    )


def test_tensors_of_other_devices(tmp_path):
    """torch_xla pickles them by way of the CPU, or of NumPy in older versions."""
    numbers = np.arange(2, dtype="<f4")
    of_numpy = pickle.dumps(numbers, 2)[2:-1]
    of_cpu = device_tensor(
        "_rebuild_device_tensor_from_cpu_tensor", tensor(storage("FloatStorage", "0", 2))
    )
    body = (
        b"}(X\x01\0\0\0a"
        + of_cpu
        + b"X\x01\0\0\0b" + device_tensor("_rebuild_device_tensor_from_numpy", of_numpy)
        + b"X\x01\0\0\0c" + device_tensor("_rebuild_xla_tensor", of_numpy)
        + b"X\x01\0\0\0dctorch._utils\n_rebuild_parameter\n("
        + of_cpu
        + b"\x88ccollections\nOrderedDict\n)RtRu"
    )  # fmt: skip
    with open_torch(zipped(tmp_path / "a.pt", program(body), {"0": numbers.tobytes()})) as file:
        assert list(file.tree) == ["a", "b", "c", "d"]
        for found in file.tree.values():
            np.testing.assert_array_equal(file.array(found), numbers)


def test_a_tensor_with_attributes_is_a_tensor(tmp_path):
    """(function, class, arguments, state): what a subclass or an attribute makes of it."""
    numbers = np.arange(2, dtype="<f4")
    plain = tensor(storage("FloatStorage", "0", 2))
    arguments = plain[plain.index(b"(") : -1]
    body = (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_tensor_v2\n"
        b"cmy.module\nMel\n" + arguments + b"}U\x04rateK\x16stR"
    )
    with open_torch(zipped(tmp_path / "a.pt", program(body), {"0": numbers.tobytes()})) as file:
        np.testing.assert_array_equal(file.array(file.tree), numbers)
    nested = body.replace(b"_utils\n_rebuild_tensor_v2", b"_tensor\n_rebuild_from_type_v2")
    path = zipped(tmp_path / "b.pt", program(nested), {"0": numbers.tobytes()})
    assert "_rebuild_from_type_v2" in refusal(path)


@pytest.mark.parametrize(
    "name", ["_rebuild_qtensor", "_rebuild_sparse_tensor", "_rebuild_meta_tensor_no_storage"]
)
def test_tensors_of_other_kinds_are_named_with_the_remedy(tmp_path, name):
    path = zipped(tmp_path / "a.pt", program(b"ctorch._utils\n" + name.encode() + b"\n)R"))
    text = refusal(path)
    assert name in text and ".detach().cpu()" in text and "no weights need" not in text


def test_a_deep_tree_is_searched_in_no_time(tmp_path):
    deep = b"]" * 100_000 + b"a" * 99_999
    path = zipped(tmp_path / "a.pt", program(deep))
    assert tensors_in(read(path)) == []
    cycle = b"]q\0h\0a"
    assert tensors_in(read(zipped(tmp_path / "b.pt", program(cycle)))) == []


def test_collections_become_plain(tmp_path):
    from collections import OrderedDict

    value = {"o": OrderedDict(a=1, b=2), "s": {5}, "f": frozenset([6])}
    tree = read(zipped(tmp_path / "a.pt", pickle.dumps(value, 2)))
    assert tree["o"] == {"a": 1, "b": 2}
    assert list(tree["s"]) == [5] and list(tree["f"]) == [6]
    tree = read(zipped(tmp_path / "b.pt", pickle.dumps(value, 4)))
    assert list(tree["s"]) == [5] and list(tree["f"]) == [6]


def test_objects_become_holders_and_classes_tokens(tmp_path):
    body = b"}(U\x06objectcno.such.module\nKlass\n)\x81}U\x01xK\x05sbU\x05classcos\nsystem\nu"
    tree = read(zipped(tmp_path / "a.pt", program(body)))
    assert tree["object"].kind == Token("no.such.module", "Klass")
    assert tree["object"].state == {"x": 5}
    assert tree["class"] == Token("os", "system")
    # A class with its source text: ('module', class, file, source).
    body = b"(U\x06modulecglow\nWN\nU\x07glow.pyU\x0cimport evil\ntQ)\x81"
    holder = read(zipped(tmp_path / "b.pt", program(body)))
    assert isinstance(holder, Holder) and str(holder.kind) == "glow.WN"


def test_what_old_versions_of_pytorch_wrote(tmp_path):
    """Modules of torch 1 name their backend by a call, parameters of 0.3 call their class, sizes
    are made without a call; a legacy file may be of another protocol."""
    numbers = np.arange(4, dtype="<f4")
    body = (
        b"}(U\x08_backendctorch.nn.backends.thnn\n_get_thnn_function_backend\n)R"
        b"U\x01pctorch.nn.parameter\nParameter\n"
        + tensor(storage("FloatStorage", "0", 4, b"N"))
        + b"\x85R\x89\x88N\x87bU\x01sctorch\nSize\n(K\x02K\x03t\x85\x81u"
    )
    path = legacy(tmp_path / "a.pt", program(body), {"0": numbers.tobytes()})
    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 4) + path.read_bytes()[len(LEGACY[0]) :])
    with open_torch(path) as file:
        assert isinstance(file.tree["_backend"], Holder)
        assert file.tree["s"] == (2, 3)
        np.testing.assert_array_equal(file.array(file.tree["p"]), [0, 1])


def test_tensors_that_share_a_storage(tmp_path):
    """They are views of one flat buffer; the stride along an axis of length 1 may be any."""
    flat = np.arange(12, dtype="<f4")
    of = storage("FloatStorage", "0", 12)
    parts = [(0, (2, 3), (3, 1)), (6, (1, 4), (77, 1)), (10, (2,), (1,)), (3, (0,), (1,))]
    body = b"](" + b"".join(tensor(of, *part) for part in parts) + b"e"
    with open_torch(zipped(tmp_path / "a.pt", program(body), {"0": flat.tobytes()})) as file:
        ours = [file.array(each) for each in file.tree]
    for array, (offset, shape, _) in zip(ours, parts, strict=True):
        size = int(np.prod(shape))
        np.testing.assert_array_equal(array, flat[offset : offset + size].reshape(shape))


def test_round_trip_of_what_we_write(tmp_path):
    tree = {
        "deep": {"a": np.arange(6, dtype=np.float32).reshape(1, 2, 3), "b": np.float16([[1.5]])},
        "scalar": np.zeros((), np.float32),
        "n": 3,
        "x": 0.25,
        "s": "text",
        "t": True,
    }
    write_torch(tmp_path / "a.pt", tree)
    with open_torch(tmp_path / "a.pt") as file:
        for key in "ab":
            ours = file.array(file.tree["deep"][key])
            assert ours.dtype == tree["deep"][key].dtype
            np.testing.assert_array_equal(ours, tree["deep"][key])
        assert file.array(file.tree["scalar"]).shape == ()
        assert {k: file.tree[k] for k in "nxst"} == {k: tree[k] for k in "nxst"}
    for bad in (object(), np.zeros(3), 2**40):
        with pytest.raises(ValueError, match="no place"):
            write_torch(tmp_path / "b.pt", {"a": bad})


def test_what_we_write_is_what_torch_reads(tmp_path):
    torch = pytest.importorskip("torch")
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    write_torch(tmp_path / "a.pt", {"state_dict": {"a": array, "h": array.astype(np.float16)}})
    theirs = torch.load(tmp_path / "a.pt", weights_only=True)["state_dict"]
    np.testing.assert_array_equal(theirs["a"].numpy(), array)
    assert theirs["h"].dtype == torch.float16


@pytest.mark.parametrize("new", [True, False])
def test_what_torch_writes(tmp_path, new):
    torch = pytest.importorskip("torch")
    tensors = {
        "f": torch.arange(6.0).reshape(2, 3).t(),
        "p": torch.nn.Parameter(torch.ones(3)),
        "h": torch.ones(2, dtype=torch.bfloat16),
        "e": torch.zeros(0, 5),
    }
    torch.save(tensors, tmp_path / "a.pt", _use_new_zipfile_serialization=new)
    with open_torch(tmp_path / "a.pt") as file:
        for name, theirs in tensors.items():
            np.testing.assert_array_equal(
                file.array(file.tree[name]), theirs.detach().float().numpy()
            )


# ------------------------------------------------------------------------------ what is refused


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil_was_here",)


@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_calls_are_refused_by_name(tmp_path, monkeypatch, container):
    monkeypatch.chdir(tmp_path)
    body = pickle.dumps({"model": Evil()}, 2)
    make = zipped if container == "zip" else legacy
    assert "posix.system" in refusal(make(tmp_path / "a.pt", body, {}))
    assert not (tmp_path / "evil_was_here").exists()
    for function in (b"builtins\neval", b"builtins\ngetattr", b"torch.storage\n_load_from_bytes"):
        text = refusal(zipped(tmp_path / "b.pt", program(b"c" + function + b"\n(U\x011tR")))
        assert function.decode().replace("\n", ".") in text


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"cos\nenviron\n}U\x01aU\x01bsb", "os.environ"),  # BUILD on a class
        (b"cglow\nWN\n)\x81(U\x01aK\x01\x85tR", "glow.WN"),  # a call of an object
        (b"K\x05)R", "int"),
        (b"]}b", "list"),  # BUILD on a list
        (b"}K\x01\x85K\x02s", "tuple"),  # a tuple as a key
        (b"}]K\x02s", "list"),
        (b"cos\nsystem\n\x85U\x01aK\x01s", "tuple"),  # items of a tuple
        (b"ios\nsystem\n(t", "operation b'i'"),  # INST
        (b"(cos\nsystem\no", "operation b'o'"),  # OBJ
        (b"\x82\x01", "operation"),  # EXT1
        (b"Pid\n", "operation"),  # a persistent id in text
        (b"U\x05abc", "ends too early"),
        (b"h\x05", "remembers"),
        (b"0", "empty stack"),
        (b"K\x01u", "mark"),
        (b"(Q", "empty stack"),
        (b"K\x05Q", "persistent id"),
        (b"cno newline", "no end"),
        (b"(U\x07storagecevil\nFloatStorage\nU\x010U\x03cpuK\x01tQ", "evil.FloatStorage"),
        (b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuJ\xff\xff\xff\xfftQ", "promises"),
    ],
)
def test_programs_that_no_checkpoint_has(tmp_path, body, word):
    assert word in refusal(zipped(tmp_path / "a.pt", program(body), {"0": b"\0" * 4}))


def test_names_from_the_file_stay_on_one_line(tmp_path):
    body = program(b"}(cos\nsys\x1b[2Jtem\x07\nK\x01u")
    text = refusal(zipped(tmp_path / "a.pt", body))
    assert text.isprintable() and "os.sys?[2Jtem? for a key" in text


def test_memory_bombs_by_size_fields(tmp_path):
    huge = [
        b"X\xff\xff\xff\x7f",  # a text of 2 GiB
        b"B\xff\xff\xff\x7f",
        b"\x8d" + struct.pack("<Q", 2**62),
        b"\x8e" + struct.pack("<Q", 2**62),
        b"\x8b\xff\xff\xff\x7f",  # an integer of 2 GiB
        b"\x8b\x00\x10\x00\x00" + b"\x7f" * 4096,
        b"r\xff\xff\xff\xff",  # a memo of 2^32
    ]
    for body in huge:
        refusal(zipped(tmp_path / "a.pt", program(body)))
    refusal(zipped(tmp_path / "a.pt", program(storage("FloatStorage", "0", 2**31 - 1)), {"0": b""}))
    refusal(
        legacy(tmp_path / "a.pt", program(storage("FloatStorage", "0", 2**30, b"N")), {"0": b""})
    )


P61 = 2**61 - 1  # what Python's hash of an integer is modulo


@pytest.mark.slow
@pytest.mark.parametrize(
    "body",
    [
        b"}" * 9_000_000,
        # Copies of memoized values, of a few bytes each.
        b"](" + b"N" * 50_000 + b"eq\x00cbuiltins\nset\nq\x01(" + b"h\x01h\x00\x85R" * 999 + b"l",
        b"](" + b"K\x01N\x86" * 20_000 + b"eq\x00ccollections\nOrderedDict\nq\x01("
        + b"h\x01h\x00\x85R" * 999 + b"l",
        storage("FloatStorage", "0", 4)[:-1] + b"q\x00" + b"Qh\x00" * 330_000,
        b"}(" + b"".join(b"\x8a\x10" + (P61 * i).to_bytes(16, "little") + b"N"
                        for i in range(9, 40_000)) + b"u",
    ],
    ids=["operations", "sets", "dicts", "storages", "keys of one hash"],
)  # fmt: skip
def test_what_takes_long_or_much_for_its_size(tmp_path, body):
    """Such files are refused after a million operations, weighted by their cost."""
    path = zipped(tmp_path / "a.pt", program(body), {"0": b"\0" * 16})
    before = peak_memory(anew=True)
    refusal(path)
    assert peak_memory() - before < 3 * path.stat().st_size + 200e6


def test_a_billion_laughs(tmp_path):
    """Lists of lists of lists by memo are small in memory and endless to traverse."""
    body = b"]q\x00" + b"".join(
        b"]q" + bytes([i]) + b"(" + b"h" + bytes([i - 1]) * 1 + (b"h" + bytes([i - 1])) * 9 + b"e"
        for i in range(1, 60)
    )
    path = zipped(tmp_path / "a.pt", program(body))
    read(path)
    with pytest.raises(UserError, match="holds no weights"):
        read_published(path)
    nested = b"}q\x00(U\x05modelh\x00u"  # a model that contains itself
    with pytest.raises(UserError, match="holds no weights"):
        read_published(zipped(tmp_path / "b.pt", program(nested)))
    # A module within itself.
    looped = b"}(U\x05modelcglow\nWaveGlow\n)\x81q\x00}(U\x08_modules}(U\x01ah\x00uubu"
    with pytest.raises(UserError, match="twice"):
        read_published(zipped(tmp_path / "c.pt", program(looped)))


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (10**9,), (0,)),  # one number, a billion times
        (0, (2**62, 2**62), (0, 0)),
        (0, (5,), (1,)),
        (3, (2,), (1,)),
        (2**62, (1,), (1,)),
        (0, (2, 2), (2**61, 1)),
        (0, (2,), (-1,)),
        (0, (-2,), (1,)),
        (-1, (2,), (1,)),
        (0, (2, 2), (1,)),
        (0, (1,) * 9, (1,) * 9),
        (0, (2, 1), (1, 2**62)),
        (0, (0, 2**47, 2**47), (1, 1, 1)),
    ],
)
def test_tensors_outside_of_their_storage(tmp_path, offset, shape, strides):
    body = tensor(storage("FloatStorage", "0", 4), offset, shape, strides)
    assert "tensor" in refusal(zipped(tmp_path / "a.pt", program(body), {"0": b"\0" * 16}))


def test_overlapping_tensors_are_not_multiplied(tmp_path):
    content = b"\0" * 400_000
    body = b"}(" + b"".join(
        b"U\x02" + f"{i:02}".encode() + tensor(storage("FloatStorage", "0", 100_000), 0, (100_000,))
        for i in range(50)
    )
    with open_torch(zipped(tmp_path / "a.pt", program(body + b"u"), {"0": content})) as file:
        file.array(file.tree["00"])
        with pytest.raises(UserError, match="overlap"):
            for each in file.tree.values():
                file.array(each)


def rewritten(path: Path, change) -> Path:
    """The zip with its bytes changed."""
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)
    return path


def test_lying_zips(tmp_path):
    body = program(tensor(storage("FloatStorage", "0", 2)))

    def fresh(name: str, **extra) -> Path:
        return zipped(tmp_path / name, body, {"0": b"\0" * 8}, **extra)

    assert "big" not in str(read(fresh("fine.pt", byteorder="little")))
    assert "little-endian" in refusal(fresh("endian.pt", byteorder="big"))
    with pytest.warns(UserWarning, match="Duplicate"):
        twice = fresh("twice.pt", **{"data/0": b"\1" * 8})
    assert "twice" in refusal(twice)
    assert "out of the archive" in refusal(fresh("up.pt", **{"../../etc/passwd": "x"}))
    assert "TorchScript" in refusal(fresh("script.pt", **{"code/x.py": "x"}))
    with zipfile.ZipFile(fresh("roots.pt"), "a") as archive:
        archive.writestr("other/data.pkl", "x")
    assert "several folders" in refusal(tmp_path / "roots.pt")
    with zipfile.ZipFile(tmp_path / "deflated.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", body)
    assert "compressed" in refusal(tmp_path / "deflated.pt")
    assert "missing" in refusal(zipped(tmp_path / "gone.pt", body))
    assert "promised" in refusal(zipped(tmp_path / "short.pt", body, {"0": b"\0" * 4}))
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("a/b.txt", "x")
    assert "data.pkl" in refusal(tmp_path / "other.pt")

    # In the directory at the end an entry stands where another is already.
    def overlap(content: bytearray) -> None:
        second = content.rindex(b"PK\x01\x02")
        content[second + 42 : second + 46] = struct.pack("<I", 0)

    assert "overlap" in refusal(rewritten(fresh("overlap.pt"), overlap))

    def bomb(content: bytearray) -> None:
        second = content.rindex(b"PK\x01\x02")
        content[second + 20 : second + 28] = struct.pack("<II", 2**31, 2**31)

    refusal(rewritten(fresh("bomb.pt"), bomb))


def test_a_zip_of_a_million_entries(tmp_path):
    """Not even its directory is read."""
    entry = b"PK\x01\x02" + bytes(24) + struct.pack("<H", 1) + bytes(16) + b"a"
    count = 200_000
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 999, 999, len(entry) * count, 31, 0)
    (tmp_path / "a.pt").write_bytes(b"PK\x03\x04" + bytes(27) + entry * count + end)
    assert "9400000 bytes where few" in refusal(tmp_path / "a.pt")


def test_a_flipped_bit_in_a_tensor_is_seen(tmp_path):
    path = zipped(
        tmp_path / "a.pt",
        program(tensor(storage("FloatStorage", "0", 2))),
        {"0": struct.pack("<ff", 123.5, 7.25)},
    )

    def flip(content: bytearray) -> None:
        content[content.index(struct.pack("<f", 7.25))] ^= 1

    rewritten(path, flip)
    with open_torch(path) as file, pytest.raises(UserError, match=r"a\.pt: damaged .*CRC"):
        file.array(file.tree)


def test_other_files(tmp_path):
    cases = {
        b"": "empty",
        b"RIFF....WAVEfmt ": "is a recording",
        pickle.dumps([1]): "pickle",
        b"PK\x03\x04 no zip": "damaged",
        b"".join(LEGACY): "ends too early",
    }
    for content, word in cases.items():
        (tmp_path / "a.pt").write_bytes(content)
        assert word in refusal(tmp_path / "a.pt")
    big = [LEGACY[0], LEGACY[1], pickle.dumps({"little_endian": False}, 2), program(b"N")]
    (tmp_path / "a.pt").write_bytes(b"".join(big) + pickle.dumps([], 2))
    assert "little-endian" in refusal(tmp_path / "a.pt")
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "missing.pt")


# ------------------------------------------------------------------------------ nothing runs


def test_nothing_is_imported_run_or_opened():
    """An audit hook sees every import, call of exec and opened file while the files are read."""
    script = textwrap.dedent(
        f"""
        import encodings.cp437  # of names in a zip that are not marked as UTF-8
        import sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        sys.modules["torch"] = None  # importing it would now fail
        from waveglow_jax.errors import UserError
        from waveglow_jax.weights.nvidia import read_published
        files = [Path(p) for p in sys.argv[1:]]
        try:
            read_published(files[0])  # what reading itself imports
        except UserError:
            pass
        events = []
        watched = ("import", "exec", "compile", "open", "os.", "subprocess.", "pickle.", "socket.",
                   "ctypes.", "shutil.")
        sys.addaudithook(lambda event, args: events.append((event, str(args)))
                         if event.startswith(watched) else None)
        for path in files:
            start = len(events)
            try:
                read_published(path)
            except UserError as error:
                print("refused", error)
            for event, args in events[start:]:
                assert event == "open" and repr(str(path)) in args, (path, event, args)
        print("clean", len(files))
        """
    )
    evil = Path(os.environ.get("TMPDIR", "/tmp")) / f"evil_{os.getpid()}.pt"
    zipped(evil, pickle.dumps({"model": Evil()}, 2))
    try:
        paths = [*CHECKPOINTS, evil]
        done = subprocess.run(
            [sys.executable, "-c", script, *map(str, paths)], capture_output=True, text=True
        )
    finally:
        evil.unlink()
    assert done.returncode == 0, done.stderr
    assert f"clean {len(paths)}" in done.stdout
    assert done.stdout.count("refused") == 1


def test_the_pickle_module_is_not_used():
    readers = sorted(Path(torch_file.__file__).parent.glob("torch_*.py"))
    assert len(readers) == 5
    for reader in readers:
        source = reader.read_text()
        assert "import pickle" not in source and "Unpickler" not in source


# ------------------------------------------------------------------------------ mutants


@pytest.mark.slow
@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.stem)
def test_mutants_end_in_weights_or_one_line(tmp_path, path):
    outcome = fuzz(path, 100, tmp_path, seed=1)
    assert not outcome.foreign
    assert outcome.endings["refused"] > 30
    assert outcome.memory < 3 * path.stat().st_size + 200e6


@pytest.mark.parametrize("name", ["numpy", "dict_numpy", "tuple"])
def test_mutants_of_mels_end_in_a_mel_or_one_line(tmp_path, name):
    path = CASES / f"15-torch-of-numpy/{name}.pt"
    outcome = fuzz(path, 300, tmp_path, seed=2, read=lambda mutant: read_mel(mutant, 80))
    assert not outcome.foreign
    assert outcome.endings["refused"] > 100
    assert outcome.slowest < 1 and outcome.memory < 100e6


@pytest.mark.stress
@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.stem)
def test_twenty_thousand_mutants(tmp_path, path):
    outcome = fuzz(path, 20_000, tmp_path)
    assert not outcome.foreign
    assert outcome.slowest < 1
    assert outcome.memory < 3 * path.stat().st_size + 200e6


def test_the_golden_files_are_those_meant():
    assert len(CHECKPOINTS) == 7
    trees = {}
    for path in CHECKPOINTS:
        with open_torch(path) as file:
            trees[path.stem] = (file.container, file.tree)
    assert {name for name, (container, _) in trees.items() if container == "zip"} == {
        path.stem for path in CHECKPOINTS if path.stem.endswith("_zip")
    }
    model = trees["module_fused_zip"][1]["model"]
    stale = model.state["_modules"]["WN"].state["_modules"]["0"].state["_modules"]["start"]
    with open_torch(DATA / "module_fused_zip.pt") as file:
        assert isinstance(stale.state["weight"], Tensor)
        assert np.all(file.array(stale.state["weight"]) == 123)


def test_bytes_of_a_file_object_are_enough():
    content = (DATA / "module_fused_zip.pt").read_bytes()
    assert torch_file.TorchFile(io.BytesIO(content), "memory").container == "zip"
