"""relay.toml: every setting is documented with its true default, and every fault names its line.
Standard: deploy/SETTINGS.md is the reference, made from the code; its defaults are the real ones, and it is never stale.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, create_model

from relay.config import Config, kmes, load_config, parse_address, parse_size, tables
from relay.config.reference import markdown, model_of, text_of
from relay.errors import ConfigError
from relay.files import toml
from tests.testlib import reference

DEPLOY = Path(__file__).parents[2] / "deploy"
MINIMAL = """\
[site]
name = "alice"
domains = ["alice.example"]
sae_id = "2"
[outgoing]
listen = "127.0.0.1:0"
next_hop = "127.0.0.1:25"
[policies]
directory = "policies"
[store]
database = "relay.db"
secret = "secret"
"""


CREDENTIAL = "/run/credentials/qumail-relay.service/site.secret"
TABLES = [name for name in Config.model_fields if name != "aliases"]
"""All that have settings with names of ours."""


def _tables() -> dict[str, tuple[type[BaseModel], dict[str, Any]]]:
    """Each documented table with its model and its documented values."""
    data = tomllib.loads(reference.with_everything_set())
    tables: dict[str, tuple[type[BaseModel], dict[str, Any]]] = {}
    for name in TABLES:
        field = Config.model_fields[name]
        models = [field.annotation, *getattr(field.annotation, "__args__", ())]
        [model] = [m for m in models if isinstance(m, type) and issubclass(m, BaseModel)]
        values = data[name]
        tables[name] = (model, next(iter(values.values())) if name in ("kmes", "peers", "imap") else values)
    return tables


def test_the_reference_is_what_the_code_says() -> None:
    """Else: python -m relay.config.reference >deploy/SETTINGS.md"""
    assert reference.PAGE.read_text() == markdown()


def test_every_setting_says_what_it_is() -> None:
    """Under its field; and what has no default, an example."""
    models = [model for name in TABLES if (model := model_of(name))]
    models += [tables.DKIMKeySettings, kmes.KMEErrorSettings]
    for model in models:
        assert model.__doc__
        for name, field in model.model_fields.items():
            assert text_of(model, name)[1], f"{model.__name__}.{name} has no text under it"
            assert not field.is_required() or name in model.examples, f"{model.__name__}.{name} has no example"


def test_every_text_of_the_code_is_in_the_reference() -> None:
    said = " ".join(re.sub(r"^# *", "", reference.PAGE.read_text(), flags=re.MULTILINE).split())
    for model in (model for name in TABLES if (model := model_of(name))):
        for name in model.model_fields:
            assert " ".join(text_of(model, name)[1].split()) in said


def test_the_first_relay_toml_has_nothing_that_is_not_used(tmp_path: Path) -> None:
    """No table that is an example only, and no setting that is at its default."""
    config = load_config(DEPLOY / "relay.toml")
    assert not (config.peers or config.imap or config.submission or config.dkim or config.aliases)
    for table in (config.site, config.outgoing, config.incoming, config.kmes["kme"], config.store):
        assert table is not None
        for name in table.model_fields_set:
            field = type(table).model_fields[name]
            assert field.is_required() or getattr(table, name) != field.default, name


def test_the_reference_loads_as_it_stands(tmp_path: Path) -> None:
    config = load_config(reference.written(tmp_path))
    assert config.peers["bob"].domains == ("bob.example",)
    assert config.aliases["info@alice.example"] == ("ann@alice.example", "anton@alice.example")


@pytest.mark.parametrize("table", TABLES)
def test_every_setting_is_documented_in_the_reference(table: str) -> None:
    model, documented = _tables()[table]
    assert set(documented) == set(model.model_fields)


@pytest.mark.parametrize("table", TABLES)
def test_documented_defaults_are_the_real_ones(table: str) -> None:
    model, documented = _tables()[table]
    commented = {
        line.split(" = ")[0].removeprefix("#")
        for line in reference.as_it_stands().splitlines()
        if re.match(r"#[a-z_]+ = ", line)
    }
    for name, field in model.model_fields.items():
        if name not in commented or field.is_required() or name in getattr(model, "alternatives", {}):
            continue
        default = field.get_default(call_default_factory=True)
        assert documented[name] != "None", f"{name} needs an entry in `examples` of {model.__name__}"
        setting: Any = Annotated[field.annotation, *field.metadata, "as it is written"]
        one = create_model("OneSetting", __base__=toml.Table, value=(setting, ...))
        meant: object = one.model_validate({"value": documented[name]}).value  # type: ignore[attr-defined]
        assert meant == default, name


@pytest.mark.parametrize("table", TABLES)
def test_what_is_no_setting_any_more_says_what_to_do(table: str, tmp_path: Path) -> None:
    model, _ = _tables()[table]
    gone = getattr(model, "removed", {})
    assert not set(gone) & set(model.model_fields)
    name = f"{table}.x" if table in ("kmes", "peers", "imap") else table
    (tmp_path / "relay.toml").write_text(f"[{name}]\n" + "".join(f"{setting} = 1\n" for setting in gone))
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "relay.toml")
    for line, (setting, instead) in enumerate(gone.items(), start=2):
        said = f"{tmp_path}/relay.toml:{line}: {name}.{setting}: is no longer a setting: {instead}"
        assert said in caught.value.problems


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "relay.toml").write_text(MINIMAL)
    assert load_config(tmp_path / "relay.toml").policies.directory == tmp_path / "policies"


@pytest.mark.parametrize(
    ("store", "own", "spools"),
    [
        ('database = "db/relay.db"\nsecret = "apart/secret"', "apart", "db"),
        (f'database = "db/relay.db"\nsecret = "{CREDENTIAL}"', "db", "db"),
        ('database = "postgresql://localhost/relay"\nsecret = "apart/secret"', "apart", "state"),
        (f'database = "postgresql://localhost/relay"\nsecret = "{CREDENTIAL}"', "state", "state"),
        ('database = "db/relay.db"\nsecret = "apart/secret"\ndirectory = "own"', "own", "own"),
        (f'database = "postgresql://localhost/relay"\nsecret = "{CREDENTIAL}"\ndirectory = "own"', "own", "own"),
    ],
)
def test_own_files_are_where_they_were_unless_a_directory_is_named_or_nothing_can_be_written_beside_the_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str, own: str, spools: str
) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    text = MINIMAL.replace('database = "relay.db"\nsecret = "secret"', store)
    config = load_config(tmp_path / "relay.toml", text)
    assert (config.own_directory, config.state_directory) == (tmp_path / own, tmp_path / spools)
    of_notes = {
        config.alarms_file,
        config.keys_file,
        config.held_file,
        config.former_peers_file,
        config.audit_directory,
    }
    assert {each.parent for each in of_notes} == {config.own_directory}
    assert (config.store.secret in config.own_paths) == ("/run/" not in store)


@pytest.mark.parametrize(
    ("line", "replacement", "expected"),
    [
        ('sae_id = "2"', 'sae-id = "2"', "relay.toml:4: site.sae-id: unknown setting; did you mean 'sae_id'?"),
        ('sae_id = "2"', "", "relay.toml:1: site.sae_id: missing; this setting is required"),
        ('next_hop = "127.0.0.1:25"', 'next_hop = "mail"', 'relay.toml:7: outgoing.next_hop: write it as "host:port"'),
        ('next_hop = "127.0.0.1:25"', 'next_hop = "a:70000"', "relay.toml:7: outgoing.next_hop: write it as"),
        ('secret = "secret"', 'secret = "~nobody-here/x"', "relay.toml:12: store.secret: ~nobody-here has no home directory here; write the whole path"),
        ('database = "relay.db"', 'database = "~nobody-here/x"', "relay.toml:11: store.database: ~nobody-here has no home"),
        ('secret = "secret"', "secret = 3", "relay.toml:12: store.secret: write a path in quotes"),
        ('domains = ["alice.example"]', 'domains = ["al ice"]', "relay.toml:3: site.domains.0: 'al ice' is not a mail domain"),
        ('domains = ["alice.example"]', "domains = []", "relay.toml:3: site.domains"),
        ("[outgoing]", "[outgoing", "relay.toml:5:"),
        ("[outgoing]", "[outgoin]", "relay.toml:5: outgoin: unknown setting; did you mean 'outgoing'?"),
    ],
)  # fmt: skip
def test_a_fault_is_named_with_file_and_line(tmp_path: Path, line: str, replacement: str, expected: str) -> None:
    assert line in MINIMAL
    path = tmp_path / "relay.toml"
    path.write_text(MINIMAL.replace(line, replacement))
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert any(expected in problem for problem in caught.value.problems), caught.value.problems


PEER = '[kmes.k]\nurl = "https://k.example"\nca = "c"\ncertificate = "d"\nkey = "e"\n[peers.bob]\n'


def test_a_setting_with_a_line_end_at_its_end_is_refused(tmp_path: Path) -> None:
    """To `$` of a regular expression of Python it looks like one without."""
    kme = PEER.partition("[peers")[0].replace("k.example", "k.example\\n")
    mailbox = '[imap."ben\\n"]\nhost = "imap.example\\n"\nuser = "b@bob.example"\npassword_credential = "ben\\n"\n'
    keys = '[[dkim.keys]]\ndomain = "alice.example"\nselector = "s\\n"\nkey = "k"\n'
    dkim = '[dkim]\nauthserv_id = "alice.example\\n"\n' + keys
    path = tmp_path / "relay.toml"
    path.write_text(MINIMAL + kme + mailbox + dkim)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    said = " ".join(caught.value.problems)
    for setting in ("kmes.k.url", "imap.ben", "host", "password_credential", "authserv_id", "selector"):
        assert setting in said, said


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        ('domains = ["bob.example"]\nsae_id = "2"\n', "sae_id '2' already belongs to site.sae_id"),
        ('domains = ["ALICE.example"]\nsae_id = "1"\n', "domain 'alice.example' already belongs to site.domains"),
        ('domains = ["bob.example"]\nsae_id = "1"\nkme_groups = ["x"]\n', "no KME has group 'x'; known: default"),
        (
            'domains = ["bob.example"]\nsae_id = "1"\n[peers.eve]\ndomains = ["bob.example"]\nsae_id = "3"\n',
            "peers.eve: domain 'bob.example' already belongs to peers.bob",
        ),
        ('forwards = ["*"]\n', "peers.bob: domains and sae_id missing, and no document of that name is imported"),
        ('domains = ["bob.example"]\n', "peers.bob: sae_id missing, and no document"),
    ],
)  # fmt: skip
def test_peers_that_cannot_be_are_refused(tmp_path: Path, peer: str, expected: str) -> None:
    path = tmp_path / "relay.toml"
    path.write_text(MINIMAL + PEER + peer)
    with pytest.raises(ConfigError, match=re.escape(expected)):
        load_config(path)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ('accept = ["aes", "plaintext"]\n', "peers.bob.accept.1: "),
        ("accept = []\n", "peers.bob.accept: "),
        ('forwards = ["*.example"]\n', "peers.bob.forwards.0: '*.example' is not a mail domain"),
        ("key_max_messages = 1001\n", "peers.bob.key_max_messages: "),
    ],
)
def test_what_a_peer_may_do_is_said_in_words_that_exist(tmp_path: Path, settings: str, expected: str) -> None:
    path = tmp_path / "relay.toml"
    path.write_text(MINIMAL + PEER + 'domains = ["bob.example"]\nsae_id = "1"\n' + settings)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert any(expected in problem for problem in caught.value.problems), caught.value.problems


def test_the_kmes_of_a_group_serve_the_same_levels(tmp_path: Path) -> None:
    second = PEER.partition("[peers")[0].replace("kmes.k", "kmes.l")
    path = tmp_path / "relay.toml"
    path.write_text(MINIMAL + PEER.partition("[peers")[0] + 'use = "otp"\n' + second)
    with pytest.raises(ConfigError, match=r"relay\.toml:\d+: kmes\.l: use is 'both', and 'otp' elsewhere in group"):
        load_config(path)
    path.write_text(path.read_text() + 'use = "otp"\n')
    config = load_config(path)
    assert config.serves("default", "otp")
    assert not config.serves("default", "aes")


@pytest.mark.parametrize(
    ("aliases", "expected"),
    [
        ('"info" = ["ann@alice.example"]', "aliases.info.[key]: 'info' is not a mail address"),
        ('"info@alice.example" = ["@alice.example"]', "aliases.info@alice.example.0: "),
        ('"info@alice.example" = []', "aliases.info@alice.example: "),
        ('"info@alice.example" = "ann@alice.example"', "aliases.info@alice.example: "),
    ],
)
def test_aliases_are_addresses(tmp_path: Path, aliases: str, expected: str) -> None:
    path = tmp_path / "relay.toml"
    path.write_text(MINIMAL + "[aliases]\n" + aliases + "\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert any(expected in problem for problem in caught.value.problems), caught.value.problems


def test_domains_of_aliases_are_the_same_in_upper_and_lower_case(tmp_path: Path) -> None:
    path = tmp_path / "relay.toml"
    path.write_text(MINIMAL + '[aliases]\n"Info@Alice.EXAMPLE" = ["Ann@ALICE.example"]\n')
    assert load_config(path).aliases == {"Info@alice.example": ("Ann@alice.example",)}


IMAP = '[imap.ben]\nhost = "imap.example"\npassword_file = "p"\n'


@pytest.mark.parametrize(
    ("settings", "mailboxes"),
    [
        ('user = "ben@BOB.example"\n', ("ben@bob.example",)),
        ('user = "ben"\naddresses = ["ben@BOB.example", "b@bob.example"]\n', ("ben@bob.example", "b@bob.example")),
    ],
)
def test_a_mailbox_gets_the_mail_of_its_addresses(tmp_path: Path, settings: str, mailboxes: tuple[str, ...]) -> None:
    path = tmp_path / "relay.toml"
    path.write_text(MINIMAL + IMAP + settings)
    assert load_config(path).imap["ben"].mailboxes == mailboxes


@pytest.mark.parametrize("user", ["ben", "ben@", "@bob.example", "ben@bob example"])
def test_a_mailbox_whose_user_is_no_address_must_say_whose_mail_it_gets(tmp_path: Path, user: str) -> None:
    path = tmp_path / "relay.toml"
    path.write_text(MINIMAL + IMAP + f'user = "{user}"\n')
    with pytest.raises(ConfigError, match="set addresses: those whose mail this mailbox gets"):
        load_config(path)


def test_a_quarantine_into_which_the_largest_message_never_fits_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "relay.toml"
    path.write_text(MINIMAL.replace("[outgoing]", "[incoming]") + '[quarantine]\nmax_size = "100 MiB"\n')
    with pytest.raises(ConfigError, match=r"relay\.toml:14: quarantine\.max_size: write more than 157286400 bytes"):
        load_config(path)
    path.write_text(path.read_text() + 'action = "refuse"\n')
    assert load_config(path).quarantine.max_size == 100 * 2**20


def test_a_relay_with_nothing_to_serve_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "relay.toml"
    path.write_text(re.sub(r"\[outgoing\].*?(?=\[policies\])", "", MINIMAL, flags=re.DOTALL))
    with pytest.raises(ConfigError, match="nothing to serve"):
        load_config(path)


def test_a_plain_http_kme_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "relay.toml"
    path.write_text(MINIMAL + PEER.replace("https", "http") + 'domains = ["bob.example"]\nsae_id = "1"\n')
    with pytest.raises(ConfigError, match=r"kmes\.k\.url"):
        load_config(path)


def test_sizes_and_addresses_are_read_as_people_write_them() -> None:
    assert parse_size("256 KiB") == 262_144
    assert parse_size("50MiB") == 52_428_800
    assert parse_address("[::1]:25") == ("::1", 25)
    for wrong in ("0", "-1", "1.5 MiB", "many", "", 0, True, None):
        with pytest.raises(ValueError, match="write a size"):
            parse_size(wrong)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("", "relay.toml:5: outgoing: none of listen (SMTP), lmtp"),
        ('listen = "[::1]:26"\nlmtp = "[::1]:26"\n', "relay.toml:7: outgoing.lmtp: outgoing.listen already listens there"),
        ('lmtp = "127.0.0.1:24"\ntrusted = ["10.0.0.1/8"]\n', "outgoing.trusted: 10.0.0.1/8 has host bits set"),
        ('lmtp = "127.0.0.1:24"\ntrusted = "10.0.0.0/8"\n', "outgoing.trusted: write a list of networks"),
        ('lmtp = "127.0.0.1:24"\nconnections = 0\n', "outgoing.connections: "),
    ],
)  # fmt: skip
def test_where_it_listens_must_make_sense(tmp_path: Path, settings: str, expected: str) -> None:
    path = tmp_path / "relay.toml"
    path.write_text(MINIMAL.replace('listen = "127.0.0.1:0"\n', settings))
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert any(expected in problem for problem in caught.value.problems), caught.value.problems


def test_lmtp_alone_is_enough_and_directions_may_not_share_an_address(tmp_path: Path) -> None:
    path = tmp_path / "relay.toml"
    alone = MINIMAL.replace("listen =", "lmtp =").replace("127.0.0.1:0", "127.0.0.1:24")
    path.write_text(alone)
    direction = load_config(path).outgoing
    assert direction is not None
    assert (direction.listen, direction.lmtp) == (None, ("127.0.0.1", 24))
    path.write_text(alone + '[incoming]\nlisten = "127.0.0.1:24"\nnext_hop = "127.0.0.1:25"\n')
    with pytest.raises(ConfigError, match=r"incoming\.listen: outgoing\.lmtp already listens there"):
        load_config(path)
