"""Secrets in any notation are masked in stderr, plans and tracebacks; ordinary text does not change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rdsrepl.text.masking import MASK, mask, masked

S = "hUnter2Xq"
KEY = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEy"
TOKEN = "IQoJb3JpZ2luX2VjEJr" + "Ab1/" * 40
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N"
SCRAM = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2="

URIS = [
    f"{scheme}u:{S}@db.example.com:5432/shop"
    for scheme in (
        "postgresql://",
        "postgres://",
        "PostgreSQL://",
        "POSTGRES://",
        " postgresql://",
        "\tpostgresql://",
        "postgresql+psycopg2://",
        "postgresql+asyncpg://",
        "postgresql+psycopg://",
        "jdbc:postgresql://",
        "r2dbc:postgresql://",
        "pgsql://",
        "psql://",
        "postgresql:/",
        "postgresql:///",
        "//",
        "",
        "dsn=postgresql://",
        "'postgresql://",
        '"postgresql://',
        "<postgresql://",
        "http://",
        "amqp://",
        "redis://",
    )
]
PASSWORDS = [
    f"postgresql://u:{password}@h:5432/db"
    for password in (
        f"a@{S}",
        f"a/{S}",
        f"a:{S}",
        f"a?{S}",
        f"a#{S}",
        f"a&{S}",
        f"a%{S}",
        f"a%40{S}%2F",
        f"a {S} b",
        f"'{S}'",
        f'"{S}"',
        f"[{S}]",
        f"{S}$(x)",
        f"é{S}",
        f"1234/{S}",
        f"=a={S}",
    )
]
PARTS = [
    f"postgresql://:{S}@h/db",
    f"postgresql://u:{S}@",
    f"postgresql://u:{S}@h1:1,h2:2/db?target_session_attrs=primary",
    f"postgresql://u:{S}@[::1]:5432/db",
    f"postgresql://h/db?user=u&password={S}",
    f"postgresql://h/db?password={S}&sslmode=require",
    f"postgresql://h/db?sslpassword={S}",
    f"postgresql://h/db?%70assword={S}",
    f"postgresql://h/db?PASSWORD={S}",
    f"postgresql://h/db?password=a&{S}&sslmode=require",
    f"postgresql://h/db?password=a {S}",
    f"jdbc:postgresql://h/db?user=u&password={S}",
    f"jdbc:postgresql://h/db?password={S}&ssl=true",
    f"jdbc:sqlserver://h;user=u;password={S};encrypt=true",
    f"Host=h;Username=u;Password={S};Database=db",
    f"postgresql%3A%2F%2Fu%3A{S}%40h%2Fdb",
    f"postgresql%3a//u:{S}%40h",
    f"next=postgresql%253A%252F%252Fu%253A{S}%2540h",
    f"q=password%20%3D%20{S}",
    f"url=postgresql%3A%2F%2Fh%2Fdb%3Fpassword%3D{S}%26sslmode%3Drequire",
]
KEYWORDS = [
    f"host=h password={S}",
    f"password={S} host=h",
    f"password = {S} host=h",
    f"password='{S}' host=h",
    f"password = '{S}'",
    f"password='a b {S}' host=h",
    f"password='a\\'{S}' host=h",
    f"password='a''{S}' host=h",
    f"password='a {S}",
    f"password=a {S} host=h",
    f"password=it's{S} host=h",
    f"password={S}",
    f" password={S}",
    f"PASSWORD={S}",
    f"Password={S}",
    f"passwd={S}",
    f"pwd={S}",
    f"pass={S}",
    f"passphrase={S}",
    f"sslpassword={S} sslkey=/etc/key.pem",
    f"user=u;password={S}",
    f"host=h,password={S}",
    f"db.password={S}",
    f"db_password={S}",
    f"spring.datasource.password={S}",
    f"PGPASSWORD={S} psql",
    f"export PGPASSWORD='{S}'",
    f"RDSREPL_PASSWORD={S}",
    f"scram_client_key={S}",
    f"--password {S}",
    f"--password={S}",
    f"--master-user-password {S}",
    f"--db-password '{S}'",
    f"['psql', '--password', '{S}']",
    f"db_pass={S}",
    f"DB_PASS: {S}",
    f"dbPass = {S}",
    f"db.example.com:5432:shop:cdc:{S}",
    f"*:*:*:cdc:{S}",
]
DOCUMENTS = [
    f"password: {S}",
    f"  password: '{S}'",
    f'  - password: "{S}"',
    f"    password: my {S} phrase",
    f"password: |\n  {S}\n",
    f"{{host: h, password: {S}, port: 1}}",
    f"dsn: postgresql://u:{S}@h/db",
    json.dumps({"password": S}),
    json.dumps({"password": S}, separators=(",", ":")),
    json.dumps({"MasterUserPassword": S, "Engine": "postgres"}),
    json.dumps({"SecretString": json.dumps({"username": "u", "password": S})}),
    repr({"password": S}),
    f"{{'passwd': '{S}', 'host': 'h'}}",
    f'\\"password\\": \\"{S}\\"',
    f"Password => '{S}'",
    f"<MasterUserPassword>{S}</MasterUserPassword>",
    f'<add key="password" value="{S}"/>',
    repr(("password", S)),
    json.dumps(["password", f'a"{S}']),
    json.dumps({"dsn": f"postgresql://u:{S}@h/db"}).replace("/", "\\/"),
    json.dumps(json.dumps(json.dumps({"a": 1, "password": S, "b": 2}))),
]
STATEMENTS = [
    f"ALTER ROLE cdc PASSWORD '{S}'",
    f"CREATE USER cdc WITH ENCRYPTED PASSWORD '{S}' LOGIN",
    f"CREATE SUBSCRIPTION s CONNECTION 'host=h password={S}' PUBLICATION p",
    f"ALTER SYSTEM SET primary_conninfo = 'user=r password={S} host=h'",
    f"ALTER ROLE cdc PASSWORD E'a\\'{S}'",
    f"ALTER ROLE cdc PASSWORD U&'{S}'",
    f"ALTER ROLE cdc PASSWORD $${S}$$ LOGIN",
    f"ALTER ROLE cdc PASSWORD $x$a\n{S}$x$",
    f'ALTER ROLE cdc PASSWORD "{S}"',
]
LIBPQ = [
    f'missing "=" after "{S}" in connection info string',
    f'invalid connection option "{S}"',
    f'invalid URI query parameter: "{S}"',
    f'invalid percent-encoded token: "{S}"',
    f'extra key/value separator "=" in URI query parameter: "{S}"',
    f'missing key/value separator "=" in URI query parameter: "{S}"',
    f'unexpected character "w" in position 3 in URI (expected ":" or "/"): "{S}"',
    f'forbidden value %00 in percent-encoded value: "{S}"',
    f'invalid port number: "{S}"',
    f'invalid integer value "{S}@h" for connection option "port"',
    f'could not translate host name "{S}@h" to address: Name or service not known',
    f'unexpected spaces found in "{S} x", use percent-encoded spaces (%20) instead',
]
KEYS = [
    f"aws_secret_access_key = {KEY}",
    f"AWS_SECRET_ACCESS_KEY={KEY}",
    f"the secret {KEY} is not valid",
    f"aws_session_token = {TOKEN}",
    f"AWS_SESSION_TOKEN={TOKEN}",
    f"token {TOKEN} expired",
    f"h:5432/?Action=connect&DBUser=cdc&X-Amz-Security-Token={S}&X-Amz-Expires=900",
    f"h:5432/?Action=connect&DBUser=cdc&X-Amz-Expires=900&X-Amz-Signature={S}",
    f"Authorization: AWS4-HMAC-SHA256 Credential=AKIA/x, Signature={S}",
    f"Authorization: Bearer {S}.{S}",
    f"Authorization: Basic {S}==",
    f"Bearer {JWT}",
    f"id_token={JWT}",
    f"{JWT} is expired",
    f"api_key={S}",
    f"client_secret={S}",
    f"access_token={S}&x=1",
    f"secret_key: {S}",
    f"https://{S}ghijklmno@github.com/x.git",
    SCRAM,
    f"password '{SCRAM}'",
    "md5" + "0123456789abcdef" * 2,
    "-----BEGIN RSA PRIVATE KEY-----\nMIIE" + S + "\n-----END RSA PRIVATE KEY-----",
    "-----BEGIN PRIVATE KEY-----\n" + S,
]
SPELLINGS = [*URIS, *PASSWORDS, *PARTS, *KEYWORDS, *DOCUMENTS, *STATEMENTS, *LIBPQ, *KEYS]
PIECES = [S, KEY, TOKEN[:60], JWT[-20:], "WG5d8oPm3OtcPnkdi4Uo7Bk", "0123456789abcdef0123456789abcdef"]

ORDINARY = [
    "slot orders_cdc at 0/1A2B3C4D, confirmed 16/B374D848, restart 16/B3700000",
    "arn:aws:secretsmanager:eu-west-1:123456789012:secret:rds!db-0f1e2d3c-AbCdEf",
    "arn:aws:kinesis:eu-west-1:123456789012:stream/orders",
    "arn:aws:iam::123456789012:role/rds-admin is not authorized to perform: rds:DescribeDBInstances",
    'password authentication failed for user "cdc"',
    "fe_sendauth: no password supplied",
    "check the user, and its password in ~/.pgpass, PGPASSFILE or PGPASSWORD",
    "database: target prod: host=db.example.com port=5432 user=cdc secret=prod/cdc passfile=/home/me/.pgpass",
    "sslkey=/etc/ssl/key.pem sslcert=/etc/ssl/cert.pem sslmode=verify-full",
    "postgresql://cdc@db.example.com:5432/shop?sslmode=require",
    "postgresql://db.example.com:5432/shop is not reachable; mail ops@example.com",
    "postgresql://h1:5432,h2:5433/shop and me@example.com",
    "http://127.0.0.1:9187/metrics, and /healthz",
    "https://truststore.pki.rds.amazonaws.com/global/global-bundle.pem",
    "rdsrepl role password cdc --generate-password --secret prod/cdc",
    "printf '%s' \"$PASSWORD\" | rdsrepl role create cdc --password-stdin",
    "2026-11-21T15:14:14.123+00:00 [42501, request 5f9c1d2e-0000-4000-8000-123456789abc]",
    "commit d41d8cd98f00b204e9800998ecf8427ed41d8cd9",
    "a_slot_with_a_long_name_of_forty_letters1",
    "password_encryption = scram-sha-256, rds.force_ssl = 1",
    '"ManageMasterUserPassword": true, "Engine": "postgres"',
    "CREATE PUBLICATION p FOR TABLE public.orders WHERE (status = 'x')",
    "/etc/rdsrepl/config.yaml:4: targets.prod.password: must be one value",
    "user=u password=******** host=h",
    "postgresql://u:********@h/db",
    "/tmp/work/UpperLower123/some/path/of/a/file.yaml: cannot be read",
    "basic authentication is not offered; bearer tokens neither",
    "unknown key 'hots': the keys there are: dsn, host, port",
    "100 changes in 3.1s (32/s), lag 1.5 MB: stopped by Ctrl-C @ 12:30",
    "max_slot_wal_keep_size: -1 -> 10240 (dynamic, immediate)",
    "--password-stdin, --generate-password and --no-password cannot be used together",
]


def leaks(text: str) -> bool:
    joined = "".join(text.split())  # a terminal breaks lines
    return any(piece in text or piece in joined for piece in PIECES)


def test_there_are_enough_notations() -> None:
    assert len(set(SPELLINGS)) >= 140
    assert all(leaks(one) for one in SPELLINGS)


@pytest.mark.parametrize(
    "around", ["{}", "no target '{}' in /x/config.yaml", 'error: "{}" is wrong: try again', "  {}\n    ^"]
)
def test_every_notation_is_masked_in_every_context(around: str) -> None:
    assert [one for one in SPELLINGS if leaks(mask(around.format(one)))] == []
    # Masking a masked text changes nothing.
    assert [one for one in SPELLINGS if mask(mask(one)) != mask(one) and leaks(mask(one))] == []


def test_ordinary_text_does_not_change() -> None:
    assert [(one, mask(one)) for one in ORDINARY if mask(one) != one] == []
    assert masked({"a": [1, None, ORDINARY[0]], "password": S}) == {"a": [1, None, ORDINARY[0]], "password": MASK}


def test_masking_a_long_text_is_fast() -> None:
    # Each of these took minutes in an earlier version, which was quadratic.
    for text in ("x" * 300_000, "password='" * 1_000, "postgresql://u:" * 1_000, "a=b " * 9_000, "a:b@" * 9_000):
        assert len(mask(text)) <= len(text) + 100


def test_the_program_masks_every_notation(rdsrepl: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """As a target's name, in the config file, as an operand, in a usage error and in a crash, with -v and -vv."""
    from rdsrepl.cli import config as config_command

    config = tmp_path / "config.yaml"
    shown = []
    for number, one in enumerate(SPELLINGS):
        word = one.replace("\n", " ") if number % 2 else one
        env = {"RDSREPL_CONFIG": str(config), "PGHOST": "127.0.0.1", "PGPORT": "1", "COLUMNS": "60"}
        way = number % 5
        if way == 0:
            done = rdsrepl("-vv", f"--target={word}", "slot", "list", env=env)
        elif way == 1:
            config.write_text(json.dumps({"targets": {"a": {"dsn": word, "bad": 1}}}) + "\n]")
            done = rdsrepl("-vv", "config", "show", env=env)
        elif way == 2:
            done = rdsrepl("config", "use", "-v", "--", word, env=env)
        elif way == 3:
            done = rdsrepl("slot", "lag", "-v", f"--watch={word}", word, word, env=env)
        else:

            def crash(*_: Any, text: str = one) -> Any:
                raise RuntimeError(text) from ValueError(text)

            with monkeypatch.context() as patched:
                patched.setattr(config_command.config, "load", crash)
                done = rdsrepl("config", "show", "-o", "json", env=env)
            assert done.code == 1 and done.error["error"] == "internal_error"
            assert "Traceback" in done.err or "PRIVATE KEY" in one  # of a key without an end everything is hidden
        if leaks(done.out + done.err):
            shown.append((way, one, done.err))
        config.unlink(missing_ok=True)
    assert shown == []


