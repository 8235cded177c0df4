"""Translate what a user of kubectl, the aws CLI, psql or terraform types into the command line of rdsrepl.

Nothing is run: the translation is the hint of the error. ``docs/coming-from.md`` lists the habits.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Final

# What other tools call our nouns. A plural is recognized without being listed.
_NOUNS: Final = {
    "replication-slot": "slot",
    "pub": "publication",
    "sub": "subscription",
    "db-cluster": "cluster",
    "db-instance": "instance",
    "db": "instance",
    "parameter-group": "param-group",
    "db-parameter-group": "param-group",
    "db-cluster-parameter-group": "param-group",
    "user": "role",
    "target": "config",
    "context": "config",
}
# Verbs of other tools, with ours; the first that the noun has is used.
_VERBS: Final[Mapping[str, tuple[str, ...]]] = {
    "get": ("list",),
    "ls": ("list",),
    "describe": ("show", "list"),
    "inspect": ("show",),
    "view": ("show",),
    "status": ("show", "status", "list"),
    "delete": ("delete", "drop", "down", "delete-target", "cancel"),
    "drop": ("drop", "delete", "cancel"),
    "rm": ("drop", "delete", "cancel"),
    "remove": ("drop", "delete", "cancel"),
    "destroy": ("drop", "delete", "down", "cancel"),
    "abort": ("cancel",),
    "create": ("create", "start"),
    "add": ("create", "start"),
    "new": ("create", "start"),
    "edit": ("set", "add"),
    "modify": ("set", "add"),
    "alter": ("set", "add"),
    "logs": ("tail",),
    "follow": ("tail",),
    "start": ("tail", "up"),
    "top": ("watch",),
    "monitor": ("watch", "check"),
    "restart": ("reboot",),
    "promote": ("failover",),
    "switchover": ("failover",),
    "apply": ("attach", "run"),
    "use-context": ("use-target",),
    "get-contexts": ("get-targets",),
    "current-context": ("current-target",),
    "set-context": ("set-target",),
    "rename-context": ("rename-target",),
    "delete-context": ("delete-target",),
    "stop": ("down", "pause"),
    "continue": ("resume",),
}
# Commands that stand alone, with ours.
_COMMANDS: Final[Mapping[str, tuple[str, ...]]] = {
    "version": ("--version",),
    "logs": ("slot", "tail"),
    "top": ("slot", "watch"),
    "lag": ("slot", "lag"),
    "tail": ("slot", "tail"),
    "watch": ("slot", "watch"),
    "prune": ("slot", "prune"),
    "exec": ("psql",),
    "shell": ("psql",),
    "connect": ("psql",),
    "init": ("config", "set-target"),
    "configure": ("config", "set-target"),
    "validate": ("doctor",),
    "explain": ("help",),
    "api-resources": ("help",),
    "man": ("help",),
    "destroy": ("runbook", "run", "tear-down"),
    r"\l": ("psql", "-l"),
    r"\du": ("role", "list"),
    r"\dg": ("role", "list"),
    r"\dRp": ("publication", "list"),
    r"\dRs": ("subscription", "list"),
    r"\conninfo": ("config", "current-target"),
}
_AWS_SERVICES: Final = ("aws", "rds", "kinesis")
# Operations of the aws CLI, with our command for all objects and, if one is named, for one.
_OPERATIONS: Final[Mapping[str, tuple[str, str]]] = {
    "describe-db-clusters": ("cluster list", "cluster show"),
    "describe-db-instances": ("instance list", "instance show"),
    "describe-db-cluster-parameter-groups": ("param-group list", "param-group show"),
    "describe-db-parameter-groups": ("param-group list", "param-group show"),
    "describe-db-cluster-parameters": ("param-group list", "param-group show"),
    "describe-db-parameters": ("param-group list", "param-group show"),
    "create-db-cluster": ("cluster create", "cluster create"),
    "create-db-instance": ("instance create", "instance create"),
    "create-db-cluster-parameter-group": ("param-group create", "param-group create"),
    "create-db-parameter-group": ("param-group create", "param-group create"),
    "modify-db-cluster-parameter-group": ("param-group set", "param-group set"),
    "modify-db-parameter-group": ("param-group set", "param-group set"),
    "reset-db-cluster-parameter-group": ("param-group reset", "param-group reset"),
    "reset-db-parameter-group": ("param-group reset", "param-group reset"),
    "reboot-db-cluster": ("cluster reboot", "cluster reboot"),
    "reboot-db-instance": ("instance reboot", "instance reboot"),
    "failover-db-cluster": ("cluster failover", "cluster failover"),
    "delete-db-cluster": ("cluster delete", "cluster delete"),
    "delete-db-instance": ("instance delete", "instance delete"),
    "list-streams": ("stream list", "stream show"),
    "describe-stream": ("stream list", "stream show"),
    "describe-stream-summary": ("stream list", "stream show"),
    "create-stream": ("stream create", "stream create"),
    "delete-stream": ("stream delete", "stream delete"),
    "get-records": ("stream tail", "stream tail"),
}
_IDENTIFIER_OPTIONS: Final = (
    "--db-cluster-identifier",
    "--db-instance-identifier",
    "--db-cluster-parameter-group-name",
    "--db-parameter-group-name",
    "--stream-name",
    "--slot",
    "-S",
)
# Options of other tools, with ours; an empty text leaves the option out, because rdsrepl does so without it.
_OPTIONS: Final = {
    "--auto-approve": "--yes",
    "-auto-approve": "--yes",
    "-no-color": "--no-color",
    "--assume-yes": "--yes",
    "--no-confirm": "--yes",
    "--force": "--yes",
    "--context": "--target",
    "--db-cluster-identifier": "--cluster",
    "--db-instance-identifier": "--instance",
    "--namespace": "--dbname",
    "-n": "--dbname",
    "--database": "--dbname",
    "--username": "--user",
    "--filters": "--filter",
    "--selector": "--filter",
    "-l": "--filter",
    "--where": "--filter",
    "--sort": "--sort-by",
    "--order-by": "--sort-by",
    "--no-header": "--no-headers",
    "--tuples-only": "--no-headers",
    "--json": "--output json",
    "--yaml": "--output yaml",
    "--csv": "--output csv",
    "--debug": "--verbose",
    "--follow": "",
    "--start": "",
    "--all-namespaces": "",
    "--all-databases": "",
    "-A": "",
    "--no-cli-pager": "",
    "--no-paginate": "",
    "--no-pager": "",
}
# Options of other tools for which another way exists.
_OPTION_ADVICE: Final = {
    "--host": "name the server: --dsn 'host=HOST port=5432 dbname=DB', or set PGHOST",
    "--port": "name the server: --dsn 'host=HOST port=5432 dbname=DB', or set PGPORT",
    "-p": "name the server: --dsn 'host=HOST port=5432 dbname=DB', or set PGPORT",
    "--password": "set PGPASSWORD, use ~/.pgpass, or name a secret in the target: rdsrepl help config",
    "-W": "set PGPASSWORD, use ~/.pgpass, or name a secret in the target: rdsrepl help config",
    "--endpoint-url": "set AWS_ENDPOINT_URL",
}
_COMMAND_ADVICE: Final = {
    "plan": "add --dry-run to a command that changes something, or --out FILE to save it for: rdsrepl apply FILE",
    "fmt": "rdsrepl has no configuration language; the targets are in the file of: rdsrepl config path",
    "state": "rdsrepl keeps no state of your servers; it reads them each time: rdsrepl slot list",
}
_OUTPUT_ADVICE: Final = {
    "text": "for one name a line: --output name; for all fields: --output csv",
    "jsonpath": "for a part of the document: --output json --query EXPRESSION",
    "go-template": "for a part of the document: --output json --query EXPRESSION",
    "custom-columns": "for a part of the document: --output json --query EXPRESSION",
    "ut": "to save the plan: --out FILE",
    "ndjson": "for one object a line: --output json, and jq -c '.[]'",
}


def command_line(group: str, commands: Sequence[str], words: Sequence[str], nouns: Mapping[str, Any]) -> str | None:
    """Return the command of rdsrepl for words that no command of a group begins with.

    Args:
        group: the noun; empty for the root.
        commands: the commands of the group.
        words: the words that follow the group: the unknown command, its operands and options.
        nouns: the commands of the root; a noun has ``commands``.

    Returns:
        The words, without ``rdsrepl``, quoted for a shell; None if no translation is known.
    """
    translated = _verb(words, commands) if group else _root(words, nouns)
    return None if translated is None else shlex.join(([group] if group else []) + translated)


def option_line(words: Sequence[str], known: Sequence[str]) -> str | None:
    """Return the command line with our options in place of those of other tools.

    Args:
        words: the whole command line.
        known: the options of the command.

    Returns:
        The line, quoted for a shell; None if no option of another tool is in it.
    """
    replaced: list[str] = []
    for word in words:
        name, equals, value = word.partition("=")
        rest = [value] if equals else []
        ours = None if name in known else _OPTIONS.get(name)
        if ours == "" or (ours is not None and ours.split()[0] in known):
            replaced += [*ours.split(), *rest]
        elif name not in known and name in _IDENTIFIER_OPTIONS:
            replaced += rest
        else:
            replaced.append(word)
    return None if replaced == list(words) else shlex.join(replaced)


def command_advice(command: str) -> str | None:
    """Return what to do instead of running a command that rdsrepl does not have."""
    return _COMMAND_ADVICE.get(command)


def option_advice(option: str) -> str | None:
    """Return what to do instead of giving an option of another tool."""
    return _OPTION_ADVICE.get(option)


def output_advice(value: str) -> str | None:
    """Return what to give instead of an output format of another tool."""
    return _OUTPUT_ADVICE.get(value.partition("=")[0].lower())


def _root(words: Sequence[str], nouns: Mapping[str, Any]) -> list[str] | None:
    first, *rest = words
    if first in _AWS_SERVICES and rest:
        return _root(rest, nouns)
    if first in _OPERATIONS:
        return _operation(first, rest)
    noun = _noun(first, nouns)
    if noun is not None:
        commands = list(nouns[noun].commands)
        return [noun, *(rest if not rest or rest[0] in commands else _verb(rest, commands) or rest)]
    if first in _VERBS and rest and (operand := rest[0].partition("/"))[0]:
        noun = _noun(operand[0], nouns)
        names = [operand[2]] if operand[2] else []
        if noun is not None:
            verb = _verb([first, *names, *rest[1:]], list(nouns[noun].commands))
            return None if verb is None else [noun, *verb]
    commands = list(nouns)
    if first in _VERBS or first in ("create", "set"):
        noun = _noun(rest[0], nouns) if rest else None
        if noun is not None and first in nouns[noun].commands:
            return [noun, first, *rest[1:]]
    ours = _COMMANDS.get(first)
    return None if ours is None or (ours[0] not in commands and not ours[0].startswith("-")) else [*ours, *rest]


def _noun(word: str, nouns: Mapping[str, Any]) -> str | None:
    for name in (word, word.removesuffix("s"), word.removesuffix("es")):
        noun = _NOUNS.get(name, name)
        if noun in nouns and hasattr(nouns[noun], "commands"):
            return noun
    return None


def _verb(words: Sequence[str], commands: Sequence[str]) -> list[str] | None:
    """Return the words with the noun's own verb first."""
    first, *rest = words
    candidates = _VERBS.get(first, (first,))
    named = bool(rest) and not rest[0].startswith("-")
    if first in ("get", "describe"):
        candidates = ("show",) if named else ("list",)
    ours = next((verb for verb in candidates if verb in commands), None)
    return None if ours is None else [ours, *rest]


def _operation(operation: str, rest: Sequence[str]) -> list[str]:
    """Return our command for an operation of the aws CLI; the option with the identifier becomes an operand."""
    names: list[str] = []
    others: list[str] = []
    words = iter(rest)
    for word in words:
        option, equals, value = word.partition("=")
        if option in _IDENTIFIER_OPTIONS:
            names.append(value if equals else next(words, ""))
        else:
            others.append(word)
    all_of_them, one = _OPERATIONS[operation]
    return [*(one if names else all_of_them).split(), *names, *others]
