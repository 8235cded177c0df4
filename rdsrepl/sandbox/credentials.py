"""The sandbox's AWS credentials: random, made once per sandbox, kept in its directory for the owner alone."""

from __future__ import annotations

import json
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from rdsrepl.errors import Error

if TYPE_CHECKING:
    from rdsrepl.sandbox.state import SandboxDirectory

# The letters of AWS's access keys, which begin with AKIA and have twenty of them.
_LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_KEY_LETTERS: Final = 16
_SECRET_BYTES: Final = 30


@dataclass(frozen=True, slots=True)
class Credentials:
    """What signs requests to the sandbox's AWS.

    Attributes:
        access_key: names the caller; it is sent with every request.
        secret_key: never sent and never shown.
    """

    access_key: str
    secret_key: str = field(repr=False)


def create(home: SandboxDirectory) -> Credentials:
    """Return a sandbox's credentials; where there are none yet, they are generated and written, mode 0600.

    Args:
        home: the sandbox's directory.

    Raises:
        Error: the file cannot be read or written.
    """
    key = "AKIA" + "".join(secrets.choice(_LETTERS) for _ in range(_KEY_LETTERS))
    made = json.dumps({"access_key": key, "secret_key": secrets.token_urlsafe(_SECRET_BYTES)})
    # Whoever comes second, of two processes at once, reads what the first wrote: the link is made in one step.
    new = home.credentials_file.with_name(f"{home.credentials_file.name}.{secrets.token_hex(8)}.new")
    if not home.credentials_file.exists():
        try:
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor
                file.write(made)
            with suppress(FileExistsError):
                os.link(new, home.credentials_file)
        except OSError as exc:
            raise Error(f"{home.credentials_file} could not be written: {exc}") from exc
        finally:
            new.unlink(missing_ok=True)
    return read(home)


def read(home: SandboxDirectory) -> Credentials:
    """Return a sandbox's credentials.

    Raises:
        Error: there are none, or the file is damaged.
    """
    try:
        fields = json.loads(home.credentials_file.read_text(encoding="utf-8"))
        return Credentials(str(fields["access_key"]), str(fields["secret_key"]))
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise Error(
            f"{home.credentials_file} could not be read: {exc}",
            hint="make the sandbox anew: rdsrepl sandbox down, then rdsrepl sandbox up",
        ) from exc
