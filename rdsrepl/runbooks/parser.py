"""Parse the page of a runbook.

A page has YAML front matter (``when``, ``needs``, ``variables``), one ``# Title``, and the sections ``## Checks
first``, ``## Steps``, ``## Verify`` and ``## Go back``, in this order. In the first three sections each heading
``### N. Title`` starts a step: prose, one ``sh`` block whose info string names its kind (``sh check``, ``sh change``,
``sh run`` or ``sh manual``, then ``exit=0,8``, ``only=cluster``, ``with=VARIABLE``), and optionally a block ``text
expect`` with lines of the output. No step is read from ``## Go back``. ``docs/runbooks.md`` describes the format for
authors.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from rdsrepl.errors import BadPage, BadValue
from rdsrepl.runbooks import commands
from rdsrepl.runbooks.model import SECTIONS, TARGET_KINDS, TARGET_VARIABLES, Runbook, Step, StepKind, undone_step
from rdsrepl.runbooks.variables import TYPES, Variable, check_value
from rdsrepl.text.yaml_nodes import NotYaml, compose

_FENCE: Final = re.compile(r"(`{3,})\s*(.*?)\s*\Z")
_HEADING: Final = re.compile(r"(#{1,6})\s+(.*?)\s*\Z")
_STEP: Final = re.compile(r"(\d+)\.\s+(.+)\Z")
_NAME: Final = re.compile(r"[a-z][a-z0-9_]*\Z")


def parse(path: Path, text: str) -> Runbook:
    """Return the runbook of a page.

    Raises:
        BadPage: the page breaks a rule; the message names the file and the line.
    """
    lines = text.splitlines()
    if not lines or lines[0].strip() != "---" or "---" not in (line.strip() for line in lines[1:]):
        raise _error(path, 1, "the front matter is missing", "start the page with ---, when: …, ---")
    end = next(number for number, line in enumerate(lines[1:], 1) if line.strip() == "---")
    when, needs, variables = _front_matter(path, "\n".join(lines[1:end]))
    reader = _PageParser(path, {*(variable.name.upper() for variable in variables), *TARGET_VARIABLES})
    for number, line in enumerate(lines[end + 1 :], end + 2):
        reader.line(number, line)
    title, steps, go_back = reader.end(len(lines))
    known = {variable.name for variable in variables}
    for step in steps:
        if step.with_variable is not None and step.with_variable not in known:
            raise _error(
                path,
                step.line,
                f"with={step.with_variable}: the variable does not exist",
                "declare it in the front matter",
            )
        for variable, kind in zip(TARGET_VARIABLES, TARGET_KINDS, strict=True):
            if variable in commands.references(step.command) and step.only != kind and needs != (kind,):
                raise _error(
                    path, step.line, f"${variable} in a step that can run without a {kind}", f"add only={kind}"
                )
    names = {step.name for step in steps}
    for line in go_back.split("\n"):
        if (undone := undone_step(line)) is not None and undone not in names:
            at = lines.index(line) + 1
            raise _error(
                path, at, f"made={undone}: the step does not exist", "give the name of the step that the block undoes"
            )
    return Runbook(
        name=path.stem,
        title=title,
        when=when,
        needs=needs,
        variables=variables,
        steps=steps,
        go_back=go_back,
        body="\n".join(lines[end + 1 :]).strip() + "\n",
        path=path,
        digest=sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16],
    )


def _error(path: Path, line: int, message: str, hint: str) -> BadPage:
    return BadPage(f"{path}:{line}: {message}", hint=hint)


def _front_matter(path: Path, text: str) -> tuple[str, tuple[str, ...], tuple[Variable, ...]]:
    try:
        root = compose(text)
    except NotYaml as exc:
        raise _error(path, exc.line + 1, exc.problem, "correct that line") from None
    when = ""
    needs: tuple[str, ...] = ()
    variables: tuple[Variable, ...] = ()
    for key, node, line in _entries(path, root, 2):
        if key == "when":
            when = _scalar(path, node)
        elif key == "needs":
            needs = tuple(word for word in re.split(r",\s*|\s+or\s+", _scalar(path, node)))
            if not set(needs) <= set(TARGET_KINDS):
                raise _error(
                    path,
                    line,
                    f"needs: {', '.join(needs)} is not valid",
                    "write cluster, instance, or 'cluster or instance'",
                )
        elif key == "variables":
            variables = tuple(_variable(path, name, value, line) for name, value, line in _entries(path, node, line))
        else:
            raise _error(path, line, f"unknown key {key!r}", "the valid keys are: when, needs, variables")
    if not when:
        raise _error(path, 1, "the key when is missing", "add when: with one sentence")
    return when, needs, variables


def _variable(path: Path, name: str, node: Any, line: int) -> Variable:
    fields = {key: _scalar(path, value) for key, value, _ in _entries(path, node, line)}
    if not _NAME.match(name) or name.upper() in TARGET_VARIABLES:
        raise _error(path, line, f"{name!r} is not a valid name of a variable", "use lower-case letters, digits and _")
    if unknown := fields.keys() - {"help", "type", "default"}:
        raise _error(path, line, f"{name}: unknown key {min(unknown)!r}", "the valid keys are: help, type, default")
    if not fields.get("help"):
        raise _error(path, line, f"{name}: the key help is missing", "add help: with a few words")
    kind = fields.get("type", "text")
    if kind not in TYPES:
        raise _error(path, line, f"{name}: unknown type {kind!r}", f"the valid types are: {', '.join(TYPES)}")
    variable = Variable(name, fields["help"], kind, fields.get("default"))
    if variable.default:
        try:
            check_value(variable, variable.default)
        except BadValue as exc:
            raise _error(path, line, f"{name}: the default does not have the type {kind}", exc.hint or "") from exc
    return variable


def _entries(path: Path, node: Any, line: int) -> list[tuple[str, Any, int]]:
    import yaml

    if not isinstance(node, yaml.MappingNode):
        raise _error(
            path, line if node is None else node.start_mark.line + 2, "not a mapping", "write 'key: value' lines"
        )
    entries: list[tuple[str, Any, int]] = []
    for key, value in node.value:
        at = key.start_mark.line + 2
        if not isinstance(key, yaml.ScalarNode) or key.value in {entry[0] for entry in entries}:
            raise _error(path, at, "a key that is not a word, or a duplicate key", "write 'key: value' lines")
        entries.append((key.value, value, at))
    return entries


def _scalar(path: Path, node: Any) -> str:
    import yaml

    if not isinstance(node, yaml.ScalarNode) or node.tag == "tag:yaml.org,2002:null":
        raise _error(path, node.start_mark.line + 2, "must be a single value", "write 'key: value'")
    return str(node.value)


@dataclass(slots=True)
class _OpenStep:
    """A step whose lines are being read."""

    number: int
    title: str
    section: str
    line: int
    prose: list[str]
    block: tuple[str, list[str], int] | None = None
    expect: list[str] | None = None


class _PageParser:
    """Reads a page line by line."""

    def __init__(self, path: Path, variables: set[str]) -> None:
        self._path = path
        self._variables = variables
        self._title = ""
        self._section = ""
        self._go_back: list[str] = []
        self._steps: list[Step] = []
        self._open: _OpenStep | None = None
        self._fence: tuple[str, str, int] | None = None
        self._inside: list[str] = []

    def line(self, number: int, line: str) -> None:
        """Read the next line."""
        if self._section == SECTIONS[-1]:
            self._go_back.append(line)
        if self._fence is not None:
            if line.strip() == self._fence[0]:
                self._close_fence()
            else:
                self._inside.append(line)
        elif match := _FENCE.match(line):
            self._fence, self._inside = (match[1], match[2], number), []
        elif match := _HEADING.match(line):
            self._heading(number, len(match[1]), match[2])
        elif self._open is not None:
            self._open.prose.append(line)

    def end(self, number: int) -> tuple[str, tuple[Step, ...], str]:
        """Return the title, the steps and the section Go back."""
        if self._fence is not None:
            raise self._bad(self._fence[2], "unterminated block", "close it with ```")
        self._close_step()
        if not self._title:
            raise self._bad(number, "the title is missing", "add # and a few words")
        if self._section != SECTIONS[-1] or not "".join(self._go_back).strip():
            wanted = SECTIONS[SECTIONS.index(self._section) + 1 if self._section in SECTIONS[:-1] else 0]
            wanted = SECTIONS[-1] if self._section == SECTIONS[-1] else wanted
            raise self._bad(
                number, f"the section ## {wanted} is missing or empty", f"the sections are: {', '.join(SECTIONS)}"
            )
        return self._title, tuple(self._steps), "\n".join(self._go_back).strip()

    def _bad(self, line: int, message: str, hint: str) -> BadPage:
        return _error(self._path, line, message, hint)

    def _heading(self, number: int, level: int, text: str) -> None:
        if level == 1:
            if self._title:
                raise self._bad(number, "a second title", "write one runbook a page")
            self._title = text
            return
        self._close_step()
        if level == 2:
            expected = SECTIONS[SECTIONS.index(self._section) + 1] if self._section in SECTIONS[:-1] else SECTIONS[0]
            if text != expected or self._section == SECTIONS[-1]:
                raise self._bad(
                    number, f"## {text} is not expected here", f"the sections are, in this order: {', '.join(SECTIONS)}"
                )
            self._section = text
        elif self._section in SECTIONS[:-1] and self._section:
            match = _STEP.match(text) if level == 3 else None
            if match is None or int(match[1]) != len(self._steps) + 1:
                raise self._bad(number, f"{text!r} is not a step", f"write ### {len(self._steps) + 1}. TITLE")
            self._open = _OpenStep(int(match[1]), match[2], self._section, number, [])

    def _close_fence(self) -> None:
        assert self._fence is not None
        (_, info, line), self._fence = self._fence, None
        kind, _, rest = info.partition(" ")
        if self._open is None:
            if kind == "sh" and rest and self._section != SECTIONS[-1]:
                raise self._bad(line, "a command outside of a step", "write ### N. TITLE before it")
            return
        if info == "text expect":
            if self._open.block is None or self._open.expect is not None:
                raise self._bad(
                    line, "text expect without a command, or twice", "put it once after the block of the command"
                )
            self._open.expect = [text for text in self._inside if text.strip()]
        elif kind == "sh":
            if self._open.block is not None:
                raise self._bad(line, "a second command", "write another step for it")
            self._open.block = (rest, self._inside, line)
        elif kind != "text" or rest:
            raise self._bad(
                line, f"unknown block {info!r}", "write sh check, sh change, sh run, sh manual, text expect or text"
            )

    def _close_step(self) -> None:
        step, self._open = self._open, None
        if step is None:
            return
        if step.block is None:
            raise self._bad(step.line, "a step without a command", "add ```sh check, change, run or manual")
        info, inside, line = step.block
        kind, exit_codes, only, given = self._info(info, line)
        text = "\n".join(inside).strip()
        words: tuple[commands.Word, ...] = ()
        if kind is not StepKind.manual:
            words = self._command(inside, line)
        elif step.expect is not None:
            raise self._bad(line, "a manual step cannot have text expect", "add a check after it")
        name = re.sub(r"[^a-z0-9]+", "-", step.title.lower()).strip("-")
        if name in {earlier.name for earlier in self._steps}:
            raise self._bad(step.line, f"a second step {name}", "change its title")
        self._steps.append(
            Step(
                number=step.number,
                name=name,
                title=step.title,
                section=step.section,
                prose=re.sub(r"\n{3,}", "\n\n", "\n".join(step.prose)).strip(),
                kind=kind,
                text=text,
                command=words,
                exit_codes=exit_codes,
                expect=tuple(step.expect or ()),
                only=only,
                with_variable=given,
                line=line,
            )
        )

    def _command(self, inside: Sequence[str], line: int) -> tuple[commands.Word, ...]:
        try:
            words = commands.parse("\n".join(inside))
        except commands.InvalidCommand as exc:
            raise self._bad(
                line + 1 + exc.line, str(exc), "write a command that requires a shell as sh manual"
            ) from exc
        if words[0] != ("rdsrepl",):
            raise self._bad(
                line + 1, "a command of another program", "write rdsrepl …, or sh manual for other programs"
            )
        for name in commands.references(words):
            if name not in self._variables:
                raise self._bad(line + 1, f"${name}: the variable does not exist", "declare it under variables:")
        return words[1:]

    def _info(self, info: str, line: int) -> tuple[StepKind, tuple[int, ...], str | None, str | None]:
        words = info.split()
        hint = "check, change, run or manual; then exit=0,8 only=cluster|instance with=VARIABLE"
        if not words or words[0] not in StepKind.__members__:
            raise self._bad(line, f"```sh {info}: unknown kind of step", hint)
        fields: dict[str, str] = {}
        for word in words[1:]:
            key, equals, value = word.partition("=")
            if key not in ("exit", "only", "with") or not equals or key in fields:
                raise self._bad(line, f"```sh {info}: {word} is not valid", hint)
            fields[key] = value
        codes = fields.get("exit", "0").split(",")
        if not all(re.fullmatch(r"\d{1,3}", code) for code in codes):
            raise self._bad(line, f"exit={fields['exit']} is not valid", "write exit=0,8")
        if "only" in fields and fields["only"] not in TARGET_KINDS:
            raise self._bad(line, f"only={fields['only']} is not valid", "write only=cluster or only=instance")
        return StepKind(words[0]), tuple(map(int, codes)), fields.get("only"), fields.get("with")
