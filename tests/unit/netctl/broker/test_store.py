"""The store: what is written comes back, in one transaction, fenced."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import alembic.command
import attrs
import msgspec
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from netctl.broker.journal import FencedError, Remembered
from netctl.broker.migrations import schema
from netctl.broker.rows import Meta
from netctl.broker.snapshot import (
    Account,
    Change,
    Connection,
    Container,
    Delete,
    Held,
    Invite,
    Lease,
    Node,
    Pair,
    Put,
    Record,
    Rotation,
)
from netctl.broker.store import Store
from netctl.errors import InvalidError, UnavailableError
from netctl.model import ANY_PORT, DockerContainer, Port, Wish, Workload
from tests.support.hub import facts

META = Meta(3, 7, "10.0.0.0/8", 16, ("192.0.2.1/32",))
SECRET = attrs.evolve(META, encapsulations=("wireguard", "gre"), encryption="required", vxlan_port=14789)
ACCOUNT = Account("admin", "a" * 64, 1000.5)
NODES = tuple(
    Node(f"n{i}", i, f"10.{i}.0.0/16", f"{i:064d}", facts(i), draining=i == 2, revision=i) for i in (1, 2)
)
WORKLOAD = Workload("process", ("sleep", "ü\x00"), (("A", "b"),), "1:1", ("NET_RAW",), "/tmp")  # noqa: S108 - a value
CONTAINERS = tuple(
    Container(f"{i:032x}", "admin", f"c{i}", f"n{i}", f"10.{i}.0.2", WORKLOAD, "running", 2, 1000.25, 3)
    for i in (1, 2)
)
CONNECTIONS = (
    Connection(CONTAINERS[0].id, CONTAINERS[1].id, Port("tcp", 5432), 4, 1001.0, "admin"),
    Connection(CONTAINERS[1].id, CONTAINERS[0].id, Port("icmp"), 5, 1002.0, "admin", 2000.5),
    Connection(CONTAINERS[0].id, CONTAINERS[1].id, ANY_PORT, 6, 1003.0, "admin"),
)
INVITES = (Invite("b" * 64, "node", None, 2000.0), Invite("c" * 64, "user", "bob", 2000.0))
HELD = Held("10.1.0.9", "n1", 6, frozenset({"n1", "n2"}))
BOUND = Node("n3", 3, "10.3.0.0/16", f"{3:064d}", facts(3), labels=(("zone", "b"),), account="admin")
DOCKERS = Container(
    f"{3:032x}", "admin", "web", "n3", "10.3.0.2", Workload("docker", (), image="web:1"), "running", 1,
    1000.0, 3,
    DockerContainer(f"{3:032x}", "web", "web:1", "10.3.0.2", (Wish("db", Port("tcp", 1)),), "shop", "web"),
)  # fmt: skip
WISHED = Connection(DOCKERS.id, CONTAINERS[1].id, Port("tcp", 1), 7, 1004.0, "admin", wished=True)
LEASES = (Lease("10.3.0.3", "n3"), Lease("10.3.0.4", "n3"))
PAIRS = (Pair("n1", "n2", "vxlan", 1400), Pair("n1", "n3", "wireguard"))
ROTATION = Rotation("n2", 2, "spreading", 6, frozenset({"n1", "n3"}))
TURNED = Node("n4", 4, "10.4.0.0/16", f"{4:064d}", facts(4), generation=7)
RECORDS: tuple[Record, ...] = (
    ACCOUNT, *NODES, BOUND, TURNED, *CONTAINERS, DOCKERS, *CONNECTIONS, WISHED, *INVITES, HELD, *LEASES,
    *PAIRS, ROTATION,
)  # fmt: skip
OLD_TABLES = {
    "accounts": (("admin", "a" * 64, 1000.5),),
    "nodes": tuple(
        (n.name, n.index, n.block, n.key, msgspec.msgpack.encode(n.facts), n.draining, n.removing, n.revision)
        for n in NODES
    ),
    "containers": tuple(
        (
            c.id, c.account, c.name, c.node, c.address,
            msgspec.msgpack.encode(
                {"engine": "process", "argv": c.workload.argv, "env": c.workload.env, "user": c.workload.user,
                 "cap_add": c.workload.cap_add, "workdir": c.workload.workdir}
            ),
            c.wanted, c.generation, c.created_at, c.revision,
        )
        for c in CONTAINERS
    ),
    "connections": tuple(
        (
            c.source, c.destination, c.port.protocol, c.port.number, c.revision, c.created_at, c.created_by,
            c.expires_at,
        )
        for c in CONNECTIONS
    ),
}  # fmt: skip
"""Rows as the first schema had them."""
SECOND_TABLES = {
    "accounts": OLD_TABLES["accounts"],
    "nodes": tuple(
        (
            n.name, n.index, n.block, n.key, msgspec.msgpack.encode(n.facts), n.draining, n.removing,
            n.revision, msgspec.msgpack.encode(n.labels), n.account,
        )
        for n in (*NODES, BOUND)
    ),
    "containers": (
        (
            DOCKERS.id, DOCKERS.account, DOCKERS.name, DOCKERS.node, DOCKERS.address,
            msgspec.msgpack.encode(DOCKERS.workload), DOCKERS.wanted, DOCKERS.generation, DOCKERS.created_at,
            DOCKERS.revision, msgspec.msgpack.encode(DOCKERS.docker),
        ),
    ),
    "leases": tuple((lease.address, lease.node) for lease in LEASES),
}  # fmt: skip
"""Rows as the second schema had them."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path)
    store.create(META)
    yield store
    store.close()


