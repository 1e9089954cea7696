"""Whatever a caller hands in becomes text that can be stored, shown and sent, within its limit and without secrets."""

import json
import math
import re
import time
from collections import OrderedDict
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum, IntEnum
from types import MappingProxyType
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentexec_otel._model import redact as _redact
from agentexec_otel._model.redact import HOOK_FAILED, redactor
from agentexec_otel._model.text import (
    MESSAGE_LIMIT,
    METADATA_LIMIT,
    clean_message,
    clean_metadata,
    clean_percentage,
    prepare_message,
    prepare_metadata,
)

FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
CUT = re.compile(r"…\[\+(\d+) (bytes|characters)\]\Z")

# Every kind of character that means trouble somewhere, and some that do not.
CHARACTERS = st.one_of(
    st.sampled_from(
        "\x00\x07\x08\t\n\x0b\r\x1b\x7f\x85\x9b\u061c\u200e\u200f\u202e\u2066\u2069\ud800\udfffaé字\U0001f600"
    ),
    st.characters(exclude_categories=()),
)
TEXTS = st.text(CHARACTERS, max_size=300)


@pytest.mark.parametrize(
    ("message", "cleaned"),
    [
        ("Analyzing competitors...", "Analyzing competitors..."),
        ("", ""),
        ("two\n\tlines", "two\n\tlines"),
        ("Zürich, 東京, 👩‍🔬 \u00a0\u2028", "Zürich, 東京, 👩‍🔬 \u00a0\u2028"),
        ("nul\x00", "nul\u2400"),
        ("a\ud800b\udfffc", "a\ufffdb\ufffdc"),
        ("forged\r\n2026-01-01 ERROR", "forged\\r\n2026-01-01 ERROR"),
        ("\x1b[31mred\x1b[0m\x07", r"\x1b[31mred\x1b[0m\x07"),
        ("\x08\x0b\x0c\x7f\x85\x9b", r"\x08\x0b\x0c\x7f\x85\x9b"),
        (
            "\u202egnp.exe\u202c \u2066x\u2069 \u200e\u200f\u061c",
            r"\u202egnp.exe\u202c \u2066x\u2069 \u200e\u200f\u061c",
        ),
    ],
)
def test_unsafe_characters_become_visible(message: str, cleaned: str) -> None:
    """Controls, directional marks, NUL and surrogates are shown instead of taking effect; all else stays."""
    assert clean_message(message) == cleaned
    assert prepare_message(message, MESSAGE_LIMIT) == cleaned


class Loud:
    """Nothing of it may be called."""

    def __str__(self) -> str:
        raise RuntimeError("not to be called")

    __repr__ = __str__

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise RuntimeError("not to be asked")


class LoudMeta(type):
    def __getattribute__(cls, name: str) -> Any:
        raise RuntimeError("not to be asked")

    __hash__ = None  # type: ignore[assignment]


class LoudType(metaclass=LoudMeta):
    pass


