"""Pickles of strangers: tensors bit for bit, nothing executed, every oddity one line."""

import io
import os
import pickle
import pickletools
import struct
import subprocess
import sys
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lightning_cfg.errors import UserError
from lightning_cfg.runs.inert_pickle import Made, Named, open_pickle
from lightning_cfg.runs.pickled import MAGIC, Module, Tensors, array, mapping, plain

REFERENCE = Path(__file__).parent / "reference"
MARK = "ran.txt"


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    """Whatever is executed writes into the working directory; afterwards nothing is there."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    yield
    assert list((tmp_path / "cwd").iterdir()) == []


class Runs:
    """Pickled, it is a call of os.system."""

    def __init__(self, command=f"echo > {MARK}"):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def reading(content: bytes, tmp_path: Path):
    path = tmp_path / "a.pkl"
    path.write_bytes(content)
    return open_pickle(path)


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        one[k].dtype == other[k].dtype and torch.equal(one[k], other[k]) for k in one
    )


# The originals' own


def test_edm2s_snapshot_bit_for_bit():
    held = mapping(open_pickle(REFERENCE / "edm2/edm2_snapshot_trap.pkl"))
    assert held.keys() == {"encoder", "dataset_kwargs", "loss_fn", "ema"}
    network = Module(held["ema"])
    assert network.class_name == "Precond"
    assert network.settings["channel_mult"] == [1, 2]
    found = network.tensors()
    assert len(found) == 63
    assert same(found, load_file(REFERENCE / "edm2/edm2_snapshot_expected.safetensors"))


def test_edms_snapshot_bit_for_bit():
    network = Module(mapping(open_pickle(REFERENCE / "edm2/edm1_snapshot_trap.pkl"))["ema"])
    expected = load_file(REFERENCE / "edm_ddpmpp_small.safetensors")
    expected = {k.removeprefix("weights/"): v for k, v in expected.items() if "weights/" in k}
    assert len(expected) == 199
    assert same(network.tensors(), expected)
    assert (network.class_name, network.child("model").class_name) == ("EDMPrecond", "SongUNet")


def test_nothing_of_theirs_is_imported():
    code = f"""
