"""RDS's clusters and instances on real servers: made, restarted, failed over and removed in the background.

An operation checks what it was asked, writes the new status and hands the work over; a client waits for the status.
While a resource's status is ``available`` a supervisor looks after it: a writer that died is replaced by a reader, any
other server that died is started again, as RDS does.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from rdsrepl.errors import Error, NotFound
from rdsrepl.sandbox import server_registry
from rdsrepl.sandbox.api import failover, metrics, secrets
from rdsrepl.sandbox.api.consistency import Consistency
from rdsrepl.sandbox.api.faults import Fault, fault
from rdsrepl.sandbox.api.parameter_groups import Groups
from rdsrepl.sandbox.api.records import Cluster, Instance, Records, Snapshot
from rdsrepl.sandbox.api.server_settings import Attached, reloadable, settings
from rdsrepl.sandbox.api.service import ApplyType, Kind, Service
from rdsrepl.sandbox.api.store import Store
from rdsrepl.sandbox.servers import processes, rds_roles
from rdsrepl.sandbox.servers.postgres_server import Server
from rdsrepl.sandbox.state import Directory, EndpointKind, EndpointState, ServerState, State

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger("rdsrepl.sandbox.api.controller")

# So long a status lasts at the least, so that clients have something to wait for.
_LEAST_SECONDS: Final = 0.3
_LOOK_SECONDS: Final = 0.25
_LISTEN_SECONDS: Final = 10.0
_STREAM_SECONDS: Final = 8.0
# What a standby must have no less of than its primary.
_NOT_LESS: Final = (
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
)


class Fleet:
    """All servers of the sandbox, and what RDS says of them."""

    def __init__(
        self, home: Directory, store: Store, groups: Groups, region: str, consistency: Consistency | None = None
    ) -> None:
        self.home = home
        self.region = region
        self.groups = groups
        self.consistency = consistency or Consistency()
        self.records = Records(store)
        self._locks: dict[str, threading.RLock] = {}
        self._locks_lock = threading.Lock()
        self._stopping = threading.Event()
        self._metrics = metrics.Publisher(region)
        # What an earlier process was at when it ended; what begins from now on is no concern of `_recover`.
        self._clusters_before = [one for one in self.records.all(Cluster) if one.status != "available"]
        self._instances_before = [one for one in self.records.all(Instance) if one.status != "available"]

    # --- the process's life

    def start(self) -> None:
        """Finish what an earlier process left, and begin to look after the servers."""
        threading.Thread(target=self._supervise, name="supervisor", daemon=True).start()

    def stop(self) -> None:
        """Leave the servers to themselves."""
        self._stopping.set()

    def before(self, service: str) -> None:
        """Bring up to date what another service tells of the servers, just before it is asked."""
        if service == "monitoring":
            self.publish()
        elif service == "secretsmanager":
            self._restore_secrets()

    def act(self, name: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Do what no operation of RDS does, for tests.

        ``crash`` kills the server of an ``instance``; ``consistency`` sets the delays of ``consistency.Delays``.

        Raises:
            NotFound: there is no such action, or no such server.
            ValueError: there is no such delay.
        """
        if name == "consistency":
            return self.consistency.configure(body)
        if name != "crash":
            raise NotFound(f"{name} is not known here")
        identifier = str(body.get("instance", ""))
        server = self.server(identifier)
        if server is None:
            raise NotFound(f"there is no instance {identifier}")
        server.stop("immediate")
        return {"crashed": identifier}

    # --- what the parameter groups ask

    def users(self, kind: Kind, name: str) -> list[str]:
        """Return the identifiers of what a group is attached to."""
        if kind == "cluster":
            return [cluster.identifier for cluster in self.records.all(Cluster) if cluster.parameter_group == name]
        return [instance.identifier for instance in self.records.all(Instance) if instance.parameter_group == name]

    def group_changed(self, kind: Kind, name: str, changed: Mapping[str, ApplyType]) -> None:
        """Apply dynamic changes to the running servers; have the others wait for a reboot."""
        static = any(apply_type == "static" for apply_type in changed.values())
        dynamic = [parameter for parameter, apply_type in changed.items() if apply_type == "dynamic"]
        users = self.users(kind, name)
        for instance in self.records.all(Instance):
            if kind == "cluster" and instance.cluster in users:
                active = instance.active_cluster_group == name
                if static:
                    with self.records.edit(Instance, instance.identifier) as one:
                        one.cluster_status = "pending-reboot"
            elif kind == "instance" and instance.identifier in users and not self._is_multi_az_member(instance):
                active = instance.active_group == name
                if static:
                    with self.records.edit(Instance, instance.identifier) as one:
                        one.parameter_status = "pending-reboot"
            else:
                continue
            # What is attached but not in force yet waits for the reboot as a whole.
            if active and dynamic:
                self._apply(instance.identifier, dynamic)

    # --- what operations look at

    def state(self) -> State:
        """Return which servers and endpoints there are.

        Raises:
            Fault: the sandbox is being removed.
        """
        state = self.home.read()
        if state is None:
            raise fault("InternalFailure", "The sandbox is gone.")
        return state

    def server(self, identifier: str) -> Server | None:
        """Return an instance's server."""
        state = self.state()
        entry = state.server(identifier.lower())
        return None if entry is None else server_registry.server(self.home, state, entry)

    def data_bytes(self, identifier: str) -> int:
        """Return the size of an instance's data directory."""
        return _size(self.home.servers_dir / identifier)

    # --- what operations have done

    def create(self, entries: Sequence[ServerState], password: str = "", *, cluster: str | None = None) -> None:
        """Make servers, which the state names from now on; their records say ``creating``.

        Args:
            entries: a primary and its standbys, or one standby of a server that is there.
            password: the master user's, for a primary.
            cluster: the one whose record says ``creating`` as well.
        """
        endpoints = [EndpointState("instance", entry.name) for entry in entries]
        self._change(lambda state: _with(state, entries).with_endpoints(*endpoints))
        names = [entry.name for entry in entries]
        self._run(lambda: self._create(cluster, entries, password), "creating", cluster, names)

    def listen(self, cluster: str) -> None:
        """Give a new cluster its endpoints, and wait until they are there."""
        kinds: tuple[EndpointKind, ...] = ("writer", "reader", "reader-host")
        self._change(lambda state: state.with_endpoints(*(EndpointState(kind, cluster) for kind in kinds)))
        self._await_endpoints()

    def reboot(self, identifiers: Sequence[str], *, cluster: str | None = None, applies: bool = True) -> None:
        """Restart servers, one after the other.

        Args:
            identifiers: their instances.
            cluster: its record says ``rebooting``, and those of the instances do not.
            applies: with their groups' values; else with those they have.
        """

        def job() -> None:
            for identifier in identifiers:
                self._reboot(identifier, applies=applies)

        self._run(job, "rebooting", cluster, [] if cluster is not None else identifiers)

    def regroup(self, identifier: str) -> None:
        """Give a member what its cluster's new group changes at once; the rest waits for its reboot."""
        instance = self.records.get(Instance, identifier)
        cluster = self.records.get(Cluster, instance.cluster or "")
        static, dynamic = ["its group is gone"], []
        if self.groups.exists("cluster", instance.active_cluster_group) is not None:
            old, new = (
                self.groups.values("cluster", group, instance.instance_class)
                for group in (instance.active_cluster_group, cluster.parameter_group)
            )
            known = self.groups.get("cluster", cluster.parameter_group).defaults
            differ = [name for name in known if old.get(name) != new.get(name)]
            static = [name for name in differ if known[name].apply_type == "static"]
            dynamic = [name for name in differ if known[name].apply_type != "static"]
        if dynamic:
            self._apply(identifier, dynamic)
        with self.records.edit(Instance, identifier) as one:
            one.cluster_status = "pending-reboot" if static else "in-sync"
            if not static:
                one.active_cluster_group = cluster.parameter_group

    def restart(self, identifier: str) -> None:
        """Restart a server with its groups' values, here and now; as a part of other work."""
        self._reboot(identifier)

    def fail_over(self, cluster: str, target: str) -> None:
        """Make another member the writer; the cluster's record says ``failing-over``."""
        self._run(lambda: self._fail_over(cluster, target), "failing-over", cluster, ())

    def settle(
        self, cluster: str | None, identifiers: Sequence[str], job: Callable[[], None], *, status: str = "modifying"
    ) -> None:
        """Do something in the background; the records have a status meanwhile, and then ``available``."""
        self._run(job, status, cluster, identifiers)

    def delete(self, identifier: str, snapshot: Snapshot | None) -> None:
        """Remove an instance's server and then its record, which says ``deleting``.

        A cluster's writer leaves its place to a reader first; read replicas become instances by themselves.
        """

        def job() -> None:
            state = self.state()
            entry = state.server(identifier)
            for replica in self.records.replicas(identifier):
                self._promote(replica.identifier)
            if entry is not None and entry.cluster and entry.source is None:
                others = [other.name for other in state.members(entry.cluster)[1:]]
                if others:
                    self._fail_over(entry.cluster, others[0])
            with self._family(identifier):
                self._keep(snapshot, identifier)
                self._remove(identifier)
            if (record := self.records.find(Instance, identifier)) is not None:
                self.records.drop(record)
                self.consistency.settled("instance-group", [record.parameter_group])

        self._run(job, "deleting", None, [identifier])

    def delete_cluster(self, cluster: str, snapshot: Snapshot | None) -> None:
        """Remove a cluster with its members and then its record, which says ``deleting``."""

        def job() -> None:
            with self._lock(cluster):
                state = self.state()
                members = state.members(cluster)
                if members:
                    # Without its standbys a primary stops at once.
                    for entry in members[1:]:
                        self._remove(entry.name)
                    self._keep(snapshot, members[0].name)
                    self._remove(members[0].name)
                self._change(lambda now: replace(now, endpoints=tuple(e for e in now.endpoints if e.of != cluster)))
            for instance in self.records.members(cluster):
                self.records.drop(instance)
            if (record := self.records.find(Cluster, cluster)) is not None:
                self.records.drop(record)
                self.consistency.settled("cluster-group", [record.parameter_group])

        names = [instance.identifier for instance in self.records.members(cluster)]
        self._run(job, "deleting", cluster, names)

    def promote(self, identifier: str) -> None:
        """Make a read replica an instance by itself; its record says ``modifying``."""
        self._run(lambda: self._promote(identifier), "modifying", None, [identifier])

    def set_password(self, primary: str, user: str, password: str) -> None:
        """Give the master user another password.

        Raises:
            Error: the server refused.
        """
        server = self.server(primary)
        if server is not None:
            rds_roles.set_password(server, user, password)

    def manage_secret(self, record: Cluster | Instance, password: str | None) -> None:
        """Keep a password in Secrets Manager from now on, or no longer."""
        if password is None:
            if record.secret_arn is not None:
                secrets.delete(self.region, record.secret_arn)
            record.secret_arn = record.password = None
            return
        record.password = password
        record.secret_arn = secrets.put(self.region, record.resource_id, record.master_user, password)

    def publish(self) -> None:
        """Send every instance's metrics to CloudWatch."""
        for instance in self.records.all(Instance):
            server = self.server(instance.identifier)
            if server is not None and server.is_running():
                with suppress(Error):
                    self._metrics.publish(instance, server, self.data_bytes(instance.identifier))

    # --- work in the background

    def _run(self, job: Callable[[], None], status: str, cluster: str | None, instances: Sequence[str]) -> None:
        """Give records a status, do the work, and make those that still have it ``available``."""
        self._set_status(status, cluster, instances)

        def work() -> None:
            began, worked = time.monotonic(), False
            try:
                job()
                worked = True
            except Exception:
                log.exception("%s %s: %s failed", cluster or "", ", ".join(instances), status)
            time.sleep(max(0.0, began + _LEAST_SECONDS - time.monotonic()))
            after = "available" if worked or status not in ("creating", "deleting") else "failed"
            self.consistency.settled("cluster", [cluster] if cluster is not None else [])
            self.consistency.settled("instance", instances)
            self._set_status(after, cluster, instances, only=status)

        threading.Thread(target=work, name=f"{status} {cluster or instances[0]}", daemon=True).start()

    def _set_status(
        self, status: str, cluster: str | None, instances: Sequence[str], *, only: str | None = None
    ) -> None:
        with self.records.store.lock:
            chosen: list[Cluster | Instance | None] = [self.records.find(Instance, name) for name in instances]
            if cluster is not None:
                chosen.append(self.records.find(Cluster, cluster))
            for record in chosen:
                if record is not None and only in (None, record.status):
                    record.status = status
                    self.records.put(record)

    def _change(self, change: Callable[[State], State]) -> State:
        return self.home.update(change)

    def _lock(self, family: str) -> threading.RLock:
        with self._locks_lock:
            return self._locks.setdefault(family, threading.RLock())

    @contextmanager
    def _family(self, identifier: str) -> Iterator[None]:
        """Hold all servers of one primary."""
        state = self.state()
        entry = state.server(identifier)
        with self._lock(state.family(entry) if entry is not None else identifier):
            yield

    def _primary(self, state: State, entry: ServerState) -> Server | None:
        above = state.server(entry.source) if entry.source else None
        return None if above is None else server_registry.server(self.home, state, above)

    def _create(self, cluster: str | None, entries: Sequence[ServerState], password: str) -> None:
        first, *others = entries
        state = self.state()
        with self._lock(state.family(first)), self.home.programs() as descriptor:
            if first.source is None:
                server = server_registry.server(self.home, state, first, (descriptor,))
                server.initdb()
                server.start()
                self._note_port(first, server)
                record = self.records.get(Instance, first.name)
                rds_roles.apply(server, password, user=record.master_user, dbname=record.dbname)
                copies = others
            else:
                copies = [first, *others]
            # Copying waits more than it works.
            threads = [threading.Thread(target=self._copy, args=(entry,), daemon=True) for entry in copies]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        self._await_endpoints()
        state = self.state()
        for entry in entries:
            made = state.server(entry.name)
            if made is None or not made.port:
                raise Error(f"{entry.name} was not made")
            self.records.happened("db-instance", entry.name, "RDS-EVENT-0005", ["creation"], "DB instance created")
        if cluster is not None:
            self.records.happened("db-cluster", cluster, "RDS-EVENT-0170", ["creation"], "DB cluster created")

    def _copy(self, entry: ServerState) -> None:
        """Make a standby of the server that is its source."""
        state = self.state()
        primary = self._primary(state, entry)
        if primary is None:
            return
        with self.home.programs() as descriptor:
            primary.keep_open = (descriptor,)
            try:
                copy = primary.clone(
                    self.home.servers_dir / entry.name,
                    slot=entry.slot or "",
                    settings={**server_registry.base_settings(primary.binaries), **entry.settings},
                )
                copy.start()
            except Error as exc:
                log.error("%s cannot be made: %s", entry.name, exc)
                if copy_incompatible(exc):
                    self._set_status("incompatible-parameters", None, [entry.name])
                return
        self._note_port(entry, copy)
        failover.wait(lambda: failover.streams(primary, entry.name), _STREAM_SECONDS)

    def _note_port(self, entry: ServerState, server: Server) -> None:
        def change(state: State) -> State:
            current = state.server(entry.name)
            return state if current is None else state.with_server(replace(current, port=server.port))

        self._change(change)

    def _await_endpoints(self) -> None:
        """Wait until the relay listens on every endpoint, and remember where."""

        def listens() -> bool:
            relay = self.home.relay()
            return relay is not None and {e.key for e in self.state().endpoints} <= relay.ports.keys()

        if not processes.wait(listens, _LISTEN_SECONDS):
            log.warning("the relay does not listen on every endpoint yet")
        relay = self.home.relay()
        if relay is not None:
            self._change(lambda state: state.with_ports(relay.ports))

    def _wanted(self, instance: Instance, entry: ServerState) -> dict[str, str]:
        """Return the settings that an instance's groups ask for now."""
        server = server_registry.server(self.home, self.state(), entry)
        return settings(self.groups, self.attached(instance), server.binaries)

    def attached(self, instance: Instance) -> Attached:
        """Return the groups whose values an instance is to have."""
        cluster = self.records.find(Cluster, instance.cluster) if instance.cluster else None
        if cluster is None:
            return Attached(instance.instance_class, instance=instance.parameter_group)
        own = None if cluster.multi_az else instance.parameter_group
        return Attached(instance.instance_class, cluster=cluster.parameter_group, instance=own)

    def _is_multi_az_member(self, instance: Instance) -> bool:
        cluster = self.records.find(Cluster, instance.cluster) if instance.cluster else None
        return cluster is not None and cluster.multi_az

    def _refresh(self, identifier: str) -> None:
        """Write an instance's settings as its groups have them, for the start that follows."""
        instance = self.records.get(Instance, identifier)
        entry = self.state().server(identifier)
        if entry is not None:
            wanted = self._wanted(instance, entry)
            self._change(lambda state: state.with_server(replace(state.server(identifier) or entry, settings=wanted)))

    def _in_force(self, identifier: str) -> None:
        """Note that an instance's server has its groups' values."""
        with suppress(Fault), self.records.edit(Instance, identifier) as instance:
            cluster = self.records.find(Cluster, instance.cluster) if instance.cluster else None
            instance.parameter_status = instance.cluster_status = "in-sync"
            instance.active_group = instance.parameter_group
            instance.active_cluster_group = cluster.parameter_group if cluster is not None else ""

    def _apply(self, identifier: str, parameters: Sequence[str]) -> None:
        """Give a running server new values of parameters that it takes while it runs."""
        with self._family(identifier):
            state = self.state()
            entry, instance = state.server(identifier), self.records.find(Instance, identifier)
            if entry is None or instance is None:
                return
            programs = server_registry.server(self.home, state, entry).binaries
            wanted, new = self._wanted(instance, entry), dict(entry.settings)
            for name in parameters:
                if reloadable(name, programs):
                    new.pop(name, None)
                    if name in wanted:
                        new[name] = wanted[name]
            entry = replace(entry, settings=new)
            state = self._change(lambda now: now.with_server(entry))
            server = server_registry.server(self.home, state, entry)
            if server.is_running():
                server.reload()

    def _reboot(self, identifier: str, *, applies: bool = True) -> None:
        with self._family(identifier):
            if applies:
                self._refresh(identifier)
            server = self.server(identifier)
            if server is None:
                raise NotFound(f"there is no server {identifier}")
            failover.stop(server)
            self.records.happened("db-instance", identifier, "RDS-EVENT-0004", ["availability"], "DB instance shutdown")
            if self._start(identifier):
                if applies:
                    self._in_force(identifier)
                self.records.happened(
                    "db-instance", identifier, "RDS-EVENT-0006", ["availability"], "DB instance restarted"
                )

    def _start(self, identifier: str) -> bool:
        """Start a server; where its settings do not let it, the instance's status says so."""
        server, entry = self.server(identifier), self.state().server(identifier)
        if server is None or entry is None:
            return False
        try:
            server.start()
        except Error as exc:
            log.error("%s", exc)
            self._set_status("incompatible-parameters", None, [identifier])
            self.records.happened(
                "db-instance",
                identifier,
                "RDS-EVENT-0035",
                ["configuration change"],
                f"DB instance put into incompatible-parameters. {exc}",
            )
            return False
        if server.port != entry.port:
            self._note_port(entry, server)
        return True

    def _remove(self, identifier: str) -> None:
        """End a server and remove its files, its entry and the slot it streamed through."""
        state = self.state()
        entry = state.server(identifier)
        if entry is None:
            return
        server, primary = server_registry.server(self.home, state, entry), self._primary(state, entry)
        if server.is_running():
            failover.stop(server)
        server.remove()
        if primary is not None:
            _drop_slot(primary, entry.slot)
        self._change(lambda now: now.without_server(identifier))

    def _keep(self, snapshot: Snapshot | None, identifier: str) -> None:
        """Take the final snapshot of a server that is about to be removed."""
        if snapshot is None:
            return
        server = self.server(identifier)
        if server is not None and server.is_running():
            failover.stop(server)
        snapshot.data_bytes, snapshot.status = self.data_bytes(identifier), "available"
        self.records.put(snapshot)

    def _promote(self, identifier: str) -> None:
        with self._family(identifier):
            state = self.state()
            entry, server = state.server(identifier), self.server(identifier)
            if entry is None or server is None:
                raise NotFound(f"there is no server {identifier}")
            primary = self._primary(state, entry)
            server.promote()
            self._change(lambda now: now.with_server(replace(entry, source=None)))
            if primary is not None:
                _drop_slot(primary, entry.slot)
        with self.records.edit(Instance, identifier) as instance:
            instance.source = None

    # --- failing over

    def _fail_over(self, cluster: str, target: str) -> None:
        with self._lock(cluster):
            state = self.state()
            old = state.members(cluster)[0]
            if old.name == target:
                return
            self.records.happened(
                "db-cluster",
                cluster,
                "RDS-EVENT-0073",
                ["failover"],
                f"Started cross AZ failover to DB instance: {target}",
            )
            try:
                self._change_writer(cluster, old.name, target)
            except (Error, Fault):
                log.exception("%s: %s cannot become the writer", cluster, target)
                for name in (old.name, target):
                    self._start(name)
                self.records.happened(
                    "db-cluster",
                    cluster,
                    "RDS-EVENT-0069",
                    ["failover", "failure"],
                    "Cluster failover failed, check the health of your readers and try again",
                )
                return
            self.records.happened(
                "db-cluster", cluster, "RDS-EVENT-0071", ["failover"], f"Completed failover to DB instance: {target}"
            )
            self._rejoin(cluster, old.name)

    def _change_writer(self, cluster: str, old_name: str, target: str) -> None:
        """Stop both, carry over what the target lacks, start and promote it, and lead the endpoint to it."""
        old, new = self.server(old_name), self.server(target)
        if old is None or new is None:
            raise NotFound(f"there is no server {target if new is None else old_name}")
        if old.is_running():
            failover.stop(old)
        old.sweep()
        received = failover.received_lsn(new)
        new.stop("fast")
        failover.carry(old, new, received)
        before = self.state().server(old_name)
        self._refresh(target)
        state = self.state()
        entry = state.server(target)
        if entry is None or before is None:
            raise NotFound(f"there is no server {target}")
        entry = replace(entry, source=None)
        new = server_registry.server(self.home, state, entry)
        if any(_number(entry.settings, name) < _number(before.settings, name) for name in _NOT_LESS):
            # With fewer connections than the WAL speaks of it would not take sessions, and so would not start.
            new.settings["hot_standby"] = "off"
        new.start()
        new.promote()
        self._in_force(target)

        def change(state: State) -> State:
            for server in state.members(cluster):
                state = state.with_server(replace(server, source=None if server.name == target else target))
            return state.with_server(replace(entry, port=new.port))

        state = self._change(change)
        slots = [server.slot for server in state.members(cluster) if server.name != target and server.slot]
        failover.prepare_slots(new, slots)
        for server in state.members(cluster):
            if server.name not in (target, old_name):
                other = server_registry.server(self.home, state, server)
                if other.is_running():
                    other.reload()

    def _rejoin(self, cluster: str, old_name: str) -> None:
        """Make the former writer a reader, and see to it that every reader streams."""
        old = self.server(old_name)
        if old is not None and old.exists():
            self._refresh(old_name)
            failover.forget_slots(old)
            old.become_standby()
            with suppress(Error):
                server = self.server(old_name)
                if server is not None:
                    server.start()
                    self._in_force(old_name)
        state = self.state()
        primary, *readers = state.members(cluster)
        writer = server_registry.server(self.home, state, primary)
        for reader in readers:
            runs = server_registry.server(self.home, state, reader).is_running()
            if not runs or not failover.wait(lambda name=reader.name: failover.streams(writer, name), _STREAM_SECONDS):  # type: ignore[misc]
                log.warning("%s does not stream from %s: making it anew", reader.name, primary.name)
                self._rebuild(reader)

    def _rebuild(self, entry: ServerState) -> None:
        """Make a standby anew from its source."""
        state = self.state()
        primary = self._primary(state, entry)
        server_registry.server(self.home, state, entry).remove()
        if primary is not None:
            _drop_slot(primary, entry.slot)
            self._refresh(entry.name)
            self._copy(self.state().server(entry.name) or entry)
            self._in_force(entry.name)

    # --- looking after what runs

    def _supervise(self) -> None:
        recovered, said = False, ""
        while not self._stopping.wait(_LOOK_SECONDS):
            try:
                state = self.home.read()
                if state is None or state.phase != "ready":
                    continue
                if not recovered:
                    self._recover()
                    recovered = True
                for cluster in self.records.all(Cluster):
                    if cluster.status == "available":
                        self._look_after_cluster(cluster.identifier)
                for instance in self.records.all(Instance):
                    if instance.status == "available":
                        self._look_after(instance)
            except Error as exc:
                # Four times a second: once is enough.
                if str(exc) != said:
                    said = str(exc)
                    log.warning("nobody looks after the servers: %s", said)
            except Exception:
                log.exception("the supervisor stumbled")

    def _look_after_cluster(self, cluster: str) -> None:
        members = self.state().members(cluster)
        if not members or self._is_up(members[0].name):
            return
        with self._lock(cluster):
            record = self.records.find(Cluster, cluster)
            members = self.state().members(cluster)
            if record is None or record.status != "available" or self._is_up(members[0].name):
                return
            statuses = {i.identifier: (i.status, i.promotion_tier) for i in self.records.members(cluster)}
            ready = [e.name for e in members[1:] if self._is_up(e.name) and statuses[e.name][0] == "available"]
            if not ready or statuses[members[0].name][0] != "available":
                return
            target = min(ready, key=lambda name: statuses[name][1])
            log.info("%s: the writer %s died; %s takes over", cluster, members[0].name, target)
            self._set_status("failing-over", cluster, ())
            try:
                self._fail_over(cluster, target)
            finally:
                self._set_status("available", cluster, (), only="failing-over")

    def _look_after(self, instance: Instance) -> None:
        if self._is_up(instance.identifier):
            return
        with self._family(instance.identifier):
            record = self.records.find(Instance, instance.identifier)
            cluster = self.records.find(Cluster, record.cluster) if record is not None and record.cluster else None
            entry = self.state().server(instance.identifier)
            busy = cluster is not None and cluster.status != "available"
            if record is None or record.status != "available" or busy or entry is None:
                return
            server = self.server(entry.name)
            if server is None or not server.exists() or self._is_up(entry.name):
                return
            log.info("%s died; starting it again", entry.name)
            if self._start(entry.name):
                self.records.happened(
                    "db-instance", entry.name, "RDS-EVENT-0006", ["availability"], "DB instance restarted"
                )

    def _is_up(self, identifier: str) -> bool:
        server = self.server(identifier)
        return server is not None and server.is_running()

    def _recover(self) -> None:
        """Finish, or give up, what an earlier process was at when it ended."""
        for cluster in self._clusters_before:
            if cluster.status == "deleting":
                self.delete_cluster(cluster.identifier, None)
            elif cluster.status == "failing-over":
                self._settle_roles(cluster.identifier)
            if cluster.status in ("modifying", "rebooting", "failing-over", "creating"):
                made = all(self._is_up(entry.name) for entry in self.state().members(cluster.identifier))
                after = "available" if made or cluster.status != "creating" else "failed"
                self._set_status(after, cluster.identifier, (), only=cluster.status)
        for instance in self._instances_before:
            if instance.status == "deleting" and instance.cluster is None:
                self.delete(instance.identifier, None)
            elif instance.status in ("modifying", "rebooting"):
                self._set_status("available", None, [instance.identifier], only=instance.status)
            elif instance.status == "creating":
                after = "available" if self._is_up(instance.identifier) else "failed"
                self._set_status(after, None, [instance.identifier], only=instance.status)

    def _settle_roles(self, cluster: str) -> None:
        """Decide which member is the writer where a failover was interrupted: one that was promoted is."""
        members = self.state().members(cluster)
        promoted = [
            entry.name
            for entry in members[1:]
            if (server := self.server(entry.name)) is not None
            and server.exists()
            and not (server.data_dir / "standby.signal").exists()
        ]
        if not promoted:
            return
        target = promoted[0]

        def change(state: State) -> State:
            for server in state.members(cluster):
                state = state.with_server(replace(server, source=None if server.name == target else target))
            return state

        with self._lock(cluster):
            self._change(change)
            self._start(target)
            for entry in self.state().members(cluster)[1:]:
                self._rebuild(entry)

    def _restore_secrets(self) -> None:
        """Put back what Secrets Manager, which forgets with its process, no longer has."""
        records: list[Cluster | Instance] = [*self.records.all(Cluster), *self.records.all(Instance)]
        for record in records:
            if record.secret_arn is not None and record.password is not None:
                secrets.restore(self.region, record.secret_arn, record.master_user, record.password)


