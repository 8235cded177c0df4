"""A runbook's page: Markdown that people read, and the steps that are in it.

A page has YAML front matter (``when``, ``needs``, ``variables``), one ``# Title``, and the sections ``## Checks
first``, ``## Steps``, ``## Verify`` and ``## Go back``, in this order. In the first three each ``### N. Title`` is a
step: prose, one block of ``sh`` whose info string says what it is (``sh check``, ``sh change``, ``sh run`` or ``sh
manual``, then ``exit=0,8``, ``only=cluster``, ``with=VARIABLE``), and maybe a block ``text expect`` with lines of the
output. What is under ``## Go back`` is for people. ``docs/runbooks.md`` says it to those who write one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from rdsrepl import help_topics
from rdsrepl.errors import BadPage, BadValue, NotFound
from rdsrepl.runbooks import commands
from rdsrepl.runbooks.variables import TYPES, Variable, check
from rdsrepl.text.yaml_nodes import NotYaml, compose

SECTIONS: Final = ("Checks first", "Steps", "Verify", "Go back")
# What the place gives: the cluster or instance of --cluster, --instance or the target.
PLACE: Final = ("RDSREPL_CLUSTER", "RDSREPL_INSTANCE")
_KINDS_OF_PLACE: Final = ("cluster", "instance")
_FENCE: Final = re.compile(r"(`{3,})\s*(.*?)\s*\Z")
_HEADING: Final = re.compile(r"(#{1,6})\s+(.*?)\s*\Z")
_STEP: Final = re.compile(r"(\d+)\.\s+(.+)\Z")
_UNDOES: Final = re.compile(r"`{3,}\s*sh made=(\S+)\s*\Z")
_NAME: Final = re.compile(r"[a-z][a-z0-9_]*\Z")


class Kind(StrEnum):
    """What a step does: it only looks; it changes something and has a plan; it acts without a plan; a person acts."""

    check = "check"
    change = "change"
    run = "run"
    manual = "manual"


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a page.

    Attributes:
        number: counted from 1 over the whole page.
        name: its title in lower case with hyphens; ``--from`` takes it, or the number.
        section: the heading it stands under.
        words: its prose.
        kind: what it does.
        text: what stands in its block.
        command: the same in words, without the leading ``rdsrepl``; empty for a manual step.
        exit_codes: those that are good.
        expect: lines that the output must have.
        only: ``cluster`` or ``instance``, where it is for one of them alone.
        given: the variable without which it is passed over.
        line: of its block in the page.
    """

    number: int
    name: str
    title: str
    section: str
    words: str
    kind: Kind
    text: str
    command: tuple[commands.Word, ...]
    exit_codes: tuple[int, ...]
    expect: tuple[str, ...]
    only: str | None
    given: str | None
    line: int


@dataclass(frozen=True, slots=True)
class Runbook:
    """A page as read.

    Attributes:
        name: the file's, without ``.md``.
        when: when to use it, in a sentence.
        needs: the kinds of place it works on: ``cluster``, ``instance``; empty where any database does.
        go_back: the section for people, as Markdown.
        body: the whole page without its front matter.
        digest: of the file, so that a run is not resumed on another page.
    """

    name: str
    title: str
    when: str
    needs: tuple[str, ...]
    variables: tuple[Variable, ...]
    steps: tuple[Step, ...]
    go_back: str
    body: str
    path: Path
    digest: str

    @property
    def path_or_name(self) -> str:
        """What ``rdsrepl runbook`` takes for it."""
        return self.name if self.path.parent == directory() else str(self.path)

    def step(self, name: str) -> Step:
        """Return a step by its name or number.

        Raises:
            BadValue: there is none.
        """
        for step in self.steps:
            if name in (step.name, str(step.number)):
                return step
        names = [step.name for step in self.steps]
        close = get_close_matches(name, names, 1)
        hint = f"did you mean {close[0]}?" if close else f"its steps: 1 to {len(names)}, or {', '.join(names)}"
        raise BadValue(f"runbook {self.name} has no step {name!r}", hint=hint)


def undone_step(line: str) -> str | None:
    """Return the step that a block under ``## Go back`` undoes, from the line that opens it: ``made=STEP``."""
    match = _UNDOES.match(line)
    return match[1] if match else None


def directory() -> Path:
    """Return where the pages are.

    Raises:
        NotFound: this installation has none.
    """
    return help_topics.directory() / "runbooks"