def write(store: Store, *changes: Change, after: tuple[int, int] = (3, 8), **more: object) -> None:
    store.commit(list(changes), before=(3, 7), after=after, answers=list(more.get("answers", ())))  # type: ignore[call-overload]


def test_everything_comes_back_as_it_was(store: Store, tmp_path: Path) -> None:
    answer = Remembered("admin", "key", b"digest", b"answer", 1000.0)
    write(store, *map(Put, RECORDS), answers=[answer])
    store.close()
    again = Store(tmp_path)
    again.upgrade()
    meta, records, answers = again.load()
    again.close()
    assert meta == attrs.evolve(META, revision=8)
    assert sorted(map(repr, records)) == sorted(map(repr, RECORDS))
    assert answers == [answer]


def test_putting_again_overwrites_and_deleting_removes(store: Store) -> None:
    write(store, *map(Put, RECORDS))
    moved = attrs.evolve(CONTAINERS[0], wanted="stopped", generation=3)
    rest = attrs.evolve(HELD, awaiting=frozenset({"n2"}))
    changes: list[Change] = [Put(moved), Put(rest), Delete(CONNECTIONS[0]), Delete(INVITES[0])]
    store.commit(changes, before=(3, 8), after=(3, 9), answers=[])
    _, records, _ = store.load()
    assert moved in records
    assert rest in records
    assert len(records) == len(RECORDS) - 2
    assert not {CONTAINERS[0], CONNECTIONS[0], INVITES[0]} & {r for r in records if not isinstance(r, Node)}


def test_the_last_change_of_a_record_counts(store: Store) -> None:
    other = attrs.evolve(ACCOUNT, key="d" * 64)
    write(store, Put(ACCOUNT), Delete(ACCOUNT), Put(other), Put(INVITES[0]), Delete(INVITES[0]))
    assert store.load()[1] == [other]


def test_a_group_may_give_away_again_what_it_took(store: Store) -> None:
    write(store, *map(Put, (ACCOUNT, *NODES, *CONTAINERS)))
    heir = attrs.evolve(CONTAINERS[0], id="f" * 32)
    store.commit([Delete(CONTAINERS[0]), Put(heir)], before=(3, 8), after=(3, 9), answers=[])
    assert heir in store.load()[1]


