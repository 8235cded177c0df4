"""Parse YAML into nodes, for the config file and the front matter of runbooks, whose readers check each node.

Nodes are not converted to objects, so repeated aliases cost nothing.
"""

from __future__ import annotations

import copy
import re
from functools import cache
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import yaml

# PyYAML reads about 60,000 characters a second in the worst case.
_MOST_CHARACTERS: Final = 1 << 18


class NotYaml(ValueError):
    """A text is not YAML.

    Attributes:
        line: the line, from 1.
        problem: what is wrong in it.
        column: the column, from 1; None if the problem has none.
    """

    def __init__(self, line: int, problem: str, *, column: int | None = None) -> None:
        super().__init__(f"line {line}: {problem}")
        self.line = line
        self.problem = problem
        self.column = column


def compose(text: str) -> yaml.Node | None:
    """Return the root of a YAML document; None for an empty one. An alias has its own marks and its anchor's value.

    Raises:
        NotYaml: TEXT is not YAML, is longer than 256 kB, or is nested too deep.
    """
    import yaml

    if len(text) > _MOST_CHARACTERS:
        raise NotYaml(1, f"{len(text)} characters; at most {_MOST_CHARACTERS} are read")
    try:
        node: yaml.Node | None = yaml.compose(text, Loader=_loader())
    except yaml.MarkedYAMLError as exc:
        # Without the cause and without its quotations: they can contain a part of a password.
        mark = exc.problem_mark or exc.context_mark
        problem = re.sub(r"'[^']{2,}'|\"[^\"]{2,}\"", "…", exc.problem or "cannot be read")
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, None)
        raise NotYaml(line, f"not YAML: {problem}", column=column) from None
    except yaml.reader.ReaderError as exc:
        line, column = text.count("\n", 0, exc.position) + 1, exc.position - text.rfind("\n", 0, exc.position)
        raise NotYaml(line, "not YAML: a character that is not allowed", column=column) from None
    except RecursionError:
        raise NotYaml(1, "nested too deep") from None
    except (ValueError, OverflowError):  # numbers of the scanner: an escape, a version
        raise NotYaml(1, "not YAML: a number out of range") from None
    return node


@cache
def _loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Gives an alias the place where it stands, not that of its anchor."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event() if self.check_event(yaml.AliasEvent) else None  # type: ignore[no-untyped-call]
            node = super().compose_node(parent, index)
            if event is not None and node is not None:
                node = copy.copy(node)
                node.start_mark, node.end_mark = event.start_mark, event.end_mark
            return node

    return Loader
