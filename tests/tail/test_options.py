"""Options: the rules are in one place, and errors name an option as the user wrote it."""

from __future__ import annotations

import os
import select
import threading
from pathlib import Path

import pytest

from rdsrepl import aws_lambda
from rdsrepl.cli.option_bundles import flag_name
from rdsrepl.errors import BadValue
from rdsrepl.tail.options import FormatName, KinesisOptions, stream_name
from rdsrepl.tail.wakeup import WakeupPipe


@pytest.mark.parametrize(
    ("options", "format", "on_the_command_line", "in_lambda"),
    [
        (
            KinesisOptions("s"),
            FormatName.raw,
            "--format raw is not supported with --partition-by key",
            "format (RDSREPL_FORMAT) raw is not supported with partition_by (RDSREPL_PARTITION_BY) key",
        ),
        (KinesisOptions("s", partition_by=""), None, "--partition-by is empty", "RDSREPL_PARTITION_BY) is empty"),
        (
            KinesisOptions("s", partition_by="transaction", oversize="drop-columns"),
            FormatName.wal2json,
            "--oversize drop-columns is not supported with --format wal2json",
            "oversize (RDSREPL_OVERSIZE) drop-columns is not supported",
        ),
    ],
)
def test_errors_name_the_flag_or_the_environment_variable(
    options: KinesisOptions, format: FormatName | None, on_the_command_line: str, in_lambda: str
) -> None:
    for name, message in ((flag_name, on_the_command_line), (aws_lambda._name, in_lambda)):
        with pytest.raises(BadValue) as caught:
            options.check(format, name)
        assert message in caught.value.message


def test_sinks() -> None:
    assert stream_name("-", flag_name) is None
    assert stream_name("kinesis:changes", flag_name) == "changes"
    for sink in ("kinesis:", "sqs:queue", ""):
        with pytest.raises(BadValue, match=r"--to .*is not a sink"):
            stream_name(sink, flag_name)


def test_a_wakeup_pipe_is_readable_until_it_is_drained() -> None:
    pipe = WakeupPipe()
    assert not select.select([pipe], [], [], 0)[0]
    for _ in range(100_000):  # more than the pipe's buffer
        pipe.wake()
    assert select.select([pipe], [], [], 0)[0]
    pipe.drain()
    assert not select.select([pipe], [], [], 0)[0]
    pipe.close()
    pipe.wake()
    pipe.close()


def test_a_closed_wakeup_pipe_does_not_write_to_the_next_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that wakes while the pipe is closed: the next file gets the number of the descriptor."""
    pipe, close, opened, threads = WakeupPipe(), os.close, [], []

    def close_and_reuse(fd: int) -> None:
        close(fd)
        opened.append(os.open(tmp_path / str(fd), os.O_RDWR | os.O_CREAT))
        assert opened[-1] == fd
        threads.append(threading.Thread(target=pipe.wake))
        threads[-1].start()
        threads[-1].join(0.1)

    with monkeypatch.context() as patched:
        patched.setattr(os, "close", close_and_reuse)
        pipe.close()
    for thread, fd in zip(threads, opened, strict=True):
        thread.join()
        assert os.fstat(fd).st_size == 0
        os.close(fd)


def test_words_of_a_fixed_set_are_read_in_any_case() -> None:
    assert KinesisOptions("s", partition_by="Transaction").partition_by == "transaction"
    assert KinesisOptions("s", partition_by="CustomerId").partition_by == "CustomerId", "a column"
    assert stream_name("Kinesis:Orders", str) == "Orders"
