"""Reads a runbook's page."""

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
    """Read a page.

    Raises:
        BadPage: it breaks a rule; the message names file and line.
    """
    lines = text.splitlines()
    if not lines or lines[0].strip() != "---" or "---" not in (line.strip() for line in lines[1:]):
        raise _error(path, 1, "no front matter", "begin with ---, when: …, ---")
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
                path, step.line, f"with={step.with_variable}: there is no such variable", "name one of the front matter"
            )
        for place, kind in zip(TARGET_VARIABLES, TARGET_KINDS, strict=True):
            if place in commands.references(step.command) and step.only != kind and needs != (kind,):
                raise _error(path, step.line, f"${place} in a step for other places, too", f"add only={kind}")
    names = {step.name for step in steps}
    for line in go_back.split("\n"):
        if (undone := undone_step(line)) is not None and undone not in names:
            at = lines.index(line) + 1
            raise _error(path, at, f"made={undone}: there is no such step", "name the step that it undoes")
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
        raise _error(path, exc.line + 1, exc.problem, "mend that line") from None
    when = ""
    needs: tuple[str, ...] = ()
    variables: tuple[Variable, ...] = ()
    for key, node, line in _entries(path, root, 2):
        if key == "when":
            when = _scalar(path, node)
        elif key == "needs":
            needs = tuple(word for word in re.split(r",\s*|\s+or\s+", _scalar(path, node)))
            if not set(needs) <= set(TARGET_KINDS):
                raise _error(path, line, f"needs: {', '.join(needs)}?", "cluster, instance, or 'cluster or instance'")
        elif key == "variables":
            variables = tuple(_variable(path, name, value, line) for name, value, line in _entries(path, node, line))
        else:
            raise _error(path, line, f"unknown key {key!r}", "the keys there are: when, needs, variables")
    if not when:
        raise _error(path, 1, "nothing says when to use it", "when: in a sentence")
    return when, needs, variables


def _variable(path: Path, name: str, node: Any, line: int) -> Variable:
    fields = {key: _scalar(path, value) for key, value, _ in _entries(path, node, line)}
    if not _NAME.match(name) or name.upper() in TARGET_VARIABLES:
        raise _error(path, line, f"{name!r} is no variable's name", "lower-case letters, digits and _")
    if unknown := fields.keys() - {"help", "type", "default"}:
        raise _error(path, line, f"{name}: unknown key {min(unknown)!r}", "the keys there are: help, type, default")
    if not fields.get("help"):
        raise _error(path, line, f"{name}: nothing says what it is", "help: in a few words")
    kind = fields.get("type", "text")
    if kind not in TYPES:
        raise _error(path, line, f"{name}: there is no type {kind!r}", f"the types: {', '.join(TYPES)}")
    variable = Variable(name, fields["help"], kind, fields.get("default"))
    if variable.default:
        try:
            check_value(variable, variable.default)
        except BadValue as exc:
            raise _error(path, line, f"{name}: its default is not of its type", exc.hint or "") from exc
    return variable


def _entries(path: Path, node: Any, line: int) -> list[tuple[str, Any, int]]:
    import yaml

    if not isinstance(node, yaml.MappingNode):
        raise _error(
            path, line if node is None else node.start_mark.line + 2, "not a mapping", "write 'key: value' lines"
        )
    found: list[tuple[str, Any, int]] = []
    for key, value in node.value:
        at = key.start_mark.line + 2
        if not isinstance(key, yaml.ScalarNode) or key.value in {entry[0] for entry in found}:
            raise _error(path, at, "a key that is no word, or stands there twice", "write 'key: value' lines")
        found.append((key.value, value, at))
    return found


def _scalar(path: Path, node: Any) -> str:
    import yaml

    if not isinstance(node, yaml.ScalarNode) or node.tag == "tag:yaml.org,2002:null":
        raise _error(path, node.start_mark.line + 2, "must be one value", "write 'key: value'")
    return str(node.value)


