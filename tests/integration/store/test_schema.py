"""The tables are those of the schema's version: a change needs a new version, and a step that makes it.
Standard: relay/store/SCHEMA.md; tests/data/schemas has each version as SQL.
"""

from __future__ import annotations

from relay.store.database import SCHEMA_VERSION
from relay.store.migrations import OLDEST, STEPS
from tests.testlib.old_stores import OldStores, all_stores
from tests.testlib.schema_text import SCHEMAS, THIS, schema_text


def test_no_table_changes_without_a_new_version() -> None:
    assert schema_text() == THIS.read_text(), (
        "a table has changed: relay/store/SCHEMA.md says what that needs (a new SCHEMA_VERSION first; not this file alone)"
    )


def test_each_version_has_its_text_and_a_step_that_leads_to_it() -> None:
    assert sorted(STEPS) == list(range(OLDEST + 1, SCHEMA_VERSION + 1))
    assert sorted(int(path.stem) for path in SCHEMAS.glob("*.sql")) == sorted(STEPS)


def test_the_text_of_a_released_version_is_what_that_release_has_made() -> None:
    """So that nobody writes the text anew in place of a new version."""
    of_sqlite = [each for each in all_stores() if each.backend == "sqlite" and each.schema in STEPS]
    assert {each.schema for each in of_sqlite} >= set(STEPS) - {SCHEMA_VERSION}
    for old in of_sqlite:
        text = (SCHEMAS / f"{old.schema}.sql").read_text().partition("-- postgresql")[0]
        assert _tables(text) == _made(old), old.name


def _tables(text: str) -> set[str]:
    return {" ".join(each.split()) for each in text.removeprefix("-- sqlite\n").split(";") if each.strip()}


def _made(old: OldStores) -> set[str]:
    statements = (each.strip() for each in old.dump("bob").split(";\n"))
    return {" ".join(each.split()) for each in statements if each.startswith("CREATE ")}
