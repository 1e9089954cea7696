"""Removes secrets from text before it reaches a queue, a file, a span or a table.

There are two families of patterns. A secret is found by its *key* (``password=…``, ``"api_key": "…"``, ``--token …``)
or by its own *shape* (``sk-…``, ``AKIA…``, JWTs, PEM blocks, ``scheme://user:password@host``). Each repetition is
either bounded or possessive, and nothing that could fail follows it, so the time is linear in the length of the text.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from typing import Any, Final, cast

REDACTED: Final = "[redacted]"
HOOK_FAILED: Final = "[redacted: the redact hook failed]"

# Longest match of a pattern that must be complete to be recognized, in characters.
LONGEST_CLOSED: Final = 1024

_logger = logging.getLogger("agentexec_otel")
_failures_logged: Final[set[str]] = set()

_TRAITS: Final = re.ASCII | re.VERBOSE


def _ending(names: Iterable[str], *lengths: int) -> str:
    # Names are matched from their end, which needs fixed widths. Text with another last letter costs almost nothing.
    if not lengths:
        return "|".join(f"(?<={name})" for name in names)
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_end(name, lengths[0]), []).append(name)
    return "|".join(f"(?<={end})(?:{_ending(group, *lengths[1:])})" for end, group in groups.items())


def _end(name: str, length: int) -> str:
    if name.endswith(r"\d"):
        return r"[a-z_-]\d"
    # As many of the last letters as are literals in the pattern.
    return next(name[-n:] for n in (length, length - 1) if re.fullmatch(r"[a-z0-9]+[_-]?", name[-n:]))


def _words(words: str) -> list[str]:
    return words.split()


def _compound(last: str, firsts: str) -> list[str]:
    return [first + joint + last for first in firsts.split() for joint in ("", "[._ -]")]


_KEY_WORDS: Final = (
    "access account anthropic api auth azure client decryption deploy encryption function gemini google host license "
    "master mistral openai private secret service session shared signature signing ssh storage stripe "
    "subscription webhook"
)
_SECRET_NAMES: Final = (
    *_words(
        "password passwords passwd passwort passcode pwd secret secrets token credential credentials bearer jwt dsn"
    ),
    *_words(r"sessid jsessionid [?&]sig [_-]auth \bcred \bcreds [_-]cred [_-]creds"),
    *_compound("key", _KEY_WORDS),
    *_compound("keys", _KEY_WORDS),
    *_compound("tokens", "access api auth bearer csrf id refresh session xsrf"),
    *_compound("pass", "admin auth db email ftp http login mail mysql pg postgres proxy redis root smtp user"),
    *_compound("signature", "access amz"),
    *_compound("value", "secret token password"),
    *(
        word + number
        for word in _words("password passwd pwd secret token api_key apikey")
        for number in (r"\d", r"[_-]\d")
    ),
)
# The values of these names have spaces in them: `Cookie: a=b; c=d`.
_LINE_NAMES: Final = (
    *_words("authorization cookie cookies mnemonic"),
    *_compound("phrase", "pass backup recovery seed"),
    *_compound("string", "connection secret"),
)
_SECRET_WORDS: Final = _ending(_SECRET_NAMES, 1, 3)
_LINE_WORDS: Final = _ending(_LINE_NAMES, 1, 3)


# A quick check of the text before each separator, so that ordinary text never reaches the patterns.
_ENDS: Final = "|".join(sorted({_end(name, 3) for name in _SECRET_NAMES + _LINE_NAMES}))
_MAYBE_NAMED: Final = re.compile(
    rf"""[:=>%,] (?: (?<=[\s"'`\])\\m][:=>%]) | (?<=["'],)(?=[ ]?b["'])
                   | (?<!,)(?<=[a-zA-Z\d].)(?i:{"|".join(f"(?<={end}.)" for end in _ENDS.split("|"))}) )""",
    _TRAITS,
)
_COLOR: Final = r"(?:(?:\\x1b|\x1b)\[[0-9;]{0,16}m)?"
# Whole words only, each checked once. Most have no separator after them and fail at once.
_NAME: Final = rf"""
    [\w.-] (?<![\w.-].) [\w.-]*+ (?=[\s\\"'`\])]{{0,12}}+[:=>%,\x1b] | \\x1b)
    (?i:(?P<line>{_LINE_WORDS}) | {_SECRET_WORDS})
"""
# `key=`, `key: `, `(key)=`, `"key": `, `\"key\": `, `env["KEY"] = `, `<key>`, `key: str = `, `(b'key', b'…')`, key%3D
_SEPARATOR: Final = rf"""
    (?> (?:\\{{0,7}}["'`])? [\])]? {_COLOR} [ \t]{{0,8}}
        (?: => | := | :[ \t]{{0,4}}(?:bytes|str|string|SecretStr|Any)(?:[ ]?\|[ ]?None)?[ \t]{{0,4}}=(?!=)
          | ={{1,3}} | : | >(?=[^\s>=]) | %3[AaDd] | (?<='),[ ]?(?=b') | (?<="),[ ]?(?=b"))
        [ \t]{{0,8}} {_COLOR} )
"""
# Not secrets: a missing value, and our own mark.
_HARMLESS: Final = r"""
    (?! [bru]{0,2}\\{0,7}["']? (?i:none|null|nil|undefined|true|false|\[redacted\]) (?:[\s,;&"'<>)\]}\\]|\Z) )
"""
_QUOTED: Final = r"""
      (?P<triple>[bBfFrRuU]{0,2}(?:'{3}|"{3})) (?:(?!'{3}|"{3})[\s\S])*+
    | (?P<double>[bBfFrRuU]{0,2}") [^"\\\n]*+ (?:(?:\\.|"")[^"\\\n]*+)*+
    | (?P<single>[bBfFrRuU]{0,2}') [^'\\\n]*+ (?:(?:\\.|'')[^'\\\n]*+)*+
    | (?P<escaped>\\{1,7}["']) (?:[^"'\\\n]++ | \\\\(?:\\\\|\\["']|[^\\"'\n]) | \\[^\\"'\n])*+
    | [\w.]{0,64}[\[({] [^\n]*+
"""
# A comma ends a bare value only if a space or another `key=` follows, a quote or bracket only before such an end.
_BARE: Final = r"""
    (?: [^\s,;&"'<>)\]}]++
      | [,;&] (?! \s | \Z | ["'\w.-]{1,64}+[ ]?[=:] )
      | ["'>)\]}] (?! ["')\]}>]{0,8}+(?:[\s,;&<]|\Z) )
      | < (?!/) )++
"""
_KEYED: Final = re.compile(rf"(?P<head>{_NAME}{_SEPARATOR}){_HARMLESS}(?:{_QUOTED}|(?(line)[^\n]++|{_BARE}))", _TRAITS)
# Only names that are flags of real tools: the whole list would double the import time of this module.
_FLAG_WORDS: Final = _ending(
    [*_words("password passwd secret token credential credentials"), *_compound("key", "access api private secret")], 1
)
_FLAG: Final = re.compile(
    rf"(?P<head>--(?<![\w-]--)[A-Za-z][\w-]*+(?i:{_FLAG_WORDS})[ \t]{{1,8}})(?!-){_HARMLESS}(?:{_QUOTED}|{_BARE})",
    _TRAITS,
)

_PEM: Final = re.compile(
    r"-----BEGIN [A-Z0-9 ]{1,64}-----[^-]*+(?:-(?!----END )[^-]*+)*+(?:-----END [A-Z0-9 ]{1,64}-----)?"
)
# A password may contain an @ or a slash. Text without an @ is matched as well, so that no part is scanned twice.
_AUTHORITY: Final = re.compile(r"://[^\s@]*+(?:@[^\s@/?#]*+(?=@))*+(?P<at>@)?")
_USER: Final = re.compile(r"://[^/:@?#]*+:(?!//|\d{1,5}(?:[/?#]|\Z))(?=.)")
_USER_ALONE: Final = re.compile(r"://(?=[^/:@?#]{16,}\Z)")
# SQLAlchemy and PostgreSQL quote rows that they could not store.
_ROW: Final = re.compile(r"(?P<head>\[parameters: |Failing row contains )[^\n]++")
_BEARER: Final = re.compile(
    r"(?P<head>\b[Bb](?:earer|EARER)[ \t]{1,8})(?=[A-Za-z._~+/=-]{0,63}[0-9]|[A-Za-z._~+/=-]{24})[\w.~+/=-]{8,}+",
    re.ASCII,
)


def _token(prefix: str, least: int = 16) -> tuple[str, re.Pattern[str]]:
    # Kebab-case words such as sk-learn-compatible-estimator have neither a digit nor a capital.
    literal = re.escape(prefix)
    return prefix, re.compile(
        rf"{literal}(?<![A-Za-z0-9]{literal})(?=[a-z_-]{{0,64}}+[A-Z0-9])[\w-]{{{least},}}+", re.ASCII
    )


_PREFIXED: Final = (
    *map(_token, _words("sk- ghp_ gho_ ghu_ ghs_ ghr_ github_pat_ glpat- hf_ gsk_ xai- pplx- tvly- nvapi- lsv2_")),
    *map(_token, _words("npm_ pypi- dop_v1_")),
    *(_token(f"xox{kind}-", least=10) for kind in "abeoprs"),
    *(_token(prefix, least=10) for prefix in _words("xapp- sk_live_ sk_test_ rk_live_ rk_test_")),
)
# Ordinary words are shorter after a dash or underscore, and have other letters before it.
_MAYBE_PREFIXED: Final = re.compile(
    rf"[-_](?<=[a-z\d].)(?=[\w-]{{10}})(?:{_ending((prefix for prefix, _ in _PREFIXED), 2)})", re.ASCII
)
_AWS: Final = re.compile(r"A[KS]IA(?<![A-Z0-9]A[KS]IA)[A-Z0-9]{12,}+")
_GOOGLE: Final = re.compile(r"(?:AIza|ya29\.)[\w-]{16,}+", re.ASCII)
_JWT: Final = re.compile(r"eyJ[\w-]{8,}+(?:\.[\w-]*+){0,4}", re.ASCII)


def redact_secrets(text: str) -> str:
    """Replace each value that looks like a secret by ``[redacted]``. Keys stay readable."""
    if _MAYBE_NAMED.search(text):
        text = _KEYED.sub(_keep_name, text)
    if "://" in text:
        text = _AUTHORITY.sub(_keep_user, text)
    if "--" in text:
        text = _FLAG.sub(_keep_name, _PEM.sub(REDACTED, text))
    if "-" in text or "_" in text:
        text = _redact_prefixed(text)
    if "[parameters: " in text or "Failing row contains " in text:
        text = _ROW.sub(_keep_head, text)
    if "AKIA" in text or "ASIA" in text:
        text = _AWS.sub(REDACTED, text)
    if "AIza" in text or "ya29." in text:
        text = _GOOGLE.sub(REDACTED, text)
    if "eyJ" in text:
        text = _JWT.sub(REDACTED, text)
    if "earer " in text or "EARER " in text:
        text = _BEARER.sub(_keep_head, text)
    return text


def _keep_name(match: re.Match[str]) -> str:
    head, *quotes = match.group("head", "triple", "double", "single", "escaped")
    return f"{head}{next(filter(None, quotes), '')}{REDACTED}"


def _keep_user(match: re.Match[str]) -> str:
    authority = match[0]
    found = match["at"] and (_USER.search(authority) or _USER_ALONE.search(authority[:-1]))
    return f"{authority[: found.end()]}{REDACTED}@" if found else authority


def _keep_head(match: re.Match[str]) -> str:
    return match["head"] + REDACTED


def _redact_prefixed(text: str) -> str:
    if _MAYBE_PREFIXED.search(text):
        for prefix, pattern in _PREFIXED:
            if prefix in text:
                text = pattern.sub(REDACTED, text)
    return text


def redactor(hook: Callable[[str], str] | None = None) -> Callable[[str], str]:
    """Return what applies the built-in patterns, then the application's hook.

    Calling that never raises. If the hook raises or does not return a string, the text may still contain secrets. All
    of it becomes ``[redacted: the redact hook failed]``, and the failure is logged once, without the text.

    Args:
        hook: Called with each text after the patterns were applied. Returns the text to keep.
    """
    return redact_secrets if hook is None else partial(_redact_with, hook)


def _redact_with(hook: Callable[[str], str], text: str) -> str:
    text = redact_secrets(text)
    try:
        kept = cast(object, hook(text))
    except Exception as exc:  # noqa: BLE001  # its text and traceback may quote the secret, so only the type is logged
        return _hook_failed(f"raised {type(exc).__name__}")
    if not issubclass(type(kept), str):
        return _hook_failed(f"returned {type(kept).__name__} instead of str")
    return str.__str__(cast(str, kept))


def _hook_failed(how: str) -> str:
    if how not in _failures_logged:
        _failures_logged.add(how)
        _logger.error("The redact hook %s: texts on which it fails are replaced whole. This is logged once.", how)
    return HOOK_FAILED


@cache
def _secret_name() -> re.Pattern[str]:
    return re.compile(rf"\Z(?i:{_SECRET_WORDS}|{_LINE_WORDS})", _TRAITS)


def redact_mapping(mapping: Mapping[str, Any], redact: Callable[[str], str]) -> dict[str, Any]:
    """Return a copy of JSON-safe metadata without secrets, at every depth.

    Any value under a key such as ``password`` or ``api_key`` is replaced whole, except None and booleans, which reveal
    only whether there is one. All other strings, and all keys, are passed through ``redact``.
    """
    copy: dict[str, Any] = {}
    for key, value in mapping.items():
        secret = value is not None and value is not True and value is not False and _secret_name().search(key)
        copy[unique_key(redact(key), copy)] = REDACTED if secret else _redact_value(value, redact)
    return copy


def _redact_value(value: Any, redact: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return redact_mapping(cast(dict[str, Any], value), redact)
    if isinstance(value, list):
        return [_redact_value(entry, redact) for entry in value]  # pyright: ignore[reportUnknownVariableType]
    return value


def unique_key(key: str, taken: Mapping[str, Any]) -> str:
    """Return the key, numbered if cutting or redaction made it equal to an earlier one."""
    if key not in taken:
        return key
    return next(numbered for number in range(2, len(taken) + 3) if (numbered := f"{key[:120]} ({number})") not in taken)
