"""Pickles read without running them: what they would call is written down, and nothing is called.

A pickle is a program for a small stack machine. Its instructions are decoded by Python's own
`pickletools`, which runs none of them, and carried out here, where the few that would import or
call only make a record of what was asked. So nothing of a stranger's is imported or executed,
whatever the file names. Bytes are views of the file: a large one is not held twice.
"""

import mmap
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from lightning_cfg.errors import UserError, one_line

MOST = 5_000_000  # instructions; published networks have some 10,000
NEWEST = 5  # protocol


@dataclass(eq=False)
class Named:
    """A class or function that a pickle asks for by name."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Made:
    """What a call would have made: of what, with which arguments, and what was put into it.

    state  what would have become its attributes
    pairs  what would have been set in it, as in a dict
    items  what would have been appended to it, as to a list
    """

    of: Any
    args: tuple
    state: Any = None
    pairs: list[tuple[Any, Any]] = field(default_factory=list)
    items: list[Any] = field(default_factory=list)

    def __str__(self) -> str:
        return str(self.of) if isinstance(self.of, (Named, Made)) else type(self.of).__name__


@dataclass(eq=False)
class Persistent:
    """Something outside of the pickle that it refers to."""

    id: Any


def open_pickle(path: str | Path) -> Any:
    """What a pickle file of any protocol holds: Python's plain values, `Named`, `Made`.

    Long bytes come as memoryviews of the file. Raises UserError, in one line, where it is absent,
    cut off, something else, or refers to what lies outside of it.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    try:
        with open(path, "rb") as file:
            # a private copy as soon as somebody writes to it, which torch wants to be possible
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
        value, _ = run(content, refers=False)
    except RecursionError:
        raise UserError(f"{path} is nested too deeply for a pickle of weights") from None
    except Exception as error:  # whatever odd bytes make the decoder raise
        raise UserError(f"{path} is truncated or no pickle: {one_line(error)}") from error
    return value


def run(content: memoryview, at: int = 0, *, refers: bool = True) -> tuple[Any, int]:
    """The value of the pickle that begins at byte `at`, and where it ends.

    refers  whether persistent ids may stand in it, which become `Persistent`
    Raises ValueError, or another error of Python's, for what is none.
    """
    machine, source = _Machine(content, refers), _Source(content, at)
    for count, (opcode, argument, _) in enumerate(pickletools.genops(cast(IO[bytes], source))):
        if count >= MOST:
            raise ValueError(f"more than {MOST:,} instructions")
        machine.step(opcode.name, argument, source.at)
    return machine.result(), source.at


class _Source:
    """Bytes as `pickletools` reads a file."""

    def __init__(self, content: memoryview, at: int):
        self.content, self.at = content, at

    def tell(self) -> int:
        return self.at

    def read(self, n: int) -> bytes | memoryview:
        start, self.at = self.at, min(self.at + n, len(self.content))
        part = self.content[start : self.at]
        return part if n > 2**20 else bytes(part)  # some of it wants to be bytes, long ones do not

    def readline(self) -> bytes:
        line = bytearray()
        while self.at < len(self.content) and not line.endswith(b"\n"):
            line += self.content[self.at : self.at + 1]
            self.at += 1
        return bytes(line)


PLAIN = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "SHORT_BINBYTES"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}  # whose argument is the value
LONG_BYTES = {"BINBYTES", "BINBYTES8", "BYTEARRAY8"}
FRESH: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_LIST": list,
    "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple, "EMPTY_SET": set,
}  # fmt: skip
WITHOUT_EFFECT = {"FRAME", "STOP", "READONLY_BUFFER"}


