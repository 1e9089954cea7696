"""Cleans messages, percentages and metadata, so that they are safe to store and to show.

No function here calls methods of a foreign object, whose ``__str__`` could be slow or raise. What cannot be read
without them is read by `read_foreign`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from datetime import date, datetime
from decimal import Decimal
from itertools import islice
from typing import Any, Final, TypeVar, cast
from uuid import UUID

from agentexec_otel._model.redact import HOOK_FAILED, LONGEST_CLOSED, redact_mapping, redactor, unique_key

_T = TypeVar("_T")

MESSAGE_LIMIT: Final = 8_192
NAME_LIMIT: Final = 255
METADATA_KEYS: Final = 64
METADATA_LIMIT: Final = 16_384
METADATA_DEPTH: Final = 16
KEY_LIMIT: Final = 128
METADATA_KEY: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/ -]{0,127}")
"""Keys that can be filtered by. They are written into SQL as they are."""

# Controls except \n and \t, directional marks and overrides, and surrogates. Python calls none of them printable.
_UNSAFE: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# Number of characters after the cut that are searched for secrets, so that none is seen only in part.
_MARGIN: Final = 2 * LONGEST_CLOSED
# Longer text is not encoded only to count its bytes, because that would block an event loop.
_COUNTED: Final = 1 << 20
_NUMERAL: Final = re.compile(
    r"\s{0,8}[+-]?(?:[0-9]{1,64}(?:\.[0-9]{0,64})?|\.[0-9]{1,64})(?:[eE][+-]?[0-9]{1,3})?\s{0,8}"
)


def clean_message(value: object, limit: int = MESSAGE_LIMIT) -> str:
    r"""Return the message as text that every database, terminal and exporter accepts.

    Args:
        value: A string. Of anything else only the name of its type is kept, as ``<TypeName>``.
        limit: Longest result in bytes of UTF-8, at least 64.

    Returns:
        The text with NUL as U+2400 and lone surrogates as U+FFFD. Other control characters except ``\n`` and ``\t``,
        and the directional controls, become visible as ``\r``, ``\x1b`` or ``\u202e``. Text that is too long ends with
        ``…[+N bytes]``, the number of bytes removed: after cleaning, as far as the text was cleaned. If the text has
        over a million characters that are not all ASCII, it ends with ``…[+N characters]``.
    """
    text = value if type(value) is str else as_text(value)
    return _shortened(text, limit, 0, str) if len(text) > limit else _fitted(_visible(text), limit)


def prepare_message(value: object, limit: int, redact: Callable[[str], str] | None = None) -> str:
    """Like `clean_message`, without secrets. Every message and error text enters the pipeline here.

    The built-in patterns always apply, then ``redact``, the application's hook. A long text is searched for some
    distance after the cut, so that no part of a secret is left before it.

    Args:
        value: As for `clean_message`.
        limit: As for `clean_message`.
        redact: Called with the cleaned text. If it fails, the message is ``[redacted: the redact hook failed]``.
    """
    text = value if type(value) is str else as_text(value)
    find = redactor(redact)
    if len(text) > limit + _MARGIN:
        return _shortened(text, limit, _MARGIN, find)
    cleaned = _visible(text)
    kept = find(cleaned)
    return _fitted(kept if kept is cleaned else _visible(kept), limit)


def as_text(value: object) -> str:
    """The text of a string; of anything else the name of its type, as ``<TypeName>``."""
    text = plain_str(value)
    return f"<{type_name(value)}>" if text is None else text


def _visible(text: str) -> str:
    # Most messages are printable, and need no pattern.
    return text if text.isprintable() else _UNSAFE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code > 0xFF:
        return "\ufffd" if 0xD800 <= code <= 0xDFFF else f"\\u{code:04x}"
    return {0: "\u2400", 0x0D: r"\r"}.get(code) or f"\\x{code:02x}"


def _fitted(text: str, limit: int) -> str:
    if len(text) <= limit and (text.isascii() or len(text.encode()) <= limit):
        return text
    return _cut(text, limit, _bytes, 0)


def _shortened(text: str, limit: int, margin: int, find: Callable[[str], str]) -> str:
    reach = limit + margin
    measure = len if len(text) > _COUNTED and not text.isascii() else _bytes
    unseen = len(text) - reach if measure is len or text.isascii() else _bytes(text[reach:])
    cleaned = _visible(text[:reach])
    found = find(cleaned[:reach])
    if found == HOOK_FAILED:
        return found
    kept = _visible(found)
    edge = max(0, len(kept) - margin)
    return _cut(kept[:edge], limit, measure, measure(kept[edge:]) + measure(cleaned[reach:]) + unseen)


def _cut(text: str, limit: int, measure: Callable[[str], int], removed: int) -> str:
    removed += measure(text)
    unit = "characters" if measure is len else "bytes"
    # Room for the longest suffix: the final number has no more digits than this one.
    room = max(0, limit - len(f"…[+{removed} {unit}]".encode()))
    kept = text[:room].encode()[:room].decode(errors="ignore")
    return f"{kept}…[+{removed - measure(kept)} {unit}]"


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def is_a(value: object, kind: type) -> bool:
    """Whether the value is of this type.

    Unlike `isinstance`, it does not read a foreign ``__class__``, by which a lazy proxy claims to be what it is not.
    """
    try:
        return issubclass(type(value), kind)
    except TypeError:  # a metaclass without a hash
        return False


def plain_str(value: object) -> str | None:
    """The text of a string, whatever methods its class has; None for anything else."""
    return str.__str__(cast(str, value)) if is_a(value, str) else None


def plain_int(value: object) -> int | None:
    """The number of an integer, whatever methods its class has; None for anything else."""
    return int.__int__(cast(int, value)) if is_a(value, int) else None


def read_foreign(argument: str, read: Callable[[], _T]) -> _T:
    """Return what `read` gets from an object of the application.

    Raises:
        ValueError: The object has raised an exception.
    """
    try:
        return read()
    except Exception as exc:  # noqa: BLE001  # code of the application
        raise ValueError(f"{argument} cannot be read: a method of it raises {type_name(exc)}") from None


def pairs(argument: str, mapping: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    """Return the pairs of an application's mapping, as far as they can be metadata. Raises as `read_foreign`."""
    return read_foreign(argument, lambda: [(key, value) for key, value in islice(mapping.items(), METADATA_LIMIT + 1)])


