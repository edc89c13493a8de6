"""Read a pickle as data: an opcode reader that never imports, calls or looks up anything.

What a pickle would do with classes and functions is asked of a `World`, which answers with inert
values or refuses. https://docs.python.org/3/library/pickletools.html documents the opcodes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import cache
from itertools import repeat

from surgeon.formats.checkpoint import LONGEST_PICKLE, plain_key
from surgeon.formats.pickle_machine import IN_ORDER, EndsEarlyError, Machine, World

# Real pickles hold small integers; a long one costs quadratic time to print.
_LONGEST_INTEGER = 255
# Takes a few seconds; 100 000 tensors take 5 million.
_MOST_OPCODES = 40_000_000
# In bytes, of objects of their own and of their places in what holds them.
_NUMBER, _TEXT, _TUPLE, _LIST, _DICT, _SET, _CALL = 40, 64, 64, 72, 80, 232, 100
_ITEM, _ENTRY, _FIRST_ENTRY = 8, 40, 160

Handler = Callable[[Machine, int], int]
_HANDLERS: dict[int, Handler] = {}
_INT32 = struct.Struct("<i")
# What the opcodes below raise where the stack, the memo or the bytes are not what they need.
_MISPLACED = (IndexError, KeyError, TypeError, AttributeError, UnicodeError, struct.error)
_PLAIN_KEYS = frozenset({str, int, float, bool, bytes, type(None)})


def read(data: bytes, world: World) -> object:
    """Return what a pickle holds; raises ValueError where it is none, or `world` refuses."""
    return read_first(data, world)[0]


def read_first(data: bytes, world: World) -> tuple[object, int]:
    """Return what the pickle that bytes begin with holds, and where it ends.

    Raises EndsEarlyError where the bytes end before it does.
    """
    if len(data) > LONGEST_PICKLE:
        raise ValueError(f"found {len(data)} bytes, expected at most {LONGEST_PICKLE}")
    machine = Machine(data, world)
    handlers = _handlers()
    position = following = 0
    try:
        for _ in repeat(None, _MOST_OPCODES):
            following = handlers[data[position]](machine, position + 1)
            if following < 0:
                break
            position = following
        else:
            raise ValueError(f"found more than {_MOST_OPCODES} opcodes")
    except _MISPLACED as error:
        is_at_end = position >= len(data) or isinstance(error, struct.error)
        name = f"opcode {data[position : position + 1]!r}" if position < len(data) else "the end"
        failure = EndsEarlyError if is_at_end else ValueError
        raise failure(f"byte {position}: found {name}, which cannot stand there") from None
    except ValueError as error:
        raise type(error)(f"byte {position}: {error}") from None
    if len(machine.stack) != 1:
        raise ValueError(f"found {len(machine.stack)} values at its end, expected one")
    return machine.stack[0], position + 1


@cache
def _handlers() -> list[Handler]:
    return [_HANDLERS.get(code, _unknown) for code in range(256)]


def _on(code: bytes) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        _HANDLERS[code[0]] = handler
        return handler

    return register


def _unknown(machine: Machine, position: int) -> int:
    code = machine.data[position - 1 : position]
    raise ValueError(f"found opcode {code!r}, which no checkpoint needs")


def _push_constant(code: bytes, value: object) -> None:
    @_on(code)
    def handler(machine: Machine, position: int) -> int:
        machine.stack.append(value)
        return position


def _push_container(code: bytes, make: Callable[[], object], size_bytes: int) -> None:
    @_on(code)
    def handler(machine: Machine, position: int) -> int:
        machine.spend(size_bytes)
        machine.stack.append(make())
        return position


for _code, _value in ((b"N", None), (b"\x88", True), (b"\x89", False), (b")", ())):
    _push_constant(_code, _value)
for _code, _make, _size in ((b"}", dict, _DICT), (b"]", list, _LIST), (b"\x8f", set, _SET)):
    _push_container(_code, _make, _size)


def _push_sized(code: bytes, width: int, convert: Callable[[bytes], object]) -> None:
    """Register an opcode that a length of `width` bytes and that many bytes follow."""

    @_on(code)
    def handler(machine: Machine, position: int) -> int:
        start = position + width
        length = int.from_bytes(machine.bytes_at(position, width), "little")
        value = convert(machine.bytes_at(start, length))
        machine.spend(_TEXT + length)
        machine.stack.append(value)
        return start + length


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def _integer(data: bytes) -> int:
    if len(data) > _LONGEST_INTEGER:
        raise ValueError(f"found an integer of {len(data)} bytes")
    return int.from_bytes(data, "little", signed=True)


for _code, _width, _convert in (
    (b"\x8c", 1, _text), (b"X", 4, _text), (b"\x8d", 8, _text),
    (b"U", 1, bytes.decode), (b"T", 4, bytes.decode),
    (b"C", 1, bytes), (b"B", 4, bytes), (b"\x8e", 8, bytes), (b"\x96", 8, bytes),
    (b"\x8a", 1, _integer), (b"\x8b", 4, _integer),
):  # fmt: skip
    _push_sized(_code, _width, _convert)


@_on(b"\x80")  # PROTO
def _protocol(machine: Machine, position: int) -> int:
    if machine.data[position] > 5:
        raise ValueError(f"found pickle protocol {machine.data[position]}, expected at most 5")
    return position + 1


@_on(b"\x95")  # FRAME: how much follows, which we have already
def _frame(machine: Machine, position: int) -> int:
    return position + 8


@_on(b".")  # STOP
def _stop(machine: Machine, position: int) -> int:
    if machine.marks:
        raise ValueError("found the end inside a tuple or a list")
    return -1


@_on(b"(")
def _mark(machine: Machine, position: int) -> int:
    machine.marks.append(len(machine.stack))
    return position


@_on(b"0")
def _pop(machine: Machine, position: int) -> int:
    machine.stack.pop()
    return position


@_on(b"1")
def _pop_mark(machine: Machine, position: int) -> int:
    machine.since_mark()
    return position


@_on(b"q")  # BINPUT
def _put(machine: Machine, position: int) -> int:
    machine.remember(machine.data[position])
    return position + 1


@_on(b"r")  # LONG_BINPUT
def _put_long(machine: Machine, position: int) -> int:
    machine.remember(_INT32.unpack_from(machine.data, position)[0])
    return position + 4


@_on(b"\x94")
def _memoize(machine: Machine, position: int) -> int:
    # Nothing is as frequent, so `remember` is not asked.
    machine.spend(IN_ORDER)
    machine.memo.append(machine.stack[-1])
    return position


@_on(b"h")  # BINGET
def _get(machine: Machine, position: int) -> int:
    number = machine.data[position]
    memo = machine.memo
    machine.stack.append(memo[number] if number < len(memo) else machine.remembered(number))
    return position + 1


@_on(b"j")  # LONG_BINGET
def _get_long(machine: Machine, position: int) -> int:
    machine.stack.append(machine.remembered(_INT32.unpack_from(machine.data, position)[0]))
    return position + 4


@_on(b"K")  # BININT1
def _integer1(machine: Machine, position: int) -> int:
    machine.stack.append(machine.data[position])
    return position + 1


def _push_number(code: bytes, form: struct.Struct) -> None:
    @_on(code)
    def handler(machine: Machine, position: int) -> int:
        value = form.unpack_from(machine.data, position)[0]
        if value.__class__ is not int or not -6 < value < 257:  # those Python has already
            machine.spend(_NUMBER)
        machine.stack.append(value)
        return position + form.size


_push_number(b"M", struct.Struct("<H"))  # BININT2
_push_number(b"J", _INT32)  # BININT
_push_number(b"G", struct.Struct(">d"))  # BINFLOAT


@_on(b"t")  # TUPLE
def _tuple(machine: Machine, position: int) -> int:
    items = machine.since_mark()
    machine.spend(_TUPLE + _ITEM * len(items))
    machine.stack.append(tuple(items))
    return position


@_on(b"\x85")
def _tuple1(machine: Machine, position: int) -> int:
    machine.spend(_TUPLE)
    machine.stack[-1] = (machine.stack[-1],)
    return position


@_on(b"\x86")
def _tuple2(machine: Machine, position: int) -> int:
    second = machine.stack.pop()
    machine.spend(_TUPLE)
    machine.stack[-1] = (machine.stack[-1], second)
    return position


@_on(b"\x87")
def _tuple3(machine: Machine, position: int) -> int:
    third, second = machine.stack.pop(), machine.stack.pop()
    machine.spend(_TUPLE)
    machine.stack[-1] = (machine.stack[-1], second, third)
    return position


def _set(machine: Machine, value: object, items: list[object]) -> None:
    if len(items) % 2:
        raise ValueError("found a key without a value")
    machine.spend(_ENTRY * len(items) // 2)
    if type(value) is not dict:
        pairs = list(zip(items[::2], items[1::2], strict=True))
        machine.spend(_TUPLE * len(pairs))
        machine.world.update(value, pairs)
        return
    if not value and items:
        machine.spend(_FIRST_ENTRY)
    for name, item in zip(items[::2], items[1::2], strict=True):
        value[name if type(name) in _PLAIN_KEYS else plain_key(name)] = item


@_on(b"s")  # SETITEM
def _set_item(machine: Machine, position: int) -> int:
    items = machine.stack[-2:]
    del machine.stack[-2:]
    _set(machine, machine.stack[-1], items)
    return position


@_on(b"u")  # SETITEMS
def _set_items(machine: Machine, position: int) -> int:
    items = machine.since_mark()
    _set(machine, machine.stack[-1], items)
    return position


def _extend(machine: Machine, value: object, items: list[object]) -> None:
    machine.spend(_ITEM * len(items))
    if type(value) is list:
        value.extend(items)
    elif type(value) is set:
        machine.spend(_ENTRY * len(items))
        value.update(plain_key(item) for item in items)
    else:
        machine.world.extend(value, items)


@_on(b"a")  # APPEND
def _append(machine: Machine, position: int) -> int:
    item = machine.stack.pop()
    _extend(machine, machine.stack[-1], [item])
    return position


@_on(b"e")  # APPENDS
@_on(b"\x90")  # ADDITEMS
def _append_all(machine: Machine, position: int) -> int:
    items = machine.since_mark()
    _extend(machine, machine.stack[-1], items)
    return position


@_on(b"\x91")
def _frozenset(machine: Machine, position: int) -> int:
    items = machine.since_mark()
    machine.spend(_SET + _ENTRY * len(items))
    machine.stack.append(frozenset(plain_key(item) for item in items))
    return position


@_on(b"c")
def _global(machine: Machine, position: int) -> int:
    module = machine.line_at(position)
    name = machine.line_at(position + len(module.encode()) + 1)
    machine.stack.append(machine.world.find(module, name))
    return position + len(module.encode()) + len(name.encode()) + 2


@_on(b"\x93")  # STACK_GLOBAL
def _stack_global(machine: Machine, position: int) -> int:
    name, module = machine.stack.pop(), machine.stack.pop()
    if type(name) is not str or type(module) is not str:
        raise ValueError("found a global whose name is not text")
    machine.stack.append(machine.world.find(module, name))
    return position


@_on(b"R")  # REDUCE
@_on(b"\x81")  # NEWOBJ
def _call(machine: Machine, position: int) -> int:
    arguments = machine.stack.pop()
    if type(arguments) is not tuple:
        raise ValueError("found a call without a tuple of arguments")
    machine.spend(_CALL)
    machine.stack[-1] = machine.world.call(machine.stack[-1], arguments)
    return position


@_on(b"\x92")  # NEWOBJ_EX
def _call_with_keywords(machine: Machine, position: int) -> int:
    machine.stack.pop()
    return _call(machine, position)


@_on(b"b")
def _build(machine: Machine, position: int) -> int:
    state = machine.stack.pop()
    machine.world.build(machine.stack[-1], state)
    return position


@_on(b"Q")  # BINPERSID
def _persistent(machine: Machine, position: int) -> int:
    machine.stack[-1] = machine.world.storage(machine.stack[-1])
    return position