@dataclass(slots=True)
class _OpenStep:
    """A step whose lines are still being read."""

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
        """Read the next one."""
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
        """Return title, steps and the way back."""
        if self._fence is not None:
            raise self._bad(self._fence[2], "a block that does not end", "close it with ```")
        self._close_step()
        if not self._title:
            raise self._bad(number, "no title", "# In a few words")
        if self._section != SECTIONS[-1] or not "".join(self._go_back).strip():
            wanted = SECTIONS[SECTIONS.index(self._section) + 1 if self._section in SECTIONS[:-1] else 0]
            wanted = SECTIONS[-1] if self._section == SECTIONS[-1] else wanted
            raise self._bad(number, f"nothing under ## {wanted}", f"its sections are: {', '.join(SECTIONS)}")
        return self._title, tuple(self._steps), "\n".join(self._go_back).strip()

    def _bad(self, line: int, message: str, hint: str) -> BadPage:
        return _error(self._path, line, message, hint)

    def _heading(self, number: int, level: int, text: str) -> None:
        if level == 1:
            if self._title:
                raise self._bad(number, "a second title", "a page is one runbook")
            self._title = text
            return
        self._close_step()
        if level == 2:
            expected = SECTIONS[SECTIONS.index(self._section) + 1] if self._section in SECTIONS[:-1] else SECTIONS[0]
            if text != expected or self._section == SECTIONS[-1]:
                raise self._bad(number, f"## {text} stands here", f"its sections are: {', '.join(SECTIONS)}")
            self._section = text
        elif self._section in SECTIONS[:-1] and self._section:
            match = _STEP.match(text) if level == 3 else None
            if match is None or int(match[1]) != len(self._steps) + 1:
                raise self._bad(number, f"{text!r} is no step", f"### {len(self._steps) + 1}. What it does")
            self._open = _OpenStep(int(match[1]), match[2], self._section, number, [])

    def _close_fence(self) -> None:
        assert self._fence is not None
        (_, info, line), self._fence = self._fence, None
        kind, _, rest = info.partition(" ")
        if self._open is None:
            if kind == "sh" and rest and self._section != SECTIONS[-1]:
                raise self._bad(line, "a command outside of a step", "### N. What it does")
            return
        if info == "text expect":
            if self._open.block is None or self._open.expect is not None:
                raise self._bad(line, "an expectation without a command", "it follows the command's block, once")
            self._open.expect = [text for text in self._inside if text.strip()]
        elif kind == "sh":
            if self._open.block is not None:
                raise self._bad(line, "a second command", "a step has one: begin another")
            self._open.block = (rest, self._inside, line)
        elif kind != "text" or rest:
            raise self._bad(
                line, f"a block of {info!r}", "sh check, sh change, sh run, sh manual, text expect, or text"
            )

    def _close_step(self) -> None:
        step, self._open = self._open, None
        if step is None:
            return
        if step.block is None:
            raise self._bad(step.line, "a step without a command", "```sh check, change, run or manual")
        info, inside, line = step.block
        kind, exit_codes, only, given = self._info(info, line)
        text = "\n".join(inside).strip()
        words: tuple[commands.Word, ...] = ()
        if kind is not StepKind.manual:
            words = self._command(inside, line)
        elif step.expect is not None:
            raise self._bad(line, "a manual step cannot expect an output", "let a check follow it")
        name = re.sub(r"[^a-z0-9]+", "-", step.title.lower()).strip("-")
        if name in {earlier.name for earlier in self._steps}:
            raise self._bad(step.line, f"a second step {name}", "call it something else")
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
            raise self._bad(line + 1 + exc.line, str(exc), "what needs a shell, a person does: sh manual") from exc
        if words[0] != ("rdsrepl",):
            raise self._bad(line + 1, "a command of another program", "rdsrepl …; others, a person runs: sh manual")
        for name in commands.references(words):
            if name not in self._variables:
                raise self._bad(line + 1, f"${name}: there is no such variable", "declare it under variables:")
        return words[1:]

    def _info(self, info: str, line: int) -> tuple[StepKind, tuple[int, ...], str | None, str | None]:
        words = info.split()
        hint = "check, change, run or manual; then exit=0,8 only=cluster|instance with=VARIABLE"
        if not words or words[0] not in StepKind.__members__:
            raise self._bad(line, f"```sh {info}: no kind of step", hint)
        fields: dict[str, str] = {}
        for word in words[1:]:
            key, equals, value = word.partition("=")
            if key not in ("exit", "only", "with") or not equals or key in fields:
                raise self._bad(line, f"```sh {info}: {word}?", hint)
            fields[key] = value
        codes = fields.get("exit", "0").split(",")
        if not all(re.fullmatch(r"\d{1,3}", code) for code in codes):
            raise self._bad(line, f"exit={fields['exit']}?", "exit=0,8")
        if "only" in fields and fields["only"] not in TARGET_KINDS:
            raise self._bad(line, f"only={fields['only']}?", "only=cluster, or only=instance")
        return StepKind(words[0]), tuple(map(int, codes)), fields.get("only"), fields.get("with")
