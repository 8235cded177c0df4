"""What the controller and the supervisor do to the servers: create, restart, promote, fail over, remove."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from typing import Final

from rdsrepl.errors import Error, NotFound, TimedOut
from rdsrepl.sandbox import server_registry
from rdsrepl.sandbox.api import failover
from rdsrepl.sandbox.api.api_errors import Fault, fault
from rdsrepl.sandbox.api.parameter_groups import ParameterGroups
from rdsrepl.sandbox.api.records import Cluster, Instance, Records
from rdsrepl.sandbox.api.server_settings import AttachedGroups, is_reloadable, settings
from rdsrepl.sandbox.directory import SandboxDirectory
from rdsrepl.sandbox.servers import processes, rds_roles
from rdsrepl.sandbox.servers.postgres_server import PostgresServer
from rdsrepl.sandbox.state import ServerState, State

log = logging.getLogger("rdsrepl.sandbox.api.server_actions")

_LISTEN_SECONDS: Final = 10.0
_STREAM_SECONDS: Final = 8.0
_STREAM_POLL_SECONDS: Final = 0.1
# A standby does not accept sessions when one of these is lower than on its primary (manual, section 26.4.3).
_NOT_LOWER_THAN_PRIMARY: Final = (
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
)


class ServerActions:
    """Changes the servers, and updates the state and the records accordingly.

    Every method waits until its work is done. Methods that change servers of the same primary wait for each other.
    """

    def __init__(self, home: SandboxDirectory, groups: ParameterGroups, records: Records) -> None:
        self._home = home
        self._groups = groups
        self._records = records
        self._locks: dict[str, threading.RLock] = {}
        self._locks_lock = threading.Lock()

    def state(self) -> State:
        """Return the state: which servers and endpoints exist.

        Raises:
            Fault: the sandbox is being removed.
        """
        state = self._home.read()
        if state is None:
            raise fault("InternalFailure", "The sandbox was removed.")
        return state

    def server(self, identifier: str) -> PostgresServer | None:
        """Return the server of an instance."""
        state = self.state()
        entry = state.server(identifier.lower())
        return None if entry is None else server_registry.server(self._home, state, entry)

    def is_running(self, identifier: str) -> bool:
        """Return whether the server of an instance runs."""
        server = self.server(identifier)
        return server is not None and server.is_running()

    def attached(self, instance: Instance) -> AttachedGroups:
        """Return the parameter groups whose values an instance is to have."""
        cluster = self._records.find(Cluster, instance.cluster) if instance.cluster else None
        if cluster is None:
            return AttachedGroups(instance.instance_class, instance=instance.parameter_group)
        own = None if cluster.multi_az else instance.parameter_group
        return AttachedGroups(instance.instance_class, cluster=cluster.parameter_group, instance=own)

    def lock(self, family: str) -> threading.RLock:
        """Return the lock of a primary and its standbys (``State.family``)."""
        with self._locks_lock:
            return self._locks.setdefault(family, threading.RLock())

    @contextmanager
    def family_lock(self, identifier: str) -> Iterator[None]:
        """Hold the lock of an instance's primary and its standbys."""
        state = self.state()
        entry = state.server(identifier)
        with self.lock(state.family(entry) if entry is not None else identifier):
            yield

    def await_endpoints(self) -> None:
        """Wait until the relay listens on every endpoint, and write the ports to the state."""

        def listens() -> bool:
            relay = self._home.relay()
            return relay is not None and {e.key for e in self.state().endpoints} <= relay.ports.keys()

        if not processes.wait(listens, _LISTEN_SECONDS):
            log.warning("the relay does not listen on every endpoint yet")
        relay = self._home.relay()
        if relay is not None:
            self._home.update(lambda state: state.with_ports(relay.ports))

    def create(self, cluster: str | None, entries: Sequence[ServerState], password: str) -> None:
        """Create servers that the state names: a primary and its standbys, or standbys only.

        Raises:
            Error: a server could not be created.
        """
        first, *others = entries
        state = self.state()
        with self.lock(state.family(first)), self._home.programs() as descriptor:
            if first.source is None:
                server = server_registry.server(self._home, state, first, (descriptor,))
                server.initdb()
                server.start()
                self._save_port(first, server)
                record = self._records.get(Instance, first.name)
                rds_roles.apply(server, password, user=record.master_user, dbname=record.dbname)
                standbys = others
            else:
                standbys = [first, *others]
            # A base backup waits more than it works, so all are taken at once.
            threads = [threading.Thread(target=self._clone, args=(entry,), daemon=True) for entry in standbys]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        self.await_endpoints()
        state = self.state()
        for entry in entries:
            made = state.server(entry.name)
            if made is None or not made.port:
                raise Error(f"could not create the server {entry.name}")
            self._records.add_event("RDS-EVENT-0005", entry.name)
        if cluster is not None:
            self._records.add_event("RDS-EVENT-0170", cluster)

    def apply(self, identifier: str, parameters: Sequence[str]) -> None:
        """Reload a running server with new values of parameters that do not need a restart."""
        with self.family_lock(identifier):
            state = self.state()
            entry, instance = state.server(identifier), self._records.find(Instance, identifier)
            if entry is None or instance is None:
                return
            programs = server_registry.server(self._home, state, entry).binaries
            wanted, new = self._group_settings(instance, entry), dict(entry.settings)
            for name in parameters:
                if is_reloadable(name, programs):
                    new.pop(name, None)
                    if name in wanted:
                        new[name] = wanted[name]
            entry = replace(entry, settings=new)
            server = server_registry.server(self._home, self._home.update(lambda now: now.with_server(entry)), entry)
            if server.is_running():
                server.reload()

    def reboot(self, identifier: str, *, applies: bool = True) -> None:
        """Restart a server.

        Args:
            identifier: the instance.
            applies: whether it starts with the values of its groups; else with those it has.

        Raises:
            NotFound: the instance has no server.
        """
        with self.family_lock(identifier):
            if applies:
                self._write_group_settings(identifier)
            server = self.server(identifier)
            if server is None:
                raise NotFound(f"server {identifier} not found")
            failover.stop(server)
            self._records.add_event("RDS-EVENT-0004", identifier)
            if self.start(identifier):
                if applies:
                    self._mark_in_sync(identifier)
                self._records.add_event("RDS-EVENT-0006", identifier)

    def start(self, identifier: str) -> bool:
        """Start a server; return whether it started.

        When it does not start, the status of the instance becomes ``incompatible-parameters``.
        """
        server, entry = self.server(identifier), self.state().server(identifier)
        if server is None or entry is None:
            return False
        try:
            server.start()
        except Error as exc:
            log.error("%s", exc)
            self._records.set_status("incompatible-parameters", None, [identifier])
            self._records.add_event("RDS-EVENT-0035", identifier, str(exc))
            return False
        if server.port != entry.port:
            self._save_port(entry, server)
        return True

    def remove(self, identifier: str) -> None:
        """Stop a server; remove its files, its entry in the state and the slot through which it streams."""
        state = self.state()
        entry = state.server(identifier)
        if entry is None:
            return
        server, primary = server_registry.server(self._home, state, entry), self._source(state, entry)
        if server.is_running():
            failover.stop(server)
        server.remove()
        if primary is not None:
            _drop_slot(primary, entry.slot)
        self._home.update(lambda now: now.without_server(identifier))

    def promote(self, identifier: str) -> None:
        """Promote a read replica and restart it, as RDS does; its source keeps running.

        Raises:
            NotFound: the instance has no server.
            TimedOut: it is still a standby.
        """
        with self.family_lock(identifier):
            state = self.state()
            entry, server = state.server(identifier), self.server(identifier)
            if entry is None or server is None:
                raise NotFound(f"server {identifier} not found")
            primary = self._source(state, entry)
            server.promote()
            self._home.update(lambda now: now.with_server(replace(entry, source=None, is_cut_off=False)))
            if primary is not None:
                _drop_slot(primary, entry.slot)
        with self._records.edit(Instance, identifier) as instance:
            instance.source = None
        self.reboot(identifier)

    def disturb_standby(self, identifier: str, *, replays: bool | None = None, streams: bool | None = None) -> None:
        """Stop a standby from replaying WAL or from streaming it, or let it continue.

        Args:
            identifier: the instance.
            replays: whether it replays what it received, until its next restart; None changes nothing.
            streams: whether it can connect to its source; None changes nothing.

        Raises:
            NotFound: the instance has no server.
            ValueError: it is not a standby.
            TimedOut: it still streams, or does not stream yet.
        """
        with self.family_lock(identifier):
            state = self.state()
            entry, standby = state.server(identifier), self.server(identifier)
            if entry is None or standby is None:
                raise NotFound(f"instance {identifier} not found")
            primary = self._source(state, entry)
            if primary is None:
                raise ValueError(f"instance {identifier} is not a standby")
            if replays is not None:
                failover.set_replay(standby, replays=replays)
            if streams is not None:
                changed = replace(entry, is_cut_off=not streams)
                state = self._home.update(lambda now: now.with_server(changed))
                server_registry.server(self._home, state, changed).reload()
                # A standby that does not replay would keep its connection.
                failover.disconnect(standby)

                def has_changed() -> bool:
                    return failover.is_streaming(primary, entry.name) is streams

                if not processes.wait(has_changed, _STREAM_SECONDS, _STREAM_POLL_SECONDS):
                    what = "does not stream yet" if streams else "still streams"
                    raise TimedOut(f"timed out after {_STREAM_SECONDS:.0f} s: {entry.name} {what}")

    def fail_over(self, cluster: str, target: str) -> None:
        """Make the member TARGET the writer of a cluster, and the former writer a reader.

        A failover that fails leaves the writer as it is; the log and an event say so.
        """
        with self.lock(cluster):
            state = self.state()
            old = state.members(cluster)[0]
            if old.name == target:
                return
            self._records.add_event("RDS-EVENT-0073", cluster, target)
            try:
                self._change_writer(cluster, old.name, target)
            except (Error, Fault):
                log.exception("%s: could not make %s the writer", cluster, target)
                for name in (old.name, target):
                    self.start(name)
                self._records.add_event("RDS-EVENT-0069", cluster)
                return
            self._records.add_event("RDS-EVENT-0071", cluster, target)
            self._rejoin(cluster, old.name)

    def rebuild(self, entry: ServerState) -> None:
        """Remove a standby and clone it again from its source."""
        state = self.state()
        primary = self._source(state, entry)
        server_registry.server(self._home, state, entry).remove()
        if primary is not None:
            _drop_slot(primary, entry.slot)
            self._write_group_settings(entry.name)
            self._clone(self.state().server(entry.name) or entry)
            self._mark_in_sync(entry.name)

    def _source(self, state: State, entry: ServerState) -> PostgresServer | None:
        """Return the server whose WAL a standby streams."""
        source = state.server(entry.source) if entry.source else None
        return None if source is None else server_registry.server(self._home, state, source)

    def _clone(self, entry: ServerState) -> None:
        """Create a standby from its source; the log says when that fails."""
        state = self.state()
        primary = self._source(state, entry)
        if primary is None:
            return
        with self._home.programs() as descriptor:
            primary.keep_open = (descriptor,)
            try:
                primary.clone(self._home.servers_dir / entry.name, slot=entry.slot or "")
            except Error as exc:
                log.error("could not create %s: %s", entry.name, exc)
                return
            standby = server_registry.server(self._home, state, entry, (descriptor,))
            try:
                standby.start()
            except Error as exc:
                log.error("could not start %s: %s", entry.name, exc)
                if not isinstance(exc, TimedOut):
                    self._records.set_status("incompatible-parameters", None, [entry.name])
                return
        self._save_port(entry, standby)
        self._await_streaming(primary, entry.name)

    def _await_streaming(self, primary: PostgresServer, standby: str) -> bool:
        """Wait until a standby streams; return whether it does."""
        return processes.wait(lambda: failover.is_streaming(primary, standby), _STREAM_SECONDS, _STREAM_POLL_SECONDS)

    def _save_port(self, entry: ServerState, server: PostgresServer) -> None:
        def change(state: State) -> State:
            current = state.server(entry.name)
            return state if current is None else state.with_server(replace(current, port=server.port))

        self._home.update(change)

    def _group_settings(self, instance: Instance, entry: ServerState) -> dict[str, str]:
        """Return the settings that the groups of an instance have now."""
        server = server_registry.server(self._home, self.state(), entry)
        return settings(self._groups, self.attached(instance), server.binaries)

    def _write_group_settings(self, identifier: str) -> None:
        """Write the settings that the groups of an instance have now to the state, for the next start."""
        instance = self._records.get(Instance, identifier)
        entry = self.state().server(identifier)
        if entry is not None:
            wanted = self._group_settings(instance, entry)
            self._home.update(
                lambda state: state.with_server(replace(state.server(identifier) or entry, settings=wanted))
            )

    def _mark_in_sync(self, identifier: str) -> None:
        """Record that the server of an instance has the values of its groups."""
        with suppress(Fault), self._records.edit(Instance, identifier) as instance:
            cluster = self._records.find(Cluster, instance.cluster) if instance.cluster else None
            instance.parameter_status = instance.cluster_status = "in-sync"
            instance.active_group = instance.parameter_group
            instance.active_cluster_group = cluster.parameter_group if cluster is not None else ""

    def _change_writer(self, cluster: str, old_name: str, target: str) -> None:
        """Stop both servers, copy what the target lacks, start and promote it, and switch the endpoint to it."""
        old, new = self.server(old_name), self.server(target)
        if old is None or new is None:
            raise NotFound(f"server {target if new is None else old_name} not found")
        if old.is_running():
            failover.stop(old)
        old.kill_leftovers()
        received = failover.received_lsn(new)
        new.stop("fast")
        failover.copy_missing(old, new, received)
        before = self.state().server(old_name)
        self._write_group_settings(target)
        state = self.state()
        entry = state.server(target)
        if entry is None or before is None:
            raise NotFound(f"server {target} not found")
        entry = replace(entry, source=None)
        new = server_registry.server(self._home, state, entry)
        if any(_number(entry.settings, name) < _number(before.settings, name) for name in _NOT_LOWER_THAN_PRIMARY):
            # As a standby with lower limits it would refuse to start.
            new.settings["hot_standby"] = "off"
        new.start()
        new.promote()
        self._mark_in_sync(target)
        state = self._home.update(
            lambda now: now.with_writer(cluster, target).with_server(replace(entry, port=new.port))
        )
        slots = [server.slot for server in state.members(cluster) if server.name != target and server.slot]
        failover.create_physical_slots(new, slots)
        for server in state.members(cluster):
            if server.name not in (target, old_name):
                other = server_registry.server(self._home, state, server)
                if other.is_running():
                    other.reload()

    def _rejoin(self, cluster: str, old_name: str) -> None:
        """Make the former writer a reader; rebuild every reader that does not stream."""
        old = self.server(old_name)
        if old is not None and old.exists():
            self._write_group_settings(old_name)
            failover.remove_slots(old)
            old.become_standby()
            with suppress(Error):
                server = self.server(old_name)
                if server is not None:
                    server.start()
                    self._mark_in_sync(old_name)
        state = self.state()
        primary, *readers = state.members(cluster)
        writer = server_registry.server(self._home, state, primary)
        for reader in readers:
            runs = server_registry.server(self._home, state, reader).is_running()
            if not runs or not self._await_streaming(writer, reader.name):
                log.warning("%s does not stream from %s; rebuilding it", reader.name, primary.name)
                self.rebuild(reader)


def _number(values: Mapping[str, str], name: str) -> int:
    return int(values.get(name, "0"))


def _drop_slot(primary: PostgresServer, slot: str | None) -> None:
    """Drop the physical slot of a standby that ended; its WAL sender still holds the slot for a moment."""
    if slot is None or not primary.is_running():
        return

    def dropped() -> bool:
        with suppress(Error), closing(primary.administer()) as conn:
            conn.execute(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_catalog.pg_replication_slots "
                "WHERE slot_name = %s AND NOT active",
                [slot],
            )
            left = "SELECT count(*) FROM pg_catalog.pg_replication_slots WHERE slot_name = %s"
            row = conn.execute(left, [slot]).fetchone()
            return row is not None and row[0] == 0
        return False

    processes.wait(dropped, _STREAM_SECONDS, _STREAM_POLL_SECONDS)
