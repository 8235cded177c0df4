"""The state of the dashboard, and how a key or a new snapshot changes it. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Final, TypeVar

from rdsrepl.dashboard import help_page
from rdsrepl.postgres.activity import Sender, ServerInfo
from rdsrepl.retention.assessment import Retention, SlotRetention
from rdsrepl.retention.slot_series import SlotSeries, slot_series
from rdsrepl.retention.thresholds import Severity
from rdsrepl.state.slot_history import Observation

#: The steps of ``+`` and ``-``.
INTERVALS_SECONDS: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
#: The time that a sparkline shows.
TREND_SECONDS: Final = 300.0
_BRIDGED_SECONDS: Final = 120.0
_PAGE: Final = 10

_Choice = TypeVar("_Choice", bound=StrEnum)


class Sort(StrEnum):
    """The sort order of the slots: the largest value first, names in alphabetical order."""

    severity = "severity"
    retained = "retained"
    undelivered = "undelivered"
    growth = "growth"
    name = "name"


class SlotFilter(StrEnum):
    """Which slots are shown."""

    all = "all"
    inactive = "inactive"
    problems = "problems"


class Span(StrEnum):
    """How much of the history a picture shows."""

    all = "all history"
    day = "1 day"
    six_hours = "6 hours"
    hour = "1 hour"

    @property
    def seconds(self) -> float | None:
        """The time in seconds; None is all."""
        return {Span.day: 86400.0, Span.six_hours: 21600.0, Span.hour: 3600.0}.get(self)


@dataclass(frozen=True, slots=True)
class Sample:
    """The retained bytes of each slot at one moment."""

    at: datetime
    retained: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of the server in one poll.

    Attributes:
        server: the facts that were read when the connection was opened.
        senders: the walsenders.
        samples: the retained bytes over time, oldest first, including this poll.
        history: the recorded samples for pictures, oldest first, including this poll.
    """

    server: ServerInfo
    retention: Retention
    senders: tuple[Sender, ...]
    samples: tuple[Sample, ...] = ()
    history: tuple[Observation, ...] = ()
    _series: dict[tuple[str, float | None], SlotSeries] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    def series(self, one: SlotRetention, seconds: float | None) -> SlotSeries:
        """Return the series of a slot; computed once, because the screen is drawn more often than it changes."""
        key = one.slot.slot_name, seconds
        if key not in self._series:
            self._series[key] = slot_series(self.history, self.retention, one, seconds=seconds)
        return self._series[key]


@dataclass(frozen=True, slots=True)
class PollFailure:
    """Why there is no new snapshot.

    Attributes:
        since: when the first attempt failed.
        retry_at: when the next attempt begins.
    """

    since: datetime
    message: str
    attempts: int
    retry_at: datetime


@dataclass(frozen=True, slots=True)
class Key:
    """A key: a character, or a name such as ``up``, ``enter``, ``escape``."""

    name: str


@dataclass(frozen=True, slots=True)
class PollStarted:
    """A poll has started."""

    at: datetime


@dataclass(frozen=True, slots=True)
class SnapshotTaken:
    """A poll has succeeded."""

    snapshot: Snapshot
    at: datetime


@dataclass(frozen=True, slots=True)
class PollFailed:
    """A poll has failed; the loop retries it."""

    message: str
    at: datetime
    retry_at: datetime


@dataclass(frozen=True, slots=True)
class Resized:
    """The terminal has this many columns and rows."""

    columns: int
    rows: int


Event = Key | PollStarted | SnapshotTaken | PollFailed | Resized


