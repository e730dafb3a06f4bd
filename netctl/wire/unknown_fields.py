"""Counts the fields of an encoded message that its class does not know, at any depth.

Unknown values are never built: a map's header says how many entries it has, and only the known ones are
taken out, as raw bytes. So a hostile message costs no more memory than it has bytes. The bytes must have been
decoded as the class without an error before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import msgspec
from msgspec import UNSET, Raw, UnsetType, inspect

Counter = Callable[[bytes | Raw], int]

_LIST = msgspec.msgpack.Decoder(list[Raw])
_MAP = msgspec.msgpack.Decoder(dict[str, Raw])
_NIL = 0xC0


def count_unknown(kind: type, data: bytes | Raw) -> int:
    """Return how many fields of `data`, a valid encoding of `kind`, no class within `kind` knows."""
    counter = _counter_of_class(kind)
    return counter(data)


@functools.cache
def _counter_of_class(kind: type) -> Counter:
    described = inspect.type_info(kind)
    if not isinstance(described, inspect.DataclassType | inspect.StructType):
        raise TypeError(f"{kind} is no class with fields")
    names = tuple(field.encode_name for field in described.fields)
    nested = tuple(
        (field.encode_name, counter)
        for field in described.fields
        if (counter := _counter(field.type)) is not None
    )
    known = msgspec.defstruct(
        f"Known{kind.__name__}", [(name, Raw | UnsetType, UNSET) for name in names], rename=None
    )
    decoder = msgspec.msgpack.Decoder(known)

    def count(data: bytes | Raw) -> int:
        values = decoder.decode(data)
        present = sum(getattr(values, name) is not UNSET for name in names)
        inner = sum(
            counter(value) for name, counter in nested if (value := getattr(values, name)) is not UNSET
        )
        return _entries(memoryview(data)) - present + inner

    return count


def _counter(described: inspect.Type) -> Counter | None:
    """Return what counts within a value of this type; None where no unknown field can be."""
    match described:
        case inspect.DataclassType() | inspect.StructType():
            return _counter_of_class(described.cls)
        case inspect.CollectionType():
            return _counter_of_items(_counter(described.item_type))
        case inspect.DictType():
            return _counter_of_values(_counter(described.value_type))
        case inspect.UnionType():
            return _counter_of_optional([_counter(one) for one in described.types])
        case _:
            return None


def _counter_of_items(item: Counter | None) -> Counter | None:
    return None if item is None else lambda data: sum(map(item, _LIST.decode(data)))


def _counter_of_values(value: Counter | None) -> Counter | None:
    return None if value is None else lambda data: sum(map(value, _MAP.decode(data).values()))


def _counter_of_optional(members: list[Counter | None]) -> Counter | None:
    """A union holds at most one class with fields (msgspec could not tell two apart), and maybe None."""
    for member in members:
        if member is not None:
            return lambda data: 0 if memoryview(data)[0] == _NIL else member(data)
    return None


def _entries(data: memoryview) -> int:
    """Return how many entries the map at the start of `data` has (MessagePack: fixmap, map 16, map 32)."""
    first = data[0]
    if first == 0xDE:  # noqa: PLR2004 - the format's own code for map 16
        return int.from_bytes(data[1:3], "big")
    if first == 0xDF:  # noqa: PLR2004 - the format's own code for map 32
        return int.from_bytes(data[1:5], "big")
    return first & 0x0F
