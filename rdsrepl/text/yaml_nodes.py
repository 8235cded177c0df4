"""Parse YAML into nodes, for the config file and the front matter of runbooks, whose readers check each node.

Nodes are not converted to objects, so repeated aliases cost nothing.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import yaml

# PyYAML reads about 60,000 characters a second in the worst case.
_MOST_CHARACTERS: Final = 1 << 18


class NotYaml(ValueError):
    """A text is not YAML.

    Attributes:
        line: the line, from 1.
        problem: what is wrong in it.
    """

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(f"line {line}: {problem}")
        self.line = line
        self.problem = problem


def compose(text: str) -> yaml.Node | None:
    """Return the root of a YAML document; None for an empty one.

    Raises:
        NotYaml: TEXT is not YAML, is longer than 256 kB, or is nested too deep.
    """
    import yaml

    if len(text) > _MOST_CHARACTERS:
        raise NotYaml(1, f"{len(text)} characters; at most {_MOST_CHARACTERS} are read")
    try:
        node: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as exc:
        # Without the cause and without its quotations: they can contain a part of a password.
        mark = exc.problem_mark or exc.context_mark
        problem = re.sub(r"'[^']{2,}'|\"[^\"]{2,}\"", "…", exc.problem or "cannot be read")
        raise NotYaml(mark.line + 1 if mark else 1, f"not YAML: {problem}") from None
    except yaml.reader.ReaderError as exc:
        line = text.count("\n", 0, exc.position) + 1
        raise NotYaml(line, "not YAML: a character that is not allowed") from None
    except RecursionError:
        raise NotYaml(1, "nested too deep") from None
    except (ValueError, OverflowError):  # numbers of the scanner: an escape, a version
        raise NotYaml(1, "not YAML: a number out of range") from None
    return node
