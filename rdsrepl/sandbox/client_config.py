"""What clients need to reach the sandbox: the target, a password file, an AWS profile."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rdsrepl import config
from rdsrepl.config import edit
from rdsrepl.errors import Error, Refused
from rdsrepl.sandbox import credentials
from rdsrepl.sandbox.directory import SandboxDirectory
from rdsrepl.sandbox.servers import processes
from rdsrepl.sandbox.servers.postgres_server import HOST, READER_HOST
from rdsrepl.sandbox.state import EndpointState, State

if TYPE_CHECKING:
    from rdsrepl.sandbox.report import Report

TARGET: Final = "sandbox"
CLUSTER: Final = "sandbox"
PROFILE: Final = "sandbox"


def environment_variables(report: Report) -> dict[str, str]:
    """Return the environment variables that point libpq to the writer and AWS clients to the API.

    They name the file with the password and do not contain the password.
    """
    return {
        "PGHOST": report.host,
        "PGPORT": str(report.port),
        "PGUSER": report.user,
        "PGDATABASE": report.dbname,
        "PGPASSFILE": report.passfile,
        # While the sandbox is down, another user may listen on the port and request the plain password (libpq 16).
        "PGREQUIREAUTH": "scram-sha-256",
        "AWS_PROFILE": report.profile,
        "AWS_CONFIG_FILE": report.aws_config_file,
        "AWS_SHARED_CREDENTIALS_FILE": report.aws_credentials_file,
        "AWS_ENDPOINT_URL": report.endpoint_url,
        "AWS_REGION": report.region,
        "AWS_DEFAULT_REGION": report.region,
    }


def api_url(home: SandboxDirectory) -> str:
    """Return the base URL of the API."""
    api = home.api()
    return f"http://{HOST}:{api.port if api is not None else 0}"


def api_region(home: SandboxDirectory) -> str:
    """Return the region of the API."""
    api = home.api()
    return api.region if api is not None else ""


def write_aws_files(home: SandboxDirectory) -> None:
    """Write the AWS profile ``sandbox``."""
    own = credentials.create(home)
    files = {
        home.aws_config_file: f"[profile {PROFILE}]\nregion = {api_region(home)}\nendpoint_url = {api_url(home)}\n",
        home.aws_credentials_file: (
            f"[{PROFILE}]\naws_access_key_id = {own.access_key}\naws_secret_access_key = {own.secret_key}\n"
        ),
    }
    for path, text in files.items():
        path.parent.mkdir(mode=0o700, exist_ok=True)
        processes.write_private_file(path, text)


def write_passfile(home: SandboxDirectory, state: State, password: str) -> None:
    """Write the password file for the endpoints of the first cluster."""
    hosts = [
        (READER_HOST if endpoint.kind == "reader-host" else HOST, endpoint.port)
        for endpoint in state.endpoints
        if endpoint.port and _is_of_first_cluster(state, endpoint)
    ]
    lines = [f"{host}:{port}:*:{state.user}:{password}\n" for host, port in hosts]
    processes.write_private_file(home.passfile, "".join(lines))


def _is_of_first_cluster(state: State, endpoint: EndpointState) -> bool:
    return endpoint.of == CLUSTER or endpoint.of in {entry.name for entry in state.members(CLUSTER)}


def read_password(home: SandboxDirectory) -> str:
    """Return the password of the master user.

    Raises:
        Error: the password file cannot be read.
    """
    try:
        return home.passfile.read_text(encoding="utf-8").splitlines()[0].rpartition(":")[2]
    except (OSError, IndexError) as exc:
        raise Error(
            f"could not read the password of the sandbox in {home.passfile}: {exc}",
            hint="create the sandbox again: rdsrepl sandbox down && rdsrepl sandbox up",
        ) from exc


def _own_target() -> Mapping[str, str] | None:
    """Return the settings of the target ``sandbox``; None when it does not exist."""
    target = config.load().targets.get(TARGET)
    if target is None:
        return None
    aws = {key: value for key, value in asdict(target.aws).items() if value is not None}
    return {**target.keywords, **aws, "dsn": target.dsn}


def refuse_foreign_target(home: SandboxDirectory) -> None:
    """Refuse to replace a target ``sandbox`` that does not belong to this sandbox.

    Raises:
        Refused: the target belongs to another server.
    """
    settings = _own_target()
    if settings is None or settings.get("passfile") == str(home.passfile):
        return
    # A target whose password file does not exist belongs to a sandbox that was removed without `down`.
    stale = settings.get("host") == HOST and "passfile" in settings and not Path(settings["passfile"]).exists()
    if not stale:
        raise Refused(
            f"the target {TARGET!r} in {config.config_path()} does not belong to this sandbox",
            hint="rename that target, or set XDG_CONFIG_HOME to another directory for the sandbox",
        )


def add_target(home: SandboxDirectory, state: State) -> None:
    """Write the target ``sandbox`` to the configuration."""
    if state.port("writer", CLUSTER) is None:
        return  # that cluster was deleted; the target stays as it is
    settings = {
        "host": HOST,
        "hostaddr": HOST,  # overrides PGHOSTADDR
        "port": str(state.port("writer", CLUSTER)),
        "dbname": state.dbname,
        "user": state.user,
        "passfile": str(home.passfile),
        "sslmode": "disable",
        "region": api_region(home),
        "profile": PROFILE,
        "endpoint_url": api_url(home),
        "aws_credentials_file": str(home.aws_credentials_file),
        "aws_config_file": str(home.aws_config_file),
        "cluster": CLUSTER,
    }
    if _own_target() != {**settings, "dsn": ""}:
        edit.replace_target(TARGET, settings)


def remove_target(home: SandboxDirectory, state: State | None) -> bool:
    """Remove the target ``sandbox`` from the configuration when it is this sandbox's; return whether it was."""
    settings = _own_target()
    if settings is None or settings.get("passfile") != str(home.passfile):
        return False
    edit.delete_target(TARGET)
    path = config.config_path()
    if state is not None and not state.config_was_there and state.config_file == str(path):
        rest = config.load()
        if not rest.targets and rest.current is None and path.read_text(encoding="utf-8").strip() in ("", "targets:"):
            path.unlink()
            with suppress(OSError):
                path.parent.rmdir()
    return True
