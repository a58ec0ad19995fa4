"""By which number the database knows the volume that its carts are on; blocking, for the start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, delete, exists, insert, select

from cartd.store.schema import lock_schema, schema_transaction
from cartd.store.tables import cart, cartsystem

_PART = "volume"
_NUMBER = select(cartsystem.c.value).where(cartsystem.c.part == _PART)
_HAS_CARTS = select(exists().where(cart.c.deleted_date.is_(None), cart.c.files_staged > 0))


class VolumeRecord:
    """What the database says; nobody else changes it meanwhile."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def number(self) -> int | None:
        """None as long as nobody has given it one."""
        return self._connection.scalar(_NUMBER)

    @property
    def has_carts(self) -> bool:
        """Whether something of a living cart should be on the volume."""
        return bool(self._connection.scalar(_HAS_CARTS))

    def write(self, number: int) -> None:
        """``number`` is one of 31 bits."""
        self._connection.execute(delete(cartsystem).where(cartsystem.c.part == _PART))
        self._connection.execute(insert(cartsystem).values(part=_PART, value=number))


@contextmanager
def volume_record(url: str) -> Iterator[VolumeRecord]:
    """Look and write in one transaction; an exception leaves nothing written.

    Raises ``Unavailable``.
    """
    with schema_transaction(url) as connection:
        lock_schema(connection)
        yield VolumeRecord(connection)