@dataclass(frozen=True, slots=True)
class State:
    """Everything that the screen depends on.

    Attributes:
        label: the name of the target.
        window_seconds: the window of the rates.
        filter: show only slots with this text in name, plugin, database or consumer.
        previous_filter: the filter before typing began; Escape restores it.
        typing: whether the filter is being typed.
        selected: the name of the selected slot; None selects the first row.
        snapshot, snapshot_at: the last snapshot, and when it arrived.
        poll_started_at: when the current poll started; None if none is in progress.
        removed, removed_at: the slots that the last snapshot no longer contains.
        picture, span: whether the picture of the selected slot is shown, and how much of the history.
        help, help_top: whether the help is shown, and its first line on the screen.
        columns, rows: the size of the terminal.
        ascii_only: whether the terminal shows only ASCII.
        quitting: whether the user has pressed ``q``.
    """

    label: str
    interval_seconds: float = 2.0
    window_seconds: float = 60.0
    sort: Sort = Sort.severity
    reverse: bool = False
    filter: str = ""
    previous_filter: str = ""
    typing: bool = False
    slot_filter: SlotFilter = SlotFilter.all
    selected: str | None = None
    paused: bool = False
    picture: bool = False
    span: Span = Span.all
    help: bool = False
    help_top: int = 0
    columns: int = 80
    rows: int = 24
    ascii_only: bool = False
    snapshot: Snapshot | None = None
    snapshot_at: datetime | None = None
    poll_started_at: datetime | None = None
    failure: PollFailure | None = None
    removed: tuple[str, ...] = ()
    removed_at: datetime | None = None
    quitting: bool = False

    @property
    def header_rows(self) -> int:
        """How many lines are above the body of the screen."""
        return 2 if self.snapshot is None else 3

    @property
    def body_rows(self) -> int:
        """How many lines are between the header and the line of keys."""
        return max(0, self.rows - self.header_rows - 1)


def next_state(state: State, event: Event) -> State:
    """Return the state after an event."""
    match event:
        case Key(name):
            return _typed(state, name) if state.typing else _pressed(state, name)
        case PollStarted(at):
            return replace(state, poll_started_at=at)
        case SnapshotTaken(snapshot, at):
            return _with_snapshot(replace(state, poll_started_at=None), snapshot, at)
        case PollFailed(message, at, retry_at):
            before = state.failure
            since, attempts = (before.since, before.attempts) if before is not None else (at, 0)
            return replace(state, poll_started_at=None, failure=PollFailure(since, message, attempts + 1, retry_at))
        case Resized(columns, rows):
            return _scrolled(replace(state, columns=columns, rows=rows), 0)


def visible(state: State) -> tuple[SlotRetention, ...]:
    """Return the slots to show, in their order."""
    if state.snapshot is None:
        return ()
    wanted = state.filter.lower()
    shown = [
        one
        for one in state.snapshot.retention.holdings
        if _is_wanted(one, state.slot_filter) and (not wanted or wanted in _text(one))
    ]
    shown.sort(key=lambda one: one.slot.slot_name)
    if state.sort is not Sort.name:
        shown.sort(key=lambda one: _weight(one, state.sort), reverse=True)
    return tuple(reversed(shown)) if state.reverse else tuple(shown)


def selection(state: State, shown: Sequence[SlotRetention]) -> int:
    """Return the index of the selected slot; 0 if it is not shown."""
    return next((index for index, one in enumerate(shown) if one.slot.slot_name == state.selected), 0)


def trend(samples: Sequence[Sample], name: str, *, points: int, interval_seconds: float) -> tuple[int | None, ...]:
    """Return a slot's retained bytes in the recent past, one value for each step; a step without a sample is None.

    At first a step is as long as the interval; later the steps divide ``TREND_SECONDS``.
    """
    if not samples or points < 1:
        return ()
    end = samples[-1].at
    known = (end - samples[0].at).total_seconds()
    step = min(TREND_SECONDS, max(points * interval_seconds, known)) / points
    values: list[int | None] = [None] * points
    for sample in samples:
        age = (end - sample.at).total_seconds()
        if age <= points * step and name in sample.retained:
            values[max(0, points - 1 - int(age / step))] = sample.retained[name]
    # The samples of earlier commands are minutes apart: fill the steps between them with the value before.
    last = None
    for index, value in enumerate(values):
        if value is not None:
            last = index
        elif last is not None and (index - last) * step <= _BRIDGED_SECONDS:
            values[index] = values[last]
    return tuple(values)


def _with_snapshot(state: State, snapshot: Snapshot, at: datetime) -> State:
    if state.paused:
        return state
    present = {one.slot.slot_name for one in snapshot.retention.holdings}
    before = state.snapshot.retention.holdings if state.snapshot is not None else ()
    missing = tuple(one.slot.slot_name for one in before if one.slot.slot_name not in present)
    if missing:
        state = replace(state, removed=missing, removed_at=at)
    elif state.removed and present.intersection(state.removed):
        state = replace(state, removed=(), removed_at=None)
    return replace(state, snapshot=snapshot, snapshot_at=at, failure=None)