def test_verbose_shows_a_refused_connection_string_without_its_password(rdsrepl: Any, tmp_path: Path) -> None:
    env = {"RDSREPL_CONFIG": str(tmp_path / "none.yaml"), "COLUMNS": "60"}
    strings = [*URIS[:16], *PASSWORDS, *PARTS, *KEYWORDS[:26]][::2]
    shown = []
    for one in strings:
        # libpq refuses an unknown option before it connects.
        glue = "&" if "?" in one else "?" if "://" in one else " "
        done = rdsrepl("-vv", "slot", "list", f"--dsn={one}{glue}nonsense=1", env=env)
        assert done.code in (2, 5), (one, done.err)
        if leaks(done.out + done.err):
            shown.append((one, done.err))
    assert shown == []


def test_yaml_errors_do_not_quote_the_file(rdsrepl: Any, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    for line in (
        f"password: *{S}",
        f'password: "{S}',
        f"password: {S}: x",
        f"password: !{S} x",
        f"password: [{S}",
        f"? {S}\x01",
        f"password: @{S}",
    ):
        config.write_text(f"targets:\n  prod:\n    {line}\n")
        done = rdsrepl("-vv", "slot", "list", env={"RDSREPL_CONFIG": str(config)})
        assert S not in done.err, (line, done.err)


def test_a_config_file_is_shown_without_its_secrets(rdsrepl: Any, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"targets:\n  a: {{dsn: 'postgresql://u:{S}@h/db'}}\n  b: {{host: h, password: {S}}}\n")
    config.chmod(0o600)
    for output in ("table", "json", "yaml"):
        done = rdsrepl("config", "show", "-o", output, env={"RDSREPL_CONFIG": str(config)})
        assert done.code == 0 and S not in done.out + done.err and MASK in done.out
