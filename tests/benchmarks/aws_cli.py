"""The aws CLI against the API of the sandbox: parameter groups in two regions, and the commands of the walkthrough."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rdsrepl.sandbox import credentials
from rdsrepl.sandbox.api import engine_catalog
from rdsrepl.sandbox.directory import SandboxDirectory
from tests.fixtures.sandbox import Cloud
from tests.fixtures.waiting import wait_until
from tests.fixtures.walkthrough import blocks, run

_REGIONS = ("eu-west-1", "us-east-1")


def report() -> None:
    """Run the aws CLI in each region and print how many commands answered as AWS does."""
    print("\nThe aws CLI against the API of the sandbox")
    for region in _REGIONS:
        with tempfile.TemporaryDirectory() as name:
            print(f"  {region}: {_count(Path(name), region)} commands answered as by AWS")
    with tempfile.TemporaryDirectory() as name:
        cloud = Cloud(Path(name), "--default-group")
        try:
            _walk(cloud, Path(name))
        finally:
            cloud("sandbox", "down")
    print("  its commands in docs/walkthrough.md do the same as those of rdsrepl, and each sees what the other does")


def _count(path: Path, region: str) -> int:
    """Start the API in a directory, use it, and return the number of commands."""
    (path / "state.json").write_text("{}")
    file = path / "api.json"
    command = [sys.executable, "-m", "rdsrepl.sandbox.api", str(path), region]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: file.exists() or process.poll() is not None, "the API listens")
            return _use(path, region, json.loads(file.read_text())["port"])
        finally:
            process.terminate()


def _use(path: Path, region: str, port: int) -> int:
    """Check what the aws CLI prints; return the number of commands."""
    url = f"http://127.0.0.1:{port}"
    keys = credentials.read(SandboxDirectory(path))
    config = path / "config"
    config.write_text(
        f"[profile sandbox]\nregion = {region}\nendpoint_url = {url}\noutput = json\n"
        f"aws_access_key_id = {keys.access_key}\naws_secret_access_key = {keys.secret_key}\n"
    )
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(path),
        "AWS_CONFIG_FILE": str(config),
        "AWS_SHARED_CREDENTIALS_FILE": str(path / "none"),
        "AWS_PROFILE": "sandbox",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",
        # So that no request leaves this machine if the endpoint is ignored.
        "HTTPS_PROXY": "http://127.0.0.1:1",
        "NO_PROXY": "127.0.0.1",
    }
    # For us-east-1, version 1 of the aws CLI ignores the endpoint_url of a profile and of the environment, and sends
    # requests for RDS to AWS; only its option changes the endpoint.
    options = ["--endpoint-url", url] if region == "us-east-1" else []
    commands = 0

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        nonlocal commands
        commands += 1
        command = [sys.executable, str(Path(sys.executable).with_name("aws")), *options, *words]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)

    def answer(*words: str) -> Any:
        done = call(*words)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    group = ("--db-cluster-parameter-group-name", "from-cli")
    family = ("--db-parameter-group-family", "postgres16")
    made = answer("rds", "create-db-cluster-parameter-group", *group, *family, "--description", "by the aws CLI")
    assert made["DBClusterParameterGroup"]["DBClusterParameterGroupName"] == "from-cli"
    answer(
        "rds",
        "modify-db-cluster-parameter-group",
        *group,
        "--parameters",
        "ParameterName=rds.logical_replication,ParameterValue=1,ApplyMethod=pending-reboot",
        "ParameterName=wal_sender_timeout,ParameterValue=60000,ApplyMethod=immediate",
    )
    own = answer("rds", "describe-db-cluster-parameters", *group, "--source", "user")["Parameters"]
    values = {one["ParameterName"]: one["ParameterValue"] for one in own}
    assert values == {"rds.logical_replication": "1", "wal_sender_timeout": "60000"}
    # The CLI reads all pages.
    every = answer("rds", "describe-db-cluster-parameters", *group)["Parameters"]
    assert len(every) == len(engine_catalog.defaults("postgres16", "cluster"))
    refused = call("rds", "describe-db-parameters", "--db-parameter-group-name", "gone")
    assert refused.returncode != 0 and "(DBParameterGroupNotFound)" in refused.stderr
    assert answer("sts", "get-caller-identity")["Account"] == "123456789012"
    groups = answer("rds", "describe-db-cluster-parameter-groups")["DBClusterParameterGroups"]
    assert [one["DBClusterParameterGroupName"] for one in groups].count("from-cli") == 1
    return commands


def _walk(cloud: Cloud, directory: Path) -> None:
    """Run the page's commands from a parameter group to the deleted cluster; read the result with rdsrepl."""
    group, failover, delete, tidy = blocks("aws-cli")
    run(cloud, group, directory)
    before = _available(cloud)
    assert before["cluster"]["parameter_group"] == "orders-logical"
    assert before["cluster"]["engine_version"].startswith("16.")
    assert len(before["members"]) == 3
    values = {
        row["name"]: row["value"]
        for row in cloud("param-group", "show", "orders-logical", "-o", "json").json["parameters"]
        if row["source"] == "user"
    }
    assert values == {"rds.logical_replication": "1", "max_wal_senders": "40"}
    shown = cloud("psql", "--cluster", "orders", "--", "-Atc", "SHOW wal_level")
    assert shown.out == "logical\n", shown.err

    run(cloud, failover, directory)
    after = _available(cloud, other_than=before["members"][0]["instance_id"])
    assert after["members"][0]["role"] == "writer"
    run(cloud, delete, directory)
    wait_until(lambda: cloud("cluster", "show", "orders").code == 3, "the cluster is deleted")
    run(cloud, tidy, directory)
    assert cloud("param-group", "show", "orders-logical").code == 3
    cloud.client("rds").delete_db_cluster_snapshot(DBClusterSnapshotIdentifier="orders-final")


def _available(cloud: Cloud, other_than: str | None = None) -> Any:
    """Wait until the cluster is available with another writer; return the output of ``cluster show``."""

    def shown() -> Any:
        done = cloud("cluster", "show", "orders", "-o", "json")
        if done.code != 0:
            return None
        states = {done.json["cluster"]["status"], *(member["status"] for member in done.json["members"])}
        is_other = done.json["members"][0]["instance_id"] != other_than
        return done.json if states == {"available"} and is_other else None

    return wait_until(shown, "the cluster is available")