def test_a_stale_broker_is_fenced_and_writes_nothing(store: Store) -> None:
    write(store, Put(ACCOUNT))
    for before in ((3, 7), (2, 8), (4, 8)):
        with pytest.raises(FencedError):
            store.commit([Put(INVITES[0])], before=before, after=(4, 9), answers=[])
    meta, records, _ = store.load()
    assert ((meta.epoch, meta.revision), records) == ((3, 8), [ACCOUNT])


def test_a_commit_that_breaks_the_schema_writes_nothing(store: Store) -> None:
    orphan = attrs.evolve(CONTAINERS[0], node="nowhere")
    with pytest.raises(UnavailableError, match="FOREIGN KEY"):
        write(store, Put(ACCOUNT), Put(orphan))
    meta, records, _ = store.load()
    assert (meta, records) == (META, [])
    write(store, Put(ACCOUNT))


def test_a_full_disk_is_a_clear_error_and_nothing_is_written(store: Store) -> None:
    with store.engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
    accounts = [Put(Account(f"user{i}", f"{i:064d}", 0.0)) for i in range(2000)]
    with pytest.raises(UnavailableError, match="full"):
        write(store, *accounts)
    assert store.load()[:2] == (META, [])


def test_a_commit_is_few_statements_however_many_changes(store: Store) -> None:
    statements: list[str] = []
    sa.event.listen(
        store.engine,
        "before_cursor_execute",
        lambda _connection, _cursor, statement, *_: statements.append(statement.split()[0]),
    )
    write(store, *map(Put, (ACCOUNT, *NODES, *CONTAINERS)))
    assert statements == ["BEGIN", "UPDATE", "DELETE", "INSERT", "INSERT", "INSERT"]
    statements.clear()
    connections = [Put(attrs.evolve(CONNECTIONS[0], port=Port("tcp", 1 + i))) for i in range(500)]
    store.commit(connections, before=(3, 8), after=(3, 508), answers=[])
    assert statements == ["BEGIN", "UPDATE", "INSERT"]


def test_it_is_durable_and_holds_references(store: Store) -> None:
    with store.engine.connect() as connection:
        values = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    assert values == ["wal", 2, 1]


def test_the_migrations_lead_to_the_tables_of_today(store: Store) -> None:
    with store.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []


Rows = dict[str, tuple[tuple[object, ...], ...]]


def old_database(directory: Path, schema_version: str, rows: Rows) -> Store:
    """Make a database of an earlier schema with what it could hold; return it brought up to date."""
    old = Store(directory)
    alembic.command.upgrade(old._migrations(), schema_version)
    with old.engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO meta VALUES (1, 3, 7, '10.0.0.0/8', 16, ?)", (msgspec.msgpack.encode(META.closed),)
        )
        for table, its_rows in rows.items():
            marks = ", ".join("?" * len(its_rows[0]))
            for row in its_rows:
                connection.exec_driver_sql(f"INSERT INTO {table} VALUES ({marks})", row)  # noqa: S608 - ours
    old.close()
    again = Store(directory)
    again.upgrade()
    again.upgrade()
    with again.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []
    return again


def test_a_database_of_the_first_schema_keeps_what_is_in_it(tmp_path: Path) -> None:
    again = old_database(tmp_path, "0001", OLD_TABLES)
    meta, records, _ = again.load()
    assert meta == META
    expected = (ACCOUNT, *NODES, *CONTAINERS, *CONNECTIONS)
    assert sorted(map(repr, records)) == sorted(map(repr, expected))
    later = {BOUND, DOCKERS, WISHED, *LEASES, *PAIRS, ROTATION}
    write(again, *map(Put, (BOUND, DOCKERS, WISHED, *LEASES, *PAIRS, ROTATION)))
    assert later <= set(again.load()[1])
    again.close()


