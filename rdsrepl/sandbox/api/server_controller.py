"""Carries out what the operations of the API request: changes clusters and instances in the background.

An operation checks its request and calls the controller. The controller sets the status of the records, does the work
in a thread, and sets the status to ``available``. A client waits for that status. ``server_actions`` does the work on
the servers; ``supervisor`` starts a server again that crashed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from rdsrepl.errors import Error, NotFound
from rdsrepl.sandbox.api import metrics, secrets
from rdsrepl.sandbox.api.consistency import Consistency
from rdsrepl.sandbox.api.parameter_groups import ParameterGroups
from rdsrepl.sandbox.api.records import Cluster, Instance, Records, Snapshot, slot_name
from rdsrepl.sandbox.api.server_actions import ServerActions
from rdsrepl.sandbox.api.server_settings import settings
from rdsrepl.sandbox.api.store import Store
from rdsrepl.sandbox.api.types import ApplyType, ResourceKind
from rdsrepl.sandbox.directory import SandboxDirectory
from rdsrepl.sandbox.servers import rds_roles
from rdsrepl.sandbox.servers.binaries import Binaries
from rdsrepl.sandbox.state import EndpointKind, EndpointState, ServerState, State

log = logging.getLogger("rdsrepl.sandbox.api.server_controller")

# A status is shown for at least this long, so that clients see it.
_MIN_STATUS_SECONDS: Final = 0.3


class Controller:
    """All clusters and instances of the sandbox: their records and their servers.

    Attributes:
        actions: what changes the servers; its methods wait until they are done.
    """

    def __init__(
        self,
        home: SandboxDirectory,
        store: Store,
        groups: ParameterGroups,
        region: str,
        consistency: Consistency | None = None,
    ) -> None:
        self.home = home
        self.region = region
        self.groups = groups
        self.consistency = consistency or Consistency()
        self.records = Records(store)
        self.actions = ServerActions(home, groups, self.records)
        self._metrics = metrics.MetricsPublisher(region)

    # --- what the HTTP server calls

    def before_request(self, service: str) -> None:
        """Update what another AWS service knows of the servers, before it answers a request."""
        if service == "monitoring":
            self._publish_metrics()
        elif service == "secretsmanager":
            self._restore_secrets()

    def run_test_action(self, name: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Do for a test what no operation of RDS does.

        ``crash`` stops the server of an ``instance`` without a checkpoint; ``standby`` sets whether an ``instance``
        ``replays`` and ``streams`` WAL; ``consistency`` sets the switches of ``consistency.Switches``.

        Raises:
            NotFound: the action or the instance does not exist.
            ValueError: a switch does not exist, or its value is not valid.
        """
        if name == "consistency":
            return self.consistency.configure(body)
        if name == "standby":
            return self._disturb_standby(body)
        if name != "crash":
            raise NotFound(f"the action {name} does not exist")
        identifier = str(body.get("instance", ""))
        server = self.actions.server(identifier)
        if server is None:
            raise NotFound(f"instance {identifier} not found")
        server.stop("immediate")
        return {"crashed": identifier}

    def _disturb_standby(self, body: Mapping[str, Any]) -> dict[str, Any]:
        wanted = {key: value for key, value in body.items() if key != "instance"}
        if unknown := sorted(wanted.keys() - {"replays", "streams"}):
            raise ValueError(f"unknown switch: {', '.join(unknown)}")
        if not wanted or not all(isinstance(value, bool) for value in wanted.values()):
            raise ValueError("replays and streams must be true or false, and one of them is required")
        self.actions.disturb_standby(str(body.get("instance", "")), **wanted)
        return dict(body)

    # --- what the operations on parameter groups call

    def users(self, kind: ResourceKind, name: str) -> list[str]:
        """Return the identifiers of the clusters or instances that a parameter group is attached to."""
        if kind == "cluster":
            return [cluster.identifier for cluster in self.records.all(Cluster) if cluster.parameter_group == name]
        return [instance.identifier for instance in self.records.all(Instance) if instance.parameter_group == name]

    def group_changed(self, kind: ResourceKind, name: str, changed: Mapping[str, ApplyType]) -> None:
        """Apply dynamic parameters of a changed group to the running servers; mark the others ``pending-reboot``.

        Args:
            kind: the kind of the group.
            name: the name of the group.
            changed: when each parameter takes effect: ``dynamic`` at once, ``static`` at the next reboot. A dynamic
                parameter that was changed with the apply method ``pending-reboot`` counts as static here.
        """
        static = any(apply_type == "static" for apply_type in changed.values())
        dynamic = [parameter for parameter, apply_type in changed.items() if apply_type == "dynamic"]
        users = self.users(kind, name)
        for instance in self.records.all(Instance):
            if kind == "cluster" and instance.cluster in users:
                active = instance.active_cluster_group == name
                if static:
                    with self.records.edit(Instance, instance.identifier) as record:
                        record.cluster_status = "pending-reboot"
            elif kind == "instance" and instance.identifier in users and not self._is_multi_az_member(instance):
                active = instance.active_group == name
                if static:
                    with self.records.edit(Instance, instance.identifier) as record:
                        record.parameter_status = "pending-reboot"
            else:
                continue
            # A group that was attached and is not active yet takes effect as a whole, at the reboot.
            if active and dynamic:
                self.actions.apply(instance.identifier, dynamic)

    # --- what the operations on clusters and instances call

    def new_server(self, instance: Instance, programs: Binaries, *, source: str | None) -> ServerState:
        """Return the state's entry of a server that is to be created for an instance."""
        return ServerState(
            instance.identifier,
            str(programs.bin_dir),
            programs.version,
            cluster=instance.cluster,
            source=source,
            slot=slot_name(self.region, instance.resource_id),
            settings=settings(self.groups, self.actions.attached(instance), programs),
        )

    def create(self, entries: Sequence[ServerState], password: str = "", *, cluster: str | None = None) -> None:
        """Add servers to the state and create them in the background, with the status ``creating``.

        Args:
            entries: a primary and its standbys, or one standby of an existing server.
            password: the password of the master user, for a primary.
            cluster: the cluster that is created with them, whose record gets the same status.
        """
        endpoints = [EndpointState("instance", entry.name) for entry in entries]

        def add(state: State) -> State:
            for entry in entries:
                state = state.with_server(entry)
            return state.with_endpoints(*endpoints)

        self.home.update(add)
        names = [entry.name for entry in entries]
        self.run_in_background(lambda: self.actions.create(cluster, entries, password), "creating", cluster, names)

    def add_cluster_endpoints(self, cluster: str) -> None:
        """Add the endpoints of a new cluster to the state, and wait until the relay listens on them."""
        kinds: tuple[EndpointKind, ...] = ("writer", "reader", "reader-host")
        self.home.update(lambda state: state.with_endpoints(*(EndpointState(kind, cluster) for kind in kinds)))
        self.actions.await_endpoints()

    def reboot(self, identifiers: Sequence[str], *, cluster: str | None = None, applies: bool = True) -> None:
        """Restart servers in the background, one after the other, with the status ``rebooting``.

        Args:
            identifiers: the instances.
            cluster: the cluster whose record gets the status instead of the instances' records.
            applies: whether the servers start with the values of their groups; else with those they have.
        """

        def job() -> None:
            for identifier in identifiers:
                self.actions.reboot(identifier, applies=applies)

        self.run_in_background(job, "rebooting", cluster, [] if cluster is not None else identifiers)

    def attach_cluster_group(self, identifier: str) -> None:
        """Apply to a member the dynamic parameters in which the new group of its cluster differs.

        Static parameters wait for a reboot.
        """
        instance = self.records.get(Instance, identifier)
        cluster = self.records.get(Cluster, instance.cluster or "")
        needs_reboot, dynamic = True, []
        if self.groups.find("cluster", instance.active_cluster_group) is not None:
            old, new = (
                self.groups.values("cluster", group, instance.instance_class)
                for group in (instance.active_cluster_group, cluster.parameter_group)
            )
            known = self.groups.get("cluster", cluster.parameter_group).defaults
            differ = [name for name in known if old.get(name) != new.get(name)]
            dynamic = [name for name in differ if known[name].apply_type != "static"]
            needs_reboot = len(dynamic) < len(differ)
        if dynamic:
            self.actions.apply(identifier, dynamic)
        with self.records.edit(Instance, identifier) as record:
            record.cluster_status = "pending-reboot" if needs_reboot else "in-sync"
            if not needs_reboot:
                record.active_cluster_group = cluster.parameter_group

    def fail_over(self, cluster: str, target: str) -> None:
        """Make another member the writer in the background, with the status ``failing-over`` of the cluster."""
        self.run_in_background(lambda: self.actions.fail_over(cluster, target), "failing-over", cluster, ())

    def delete(self, identifier: str, snapshot: Snapshot | None) -> None:
        """Remove the server and then the record of an instance in the background, with the status ``deleting``.

        Before that, a reader takes over from a cluster's writer, and read replicas are promoted.
        """

        def job() -> None:
            state = self.actions.state()
            entry = state.server(identifier)
            for replica in self.records.replicas(identifier):
                self._promote(replica.identifier)
            if entry is not None and entry.cluster and entry.source is None:
                others = [other.name for other in state.members(entry.cluster)[1:]]
                if others:
                    self.actions.fail_over(entry.cluster, others[0])
            with self.actions.family_lock(identifier):
                self.actions.remove(identifier)
            self._complete_snapshot(snapshot)
            if (record := self.records.find(Instance, identifier)) is not None:
                self.records.drop(record)
                self.consistency.mark_busy("instance-group", [record.parameter_group])

        self.run_in_background(job, "deleting", None, [identifier])

    def delete_cluster(self, cluster: str, snapshot: Snapshot | None) -> None:
        """Remove a cluster with its members in the background, with the status ``deleting``."""

        def job() -> None:
            with self.actions.lock(cluster):
                # The writer last: a primary without standbys stops at once.
                for entry in reversed(self.actions.state().members(cluster)):
                    self.actions.remove(entry.name)
                self.home.update(lambda now: replace(now, endpoints=tuple(e for e in now.endpoints if e.of != cluster)))
            self._complete_snapshot(snapshot)
            for instance in self.records.members(cluster):
                self.records.drop(instance)
            if (record := self.records.find(Cluster, cluster)) is not None:
                self.records.drop(record)
                self.consistency.mark_busy("cluster-group", [record.parameter_group])

        names = [instance.identifier for instance in self.records.members(cluster)]
        self.run_in_background(job, "deleting", cluster, names)

    def promote(self, identifier: str) -> None:
        """Promote a read replica in the background, with the status ``modifying``."""
        self.run_in_background(lambda: self.actions.promote(identifier), "modifying", None, [identifier])

    def _promote(self, identifier: str) -> None:
        """Promote a read replica, with the status ``modifying`` meanwhile."""
        self.records.set_status("modifying", None, [identifier])
        try:
            self.actions.promote(identifier)
        finally:
            self.records.set_status("available", None, [identifier], only="modifying")

    def set_password(self, primary: str, user: str, password: str) -> None:
        """Set the password of the master user.

        Raises:
            Error: the server refused.
        """
        server = self.actions.server(primary)
        if server is not None:
            rds_roles.set_password(server, user, password)

    def manage_secret(self, record: Cluster | Instance, password: str | None) -> None:
        """Store the master password in Secrets Manager; with None, delete it there."""
        if password is None:
            if record.secret_arn is not None:
                secrets.delete(self.region, record.secret_arn)
            record.secret_arn = record.password = None
            return
        record.password = password
        record.secret_arn = secrets.put(self.region, record.resource_id, record.master_user, password)

    def run_in_background(
        self, job: Callable[[], None], status: str, cluster: str | None, instances: Sequence[str]
    ) -> None:
        """Set the status of records, run JOB in a thread, and set those that still have the status to ``available``.

        After a failed creation or deletion the status is ``failed``.
        """
        self.records.set_status(status, cluster, instances)

        def work() -> None:
            started, done = time.monotonic(), False
            try:
                job()
                done = True
            except Exception:
                log.exception("%s %s: %s failed", cluster or "", ", ".join(instances), status)
            time.sleep(max(0.0, started + _MIN_STATUS_SECONDS - time.monotonic()))
            after = "available" if done or status not in ("creating", "deleting") else "failed"
            self.consistency.mark_busy("cluster", [cluster] if cluster is not None else [])
            self.consistency.mark_busy("instance", instances)
            self.records.set_status(after, cluster, instances, only=status)

        threading.Thread(target=work, name=f"{status} {cluster or instances[0]}", daemon=True).start()

    def _complete_snapshot(self, snapshot: Snapshot | None) -> None:
        if snapshot is not None:
            snapshot.status = "available"
            self.records.put(snapshot)

    def _is_multi_az_member(self, instance: Instance) -> bool:
        cluster = self.records.find(Cluster, instance.cluster) if instance.cluster else None
        return cluster is not None and cluster.multi_az

    def _publish_metrics(self) -> None:
        """Send the metrics of every instance to CloudWatch."""
        for instance in self.records.all(Instance):
            server = self.actions.server(instance.identifier)
            if server is not None and server.is_running():
                with suppress(Error):
                    self._metrics.publish(instance, server)

    def _restore_secrets(self) -> None:
        """Create again the secrets that Secrets Manager lost when its process ended."""
        records: list[Cluster | Instance] = [*self.records.all(Cluster), *self.records.all(Instance)]
        for record in records:
            if record.secret_arn is not None and record.password is not None:
                secrets.restore(self.region, record.secret_arn, record.master_user, record.password)
