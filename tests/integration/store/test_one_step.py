"""Statements about many rows in one step: they do what SQLAlchemy would, whatever is there already, over both databases.
Standard: the numbers of rows around those that are in one step.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import Connection, bindparam, delete, select

from relay.store.database import Database, open_database
from relay.store.delivery_attempts import opened_rows as rows
from relay.store.one_step import InsertNew, OneStep, PutRows, steps
from tests.testlib.databases import Backend

NUMBERS = (0, 1, 15, 16, 17, 80, 597)


@pytest.fixture
async def database(backend: Backend) -> AsyncIterator[Database]:
    opened = await open_database(backend.where, busy_timeout=5.0)
    yield opened
    await opened.close()


def made(numbers: range, fingerprint: bytes = b"f" * 32) -> list[dict[str, object]]:
    return [{"mail": b"%032d" % each, "fingerprint": fingerprint, "forget_at": 1.5} for each in numbers]


@pytest.mark.parametrize("number", NUMBERS)
def test_each_row_is_in_one_step_and_few_numbers_of_rows_are(number: int) -> None:
    some = [*steps(range(number))]
    assert [each for step in some for each in step] == [*range(number)]
    assert all(len(step) in (500, 64, 16) or len(step) < 16 for step in some)


@pytest.mark.parametrize("number", NUMBERS)
async def test_only_what_is_new_is_added_and_told(database: Database, number: int) -> None:
    insert = InsertNew(rows.c.mail, database.insert(rows).on_conflict_do_nothing().returning(rows.c.mail))
    put = PutRows(database.insert(rows), "mail", ("fingerprint",))
    some = OneStep(select(rows.c.mail, rows.c.fingerprint).where(rows.c.mail.in_(bindparam("some", expanding=True))))
    gone = OneStep(delete(rows).where(rows.c.mail.in_(bindparam("some", expanding=True))))

    def work(connection: Connection) -> None:
        first = made(range(0, number, 7))
        assert insert.add(connection, first) == {each["mail"] for each in first}
        every = made(range(number), b"g" * 32)
        assert insert.add(connection, every) == {each["mail"] for each in every} - {each["mail"] for each in first}
        put.put(connection, made(range(0, number, 7), b"n" * 32))
        names = [each["mail"] for each in every]
        found = {
            bytes(mail): bytes(as_put) for step in steps(names) for mail, as_put in some.rows(connection, some=step)
        }
        news = {each["mail"] for each in first}
        assert found == {mail: b"n" * 32 if mail in news else b"g" * 32 for mail in names}
        assert sum(gone.changed(connection, some=list(step)) for step in steps(names)) == number

    await database.writing(work)