def type_name(value: object) -> str:
    """The name of the value's type, without asking its metaclass."""
    name: str = type.__dict__["__name__"].__get__(type(value))
    return name


def describe(value: object) -> str:
    """Describe a value for an error message: the repr of a built-in, else ``<TypeName>``, in up to 80 characters."""
    kind = type(value)
    if issubclass(kind, str):
        shown = repr(str.__getitem__(cast(str, value), slice(80)))
    elif issubclass(kind, bytes):
        shown = repr(bytes.__getitem__(cast(bytes, value), slice(80)))
    elif value is None or kind is bool or kind is float or (kind is int and cast(int, value).bit_length() < 256):
        shown = repr(value)
    else:
        shown = f"<{_visible(type_name(value))}>"
    return shown if len(shown) <= 80 else f"{shown[:79]}…"


def describe_url(text: str) -> str:
    """Describe a URL for an error message: its scheme, or without a scheme the part that cannot be a password."""
    scheme, found, _ = text.partition("://")
    if found:
        return repr(f"{scheme[:40]}://…")
    _, at, place = text.rpartition("@")
    return repr(("…@" if at else "") + place[:80])


def clean_percentage(value: object) -> tuple[int | None, str | None]:
    """Return the percentage to store, and a warning if it was changed.

    Numbers, and strings that contain a number, are rounded down and clamped to 0 to 100. A fraction below 1 is stored
    as 0, with a warning. None stays None. Anything else, including a bool, NaN or an infinity, is stored as None.
    """
    if value is None or (type(value) is int and 0 <= value <= 100):
        return value, None
    number = _number(value)
    if number is None or not -math.inf < number < math.inf:
        # A string may contain a secret, so only its type is logged.
        shown = describe(value) if issubclass(type(value), (int, float)) else type_name(value)
        return None, f"percentage is not a finite number but {shown}: it is stored as None"
    if 0 < number < 1:
        # Without the number, so that a loop over fractions warns once.
        return 0, "percentage is a fraction below 1: it is stored as 0; pass 50 for 50 %"
    if 0 <= number <= 100:
        return math.floor(number), None
    clamped = 0 if number < 0 else 100
    return clamped, f"percentage {describe(number)} is not within 0 to 100: it is stored as {clamped}"


def _number(value: object) -> int | float | None:
    kind = type(value)
    if kind is bool:
        return None
    if issubclass(kind, int):
        return int.__int__(cast(int, value))
    if issubclass(kind, float):
        return float.__float__(cast(float, value))
    if issubclass(kind, str) and _NUMERAL.fullmatch(cast(str, value)):
        return float(str.__str__(cast(str, value)))
    return None


