"""The options of ``slot tail`` for the format ``debezium``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

import typer

from rdsrepl.cli.option_bundles import flag_name, given_options
from rdsrepl.tail.formats.debezium_options import (
    PLACEHOLDER,
    BinaryMode,
    DecimalMode,
    HstoreMode,
    IntervalMode,
    TimeMode,
    debezium_options,
)
from rdsrepl.tail.options import FormatName

if TYPE_CHECKING:
    from rdsrepl.tail.formats.debezium_options import DebeziumOptions

_DEBEZIUM: Final = "The format debezium, by the names of Debezium's properties"


@dataclass(frozen=True, slots=True)
class DebeziumFlags:
    """How the format ``debezium`` writes keys and values; None is the default."""

    debezium_keys: Annotated[
        bool,
        typer.Option(
            "--debezium-keys",
            show_default=False,
            help='Write {"key":...,"value":...}, and a tombstone after each delete.',
            rich_help_panel=_DEBEZIUM,
        ),
    ] = False
    debezium_time: Annotated[
        TimeMode | None,
        typer.Option(
            "--debezium-time",
            show_default="adaptive",
            help="Set time.precision.mode: how dates and times are written.",
            rich_help_panel=_DEBEZIUM,
        ),
    ] = None
    debezium_decimal: Annotated[
        DecimalMode | None,
        typer.Option(
            "--debezium-decimal",
            show_default="precise",
            help="Set decimal.handling.mode: how numeric and money are written.",
            rich_help_panel=_DEBEZIUM,
        ),
    ] = None
    debezium_binary: Annotated[
        BinaryMode | None,
        typer.Option(
            "--debezium-binary",
            show_default="bytes",
            help="Set binary.handling.mode: how bytea is written.",
            rich_help_panel=_DEBEZIUM,
        ),
    ] = None
    debezium_interval: Annotated[
        IntervalMode | None,
        typer.Option(
            "--debezium-interval",
            show_default="numeric",
            help="Set interval.handling.mode: microseconds, or ISO 8601.",
            rich_help_panel=_DEBEZIUM,
        ),
    ] = None
    debezium_hstore: Annotated[
        HstoreMode | None,
        typer.Option(
            "--debezium-hstore",
            show_default="json",
            help="Set hstore.handling.mode: a string of JSON, or an object.",
            rich_help_panel=_DEBEZIUM,
        ),
    ] = None
    debezium_placeholder: Annotated[
        str | None,
        typer.Option(
            "--debezium-placeholder",
            metavar="TEXT",
            show_default=PLACEHOLDER,
            help="Set unavailable.value.placeholder: what is written for an unchanged TOAST value.",
            rich_help_panel=_DEBEZIUM,
        ),
    ] = None

    def options(self, format: FormatName | None) -> DebeziumOptions:
        """Return how keys and values are written.

        Raises:
            BadValue: the format is another one, or a value is not valid.
        """
        given = {name.removeprefix("debezium_"): value for name, value in given_options(self).items()}
        return debezium_options(flag_name, is_debezium=format is FormatName.debezium, **given)
