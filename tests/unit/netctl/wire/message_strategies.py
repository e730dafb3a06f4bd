"""Hypothesis strategies for any message, from the types msgspec checks; and unknown fields put into one."""

from __future__ import annotations

import random
from typing import Any

import msgspec
from hypothesis import strategies as st
from msgspec import inspect

from netctl.model import Port

PORTS = st.one_of(
    st.sampled_from([Port("any"), Port("icmp")]),
    st.builds(Port, st.sampled_from(["tcp", "udp"]), st.integers(1, 65535)),
)


def messages_of(kind: type) -> st.SearchStrategy[Any]:
    """Any instance of a class the codec takes."""
    return _strategy(inspect.type_info(kind))


def _strategy(  # noqa: C901, PLR0911, PLR0912 - one case for each kind of type
    described: inspect.Type,
) -> st.SearchStrategy[Any]:
    match described:
        case inspect.DataclassType(cls=cls) if cls is Port:
            return PORTS
        case inspect.DataclassType():
            fields = {field.name: _strategy(field.type) for field in described.fields}
            return st.builds(described.cls, **fields)
        case inspect.UnionType():
            return st.one_of([_strategy(one) for one in described.types])
        case inspect.NoneType():
            return st.none()
        case inspect.BoolType():
            return st.booleans()
        case inspect.IntType():
            low = -(2**63) if described.ge is None else described.ge
            high = 2**63 - 1 if described.le is None else described.le
            return st.integers(low, high if described.lt is None else described.lt - 1)
        case inspect.FloatType():
            return st.floats(described.ge, described.le, allow_nan=False)
        case inspect.StrType() if described.pattern:
            return st.from_regex(described.pattern, fullmatch=True).filter(
                lambda text: described.max_length is None or len(text) <= described.max_length
            )
        case inspect.StrType():
            return st.text(min_size=described.min_length or 0, max_size=min(described.max_length or 20, 20))
        case inspect.BytesType():
            return st.binary(max_size=40)
        case inspect.LiteralType():
            return st.sampled_from(described.values)
        case inspect.VarTupleType():
            return st.lists(
                _strategy(described.item_type), min_size=described.min_length or 0, max_size=3
            ).map(tuple)
        case inspect.TupleType():
            return st.tuples(*(_strategy(one) for one in described.item_types))
        case inspect.FrozenSetType():
            return st.frozensets(_strategy(described.item_type), max_size=3)
        case inspect.DictType():
            return st.dictionaries(_strategy(described.key_type), _strategy(described.value_type), max_size=3)
        case _:
            raise TypeError(f"no strategy for {described}")


def with_unknown_fields(message: Any, chance: random.Random) -> tuple[bytes, int]:
    """Return the encoded `message` with unknown fields put in at random, and how many they are."""
    plain = msgspec.msgpack.decode(msgspec.msgpack.encode(message))
    added = _add_unknown(inspect.type_info(type(message)), plain, chance)
    return msgspec.msgpack.encode(plain), added


def _add_unknown(described: inspect.Type, value: Any, chance: random.Random) -> int:
    match described:
        case inspect.DataclassType():
            added = sum(_add_unknown(field.type, value[field.name], chance) for field in described.fields)
            more = chance.choice([0, 0, 1, 2, 17])
            for number in range(more):
                value[f"later_{number}"] = chance.choice([None, 1, [{"x": {}}], {"name": "web"}, b"\xff"])
            return added + more
        case inspect.CollectionType():
            return sum(_add_unknown(described.item_type, one, chance) for one in value)
        case inspect.DictType():
            return sum(_add_unknown(described.value_type, one, chance) for one in value.values())
        case inspect.UnionType() if value is not None:
            classes = [one for one in described.types if isinstance(one, inspect.DataclassType)]
            return _add_unknown(classes[0], value, chance) if classes else 0
        case _:
            return 0