def names() -> tuple[str, ...]:
    """Return the names of all runbooks."""
    return tuple(sorted(path.stem for path in directory().glob("*.md")))


def load(name: str) -> Runbook:
    """Read a runbook: one of ours by its name, or any file by its path (``./mine.md``).

    Raises:
        NotFound: there is none.
        BadPage: it cannot be read as one.
    """
    is_path = "/" in name or name.endswith(".md")
    if not is_path and name not in names():
        close = get_close_matches(name, names(), 1, 0.5)
        hint = f"did you mean {close[0]}? " if close else ""
        raise NotFound(f"no runbook {name!r}", hint=f"{hint}rdsrepl runbook list")
    path = Path(name) if is_path else directory() / f"{name}.md"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFound(f"no file {path}", hint="a runbook by its name: rdsrepl runbook list") from None
    except (OSError, ValueError) as exc:
        raise BadPage(f"{path}: cannot be read: {exc}", hint="make the file readable UTF-8") from exc
    return parse(path, text)


def parse(path: Path, text: str) -> Runbook:
    """Read a page.

    Raises:
        BadPage: it breaks a rule; the message names file and line.
    """
    lines = text.splitlines()
    if not lines or lines[0].strip() != "---" or "---" not in (line.strip() for line in lines[1:]):
        raise _bad(path, 1, "no front matter", "begin with ---, when: …, ---")
    end = next(number for number, line in enumerate(lines[1:], 1) if line.strip() == "---")
    when, needs, variables = _front_matter(path, "\n".join(lines[1:end]))
    reader = _Reader(path, {*(variable.name.upper() for variable in variables), *PLACE})
    for number, line in enumerate(lines[end + 1 :], end + 2):
        reader.line(number, line)
    title, steps, go_back = reader.end(len(lines))
    known = {variable.name for variable in variables}
    for step in steps:
        if step.given is not None and step.given not in known:
            raise _bad(path, step.line, f"with={step.given}: there is no such variable", "name one of the front matter")
        for place, kind in zip(PLACE, _KINDS_OF_PLACE, strict=True):
            if place in commands.references(step.command) and step.only != kind and needs != (kind,):
                raise _bad(path, step.line, f"${place} in a step for other places, too", f"add only={kind}")
    names = {step.name for step in steps}
    for line in go_back.split("\n"):
        if (undone := undone_step(line)) is not None and undone not in names:
            at = lines.index(line) + 1
            raise _bad(path, at, f"made={undone}: there is no such step", "name the step that it undoes")
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


def _bad(path: Path, line: int, message: str, hint: str) -> BadPage:
    return BadPage(f"{path}:{line}: {message}", hint=hint)


def _front_matter(path: Path, text: str) -> tuple[str, tuple[str, ...], tuple[Variable, ...]]:
    try:
        root = compose(text)
    except NotYaml as exc:
        raise _bad(path, exc.line + 1, exc.problem, "mend that line") from None
    when = ""
    needs: tuple[str, ...] = ()
    variables: tuple[Variable, ...] = ()
    for key, node, line in _entries(path, root, 2):
        if key == "when":
            when = _scalar(path, node)
        elif key == "needs":
            needs = tuple(word for word in re.split(r",\s*|\s+or\s+", _scalar(path, node)))
            if not set(needs) <= set(_KINDS_OF_PLACE):
                raise _bad(path, line, f"needs: {', '.join(needs)}?", "cluster, instance, or 'cluster or instance'")
        elif key == "variables":
            variables = tuple(_variable(path, name, value, line) for name, value, line in _entries(path, node, line))
        else:
            raise _bad(path, line, f"unknown key {key!r}", "the keys there are: when, needs, variables")
    if not when:
        raise _bad(path, 1, "nothing says when to use it", "when: in a sentence")
    return when, needs, variables


def _variable(path: Path, name: str, node: Any, line: int) -> Variable:
    fields = {key: _scalar(path, value) for key, value, _ in _entries(path, node, line)}
    if not _NAME.match(name) or name.upper() in PLACE:
        raise _bad(path, line, f"{name!r} is no variable's name", "lower-case letters, digits and _")
    if unknown := fields.keys() - {"help", "type", "default"}:
        raise _bad(path, line, f"{name}: unknown key {min(unknown)!r}", "the keys there are: help, type, default")
    if not fields.get("help"):
        raise _bad(path, line, f"{name}: nothing says what it is", "help: in a few words")
    kind = fields.get("type", "text")
    if kind not in TYPES:
        raise _bad(path, line, f"{name}: there is no type {kind!r}", f"the types: {', '.join(TYPES)}")
    variable = Variable(name, fields["help"], kind, fields.get("default"))
    if variable.default:
        try:
            check(variable, variable.default)
        except BadValue as exc:
            raise _bad(path, line, f"{name}: its default is not of its type", exc.hint or "") from exc
    return variable