def test_a_database_of_the_second_schema_keeps_what_is_in_it(tmp_path: Path) -> None:
    again = old_database(tmp_path, "0002", SECOND_TABLES)
    meta, records, _ = again.load()
    assert meta == META
    expected = (ACCOUNT, *NODES, BOUND, DOCKERS, *LEASES)
    assert sorted(map(repr, records)) == sorted(map(repr, expected))
    write(again, *map(Put, (TURNED, *PAIRS, ROTATION)))
    assert {TURNED, *PAIRS, ROTATION} <= set(again.load()[1])
    again.close()


def test_what_the_operator_allows_of_tunnels_comes_back(tmp_path: Path) -> None:
    made = Store(tmp_path)
    made.create(SECRET)
    assert made.load()[0] == SECRET
    made.close()


def test_a_pair_that_changes_is_one_statement(store: Store) -> None:
    write(store, *map(Put, NODES))
    statements: list[str] = []
    sa.event.listen(
        store.engine,
        "before_cursor_execute",
        lambda _connection, _cursor, statement, *_: statements.append(" ".join(statement.split()[:3])),
    )
    store.commit([Put(PAIRS[0])], before=(3, 8), after=(3, 9), answers=[])
    store.commit([Delete(PAIRS[0])], before=(3, 9), after=(3, 10), answers=[])
    fence = ["BEGIN IMMEDIATE", "UPDATE meta SET"]
    assert statements == [*fence, "INSERT INTO pairs", *fence, "DELETE FROM pairs"]


def test_names_and_addresses_change_hands_within_one_group(store: Store) -> None:
    write(store, *map(Put, (ACCOUNT, *NODES, *CONTAINERS, *CONNECTIONS)))
    one, other = CONTAINERS
    swapped = (
        attrs.evolve(one, name=other.name, address=other.address),
        attrs.evolve(other, name=one.name, address=one.address),
    )
    store.commit([*map(Put, swapped)], before=(3, 8), after=(3, 9), answers=[])
    records = store.load()[1]
    assert set(swapped) <= set(records)
    assert set(CONNECTIONS) <= set(records)


def test_a_database_of_a_newer_program_is_refused(store: Store, tmp_path: Path) -> None:
    with store.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num='9999'")
    store.close()
    again = Store(tmp_path)
    with pytest.raises(InvalidError, match="schema 9999"):
        again.upgrade()
    again.close()


@pytest.mark.parametrize("contents", [b"", b"this is no database, whatever it may be" * 50])
def test_what_is_no_brokers_database_is_refused(tmp_path: Path, contents: bytes) -> None:
    (tmp_path / "broker.sqlite").write_bytes(contents)
    with pytest.raises((InvalidError, UnavailableError), match=r"schema none|not a database"):
        Store(tmp_path).upgrade()


def test_answers_are_forgotten_by_age_and_by_number(store: Store) -> None:
    answers = [Remembered("admin", str(i), b"d", b"a", 1000.0 + i) for i in range(10)]
    write(store, answers=answers)
    store.forget(1003.0, 100)
    assert store.load()[2] == answers[3:]
    store.forget(0.0, 4)
    assert store.load()[2] == answers[6:]


def test_an_answer_takes_the_place_of_a_forgotten_one(store: Store) -> None:
    write(store, answers=[Remembered("admin", "k", b"d", b"old", 1000.0)])
    newer = Remembered("admin", "k", b"e", b"new", 9000.0)
    store.commit([], before=(3, 8), after=(3, 8), answers=[newer])
    assert store.load()[2] == [newer]


def test_other_closed_networks_are_another_revision(store: Store) -> None:
    store.set_closed(("198.51.100.1/32",), before=(3, 7))
    assert store.load()[0] == attrs.evolve(META, closed=("198.51.100.1/32",), revision=8)
    with pytest.raises(FencedError):
        store.set_closed((), before=(3, 7))