import sys
from lightning_cfg.runs.inert_pickle import open_pickle
from lightning_cfg.runs.pickled import Module, mapping
Module(mapping(open_pickle({str(REFERENCE / "edm2/edm2_snapshot_trap.pkl")!r}))["ema"]).tensors()
print({{"torch_utils", "dnnlib", "training"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# Python's own values, of every protocol: pickle.loads is the oracle

VALUES = {
    "numbers": [
        0,
        -1,
        255,
        256,
        65536,
        -(2**31),
        2**31,
        2**70,
        -(2**3000),
        1.5,
        float("inf"),
        True,
    ],
    "texts": ["", "a", "ß\n\\", "x" * 300, "\N{SNOWMAN}" * 70_000, b"", b"raw\n", b"y" * 70_000],
    "nested": {"a": [1, (2, (), (3, 4), (5, 6, 7), (8, 9, 10, 11))], ("k", 1): {"b": None}},
    "sets": [{1, 2, 3}, frozenset("ab"), set()],
    "many": [list(range(3000)), {i: str(i) for i in range(3000)}],
    "array": bytearray(b"abc"),
}


def plainly(value):
    """Views of the file as bytes, and what only stands for itself as Python's own values."""
    if isinstance(value, memoryview):
        return bytes(value)
    if isinstance(value, Made):  # bytes, sets and so on before they had instructions of their own
        args = [plainly(arg) for arg in value.args]
        of = str(value.of)
        if of == "_codecs.encode":
            return args[0].encode(args[1])
        kinds = {"set": set, "frozenset": frozenset, "bytes": bytes, "bytearray": bytearray}
        return kinds[of.rpartition(".")[2]](*args)
    if isinstance(value, dict):
        return {plainly(k): plainly(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(plainly, value))
    return value


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", VALUES)
def test_plain_values_of_every_protocol(name, protocol, tmp_path):
    content = pickle.dumps(VALUES[name], protocol)
    assert plainly(reading(content, tmp_path)) == VALUES[name]
    assert plainly(reading(pickletools.optimize(content), tmp_path)) == VALUES[name]


def test_shared_things_and_rings_stay_so(tmp_path):
    ring: list = [[1]]
    ring += [ring, ring[0]]
    found = reading(pickle.dumps(ring), tmp_path)
    assert found[1] is found
    assert found[2] is found[0]


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_and_numbers_of_numpy(protocol, tmp_path):
    for made in (
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype="i2").reshape(2, 3)),
        np.arange(3, dtype=">f4"),
        np.zeros((0, 3), "f2"),
        np.array(True),
    ):
        found = array(reading(pickle.dumps(made, protocol), tmp_path))
        np.testing.assert_array_equal(found, made)
        assert found.dtype == made.dtype
    mixed = {"a": np.float64(0.1), "b": (np.int64(7), OrderedDict(c=np.bool_(True)))}
    found = plain(reading(pickle.dumps(mixed, protocol), tmp_path))
    assert found == {"a": 0.1, "b": [7, {"c": True}]}


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int64", "bool"])
def test_tensors_and_their_strides(dtype, protocol, tmp_path):
    """As torch pickles them itself: views of one storage, parameters, empty ones."""
    whole = torch.arange(24).to(getattr(torch, dtype)).reshape(4, 6)
    held = [whole, whole[1:3, ::2], whole.T, whole[:0], whole[2, 3]]
    held += [torch.nn.Parameter(whole.clone())] if whole.is_floating_point() else []
    read, found = Tensors(), reading(pickle.dumps(held, protocol), tmp_path)
    for value, tensor in zip(found, held, strict=True):
        assert torch.equal(read.tensor(value), tensor)
        assert read.tensor(value).dtype == tensor.dtype


# Attacks


def test_a_call_is_a_record(tmp_path):
    for protocol in range(6):
        found = reading(pickle.dumps({"a": Runs()}, protocol), tmp_path)
        assert str(found["a"]) in ("posix.system", "nt.system")
        assert found["a"].args == (f"echo > {MARK}",)
    old = b"(S'echo > ran.txt'\nios\nsystem\n."  # INST
    assert str(reading(old, tmp_path)) == "os.system"
    assert str(reading(b"(cos\nsystem\nS'echo > ran.txt'\no.", tmp_path)) == "os.system"  # OBJ


def legacy(*heads: object, data: bytes = b"") -> bytes:
    """A storage in torch's old format, from its five pickles, or bytes in place of one."""
    return b"".join(h if isinstance(h, bytes) else pickle.dumps(h, 2) for h in heads) + data


class StorageID(pickle.Pickler):
    """Pickles its object as a persistent id, and FloatStorage by name."""

    def persistent_id(self, obj):
        return obj[1:] if isinstance(obj, tuple) and obj[:1] == ("pid",) else None


def which(*parts: object) -> bytes:
    out = io.BytesIO()
    StorageID(out, 2).dump(("pid", *parts))
    return out.getvalue()


FLOATS = ("storage", torch.FloatStorage, "0", "cpu", 4, None)
SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
FOUR = struct.pack("<q4f", 4, 1, 2, 3, 4)


class Tensor:
    """Pickled, it is torch's call that makes a tensor of a storage's bytes."""

    def __init__(self, content: object, offset=0, size=(4,), stride=(1,)):
        self.of, self.view = content, (offset, size, stride)

    def __reduce__(self):
        rebuild = torch._utils._rebuild_tensor_v2
        return rebuild, (Bytes(self.of), *self.view, False, OrderedDict())


class Bytes:
    def __init__(self, content: object):
        self.content = content

    def __reduce__(self):
        return torch.storage._load_from_bytes, (self.content,)


GOOD = legacy(MAGIC, 1001, SYSTEM, which(*FLOATS), ["0"], data=FOUR)


def tensor_of(made: object, tmp_path: Path) -> torch.Tensor:
    return Tensors().tensor(reading(pickle.dumps(made), tmp_path))


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_a_storage_by_hand_is_what_torch_reads(tmp_path):
    assert tensor_of(Tensor(GOOD), tmp_path).tolist() == [1, 2, 3, 4]
    assert torch.load(io.BytesIO(GOOD), weights_only=True).tolist() == [1, 2, 3, 4]


ODD = {
    "os.system among its heads": (
        Tensor(legacy(MAGIC, Runs(), SYSTEM)),
        "a storage in it is not as torch writes one",
    ),
    "os.system in its system": (
        Tensor(legacy(MAGIC, 1001, Runs(), which(*FLOATS), ["0"], data=FOUR)),
        None,  # read, as nobody looks at it: and not run
    ),
    "os.system as its kind": (
        Tensor(legacy(MAGIC, 1001, SYSTEM, which("storage", Runs(), "0", "cpu", 4, None), ["0"])),
        "of another kind, posix.system",
    ),
    "a nested file of torch": (
        Tensor(pickle.dumps({"a": Runs()})),
        "a storage in it is not as torch writes one",
    ),
    "os.system in the place of bytes": (Tensor(Runs()), "posix.system stands where bytes should"),
    "a module": (Tensor(legacy(MAGIC, 1001, SYSTEM, which("module", 1, 2, 3, 4), ["0"])), "kind"),
    "a view of a storage": (
        Tensor(legacy(MAGIC, 1001, SYSTEM, which(*FLOATS[:5], ("1", 0, 4)), ["0"], data=FOUR)),
        "of another kind",
    ),
    "odd numbers": (
        Tensor(legacy(MAGIC, 1001, SYSTEM, which("storage", torch.Tensor, "0", "cpu", 4), ["0"])),
        "of another kind, torch.Tensor",
    ),
    "another order of bytes": (
        Tensor(legacy(MAGIC, 1001, {"little_endian": False}, which(*FLOATS), ["0"], data=FOUR)),
        "big-endian",
    ),
    "another format": (Tensor(legacy(1, 1001, SYSTEM, which(*FLOATS), ["0"])), "not as torch"),
    "cut": (Tensor(GOOD[:-1]), "a storage of 4 numbers has 15 bytes"),
    "longer": (Tensor(GOOD + b"x"), "a storage of 4 numbers has 17 bytes"),
    "stride 0": (Tensor(GOOD, 0, (10**12,), (0,)), "exceeds its storage of 4 numbers"),
    "overlapping": (Tensor(GOOD, 0, (2, 3), (1, 1)), "exceeds its storage of 4 numbers"),
    "beyond": (Tensor(GOOD, 1), "exceeds its storage of 4 numbers"),
    "before": (Tensor(GOOD, -1), "has offset -1"),
    "negative": (Tensor(GOOD, 0, (-4,)), "size (-4,)"),
    "no number": (Tensor(GOOD, 0, (2.0,)), "size (2.0,)"),
    "two sizes": (Tensor(GOOD, 0, (2, 2)), "stride (1,)"),
    "not a tensor": (Runs(), "posix.system stands where a tensor should"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_tensors_are_an_error_and_run_nothing(name, tmp_path):
    made, reason = ODD[name]
    if reason is None:
        assert tensor_of(made, tmp_path).tolist() == [1, 2, 3, 4]
        return
    with pytest.raises(ValueError) as refused:
        tensor_of(made, tmp_path)
    assert reason in str(refused.value)


def test_the_same_traps_do_run_where_pickle_opens_them(tmp_path):
    """Else the tests above would prove nothing."""
    for made in (Runs(), Tensor(Runs()), Tensor(pickle.dumps(Runs()))):
        with suppress(Exception):  # as what came of it is no tensor
            pickle.loads(pickle.dumps(made))
        Path(MARK).unlink()


FILES = {
    "empty": (b"", "cannot mmap an empty file"),
    "a page": (b"<html>Please log in</html>", "opcode"),
    "protocol 6": (b"\x80\x06N.", "its protocol is 6; those to 5 are known"),
    "a persistent id": (b"\x80\x02X\x01\x00\x00\x00aQ.", "by a persistent id"),
    "a persistent id of protocol 0": (b"Pabc\n.", "by a persistent id"),
    "a buffer outside": (b"\x80\x05\x97.", "NEXT_BUFFER needs something outside"),
    "an extension": (b"\x80\x02\x82\x01.", "EXT1 needs something outside"),
    "two values": (b"NN.", "does not end with one value"),
    "no value": (b".", "does not end with one value"),
    "an open mark": (b"N(N.", "does not end with one value"),
    "no operands": (b"\x80\x02\x86.", "lacks its operands"),
    "no memo": (b"\x80\x02h\x05.", "5"),
    "a dict as a key": (b"}}Ns.", "unhashable"),
    "an odd number of items": (b"}(Nu.", "argument"),
    "a name that is none": (b"\x80\x04NN\x93.", "no text"),
    "changes a list": (b"]}b.", "it changes a list"),
    "appends to a number": (b"I1\nNa.", "it appends to a int"),
    "a huge length": (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x00N.", "bytes"),
}


@pytest.mark.parametrize("name", FILES)
def test_odd_files_are_one_line(name, tmp_path):
    content, reason = FILES[name]
    with pytest.raises(UserError) as refused:
        reading(content, tmp_path)
    message = str(refused.value)
    assert reason in message
    assert "\n" not in message
    assert message.startswith(f"{tmp_path / 'a.pkl'} is truncated or no pickle: ")


def test_every_truncation_is_one_line(tmp_path):
    whole = pickle.dumps({"a": [1, "b"], "c": Tensor(GOOD), "d": b"x" * 300}, 4)
    for size in range(len(whole)):
        with pytest.raises(UserError, match="truncated or no pickle"):
            reading(whole[:size], tmp_path)


def test_what_holds_itself_many_times_over_ends(tmp_path):
    """A file of a few bytes that unfolds to 10^30 settings, or modules."""
    laughs: list = []
    for _ in range(30):
        laughs = [laughs] * 10
    with pytest.raises(ValueError, match="unfolds to more than"):
        plain(reading(pickle.dumps(laughs), tmp_path))
    module = {"_parameters": {}, "_buffers": {}, "_modules": {}}
    for _ in range(30):
        below = Made(Named("a", "B"), (), module)
        module = {**module, "_modules": dict.fromkeys("abcdefghij", below)}
    with pytest.raises(ValueError, match="unfolds to more than"):
        Module(Made(Named("a", "B"), (), module)).tensors()


def test_too_many_instructions_end(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_cfg.runs.inert_pickle.MOST", 1000)
    with pytest.raises(UserError, match="more than 1,000 instructions"):
        reading(b"(" + b"N" * 2000 + b"l.", tmp_path)


def test_a_large_file_is_not_held_twice(tmp_path):
    """300 MB of weights: what the reading adds to the process is less than the file."""
    path, tensors = tmp_path / "large.pkl", 30
    with open(path, "wb") as file:
        pickle.dump({str(i): torch.full((2_500_000,), float(i)) for i in range(tensors)}, file, 4)
    code = f"""
import re, torch
from lightning_cfg.runs.inert_pickle import open_pickle
from lightning_cfg.runs.pickled import Tensors
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before, read = peak(), Tensors()
found = {{k: read.tensor(v) for k, v in open_pickle({str(path)!r}).items()}}
assert all(t.min() == t.max() == int(k) for k, t in found.items())
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    size = path.stat().st_size
    path.unlink()
    assert size > 300e6
    assert int(done.stdout) < 1.2 * size  # the pages of the file itself count too
    print(f"reading: {int(done.stdout) / size:.2f} of the file")