def _entries(path: Path, node: Any, line: int) -> list[tuple[str, Any, int]]:
    import yaml

    if not isinstance(node, yaml.MappingNode):
        raise _bad(
            path, line if node is None else node.start_mark.line + 2, "not a mapping", "write 'key: value' lines"
        )
    found: list[tuple[str, Any, int]] = []
    for key, value in node.value:
        at = key.start_mark.line + 2
        if not isinstance(key, yaml.ScalarNode) or key.value in {entry[0] for entry in found}:
            raise _bad(path, at, "a key that is no word, or stands there twice", "write 'key: value' lines")
        found.append((key.value, value, at))
    return found


def _scalar(path: Path, node: Any) -> str:
    import yaml

    if not isinstance(node, yaml.ScalarNode) or node.tag == "tag:yaml.org,2002:null":
        raise _bad(path, node.start_mark.line + 2, "must be one value", "write 'key: value'")
    return str(node.value)


@dataclass(slots=True)
class _Open:
    """A step whose lines are still being read."""

    number: int
    title: str
    section: str
    line: int
    words: list[str]
    block: tuple[str, list[str], int] | None = None
    expect: list[str] | None = None


class _Reader:
    """Reads a page line by line."""

    def __init__(self, path: Path, variables: set[str]) -> None:
        self._path = path
        self._variables = variables
        self._title = ""
        self._section = ""
        self._go_back: list[str] = []
        self._steps: list[Step] = []
        self._open: _Open | None = None
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
            self._open.words.append(line)

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
        return _bad(self._path, line, message, hint)

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
            self._open = _Open(int(match[1]), match[2], self._section, number, [])

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
        if kind is not Kind.manual:
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
                words=re.sub(r"\n{3,}", "\n\n", "\n".join(step.words)).strip(),
                kind=kind,
                text=text,
                command=words,
                exit_codes=exit_codes,
                expect=tuple(step.expect or ()),
                only=only,
                given=given,
                line=line,
            )
        )

    def _command(self, inside: Sequence[str], line: int) -> tuple[commands.Word, ...]:
        try:
            words = commands.parse("\n".join(inside))
        except commands.NotACommand as exc:
            raise self._bad(line + 1 + exc.line, str(exc), "what needs a shell, a person does: sh manual") from exc
        if words[0] != ("rdsrepl",):
            raise self._bad(line + 1, "a command of another program", "rdsrepl …; others, a person runs: sh manual")
        for name in commands.references(words):
            if name not in self._variables:
                raise self._bad(line + 1, f"${name}: there is no such variable", "declare it under variables:")
        return words[1:]

    def _info(self, info: str, line: int) -> tuple[Kind, tuple[int, ...], str | None, str | None]:
        words = info.split()
        hint = "check, change, run or manual; then exit=0,8 only=cluster|instance with=VARIABLE"
        if not words or words[0] not in Kind.__members__:
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
        if "only" in fields and fields["only"] not in _KINDS_OF_PLACE:
            raise self._bad(line, f"only={fields['only']}?", "only=cluster, or only=instance")
        return Kind(words[0]), tuple(map(int, codes)), fields.get("only"), fields.get("with")


def documented(runbook: Runbook) -> Mapping[str, Any]:
    """Return what ``runbook show -o json`` prints: the page's data, commands as they stand there."""
    return {
        "name": runbook.name,
        "title": runbook.title,
        "when": runbook.when,
        "needs": runbook.needs,
        "file": str(runbook.path),
        "variables": [
            {
                "name": variable.name,
                "help": variable.help,
                "type": variable.type,
                "required": variable.required,
                "default": variable.default,
            }
            for variable in runbook.variables
        ],
        "steps": [
            {
                "number": step.number,
                "name": step.name,
                "title": step.title,
                "section": step.section,
                "words": step.words,
                "kind": step.kind.value,
                "command": step.text,
                "exit_codes": step.exit_codes,
                "expect": step.expect,
                "only": step.only,
                "with": step.given,
            }
            for step in runbook.steps
        ],
        "go_back": runbook.go_back,
    }