def _pressed(state: State, key: str) -> State:
    if key == "quit" or (key == "q" and not state.help):
        return replace(state, quitting=True)
    if state.help:
        return _pressed_in_help(state, key)
    match key:
        case "?" | "h":
            return replace(state, help=True, help_top=0)
        case "v":
            return replace(state, picture=not state.picture)
        case "w" if state.picture:
            return replace(state, span=_next(state.span))
        case "up" | "k":
            return _moved(state, -1)
        case "down" | "j":
            return _moved(state, 1)
        case "page-up":
            return _moved(state, -_PAGE)
        case "page-down":
            return _moved(state, _PAGE)
        case "home" | "g":
            return replace(state, selected=None)
        case "end" | "G":
            return _moved(state, 1 << 30)
        case "s":
            return replace(state, sort=_next(state.sort))
        case "r":
            return replace(state, reverse=not state.reverse)
        case "a":
            return replace(state, slot_filter=_next(state.slot_filter))
        case "p" | " ":
            return replace(state, paused=not state.paused)
        case "+" | "=":
            longer = [one for one in INTERVALS_SECONDS if one > state.interval_seconds]
            return replace(state, interval_seconds=longer[0] if longer else state.interval_seconds)
        case "-" | "_":
            shorter = [one for one in INTERVALS_SECONDS if one < state.interval_seconds]
            return replace(state, interval_seconds=shorter[-1] if shorter else state.interval_seconds)
        case "/":
            return replace(state, typing=True, previous_filter=state.filter)
        case "escape":
            return replace(state, filter="")
    return state


def _pressed_in_help(state: State, key: str) -> State:
    """Scroll the help; any other key closes it."""
    match key:
        case "up" | "k":
            return _scrolled(state, -1)
        case "down" | "j":
            return _scrolled(state, 1)
        case "page-up":
            return _scrolled(state, -state.body_rows)
        case "page-down" | " ":
            return _scrolled(state, state.body_rows)
        case "home" | "g":
            return replace(state, help_top=0)
        case "end" | "G":
            return _scrolled(state, 1 << 30)
        case "redraw":
            return state
    return replace(state, help=False)


def _scrolled(state: State, by: int) -> State:
    last = help_page.last_top(state.columns, state.body_rows)
    return replace(state, help_top=min(last, max(0, state.help_top + by)))


def _typed(state: State, key: str) -> State:
    match key:
        case "quit":
            return replace(state, quitting=True)
        case "enter":
            return replace(state, typing=False)
        case "escape":
            return replace(state, typing=False, filter=state.previous_filter)
        case "backspace":
            return replace(state, filter=state.filter[:-1])
        case "clear":
            return replace(state, filter="")
        case "up" | "down" | "page-up" | "page-down":
            return _pressed(state, key)
    return replace(state, filter=state.filter + key) if len(key) == 1 and key.isprintable() else state


def _moved(state: State, by: int) -> State:
    shown = visible(state)
    if not shown:
        return state
    index = min(len(shown) - 1, max(0, selection(state, shown) + by))
    return replace(state, selected=shown[index].slot.slot_name)


def _next(choice: _Choice) -> _Choice:
    choices = list(type(choice))
    return choices[(choices.index(choice) + 1) % len(choices)]


def _is_wanted(one: SlotRetention, slot_filter: SlotFilter) -> bool:
    if slot_filter is SlotFilter.inactive:
        return not one.slot.active
    return slot_filter is SlotFilter.all or one.severity is not Severity.OK


def _text(one: SlotRetention) -> str:
    slot = one.slot
    holder = slot.holder if slot.active else ""
    return " ".join((slot.slot_name, slot.plugin or "physical", slot.database or "", holder)).lower()


def _weight(one: SlotRetention, sort: Sort) -> tuple[float, float]:
    retained = float(one.retained_bytes or 0)
    match sort:
        case Sort.severity:
            return one.severity.rank, retained
        case Sort.undelivered:
            return float(-1 if one.undelivered_bytes is None else one.undelivered_bytes), retained
        case Sort.growth:
            return float("-inf") if one.growth is None else one.growth.per_second, retained
        case _:
            return retained, 0.0
