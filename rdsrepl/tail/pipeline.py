"""Chooses the decoder, the plugin options and the session settings for a slot and a format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from rdsrepl.errors import WrongPlugin
from rdsrepl.postgres import versions
from rdsrepl.tail.decoders.encodings import decoder
from rdsrepl.tail.decoders.pgoutput import PgoutputDecoder
from rdsrepl.tail.decoders.raw_pgoutput import RawPgoutput
from rdsrepl.tail.decoders.raw_wal2json import RawWal2json, RawWal2jsonV1
from rdsrepl.tail.decoders.testdecoding import TestDecodingDecoder
from rdsrepl.tail.decoders.wal2json import PARSED_OPTIONS, ParsedWal2json
from rdsrepl.tail.formats.base import Format
from rdsrepl.tail.formats.debezium import DebeziumFormat
from rdsrepl.tail.formats.debezium_options import DebeziumOptions
from rdsrepl.tail.formats.json_format import JsonFormat
from rdsrepl.tail.formats.partition_keys import KeyedFormat
from rdsrepl.tail.formats.pretty import PrettyFormat
from rdsrepl.tail.formats.type_catalog import Catalog
from rdsrepl.tail.formats.wal2json_format import Wal2jsonFormat
from rdsrepl.tail.model import Decoder, StreamHook, TableFilter
from rdsrepl.tail.options import FormatName
from rdsrepl.units import parse_boolean

if TYPE_CHECKING:
    from rdsrepl.tail.preflight import PreflightResult

_FORMATS: Final[Mapping[str, tuple[str, ...]]] = {
    "pgoutput": ("json", "wal2json", "debezium", "pretty", "raw"),
    "wal2json": ("json", "wal2json", "debezium", "pretty", "raw"),
    "test_decoding": ("raw", "pretty"),
}


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Converts a slot's messages to lines.

    Attributes:
        decoder: converts the plugin's messages to the format's lines.
        plugin_options: for START_REPLICATION.
        settings: server parameters of the session.
    """

    decoder: Decoder
    plugin_options: dict[str, str]
    settings: dict[str, str]


def assemble(
    checked: PreflightResult,
    name: FormatName,
    catalog: Catalog,
    *,
    tables: TableFilter,
    given: Mapping[str, str],
    until_lsn: int | None,
    colour: bool,
    partition_by: str | None = None,
    debezium: DebeziumOptions | None = None,
    hook: StreamHook | None = None,
) -> Pipeline:
    """Return the pipeline for a slot and a format.

    Args:
        checked: the result of the preflight check.
        name: the format.
        catalog: looks up types.
        tables: which tables to stream.
        given: the user's plugin options; they replace ours of the same name.
        until_lsn: where to stop.
        colour: whether ``pretty`` is coloured.
        partition_by: lines start with a partition key made of this (``partition_keys.KeyedFormat``).
        debezium: how ``debezium`` writes keys and values; None is Debezium's defaults.
        hook: takes part in the stream of a pgoutput slot.

    Raises:
        WrongPlugin: the slot's plugin does not support the format or an option.
    """
    slot = checked.slot
    plugin = slot.plugin or ""
    supported = _FORMATS.get(plugin, ("raw",))
    if name.value not in supported:
        raise WrongPlugin(
            f"slot {slot.slot_name} uses {plugin}, which does not support --format {name.value}",
            hint=(f"--format {'|'.join(supported)}, or " if partition_by is None else "")
            + "a slot with --plugin pgoutput",
        )
    fmt = _format(name, checked, catalog, colour, debezium)
    if partition_by is not None:
        if fmt is None or (plugin == "wal2json" and name is FormatName.wal2json):
            raise WrongPlugin(
                f"slot {slot.slot_name} uses {plugin}, whose lines have no partition key",
                hint="--format json, or a slot with --plugin pgoutput",
            )
        fmt = _keyed(fmt, catalog, partition_by, debezium)
    if plugin == "pgoutput":
        pipeline = _pgoutput(checked, name, fmt, catalog, tables, given, until_lsn, hook)
    elif plugin == "wal2json":
        pipeline = _wal2json(checked, name, fmt, catalog, tables, given, until_lsn)
    else:
        decoder = TestDecodingDecoder(tables, until_lsn=until_lsn, pretty=name is FormatName.pretty, colour=colour)
        pipeline = Pipeline(decoder, dict(given), {"search_path": checked.search_path})
    return _with_encoding(pipeline, checked)


def snapshot_format(
    checked: PreflightResult,
    name: FormatName,
    catalog: Catalog,
    *,
    partition_by: str | None,
    debezium: DebeziumOptions | None,
    is_incremental: bool = False,
) -> Format:
    """Return the format for rows that are read from tables, for ``is_incremental`` in a stream; see ``assemble``.

    Raises:
        WrongPlugin: the format has no form for such rows.
    """
    snapshot = "incremental" if is_incremental else "true"
    fmt = _format(name, checked, catalog, colour=False, debezium=debezium, snapshot=snapshot)
    if fmt is None or name is FormatName.pretty:
        raise WrongPlugin(
            f"--snapshot does not support --format {name.value}", hint="--format json, debezium or wal2json"
        )
    return fmt if partition_by is None else _keyed(fmt, catalog, partition_by, debezium)


def _keyed(fmt: Format, catalog: Catalog, partition_by: str, debezium: DebeziumOptions | None) -> Format:
    return KeyedFormat(fmt, catalog, partition_by, event_keys=debezium is not None and debezium.keys)


