"""The AWS credentials of the sandbox: random, created once, in a file that only the owner may read."""

from __future__ import annotations

import json
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from rdsrepl.errors import Error

if TYPE_CHECKING:
    from rdsrepl.sandbox.directory import SandboxDirectory

# An access key of AWS is AKIA and 16 of these letters.
_LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_KEY_LETTERS: Final = 16
_SECRET_BYTES: Final = 30


@dataclass(frozen=True, slots=True)
class Credentials:
    """The key pair that signs requests to the API of the sandbox.

    Attributes:
        access_key: identifies the caller; every request contains it.
        secret_key: never sent and never shown.
    """

    access_key: str
    secret_key: str = field(repr=False)


def create(home: SandboxDirectory) -> Credentials:
    """Return the credentials of a sandbox; generate and write them, mode 0600, when the file does not exist.

    Args:
        home: the directory of the sandbox.

    Raises:
        Error: the file cannot be read or written.
    """
    key = "AKIA" + "".join(secrets.choice(_LETTERS) for _ in range(_KEY_LETTERS))
    made = json.dumps({"access_key": key, "secret_key": secrets.token_urlsafe(_SECRET_BYTES)})
    # Of two processes that create the file at the same time, the second one uses the file of the first one: a link
    # is created in one step.
    new = home.credentials_file.with_name(f"{home.credentials_file.name}.{secrets.token_hex(8)}.new")
    if not home.credentials_file.exists():
        try:
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor
                file.write(made)
            with suppress(FileExistsError):
                os.link(new, home.credentials_file)
        except OSError as exc:
            raise Error(f"could not write {home.credentials_file}: {exc}") from exc
        finally:
            new.unlink(missing_ok=True)
    return read(home)


def read(home: SandboxDirectory) -> Credentials:
    """Return the credentials of a sandbox.

    Raises:
        Error: the file does not exist or is damaged.
    """
    try:
        fields = json.loads(home.credentials_file.read_text(encoding="utf-8"))
        return Credentials(str(fields["access_key"]), str(fields["secret_key"]))
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise Error(
            f"could not read {home.credentials_file}: {exc}",
            hint="create the sandbox again: rdsrepl sandbox down && rdsrepl sandbox up",
        ) from exc