class LoudText(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise RuntimeError("not to be called")

    def __len__(self) -> int:
        raise RuntimeError("not to be called")


class Color(Enum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


class Word(str, Enum):  # noqa: UP042  # as our users write them
    DONE = "done"


FOREIGN: list[tuple[Any, str]] = [
    (None, "<NoneType>"),
    (42, "<int>"),
    (b"bytes", "<bytes>"),
    (["a"], "<list>"),
    (ValueError("text"), "<ValueError>"),
    (Loud(), "<Loud>"),
    (LoudType(), "<LoudType>"),
    (type("\x1b[31m\u202e", (), {})(), r"<\x1b[31m\u202e>"),
]


@pytest.mark.parametrize(("value", "shown"), FOREIGN, ids=[shown for _, shown in FOREIGN])
def test_what_is_no_string_is_named_by_its_type(value: object, shown: str) -> None:
    """A message that is no string says what it was, and none of its methods is called."""
    assert clean_message(value) == shown
    assert prepare_message(value, MESSAGE_LIMIT) == shown


@pytest.mark.parametrize(("value", "text"), [(LoudText("done"), "done"), (Word.DONE, "done")], ids=["loud", "enum"])
def test_string_classes_are_text(value: object, text: str) -> None:
    """A subclass of str counts as the text it holds, and ends as a plain str."""
    cleaned = clean_message(value)
    assert (cleaned, type(cleaned)) == (text, str)


@given(TEXTS, st.integers(min_value=64, max_value=400))
def test_every_text_can_be_stored_everywhere(message: str, limit: int) -> None:
    """Whatever the text: UTF-8 within the limit, no unsafe character, and cleaning again changes nothing."""
    for clean in (clean_message, prepare_message):
        cleaned = clean(message, limit)
        assert len(cleaned.encode()) <= limit
        assert not FORBIDDEN.search(cleaned)
        assert clean(cleaned, limit) == cleaned


@given(TEXTS)
def test_what_fits_is_not_cut(message: str) -> None:
    """A text that fits differs only where it was unsafe."""
    assert clean_message(message, 61_440) == re.sub(FORBIDDEN, lambda found: shown(found[0]), message)


def shown(character: str) -> str:
    if character == "\x00":
        return "\u2400"
    if character == "\r":
        return r"\r"
    if "\ud800" <= character <= "\udfff":
        return "\ufffd"
    return f"\\x{ord(character):02x}" if character < "\u0100" else f"\\u{ord(character):04x}"


@pytest.mark.parametrize("character", ["x", "é", "字", "\U0001f600"])
@pytest.mark.parametrize("limit", [64, 65, 66, 67, 8_192, 61_440])
def test_the_cut(limit: int, character: str) -> None:
    """Up to the limit nothing is cut; beyond it the text ends on a whole character, and says what is missing."""
    width = len(character.encode())
    exact = character * (limit // width) + "x" * (limit % width)
    for clean in (clean_message, prepare_message):
        assert clean(exact, limit) == exact
        for longer in (exact + "x", exact + character, exact * 3):
            cut = clean(longer, limit)
            said = CUT.search(cut)
            assert said is not None
            kept = cut[: said.start()]
            assert longer.startswith(kept)
            assert int(said[1]) == len(longer.encode()) - len(kept.encode())
            assert limit - 8 < len(cut.encode()) <= limit


@given(TEXTS.filter(lambda text: len(text) > 20), st.integers(min_value=64, max_value=100))
def test_the_bytes_removed_are_counted(message: str, limit: int) -> None:
    """Of a text that was looked at whole, kept and removed bytes make the whole cleaned text."""
    whole = clean_message(message, 61_440)
    cut = clean_message(message, limit)
    if said := CUT.search(cut):
        seen = clean_message(message[:limit], 61_440)
        unseen = len(message[limit:].encode("utf-8", "surrogatepass"))
        assert int(said[1]) == len(seen.encode()) + unseen - len(cut[: said.start()].encode())
    else:
        assert cut == whole


@pytest.mark.parametrize(
    ("message", "unit"),
    [
        pytest.param("x" * 100_000_000, "bytes", id="ascii"),
        pytest.param("é" * 20_000_000, "characters", id="not-ascii"),
    ],
)
def test_a_huge_text_costs_no_more_than_its_beginning(message: str, unit: str) -> None:
    """100 MB are cut in milliseconds: an event loop that logs its input by mistake is not stopped."""
    started = time.process_time()
    cut = prepare_message(message, MESSAGE_LIMIT)
    assert time.process_time() - started < 0.05
    assert len(cut.encode()) <= MESSAGE_LIMIT
    said = CUT.search(cut)
    assert said is not None
    assert said[2] == unit
    assert int(said[1]) == len(message) - said.start()


SECRET = "Q7vX2mK9pL4wR8tZ"
SECRETS = [
    f"password={SECRET}{SECRET}",
    f'{{"api_key": "{SECRET}{SECRET}"}}',
    f"Authorization: Bearer {SECRET}{SECRET}",
    f"postgresql://bob:{SECRET}{SECRET}@db/x",
    "sk-" + f"proj-{SECRET}{SECRET}",
    "ghp_" + f"{SECRET}{SECRET}",
    "eyJ" + f"hbGciOiJIUzI1NiJ9.{SECRET}.{SECRET}",
    f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n{SECRET}\n-----END PRIVATE KEY-----",
]
PARTS = [SECRET[start : start + 4] for start in range(len(SECRET) - 3)]


def survivors(text: str) -> list[str]:
    return [part for part in PARTS if part in text]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("tail", ["", " and so on" * 3, " and so on" * 1_000])
def test_no_part_of_a_secret_survives_at_the_cut(secret: str, tail: str) -> None:
    """Wherever the cut falls in a secret, before it or behind it, no four characters of it are kept."""
    limit = 256
    for before in range(limit - len(secret) - 24, limit + 4):
        message = ("some words " * 40)[: before - 1] + " " + secret + tail
        kept = prepare_message(message, limit)
        assert not survivors(kept), (before, kept)
        assert len(kept.encode()) <= limit


@pytest.mark.parametrize("secret", SECRETS)
def test_no_part_of_a_secret_survives_where_the_search_ends(secret: str) -> None:
    """Nor where redaction made the text so short that the end of what was looked at would fit."""
    limit = 256
    for before in range(2_200, 2_320):
        block = f"-----BEGIN CERTIFICATE-----\n{'x' * (before - 60)}\n-----END CERTIFICATE-----"
        message = f"{block} {secret} {'and so on ' * 100}"
        assert not survivors(prepare_message(message, limit)), before


@given(st.sampled_from(SECRETS), TEXTS, st.text("abc \n\u202e\x00é", max_size=40), st.integers(64, 300))
def test_no_part_of_a_secret_survives_among_other_characters(secret: str, before: str, after: str, limit: int) -> None:
    """Unsafe and wide characters around a secret, of which the cut has to take account, do not hide it."""
    assert not survivors(prepare_message(f"{before}\n{secret}\n{after * 80}", limit))


@pytest.mark.parametrize("secret", [secret for secret in SECRETS if "@" not in secret])
def test_a_password_longer_than_the_search_is_not_kept(secret: str) -> None:
    """A secret that goes on far beyond the cut is known by its beginning."""
    assert not survivors(prepare_message(secret.replace(SECRET, SECRET * 1_000, 1), 256).replace("\n", ""))


def test_the_patterns_apply_whatever_the_hook_does() -> None:
    """The application's hook comes after the built-in patterns and cannot switch them off."""
    for redact in (None, str, redactor(), redactor(str)):
        assert prepare_message("password=hunter2", 64, redact) == "password=[redacted]"
    assert prepare_message("Project Falcon", 64, lambda text: text.replace("Falcon", "…")) == "Project …"


@pytest.mark.parametrize("length", [0, 10_000])
def test_what_the_hook_returns_is_cleaned_and_cut(length: int) -> None:
    """The hook sees text that can be encoded, and what it returns is held to the same limit and characters."""
    seen: list[str] = []

    def hook(text: str) -> str:
        seen.append(text)
        return f"\x1b{text}\ud800" * 100

    kept = prepare_message("nul\x00\ud800" + "x" * length, 64, hook)
    assert [text.rstrip("x") for text in seen] == ["nul\u2400\ufffd"]
    assert kept.startswith(r"\x1bnul")
    assert not FORBIDDEN.search(kept)
    assert len(kept.encode()) <= 64


@pytest.mark.parametrize("length", [1, 200, 100_000])
def test_a_hook_that_fails_hides_the_whole_message(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the hook raises, nothing of the message is kept, be it short or cut."""
    monkeypatch.setattr(_redact, "_failures_logged", {"raised ZeroDivisionError"})
    assert prepare_message("x" * length, 64, lambda text: str(1 // 0)) == HOOK_FAILED


PERCENTAGES: list[tuple[object, int | None, str | None]] = [
    (None, None, None),
    (0, 0, None),
    (50, 50, None),
    (100, 100, None),
    (33.7, 33, None),
    (99.999, 99, None),
    (100.0, 100, None),
    (Level.HIGH, 3, None),
    ("50", 50, None),
    (" 33.7 ", 33, None),
    ("1e1", 10, None),
    (1.0, 1, None),
    (0.0, 0, None),
    (0.5, 0, "percentage is a fraction below 1: it is stored as 0; pass 50 for 50 %"),
    ("0.999", 0, "percentage is a fraction below 1: it is stored as 0; pass 50 for 50 %"),
    (5e-324, 0, "percentage is a fraction below 1: it is stored as 0; pass 50 for 50 %"),
    (-5, 0, "percentage -5 is not within 0 to 100: it is stored as 0"),
    (-0.1, 0, "percentage -0.1 is not within 0 to 100: it is stored as 0"),
    (250, 100, "percentage 250 is not within 0 to 100: it is stored as 100"),
    (100.5, 100, "percentage 100.5 is not within 0 to 100: it is stored as 100"),
    (1e30, 100, "percentage 1e+30 is not within 0 to 100: it is stored as 100"),
    (10**400, 100, "percentage <int> is not within 0 to 100: it is stored as 100"),
    (-(10**5000), 0, "percentage <int> is not within 0 to 100: it is stored as 0"),
    ("250", 100, "percentage 250.0 is not within 0 to 100: it is stored as 100"),
    (math.nan, None, "percentage is not a finite number but nan: it is stored as None"),
    (math.inf, None, "percentage is not a finite number but inf: it is stored as None"),
    (-math.inf, None, "percentage is not a finite number but -inf: it is stored as None"),
    (True, None, "percentage is not a finite number but True: it is stored as None"),
    ("", None, "percentage is not a finite number but str: it is stored as None"),
    ("half", None, "percentage is not a finite number but str: it is stored as None"),
    ("nan", None, "percentage is not a finite number but str: it is stored as None"),
    ("1e999", None, "percentage is not a finite number but str: it is stored as None"),
    ("9" * 1_000_000, None, "percentage is not a finite number but str: it is stored as None"),
    ("\uff15\uff10", None, "percentage is not a finite number but str: it is stored as None"),
    ("50%", None, "percentage is not a finite number but str: it is stored as None"),
    (Decimal(50), None, "percentage is not a finite number but Decimal: it is stored as None"),
    (Loud(), None, "percentage is not a finite number but Loud: it is stored as None"),
    ([50], None, "percentage is not a finite number but list: it is stored as None"),
]


@pytest.mark.parametrize(("value", "stored", "warning"), PERCENTAGES, ids=map(str, range(len(PERCENTAGES))))
def test_percentages(value: object, stored: int | None, warning: str | None) -> None:
    """Numbers are rounded down and clamped, what is none becomes None, and each change has its sentence."""
    assert clean_percentage(value) == (stored, warning)


@given(st.one_of(st.integers(), st.floats(), st.text(), st.booleans(), st.none()))
def test_any_percentage_can_be_stored(value: object) -> None:
    """Whatever comes ends as None or an int from 0 to 100, and raises nothing."""
    stored, _ = clean_percentage(value)
    assert stored is None or (type(stored) is int and 0 <= stored <= 100)


def test_metadata_becomes_json() -> None:
    """Each value that JSON lacks has its text, what has none is named by its type, and the caller's stays untouched."""
    given_metadata: dict[str, Any] = {
        "tenant": "acme",
        "flags": (True, None, 1.5, -3),
        "big": [2**63 - 1, 2**63, -(2**63), -(2**63) - 1],
        "huge": 10**6_000,
        "floats": [math.nan, math.inf, -math.inf],
        "control\x1b": "nul\x00 \ud800",
        "id": UUID(int=1),
        "at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "day": date(2026, 1, 2),
        "price": Decimal("1.20"),
        "nested": OrderedDict(a=MappingProxyType({"b": {"c": [{"d": 1}]}})),
        "enums": [Level.HIGH, Word.DONE, Color.RED],
        "foreign": [{1}, b"x", Loud(), LoudType(), LoudText("text"), object],
    }
    before = dict(given_metadata)
    assert clean_metadata(given_metadata) == {
        "tenant": "acme",
        "flags": [True, None, 1.5, -3],
        "big": [2**63 - 1, "9223372036854775808", -(2**63), "-9223372036854775809"],
        "huge": "<int>",
        "floats": ["NaN", "Infinity", "-Infinity"],
        r"control\x1b": "nul\u2400 \ufffd",
        "id": "00000000-0000-0000-0000-000000000001",
        "at": "2026-01-02T03:04:05+00:00",
        "day": "2026-01-02",
        "price": "1.20",
        "nested": {"a": {"b": {"c": [{"d": 1}]}}},
        "enums": [3, "done", "<Color>"],
        "foreign": ["<set>", "<bytes>", "<Loud>", "<LoudType>", "text", "<type>"],
    }
    assert given_metadata == before


WORDS = st.one_of(st.text(CHARACTERS, max_size=5), st.sampled_from(["", "k" * 128, "k" * 200, "é" * 5_000]))
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), WORDS, st.binary(max_size=5), st.uuids()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(WORDS, inner, max_size=4)),
    max_leaves=20,
)


@given(st.dictionaries(WORDS, JSON, max_size=10))
def test_any_metadata_can_be_stored(metadata: dict[str, Any]) -> None:
    """Whatever the values: JSON in UTF-8 without unsafe characters and no entry lost, or a ValueError for its size."""
    try:
        cleaned = clean_metadata(metadata)
    except ValueError as refused:
        assert "bytes as JSON" in str(refused)  # noqa: PT017  # either outcome is right
        return
    text = json.dumps(cleaned, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    assert len(text.encode()) <= METADATA_LIMIT
    assert not FORBIDDEN.search(json.dumps(cleaned, ensure_ascii=False).replace(r"\n", ""))
    assert len(cleaned) == len(metadata)
    assert all(len(key) <= 128 for key in cleaned)
    assert clean_metadata(cleaned) == cleaned


def test_long_keys_are_cut_and_kept_apart() -> None:
    """A key of over 128 characters is cut, and stays another key than its neighbor."""
    cleaned = clean_metadata({"k" * 128: 1, "k" * 129: 2, "k" * 130: 3})
    assert list(cleaned) == ["k" * 128, "k" * 127 + "…", "k" * 120 + " (2)"]
    assert list(cleaned.values()) == [1, 2, 3]


def test_nesting_is_bounded() -> None:
    """A structure that contains itself ends with the name of its type."""
    loop: dict[str, Any] = {}
    loop["self"] = [loop]
    text = json.dumps(clean_metadata(loop))
    assert text.count("self") == 8
    assert "<dict>" in text or "<list>" in text


FLOOD: list[Any] = []
FLOOD.extend([FLOOD, FLOOD])


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        (None, "metadata must be a mapping, not None: pass a dict"),
        ([("a", 1)], "metadata must be a mapping, not <list>: pass a dict"),
        ("tenant", "metadata must be a mapping, not 'tenant': pass a dict"),
        (Loud(), "metadata must be a mapping, not <Loud>: pass a dict"),
        ({1: "a"}, r"metadata keys must be str, not 1: convert the key with str\(\)"),
        ({"a": {None: 1}}, "metadata keys must be str, not None"),
        ({str(n): n for n in range(65)}, "metadata has 65 keys, at most 64 are kept: put related ones"),
        ({"a": "x" * 16_377}, "metadata takes at least 16385 bytes as JSON, at most 16384 are kept: store large"),
        ({"a": "é" * 8_189}, "metadata takes at least 16386 bytes as JSON"),
        ({"a": "x" * 100_000_000}, "metadata takes at least 10000000. bytes as JSON"),
        ({"a": [0] * 1_000_000}, "metadata takes at least 16385 bytes as JSON"),
        ({"a": FLOOD}, "metadata takes at least 16385 bytes as JSON"),
    ],
    ids=map(str, range(12)),
)
def test_metadata_that_is_refused(metadata: Any, sentence: str) -> None:
    """What cannot be kept whole is refused at once, with its size and a way out; nothing is dropped silently."""
    started = time.thread_time()
    with pytest.raises(ValueError, match=sentence):
        clean_metadata(metadata)
    assert time.thread_time() - started < 0.5


def test_metadata_up_to_the_limits() -> None:
    """64 keys and 16 KiB are taken."""
    assert len(clean_metadata({str(n): n for n in range(64)})) == 64
    assert clean_metadata({"a": "x" * 16_376}) == {"a": "x" * 16_376}


def test_prepared_metadata_has_no_secrets() -> None:
    """Keys, patterns and the application's hook all apply to metadata; what the hook returns is cleaned again."""
    assert prepare_metadata(
        {"tenant": "Falcon", "password": "x", "list": ["token=x", {"n": 1}], "sk-" + SECRET * 2: 1},
        lambda text: text.replace("Falcon", "f\x00"),
    ) == {"tenant": "f\u2400", "password": "[redacted]", "list": ["token=[redacted]", {"n": 1}], "[redacted]": 1}