def for_format(checked: PreflightResult, fmt: Format, catalog: Catalog) -> Pipeline:
    """Return the pipeline for a slot of pgoutput or wal2json and a format that the command line does not offer."""
    read = _pgoutput if checked.slot.plugin == "pgoutput" else _wal2json
    return _with_encoding(read(checked, FormatName.json, fmt, catalog, TableFilter(), {}, None), checked)


def _with_encoding(pipeline: Pipeline, checked: PreflightResult) -> Pipeline:
    if checked.lenient_text:
        # Such a server does not convert text, and refuses to send bytes as UTF-8 that are not.
        return replace(pipeline, settings={**pipeline.settings, "client_encoding": "SQL_ASCII"})
    return pipeline


def _format(
    name: FormatName,
    checked: PreflightResult,
    catalog: Catalog,
    colour: bool,
    debezium: DebeziumOptions | None,
    *,
    snapshot: str | None = None,
) -> Format | None:
    if name is FormatName.json:
        return JsonFormat(catalog, snapshot=snapshot)
    if name is FormatName.debezium:
        slot = checked.slot.slot_name
        return DebeziumFormat(catalog, database=checked.database, name=slot, options=debezium, snapshot=snapshot)
    if name is FormatName.pretty:
        return PrettyFormat(catalog, colour=colour)
    if name is FormatName.wal2json:
        return Wal2jsonFormat(catalog)
    return None


def _pgoutput(
    checked: PreflightResult,
    name: FormatName,
    fmt: Format | None,
    catalog: Catalog,
    tables: TableFilter,
    given: Mapping[str, str],
    until_lsn: int | None,
    hook: StreamHook | None = None,
) -> Pipeline:
    from psycopg import sql

    for option in ("streaming", "two_phase", "binary"):
        if parse_boolean(given.get(option, "false")) is not False:
            raise WrongPlugin(
                f"--plugin-option {option}={given[option]}: the tail reads whole transactions in text form",
                hint=f"omit {option}; transactions of any size are streamed without it",
            )
    protocol = "1"
    if checked.slot.two_phase:
        if name in (FormatName.wal2json, FormatName.debezium):
            raise WrongPlugin(
                f"slot {checked.slot.slot_name} decodes prepared transactions, which {name.value} does not support",
                hint="--format json, or a slot created without --two-phase: it sends them at COMMIT PREPARED",
            )
        protocol = "3"
    if given.get("proto_version", protocol) != protocol:
        raise WrongPlugin(
            f"--plugin-option proto_version: the tail uses version {protocol} for this slot", hint="omit it"
        )
    names = ",".join(sql.Identifier(publication).as_string(None) for publication in checked.publications)
    options = {"proto_version": protocol, "publication_names": names}
    if checked.version >= versions.PGOUTPUT_MESSAGES_SINCE:
        options["messages"] = "true"
    if protocol == "3":
        options["two_phase"] = "true"
    options.update(given)
    if fmt is None:
        return Pipeline(RawPgoutput(until_lsn=until_lsn), options, {})
    decoder = PgoutputDecoder(fmt, tables, catalog, until_lsn=until_lsn, lenient=checked.lenient_text, hook=hook)
    return Pipeline(decoder, options, dict(fmt.settings))


def _wal2json(
    checked: PreflightResult,
    name: FormatName,
    fmt: Format | None,
    catalog: Catalog,
    tables: TableFilter,
    given: Mapping[str, str],
    until_lsn: int | None,
) -> Pipeline:
    slot = checked.slot.slot_name
    version = given.get("format-version", "2")
    if parse_boolean(given.get("include-transaction", "true")) is False:
        raise WrongPlugin(
            f"slot {slot}: with include-transaction=false the end of a transaction, which is confirmed, is unknown",
            hint="omit it",
        )
    if parse_boolean(given.get("write-in-chunks", "false")) is not False:
        raise WrongPlugin(
            f"slot {slot}: with write-in-chunks a message is a part of a transaction, which is not JSON",
            hint="use format-version=2 (the default of this command): one message for each change",
        )
    if version == "1" and name is FormatName.wal2json:
        raise WrongPlugin(
            "--format wal2json uses format-version 2", hint="for version 1 use --format raw with format-version=1"
        )
    decode = decoder(checked.encoding, catalog.converted)
    if name in (FormatName.raw, FormatName.wal2json):
        own_search_path = {"search_path": checked.search_path}
        if version == "1":
            if tables:
                raise WrongPlugin(
                    "--table is not supported with version 1, where a message is a whole transaction",
                    hint="use the plugin's own option: --plugin-option add-tables=schema.table",
                )
            return Pipeline(RawWal2jsonV1(until_lsn=until_lsn), {"format-version": "1", **given}, own_search_path)
        raw = RawWal2json(tables, decode=decode, as_utf8=name is FormatName.wal2json, until_lsn=until_lsn)
        return Pipeline(raw, {"format-version": "2", **given}, own_search_path)
    if parse_boolean(given.get("include-lsn", "true")) is False:
        raise WrongPlugin(
            f"slot {slot}: with include-lsn=false a change has no position, which identifies it", hint="omit it"
        )
    assert fmt is not None
    if parse_boolean(given.get("include-type-oids", "true")) is False:
        raise WrongPlugin(
            f"slot {slot}: with include-type-oids=false columns have no types, which --format {name.value} needs",
            hint="omit it",
        )
    options = {**PARSED_OPTIONS, **given}
    if version == "1":
        del options["include-transaction"]
    parsed = ParsedWal2json(fmt, tables, catalog, decode=decode, until_lsn=until_lsn)
    return Pipeline(parsed, options, dict(fmt.settings))