class _Machine:
    """The stack, the stacks below marks, and the memo; an instruction is a method of its name."""

    def __init__(self, content: memoryview, refers: bool):
        self.content, self.refers = content, refers
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def result(self) -> Any:
        if len(self.stack) != 1 or self.below:
            raise ValueError("it does not end with one value")
        return self.stack[0]

    def step(self, name: str, argument: Any, end: int) -> None:
        """Carry out an instruction, whose argument ends at byte `end`."""
        if name in PLAIN:
            self.stack.append(argument)
        elif name in LONG_BYTES:
            self.stack.append(self.content[end - len(argument) : end])
        elif name in FRESH:
            self.stack.append(FRESH[name]())
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name not in WITHOUT_EFFECT:
            instruction = getattr(self, f"do_{name.lower()}", None)
            if instruction is None:
                raise ValueError(f"the instruction {name} needs something outside of the file")
            instruction(argument)

    def marked(self) -> list[Any]:
        """All above the last mark, which is taken away."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def do_proto(self, protocol: int) -> None:
        if protocol > NEWEST:
            raise ValueError(f"its protocol is {protocol}; those to {NEWEST} are known")

    def do_mark(self, _: None) -> None:
        self.below.append(self.stack)
        self.stack = []

    def do_pop(self, _: None) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.marked()

    def do_pop_mark(self, _: None) -> None:
        self.marked()

    def do_dup(self, _: None) -> None:
        self.stack.append(self.stack[-1])

    def do_memoize(self, _: None) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    # containers

    def do_tuple(self, _: None) -> None:
        items = self.marked()
        self.stack.append(tuple(items))

    def do_tuple1(self, _: None) -> None:
        self.stack[-1:] = [tuple(self.last(1))]

    def do_tuple2(self, _: None) -> None:
        self.stack[-2:] = [tuple(self.last(2))]

    def do_tuple3(self, _: None) -> None:
        self.stack[-3:] = [tuple(self.last(3))]

    def last(self, n: int) -> list[Any]:
        if len(self.stack) < n:
            raise ValueError("an instruction lacks its operands")
        return self.stack[-n:]

    def do_list(self, _: None) -> None:
        items = self.marked()
        self.stack.append(items)

    def do_dict(self, _: None) -> None:
        items = self.marked()
        self.stack.append(dict(zip(items[::2], items[1::2], strict=True)))

    def do_frozenset(self, _: None) -> None:
        items = self.marked()
        self.stack.append(frozenset(items))

    def do_append(self, _: None) -> None:
        self.put_in([self.stack.pop()])

    def do_appends(self, _: None) -> None:
        self.put_in(self.marked())

    def put_in(self, items: list[Any]) -> None:
        target = self.stack[-1]
        target = target.items if isinstance(target, Made) else target
        if not isinstance(target, list):
            raise ValueError(f"it appends to a {type(target).__name__}")
        target.extend(items)

    def do_additems(self, _: None) -> None:
        items = self.marked()
        if not isinstance(self.stack[-1], set):
            raise ValueError(f"it adds to a {type(self.stack[-1]).__name__}, which is no set")
        self.stack[-1].update(items)

    def do_setitem(self, _: None) -> None:
        key, value = self.last(2)
        del self.stack[-2:]
        self.set_in([key, value])

    def do_setitems(self, _: None) -> None:
        self.set_in(self.marked())

    def set_in(self, items: list[Any]) -> None:
        target, pairs = self.stack[-1], list(zip(items[::2], items[1::2], strict=True))
        if isinstance(target, Made):
            target.pairs.extend(pairs)
        elif isinstance(target, dict):
            target.update(pairs)
        else:
            raise ValueError(f"it sets items of a {type(target).__name__}")

    # what would import, call or change an object: a record instead

    def do_global(self, argument: str) -> None:
        self.stack.append(Named(*argument.split(" ", 1)))  # as pickletools joins the two lines

    def do_stack_global(self, _: None) -> None:
        module, name = self.last(2)
        if not (isinstance(module, str) and isinstance(name, str)):
            raise ValueError("a name in it is no text")
        self.stack[-2:] = [Named(module, name)]

    def do_reduce(self, _: None) -> None:
        of, args = self.last(2)
        self.stack[-2:] = [Made(of, tuple(args))]

    do_newobj = do_reduce

    def do_newobj_ex(self, _: None) -> None:
        of, args, keywords = self.last(3)
        self.stack[-3:] = [Made(of, (*args, keywords) if keywords else tuple(args))]

    def do_obj(self, _: None) -> None:
        of, *args = self.marked()
        self.stack.append(Made(of, tuple(args)))

    def do_inst(self, argument: str) -> None:
        args = self.marked()
        self.stack.append(Made(Named(*argument.split(" ", 1)), tuple(args)))

    def do_build(self, _: None) -> None:
        target, state = self.last(2)
        del self.stack[-1]
        if not isinstance(target, Made):
            raise ValueError(f"it changes a {type(target).__name__}")
        target.state = state

    def do_persid(self, argument: str) -> None:
        self.refer(argument)

    def do_binpersid(self, _: None) -> None:
        self.refer(self.stack.pop())

    def refer(self, to: Any) -> None:
        if not self.refers:
            raise ValueError("it refers to something outside of it, by a persistent id")
        self.stack.append(Persistent(to))