def fleet_of(service: Service) -> Fleet:
    """Return the servers of a service that has some.

    Raises:
        Fault: it has none: the region is not the sandbox's.
    """
    if not isinstance(service.fleet, Fleet):
        raise fault("NotImplemented", f"The sandbox has no servers in {service.region}.")
    return service.fleet


def copy_incompatible(error: Error) -> bool:
    """Say whether a server did not start because of what its parameters are."""
    return "did not start" in str(error)


def _with(state: State, entries: Sequence[ServerState]) -> State:
    for entry in entries:
        state = state.with_server(entry)
    return state


def _number(values: Mapping[str, str], name: str) -> int:
    return int(values.get(name, "0"))


def _drop_slot(primary: Server, slot: str | None) -> None:
    if slot is None or not primary.is_running():
        return
    query = (
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_catalog.pg_replication_slots "
        "WHERE slot_name = %s AND NOT active"
    )
    # The sender of a standby that has just ended takes a moment to notice.
    for _ in range(20):
        with suppress(Error), closing(primary.administer()) as conn:
            conn.execute(query, [slot])
            left = "SELECT count(*) FROM pg_catalog.pg_replication_slots WHERE slot_name = %s"
            row = conn.execute(left, [slot]).fetchone()
            if row is not None and row[0] == 0:
                return
        time.sleep(0.1)


def _size(directory: Path) -> int:
    total = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            with suppress(OSError):
                total += os.stat(os.path.join(parent, name)).st_size  # noqa: PTH116, PTH118 - thousands of files
    return total
