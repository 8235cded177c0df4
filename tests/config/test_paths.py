"""Where the config file and the state are, without a home directory."""

from __future__ import annotations

import pwd
from pathlib import Path

import pytest

from tests.fixtures.postgres import Database
from tests.fixtures.program import Program

_NONE = {"HOME": None, "XDG_CONFIG_HOME": None, "XDG_STATE_HOME": None, "RDSREPL_STATE_DIR": None}


@pytest.fixture
def _unknown_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this user have no entry in the passwd file, as the user of a container may have none."""

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)


@pytest.mark.usefixtures("_unknown_user")
@pytest.mark.parametrize("words", [("config", "list"), ("slot", "list")])
def test_a_user_without_a_home_directory_can_read(db18: Database, rdsrepl: Program, words: tuple[str, ...]) -> None:
    result = rdsrepl(*words, env={**_NONE, "RDSREPL_DSN": db18.dsn})
    assert result.code == 0, result.err


@pytest.mark.usefixtures("_unknown_user")
def test_without_a_home_directory_the_state_has_the_path_that_containers_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from rdsrepl import config

    for name in _NONE:
        monkeypatch.delenv(name, raising=False)
    assert config.state_directory() == Path("/.local/state/rdsrepl")
