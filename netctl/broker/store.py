"""What the broker has recorded, in SQLite: one table per record type, one transaction per group of decisions.

Every commit is fenced by the epoch and revision it starts from: where another broker wrote meanwhile, no
row matches, nothing is written, and `FencedError` tells this one to step down. The schema is made and
brought up to date by the migrations beside this file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import alembic.command
import alembic.config
import alembic.script
import attrs
import msgspec
import sqlalchemy as sa
from alembic.runtime.migration import MigrationContext
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import StaticPool

from netctl.broker import rows
from netctl.broker.journal import FencedError, Remembered
from netctl.broker.migrations import schema
from netctl.broker.rows import Meta
from netctl.broker.snapshot import (
    Account,
    Change,
    Connection,
    Container,
    Held,
    Invite,
    Lease,
    Node,
    Pair,
    Put,
    Record,
    Rotation,
)
from netctl.errors import InvalidError, UnavailableError

DATABASE: Final = "broker.sqlite"
_MIGRATIONS: Final = Path(__file__).parent / "migrations"


@attrs.frozen
class _Kind:
    """How one record type lies in its table.

    Attributes:
        moves: What is unique among its records (a name, an address) may pass from one that stays to another
            that stays, so that rows are written over only after all of them were taken out.
    """

    table: sa.Table
    row: Callable[[Any], dict[str, Any]]
    record: Callable[[Any], Record]
    moves: bool = False

    def identity(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(row[column.name] for column in self.table.primary_key)

    def delete(self) -> sa.Delete:
        # An executemany may not name its parameters as the columns are named.
        return sa.delete(self.table).where(
            *(column == sa.bindparam(f"old_{column.name}") for column in self.table.primary_key)
        )


def _upsert(table: sa.Table) -> sa.Insert:
    statement = sqlite.insert(table)
    own = [column.name for column in table.primary_key]
    rest = {c.name: statement.excluded[c.name] for c in table.columns if c.name not in own}
    return statement.on_conflict_do_update(index_elements=own, set_=rest)


_KINDS: Final[dict[type, _Kind]] = {
    Account: _Kind(schema.ACCOUNTS, rows.fields, lambda row: Account(**row)),
    Node: _Kind(schema.NODES, rows.node_row, rows.node_of),
    Container: _Kind(schema.CONTAINERS, rows.container_row, rows.container_of, moves=True),
    Connection: _Kind(schema.CONNECTIONS, rows.connection_row, rows.connection_of),
    Invite: _Kind(
        schema.INVITES,
        rows.fields,
        lambda row: Invite(**row | {"kind": msgspec.convert(row["kind"], Literal["user", "node"])}),
    ),
    Held: _Kind(
        schema.HELD,
        lambda held: rows.fields(held) | {"awaiting": rows.pack(sorted(held.awaiting))},
        lambda row: Held(**row | {"awaiting": frozenset(rows.unpack(row["awaiting"], list[str]))}),
    ),
    Lease: _Kind(schema.LEASES, rows.fields, lambda row: Lease(**row)),
    Pair: _Kind(schema.PAIRS, rows.fields, rows.pair_of),
    Rotation: _Kind(schema.ROTATIONS, rows.rotation_row, rows.rotation_of),
}
_UPSERTS: Final = {kind: _upsert(how.table) for kind, how in _KINDS.items()}
_DELETES: Final = {kind: how.delete() for kind, how in _KINDS.items()}
_REMEMBER: Final = _upsert(schema.ANSWERS)
_FENCE: Final = (
    sa.update(schema.META)
    .where(
        schema.META.c.epoch == sa.bindparam("old_epoch"),
        schema.META.c.revision == sa.bindparam("old_revision"),
    )
    .values(epoch=sa.bindparam("new_epoch"), revision=sa.bindparam("new_revision"))
)


class Store:
    """One open database. It belongs to one thread, and holds one connection for its life.

    Args:
        directory: Where `DATABASE` is.

    Raises:
        UnavailableError: It cannot be opened.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / DATABASE
        self.engine = sa.create_engine(f"sqlite:///{self.path}", poolclass=StaticPool)
        sa.event.listen(self.engine, "connect", _prepare)
        sa.event.listen(
            self.engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE")
        )
        try:
            self._connection = self.engine.connect()
        except SQLAlchemyError as error:
            raise _unwritable(error) from error

    def close(self) -> None:
        """Close the database; SQLite then folds its write-ahead log into it."""
        self._connection.close()
        self.engine.dispose()

    def create(self, meta: Meta, changes: Iterable[Change] = ()) -> None:
        """Make the schema, and record what a new broker starts with.

        Raises:
            UnavailableError: It cannot be written.
        """
        try:
            alembic.command.upgrade(self._migrations(), "head")
            with self._transaction():
                self._connection.execute(sa.insert(schema.META), rows.meta_row(meta) | {"id": 1})
                self._write(changes)
        except SQLAlchemyError as error:
            raise _unwritable(error) from error

    def upgrade(self) -> None:
        """Bring an older schema up to date; one that is up to date is not touched.

        Raises:
            InvalidError: It is no broker's database, or a newer program's.
        """
        config = self._migrations()
        script = alembic.script.ScriptDirectory.from_config(config)
        try:
            with self._transaction():
                found = MigrationContext.configure(self._connection).get_current_revision()
            known = {revision.revision for revision in script.walk_revisions()}
            if found not in known:
                raise InvalidError(
                    f"{self.path} is of schema {found or 'none'}, which this program does not know",
                    "run the newer netctl that wrote it, or restore a backup",
                )
            if found != script.get_current_head():
                alembic.command.upgrade(config, "head")
        except SQLAlchemyError as error:
            raise InvalidError(f"{self.path} is no readable database: {error}", "restore a backup") from error

    def load(self) -> tuple[Meta, list[Record], list[Remembered]]:
        """Return all that is recorded.

        Raises:
            InvalidError: Something in it is not as this program writes it.
        """
        try:
            with self._transaction():
                row = dict(self._connection.execute(sa.select(schema.META)).mappings().one())
                del row["id"]
                meta = rows.meta_of(row)
                records = [
                    kind.record(dict(row))
                    for kind in _KINDS.values()
                    for row in self._connection.execute(sa.select(kind.table)).mappings()
                ]
                answers = [
                    Remembered(**row)
                    for row in self._connection.execute(
                        sa.select(schema.ANSWERS).order_by(schema.ANSWERS.c.created_at)
                    ).mappings()
                ]
        except (SQLAlchemyError, msgspec.MsgspecError, ValueError) as error:
            raise InvalidError(f"{self.path} cannot be read: {error}", "restore a backup") from error
        return meta, records, answers

    def commit(
        self,
        changes: list[Change],
        *,
        before: tuple[int, int],
        after: tuple[int, int],
        answers: list[Remembered],
    ) -> None:
        """Write everything or nothing, durably, in one transaction.

        Args:
            changes: In the order they were decided.
            before: Epoch and revision this starts from.
            after: Epoch and revision it leads to.
            answers: To remember.

        Raises:
            FencedError: The store is not at `before`; nothing was written.
            UnavailableError: It cannot be written; nothing was.
        """
        fence = {
            "old_epoch": before[0],
            "old_revision": before[1],
            "new_epoch": after[0],
            "new_revision": after[1],
        }
        remembered = [rows.fields(answer) for answer in answers]
        try:
            with self._transaction():
                if self._connection.execute(_FENCE, fence).rowcount != 1:
                    raise FencedError(
                        "another broker has taken over this store", "stop this one, or the other"
                    )
                self._write(changes)
                if remembered:
                    self._connection.execute(_REMEMBER, remembered)
        except SQLAlchemyError as error:
            raise _unwritable(error) from error

    def forget(self, before: float, keep: int) -> None:
        """Drop remembered answers that are too old or too many.

        Args:
            before: Those made before this time (seconds since 1970).
            keep: All but so many of the newest.

        Raises:
            UnavailableError: It cannot be written.
        """
        newest = (
            sa.select(schema.ANSWERS.c.created_at)
            .order_by(schema.ANSWERS.c.created_at.desc())
            .offset(keep)
            .limit(1)
            .scalar_subquery()
        )
        old = sa.or_(schema.ANSWERS.c.created_at < before, schema.ANSWERS.c.created_at <= newest)
        try:
            with self._transaction():
                self._connection.execute(sa.delete(schema.ANSWERS).where(old))
        except SQLAlchemyError as error:
            raise _unwritable(error) from error

    def set_closed(self, closed: tuple[str, ...], *, before: tuple[int, int]) -> None:
        """Record other closed networks, at the next revision.

        Raises:
            FencedError: The store is not at `before`.
            UnavailableError: It cannot be written.
        """
        statement = (
            sa.update(schema.META)
            .where(schema.META.c.epoch == before[0], schema.META.c.revision == before[1])
            .values(closed=rows.pack(closed), revision=before[1] + 1)
        )
        try:
            with self._transaction():
                if self._connection.execute(statement).rowcount != 1:
                    raise FencedError("another broker has taken over this store", "stop the other one")
        except SQLAlchemyError as error:
            raise _unwritable(error) from error

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            with self._connection.begin():
                yield
        except BaseException:
            # A COMMIT that fails leaves SQLite within its transaction (https://sqlite.org/lang_transaction.html).
            driver: Any = self._connection.connection.driver_connection
            if driver.in_transaction:
                driver.rollback()
            raise

    def _write(self, changes: Iterable[Change]) -> None:
        """Write the last change of every record: deletions first, for what is unique among records."""
        last: dict[tuple[type, tuple[Any, ...]], tuple[bool, dict[str, Any]]] = {}
        for change in changes:
            kind = type(change.record)
            row = _KINDS[kind].row(change.record)
            last[kind, _KINDS[kind].identity(row)] = (isinstance(change, Put), row)
        deletes: dict[type, list[dict[str, Any]]] = {}
        puts: dict[type, list[dict[str, Any]]] = {}
        for (kind, identity), (put, row) in last.items():
            if put:
                puts.setdefault(kind, []).append(row)
            if not put or _KINDS[kind].moves:
                names = [f"old_{column.name}" for column in _KINDS[kind].table.primary_key]
                deletes.setdefault(kind, []).append(dict(zip(names, identity, strict=True)))
        for kind, identities in deletes.items():
            self._connection.execute(_DELETES[kind], identities)
        for kind, written in puts.items():
            self._connection.execute(_UPSERTS[kind], written)

    def _migrations(self) -> alembic.config.Config:
        config = alembic.config.Config()
        config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
        config.attributes["connection"] = self._connection
        return config


def _prepare(connection: Any, _record: object) -> None:
    """Set up a fresh SQLite connection (https://sqlite.org/pragma.html)."""
    # SQLAlchemy begins transactions itself, by its `begin` event.
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=2000"):
        connection.execute(f"PRAGMA {pragma}").close()


def _unwritable(error: SQLAlchemyError) -> UnavailableError:
    reason = str(getattr(error, "orig", None) or error).splitlines()[0]
    return UnavailableError(
        f"the broker cannot use its database: {reason}", "check the disk's space and the directory's owner"
    )
