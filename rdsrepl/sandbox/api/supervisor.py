"""Watches the servers: a reader takes over from a writer that crashed, any other server is started again."""

from __future__ import annotations

import logging
import threading
from typing import Final

from rdsrepl.errors import Error
from rdsrepl.sandbox.api.records import Cluster, Instance
from rdsrepl.sandbox.api.server_controller import Controller

log = logging.getLogger("rdsrepl.sandbox.api.supervisor")

_POLL_SECONDS: Final = 0.25


class Supervisor:
    """Watches every cluster and instance whose status is ``available``, as RDS does."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._actions = controller.actions
        self._records = controller.records
        self._home = controller.home
        self._stopping = threading.Event()
        # What an earlier process was doing when it ended. Changes that start from now on are not interrupted.
        self._clusters_before = [one for one in self._records.all(Cluster) if one.status != "available"]
        self._instances_before = [one for one in self._records.all(Instance) if one.status != "available"]

    def start(self) -> None:
        """Finish the changes that an earlier process left unfinished, then watch the servers, in a thread."""
        threading.Thread(target=self._run, name="supervisor", daemon=True).start()

    def stop(self) -> None:
        """Stop watching; the servers go on running."""
        self._stopping.set()

    def _run(self) -> None:
        recovered, logged = False, ""
        while not self._stopping.wait(_POLL_SECONDS):
            try:
                state = self._home.read()
                if state is None or state.phase != "ready":
                    continue
                if not recovered:
                    self._recover()
                    recovered = True
                for cluster in self._records.all(Cluster):
                    if cluster.status == "available":
                        self._check_cluster(cluster.identifier)
                for instance in self._records.all(Instance):
                    if instance.status == "available":
                        self._check_instance(instance)
            except Error as exc:
                # The same error comes at every poll; it is logged once.
                if str(exc) != logged:
                    logged = str(exc)
                    log.warning("could not check the servers: %s", logged)
            except Exception:
                log.exception("could not check the servers")

    def _check_cluster(self, cluster: str) -> None:
        """Fail over a cluster whose writer crashed; without a reader that can take over, start the writer again."""
        members = self._actions.state().members(cluster)
        if not members or self._actions.is_running(members[0].name):
            return
        with self._actions.lock(cluster):
            record = self._records.find(Cluster, cluster)
            members = self._actions.state().members(cluster)
            if record is None or record.status != "available" or self._actions.is_running(members[0].name):
                return
            instances = {instance.identifier: instance for instance in self._records.members(cluster)}
            ready = [
                entry.name
                for entry in members[1:]
                if self._actions.is_running(entry.name) and instances[entry.name].status == "available"
            ]
            if instances[members[0].name].status != "available":
                return
            if not ready:
                self._start_again(members[0].name)
                return
            target = min(ready, key=lambda name: instances[name].promotion_tier)
            log.info("%s: the writer %s died; %s takes over", cluster, members[0].name, target)
            self._records.set_status("failing-over", cluster, ())
            try:
                self._actions.fail_over(cluster, target)
            finally:
                self._records.set_status("available", cluster, (), only="failing-over")

    def _check_instance(self, instance: Instance) -> None:
        """Start the server of an instance again when it crashed, unless it is the writer of a cluster.

        A writer can crash after this poll checked its cluster; starting it here would prevent the failover.
        """
        if self._actions.is_running(instance.identifier):
            return
        with self._actions.family_lock(instance.identifier):
            record = self._records.find(Instance, instance.identifier)
            cluster = self._records.find(Cluster, record.cluster) if record is not None and record.cluster else None
            server = self._actions.server(instance.identifier)
            if record is None or record.status != "available" or server is None:
                return
            if cluster is not None:
                writer = self._actions.state().members(cluster.identifier)[0]
                if cluster.status != "available" or writer.name == instance.identifier:
                    return
            if server.exists() and not server.is_running():
                self._start_again(instance.identifier)

    def _start_again(self, identifier: str) -> None:
        log.info("%s died; starting it again", identifier)
        if self._actions.start(identifier):
            self._records.add_event("RDS-EVENT-0006", identifier)

    def _recover(self) -> None:
        """Finish what an earlier process was doing when it ended, or set the status ``failed``."""
        for cluster in self._clusters_before:
            name = cluster.identifier
            if cluster.status == "deleting":
                self._controller.delete_cluster(name, None)
            elif cluster.status == "failing-over":
                self._complete_failover(name)
            if cluster.status in ("modifying", "rebooting", "failing-over", "creating"):
                members = self._actions.state().members(name)
                done = cluster.status != "creating" or all(self._actions.is_running(entry.name) for entry in members)
                self._records.set_status("available" if done else "failed", name, (), only=cluster.status)
        for instance in self._instances_before:
            name = instance.identifier
            if instance.status == "deleting" and instance.cluster is None:
                self._controller.delete(name, None)
            elif instance.status in ("modifying", "rebooting", "creating"):
                done = instance.status != "creating" or self._actions.is_running(name)
                self._records.set_status("available" if done else "failed", None, [name], only=instance.status)

    def _complete_failover(self, cluster: str) -> None:
        """After an interrupted failover, make a reader that was promoted the writer."""
        members = self._actions.state().members(cluster)
        promoted = [
            entry.name
            for entry in members[1:]
            if (server := self._actions.server(entry.name)) is not None
            and server.exists()
            and not (server.data_dir / "standby.signal").exists()
        ]
        if not promoted:
            return
        target = promoted[0]
        with self._actions.lock(cluster):
            self._home.update(lambda state: state.with_writer(cluster, target))
            self._actions.start(target)
            for entry in self._actions.state().members(cluster)[1:]:
                self._actions.rebuild(entry)
