"""The process of the API: ``python -m rdsrepl.sandbox.api DIRECTORY [REGION]``, which ``up`` runs."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

from rdsrepl.sandbox import credentials
from rdsrepl.sandbox.api import operations  # noqa: F401 - registers the operations
from rdsrepl.sandbox.api.consistency import Consistency
from rdsrepl.sandbox.api.http_server import ApiServer
from rdsrepl.sandbox.api.parameter_groups import ParameterGroups
from rdsrepl.sandbox.api.server_controller import Controller
from rdsrepl.sandbox.api.service import Service
from rdsrepl.sandbox.api.store import Store
from rdsrepl.sandbox.api.supervisor import Supervisor
from rdsrepl.sandbox.api.types import REGION
from rdsrepl.sandbox.directory import SandboxDirectory
from rdsrepl.sandbox.servers import processes

log = logging.getLogger("rdsrepl.sandbox.api")

_POLL_SECONDS: Final = 1.0


def run(directory: SandboxDirectory, region: str) -> None:
    """Serve until SIGTERM, or until the sandbox is removed.

    The file ``api.json`` says where the API listens.

    Raises:
        SystemExit: the directory is not that of a sandbox.
    """
    if not directory.state_file.exists():
        raise SystemExit(f"no sandbox in {directory.path}")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    store = Store(directory.path / "aws.json")
    groups = ParameterGroups(store)
    consistency = Consistency()
    controller = Controller(directory, store, groups, region, consistency)
    supervisor = Supervisor(controller)
    service = Service(store, groups, controller, region, consistency=consistency)
    own_file = directory.path / "api.json"
    with ApiServer(service, credentials.create(directory), _previous_port(own_file), controller) as server:
        threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
        own = {"pid": os.getpid(), "started": processes.start_time(os.getpid()) or "", "port": server.port}
        directory.save(own_file, {**own, "region": region})
        supervisor.start()
        log.info("listening on port %d for %s", server.port, region)
        while not stop.wait(_POLL_SECONDS) and directory.state_file.exists():
            pass
        supervisor.stop()
        server.shutdown()
    log.info("stopped")


def _previous_port(own_file: Path) -> int:
    with suppress(OSError, ValueError, KeyError, TypeError):
        return int(json.loads(own_file.read_text(encoding="utf-8"))["port"])
    return 0


def main() -> None:
    """Serve the sandbox whose directory is the first argument."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    # The server of moto logs every request.
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    run(SandboxDirectory(Path(sys.argv[1])), sys.argv[2] if len(sys.argv) > 2 else REGION)


if __name__ == "__main__":
    main()
