"""A million mutated messages for the decoders, and texts for the parsers: no untyped error, no memory growth.

``python -m tests.benchmarks fuzz [MESSAGES [SEED]]``
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tests.fixtures.postgres import Database, Servers
from tests.workloads import fuzzing

MESSAGES = 1_000_000
SEED = 1
# A decoder's messages are fed in this many rounds; memory is compared with that after the first.
ROUNDS = 20
TEXTS = 2_000


@contextmanager
def _recorded() -> Iterator[list[fuzzing.Recorded]]:
    with tempfile.TemporaryDirectory(prefix="rdsrepl-fuzz-") as directory:
        servers = Servers(Path(directory))
        try:
            server = servers.get(15)
            with closing(server.connect()) as conn:
                conn.execute("CREATE DATABASE fuzz TEMPLATE template0")
            database = Database(server, "fuzz")
            with fuzzing.record(database.connect, database.target) as recorded:
                yield recorded
        finally:
            servers.stop()


def report(messages: int = MESSAGES, seed: int = SEED) -> None:
    """Run the fuzzing; an untyped error ends it, with the message that caused it."""
    started = time.monotonic()
    mutated = accepted = refused = 0
    slowest = ("", 0.0)
    memory: list[float] = []
    with _recorded() as recorded:
        # A message of version 1 is a whole transaction, and takes ten times longer.
        weights = {one.name: 0.1 if "'format-version': '1'" in one.name else 1.0 for one in recorded}
        share = messages / ROUNDS / sum(weights.values())
        for round_ in range(ROUNDS):
            for one in recorded:
                began = time.monotonic()
                tally = fuzzing.fuzz_decoder(one, int(share * weights[one.name]) + 1, seed * ROUNDS + round_)
                slowest = max(slowest, (one.name, (time.monotonic() - began) / tally.mutated), key=lambda pair: pair[1])
                mutated, accepted, refused = mutated + tally.mutated, accepted + tally.accepted, refused + tally.refused
                if tally.kinds - {"MalformedMessage"}:
                    raise SystemExit(f"{one.name}: ended in {tally.kinds}")
            memory.append(_resident())
            print(
                f"  round {round_ + 1}: {mutated:>9,} messages, {memory[-1]:.1f} MB, {time.monotonic() - started:.0f} s"
            )
    print(
        f"\n{mutated:,} mutated messages to {len(recorded)} decoders, seed {seed}, {time.monotonic() - started:.0f} s: "
        f"{accepted:,} decoded, {refused:,} refused, none with an untyped error; memory {memory[0]:.1f} MB after the "
        f"first round, {memory[-1]:.1f} MB at the end; slowest: {slowest[0]}, {slowest[1] * 1000:.2f} ms a message"
    )
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="rdsrepl-fuzz-") as directory:
        for parser in fuzzing.parsers(Path(directory)):
            taken, no = fuzzing.fuzz_parser(parser, TEXTS, seed)
            counts.update(taken=taken, refused=no)
    print(
        f"{counts.total():,} mutated texts: {counts['taken']:,} taken, {counts['refused']:,} refused, as usage errors"
    )


def _resident() -> float:
    """Return this process's resident memory, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1000
    return 0.0
