"""The tables of the store as SQL, for each back end: what a version of the schema is.
Standard: `python -m tests.testlib.schema_text` writes it to data/schemas, once for each version.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import Dialect
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.schema import CreateIndex, CreateTable

from relay.store import store  # with it all tables are there
from relay.store.database import SCHEMA_VERSION, metadata

SCHEMAS = Path(__file__).parents[1] / "data" / "schemas"
THIS = SCHEMAS / f"{SCHEMA_VERSION}.sql"
assert store.SEALED_ROWS


def schema_text() -> str:
    """The tables of today."""
    return "\n".join([*_of("sqlite", sqlite.dialect()), *_of("postgresql", postgresql.dialect())])  # type: ignore[no-untyped-call]


def _of(name: str, dialect: Dialect) -> Iterator[str]:
    yield f"-- {name}"
    for table in sorted(metadata.tables.values(), key=lambda each: each.name):
        lines = str(CreateTable(table).compile(dialect=dialect)).strip().splitlines()
        yield "\n".join(line.rstrip() for line in lines) + ";"
        for index in sorted(table.indexes, key=lambda each: str(each.name)):
            yield f"{CreateIndex(index).compile(dialect=dialect)};"
    yield ""


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m tests.testlib.schema_text", description=__doc__).parse_args()
    THIS.write_text(schema_text())
