"""Options: the rules are in one place, and errors name an option as the user wrote it."""

from __future__ import annotations

import select

import pytest

from rdsrepl import aws_lambda
from rdsrepl.cli.slot.tail_options import flag_name
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


def test_words_of_a_fixed_set_are_read_in_any_case() -> None:
    assert KinesisOptions("s", partition_by="Transaction").partition_by == "transaction"
    assert KinesisOptions("s", partition_by="CustomerId").partition_by == "CustomerId", "a column"
    assert stream_name("Kinesis:Orders", str) == "Orders"