def clean_metadata(metadata: object) -> dict[str, Any]:
    """Return a copy of the metadata that every JSON column accepts, with keys and strings cleaned like messages.

    NaN and the infinities, integers over 64 bits, UUIDs, decimals and dates become strings, and tuples become lists.
    Other types that JSON does not have, and values nested more than 16 deep, become ``<TypeName>``. Keys over 128
    characters are cut.

    Raises:
        ValueError: Not a mapping, a key that is not a string, more than 64 keys, or more than 16 KiB of JSON.
    """
    if not is_a(metadata, Mapping):
        raise ValueError(f'metadata must be a mapping, not {describe(metadata)}: pass a dict such as {{"tenant": "a"}}')
    given = cast(Mapping[Any, Any], metadata)
    count = read_foreign("metadata", lambda: len(given))
    if count > METADATA_KEYS:
        raise ValueError(
            f"metadata has {count} keys, at most {METADATA_KEYS} are kept: put related ones into one nested dict"
        )
    copy = _JSONCopy()
    cleaned = copy.mapping(given, 1)
    copy.spend(
        len(json.dumps(cleaned, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()) - copy.spent
    )
    return cleaned


def prepare_metadata(metadata: object, redact: Callable[[str], str] | None = None) -> dict[str, Any]:
    """Like `clean_metadata`, without the secrets that keys, built-in patterns and the application's hook find."""

    def prepare(text: str) -> str:
        return prepare_message(text, METADATA_LIMIT, redact)

    return redact_mapping(clean_metadata(metadata), prepare)


class _JSONCopy:
    """Copies metadata. Stops as soon as the JSON is certain to be too large, so that a cycle or a huge value ends."""

    def __init__(self) -> None:
        self.spent = 0

    def spend(self, size: int) -> None:
        self.spent += size
        if self.spent > METADATA_LIMIT:
            raise ValueError(
                f"metadata takes at least {self.spent} bytes as JSON, at most {METADATA_LIMIT} are kept: "
                "store large values elsewhere and pass a reference"
            )

    def mapping(self, given: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        copy: dict[str, Any] = {}
        for key, value in pairs("metadata", given):
            name = unique_key(self.key(key), copy)
            copy[name] = self.value(value, depth)
        return copy

    def key(self, key: object) -> str:
        if not is_a(key, str):
            raise ValueError(f"metadata keys must be str, not {describe(key)}: convert the key with str()")
        text = _visible(str.__getitem__(cast(str, key), slice(KEY_LIMIT + 1)))
        text = text if len(text) <= KEY_LIMIT else f"{text[: KEY_LIMIT - 1]}…"
        self.spend(len(text))
        return text

    def value(self, value: Any, depth: int) -> Any:
        self.spend(1)
        if value is None or value is True or value is False:
            return value
        for kind, convert in _CONVERSIONS:
            if issubclass(type(value), kind):
                return convert(self, value, depth)
        return self.nested(value, depth) if is_a(value, Mapping) else self.unknown(value, depth)

    def string(self, value: str, _depth: int) -> str:
        text = str.__str__(value)
        self.spend(len(text))
        return _visible(text)

    def nested(self, value: Mapping[Any, Any], depth: int) -> Any:
        return self.mapping(value, depth + 1) if depth < METADATA_DEPTH else self.unknown(value, depth)

    def sequence(self, value: list[Any] | tuple[Any, ...], depth: int) -> Any:
        if depth >= METADATA_DEPTH:
            return self.unknown(value, depth)
        entries = read_foreign("metadata", lambda: list(islice(value, METADATA_LIMIT + 1)))
        return [self.value(entry, depth + 1) for entry in entries]

    def unknown(self, value: object, _depth: int) -> str:
        return _visible(f"<{type_name(value)}>")


def _json_int(_: _JSONCopy, value: int, __: int) -> int | str:
    number = int.__int__(value)
    if -(1 << 63) <= number < 1 << 63:
        return number
    # Python raises for longer ones, and needs quadratic time for the others.
    return str(number) if number.bit_length() <= 4_096 else "<int>"


def _json_float(_: _JSONCopy, value: float, __: int) -> float | str:
    number = float.__float__(value)
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


_CONVERSIONS: Final[tuple[tuple[Any, Callable[[_JSONCopy, Any, int], Any]], ...]] = (
    (str, _JSONCopy.string),
    (int, _json_int),
    (float, _json_float),
    (dict, _JSONCopy.nested),
    ((list, tuple), _JSONCopy.sequence),
    (UUID, lambda _, value, __: read_foreign("metadata", lambda: UUID.__str__(value))),
    (datetime, lambda _, value, __: read_foreign("metadata", lambda: datetime.isoformat(value))),
    (date, lambda _, value, __: read_foreign("metadata", lambda: date.isoformat(value))),
    (Decimal, lambda _, value, __: Decimal.__str__(value)),
)
