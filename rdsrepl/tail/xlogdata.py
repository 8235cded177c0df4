"""The messages of a logical replication stream: where their parts are, and what is wrong with a malformed one.

XLogData is ``w``, start LSN, end LSN and send time, 8 bytes each, then the output plugin's payload (manual, section
55.4).
"""

from __future__ import annotations

from struct import Struct
from struct import error as StructError
from typing import Final

from rdsrepl.errors import MalformedMessage
from rdsrepl.lsn import Lsn

#: the first byte of an XLogData message.
XLOGDATA: Final = 0x77
#: where the plugin's payload starts in an XLogData message.
PAYLOAD: Final = 25
#: the two halves of an LSN, to be printed as ``%X/%X``; the start LSN is at 1.
LSN_HALVES: Final = Struct(">II").unpack_from
_START: Final = Struct(">Q").unpack_from
_START_AND_END: Final = Struct(">QQ").unpack_from

#: what reading a malformed message raises; decoders have one ``try`` around their loop and few checks in it.
MALFORMED: Final = (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError, StructError)


def start_lsn(message: bytes) -> int:
    """Return the start LSN in a message's header."""
    return int(_START(message, 1)[0])


def end_of_commit(message: bytes) -> int:
    """Return the end of the commit record that a message is about, which is both LSNs in its header.

    Raises:
        ValueError: they differ. The server writes both from one value, and a wrong one must not be confirmed.
    """
    start, end = _START_AND_END(message, 1)
    if start != end:
        raise ValueError(f"its header says both {Lsn(start)} and {Lsn(end)}")
    return int(start)


def malformed(plugin: str, message: bytes, relation: str | None, cause: Exception) -> MalformedMessage:
    """Return the error for an XLogData message that could not be decoded.

    Args:
        plugin: the slot's output plugin.
        message: the whole message, with its header.
        relation: the table it is about, if that could be read.
        cause: what decoding it raised.
    """
    position = Lsn(start_lsn(message)) if len(message) >= 9 else "an unknown position"
    about = f", relation {relation}" if relation else ""
    reason = f"{cause}" if type(cause) is ValueError else f"{type(cause).__name__}: {cause}"
    return MalformedMessage(
        f"could not decode a message of {plugin} at {position}{about}: it is malformed ({reason[:200]})",
        hint="everything before it is delivered, nothing after it is confirmed; run the command again, and if it fails "
        "at the same position, keep the message for a report: rdsrepl slot tail SLOT --format raw --no-confirm",
    )


def require_end(message: bytes, end_lsn: int) -> None:
    """Make sure that the end of a transaction in a message is that of its header.

    Raises:
        ValueError: it is not.
    """
    if end_lsn != end_of_commit(message):
        raise ValueError(f"its transaction end {Lsn(end_lsn)} differs from its header")
