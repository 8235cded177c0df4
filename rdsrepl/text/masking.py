"""Mask secrets in a text before it is printed: connection strings, passwords, keys, tokens and verifiers.

The patterns match the shape of a text, because no parser reads a connection string that libpq refuses. In doubt more
than the secret is masked. This applies to stderr, logs, tracebacks and plans; data on stdout does not change.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final

MASK: Final = "********"

# The value of a name that ends in one of these is a secret: PGPASSWORD, db.passwd, client_secret, MasterUserPassword.
_SECRET_NAME: Final = (
    r"(?:pass(?:word|wd|phrase|code)|passw|pwd|passwort|(?:[._-]|db|pg|user)pass"
    r"|secret[._-]?(?:access[._-]?)?key|secret[._-]?string|secret[._-]?binary|client[._-]?secret|secret[._-]?value"
    r"|(?:session|security|access|auth|refresh|id|bearer|api|oauth)[._-]?token|api[._-]?key|private[._-]?key"
    r"|access[._-]?key|scram_(?:client|server)_key|x-amz-(?:signature|security-token|credential)|authorization)"
)
# These are ordinary words in a text, but secrets as names of parameters.
_SECRET_PARAMETER: Final = frozenset({"pass", "pw", "token", "sig", "signature"})
# libpq quotes what it could not parse: it can be a password with a special character.
_LIBPQ: Final = (
    r'missing "=" after "|invalid connection option "|invalid URI query parameter: "|invalid percent-encoded token: "'
    r'|(?:extra|missing) key/value separator "=" in URI query parameter: "|in (?:IPv6 host address in )?URI[^"]*: "'
    r'|in URI \(expected [^)]*\): "|forbidden value %00 in percent-encoded value: "|unexpected spaces found in "'
    r'|invalid (?:integer value|port number): ?"(?!\d+")|invalid integer value "(?!\d+")'
    r'|could not translate host name "(?=[^"]*@)|could not parse network address "'
)


def mask(text: str) -> str:
    """Return TEXT with every secret replaced by asterisks; a text without secrets is returned unchanged."""
    if len(text) < _SHORTEST or not _hint().search(text):
        return text
    for pattern, replacement in _shapes():
        text = pattern.sub(replacement, text)
    return _without_values(text)


def masked(value: Any) -> Any:
    """Return plain data with every secret masked: in its texts, and under keys that name a secret."""
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, Mapping):
        return {
            key: MASK if isinstance(item, str) and item and is_secret_name(str(key)) else masked(item)
            for key, item in value.items()
        }
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [masked(item) for item in value]
    return value


def is_secret_name(name: str) -> bool:
    """Return whether a keyword, variable or parameter with this name holds a secret."""
    from urllib.parse import unquote

    word = unquote(name).lower()
    return word in _SECRET_PARAMETER or _secret_name().search(word) is not None


_SHORTEST: Final = 4
_NO_SECRETS: Final = frozenset({"", MASK, "true", "false", "null", "None", "True", "False"})


@cache
def _secret_name() -> re.Pattern[str]:
    return re.compile(rf"{_SECRET_NAME}\Z")


@cache
def _hint() -> re.Pattern[str]:
    """Return a pattern that every text with a secret matches, and most other texts do not."""
    return re.compile(r"[=@:'\"$%]|(?i:bearer|basic|password|private key)|[A-Za-z0-9+/]{40}|eyJ|md5")


@cache
def _shapes() -> tuple[tuple[re.Pattern[str], str], ...]:
    """Return the patterns of secrets that their shape identifies, and the replacement of each."""
    base64 = r"(?=[A-Za-z0-9/+]*[A-Z])(?=[A-Za-z0-9/+]*[a-z])(?=[A-Za-z0-9/+]*\d)"
    return tuple(
        (re.compile(pattern), replacement)
        for pattern, replacement in (
            (r"(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", MASK),
            (r"SCRAM-SHA-(256|1|512)(-PLUS)?\$\d+:[^\s'\",;)]+", rf"SCRAM-SHA-\1${MASK}"),
            (r"\bmd5[0-9a-f]{32}\b", f"md5{MASK}"),
            (r"\beyJ[\w-]{5,4000}\.[\w-]{5,}(?:\.[\w-]*)*", MASK),
            (r"(?i)\b(bearer|basic)(\s+)(?=\S*[\d=._/+-])[\w.~+/=-]{8,}", rf"\1\2{MASK}"),
            (rf'(?m)({_LIBPQ})[^\n]{{0,4000}}(")', rf"\1{MASK}\2"),
            # scheme://user:password@host, up to the last @ of the word; a password may hold anything.
            (
                r"(?i)((?:(?<![a-z0-9+.-])[a-z][a-z0-9+.-]{0,40}:(?:\\{0,3}/){1,3}|(?<![\w:/])//)[^\s:@/'\"]{0,200}:)(?!\*{8}@)"
                r"[^\s]{0,2000}(@)",
                rf"\1{MASK}\2",
            ),
            # … with a space in it, unless a port follows the colon.
            (
                r"(?i)((?<![a-z0-9+.-])[a-z][a-z0-9+.-]{0,40}://[^\s:@/\['\"]{0,200}:)(?!\*{8}@)"
                r"(?!\d{1,5}(?:[/\s,?;)'\"]|\Z))[^@\n]{0,2000}(@)(?=[\w.\[%/-])",
                rf"\1{MASK}\2",
            ),
            # … percent-encoded once or twice, as a whole or in part.
            (
                r"(?i)((?:%(?:25)?3a|:)(?:%(?:25)?2f|/){2}(?:(?!%(?:25)?3a|%(?:25)?40|[:@/])\S){0,200}(?:%(?:25)?3a|:))"
                r"(?:(?!%(?:25)?40)\S){1,300}(%(?:25)?40)",
                rf"\1{MASK}\2",
            ),
            (
                r"(?i)((?:password|passwd|pwd)(?:%20|\+)*%(?:25)?3d(?:%20|\+)*)[^\s&\"']*?(?=%(?:25)?26|[\s&\"']|\Z)",
                rf"\1{MASK}",
            ),
            # A line of .pgpass.
            (r"(?<![\w:./-])((?:[\w.*-]+|/[\w./-]*):(?:\d{4,5}|\*):[^\s:]{1,63}:[^\s:]{1,63}:)\S+", rf"\1{MASK}"),
            # Arguments of a program, a pair, XML.
            (
                rf"(?i)((['\"])--?[\w-]{{0,40}}{_SECRET_NAME}\2,\s*)(['\"])(?:(?!\3)[^\\]|\\.){{0,2000}}\3",
                rf"\1\3{MASK}\3",
            ),
            (
                rf"(?i)([\[(]\s*b?(['\"])[\w.-]{{0,40}}{_SECRET_NAME}\2,\s*b?)(['\"])"
                r"(?:(?!\3\s*[\])]).){0,2000}\3(?=\s*[\])])",
                rf"\1\3{MASK}\3",
            ),
            (rf"(?i)(<[\w:.-]{{0,40}}{_SECRET_NAME}>)[^<]{{1,2000}}(</)", rf"\1{MASK}\2"),
            (rf"(?i)(=\"[\w.-]{{0,40}}{_SECRET_NAME}\"\s+value=\")[^\"]{{1,2000}}", rf"\1{MASK}"),
            (r"(?i)\b(https?://)[\w-]{16,}(@)", rf"\1{MASK}\2"),
            # user:password@host without a scheme.
            (
                r"(?<![\w/.:%+*@-])(?!mailto:)([A-Za-z_][\w.%+-]{0,100}:)(?![*/:]|\\)[^\s@'\"]{1,2000}(@[\w.\[-]+)",
                rf"\1{MASK}\2",
            ),
            (
                r"(?i)\b(password|passphrase|identified\s+by)(\s+)(?:E|U&)?'(?!\*{8}')(?:[^'\\]|''|\\.)*(?:'|\Z)",
                rf"\1\2'{MASK}'",
            ),
            (r'(?i)\b(password|passphrase|identified\s+by)(\s+)"(?!\*{8}")[^"]*(?:"|\Z)', rf'\1\2"{MASK}"'),
            (
                r"(?is)\b(password|passphrase|identified\s+by)(\s+)\$(\w{0,63})\$(?!\*{8}).*?(?:\$\3\$|\Z)",
                rf"\1\2$\3${MASK}$\3$",
            ),
            (
                # --no-password and --generate-password have no value.
                r"(?i)(?<![\w-])(--?(?!(?:no|generate)-password\b)(?:\w{1,40}-){0,6}"
                r"(?:password|passwd|passphrase|secret-key|token)\s+)(?!-)\S+",
                rf"\1{MASK}",
            ),
            (rf"(?<![A-Za-z0-9/+=]){base64}(?![0-9a-f]{{40}}\b)[A-Za-z0-9/+]{{40}}(?![A-Za-z0-9/+=])", MASK),
            (rf"(?<![A-Za-z0-9/+=]){base64}[A-Za-z0-9/+]{{100,}}={{0,2}}", MASK),
        )
    )


@cache
def _pair() -> re.Pattern[str]:
    return re.compile(
        r"(?P<quote>\\{0,7}[\"']|(?<![\w%.-]))(?P<name>[A-Za-z_%-][\w%.-]{0,100})(?P=quote)"
        r"(?P<mark>\s{0,20}(?:=>|:=|=)\s{0,20}|\s{0,20}:\s{0,20})"
    )


@cache
def _ends() -> Mapping[str, re.Pattern[str]]:
    """Return the end of a value without quotes, by the context of its name."""
    return {
        # The next parameter of a URL, the next keyword, a closing quote, the end of the line.
        "query": re.compile(r"[&;](?=[\w%.-]+=)|\s+(?=[\w.-]+\s*=)|[\"'](?=[\s,.;:)\]}]|\Z)|\n|\Z"),
        # The next keyword: a value may contain a space by mistake.
        "keyword": re.compile(r"[;,](?=\s*[\w.-]+\s*=)|\s+(?=[\w.-]+\s*=)|[\"'](?=[\s,.;:)\]}]|\Z)|\n|\Z"),
        "yaml": re.compile(r"\n|\Z"),
        "flow": re.compile(r"[,}\]](?=[\s,}\]]|\Z)|\n|\Z"),
    }


def _without_values(text: str) -> str:
    """Mask the values of names of secrets, in any common notation."""
    pieces: list[str] = []
    done = 0
    for match in _pair().finditer(text):
        if match.start() < done or not is_secret_name(match["name"]):
            continue
        end = _end_of_value(text, match)
        value = text[match.end() : end]
        if value.strip().strip("\"'") in _NO_SECRETS or not _is_assignment(text, match):
            continue
        quote = value[0] if value[0] in "\"'" else ""
        closing = quote if quote and value[-1] == quote and len(value) > 1 else ""
        pieces += [text[done : match.end()], quote, MASK, closing]
        done = end
    return "".join([*pieces, text[done:]]) if pieces else text


def _is_assignment(text: str, match: re.Match[str]) -> bool:
    """Return whether the text assigns a value to the name; ``target.password: must be text`` is a message."""
    if "=" in match["mark"] or match["quote"]:
        return True
    if match["name"].lower() in _SECRET_PARAMETER:
        return False
    return "." not in match["name"] or text[: match.start()].rpartition("\n")[2].strip(" -") == ""


def _end_of_value(text: str, match: re.Match[str]) -> int:
    start = match.end()
    quote = text[start : start + 1]
    if quote in ("'", '"'):
        closed = re.compile(rf"{quote}(?:[^{quote}\\]|\\.|{quote}{quote})*({quote})", re.S).match(text, start)
        # A quote inside the value, or no closing quote: the rest of the text can be the secret.
        if closed is not None and re.match(r"[\s,;&)\]}.:'\"]|\Z", text[closed.end() :]):
            return closed.end()
        kind = "yaml"
    elif escaped := re.compile(r"\\{1,7}[\"']").match(text, start):
        found = text.find(escaped[0], escaped.end())
        return len(text) if found < 0 else found + len(escaped[0])
    elif ":" in match["mark"] and "=" not in match["mark"]:
        before = text[: match.start()].rpartition("\n")[2].rstrip()
        if block := re.compile(r"[|>][+-]?\d?[+-]?[ ]*\n(?:[ \t]+[^\n]*(?:\n|\Z)|[ \t]*\n)*").match(text, start):
            return block.end()
        kind = "flow" if match["quote"] or before.endswith(("{", ",")) else "yaml"
    else:
        before = text[: match.start()][-1:]
        kind = "query" if before in "?&;" and before else "keyword"
    found_end = _ends()[kind].search(text, start)
    return found_end.start() if found_end is not None else len(text)
