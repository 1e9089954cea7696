"""Secrets leave the text, their keys and everything else stay, and no text makes that slow."""

import logging
import time
from collections.abc import Callable
from itertools import product
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentexec_otel._model import redact as _redact
from agentexec_otel._model.redact import HOOK_FAILED, REDACTED, redact_mapping, redact_secrets, redactor

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NSJ9.dBjftJeZ4CVPmB92K27uhbUJU1p1r_wW1gFWFOEjXk"
# Nobody's keys; put together here, so that no scanner takes this file for a leak.
TOKENS = [
    "sk-" + "proj-AbC1_dEf2-GhI3jKl4MnO5",
    "sk-" + "ant-api03-AbCdEf0123456789",
    "ghp_" + "16C7e42F292c6912E7710c838347Ae178B4a",
    "gho_" + "16C7e42F292c6912E7710c838347Ae178B4a",
    "github_pat_" + "11ABCDEFG0123456789_abcdefghij",
    "glpat-" + "AbCdEf0123456789xyz_",
    "xoxb-" + "123456789012-1234567890123-AbCdEfGhIjKl",
    "xoxp-" + "123456789012-abcdef",
    "sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc",
    "hf_" + "AbCdEfGhIjKlMnOpQrSt0123",
    "gsk_" + "AbCdEf0123456789AbCd",
    "AKIA" + "IOSFODNN7EXAMPLE",
    "ASIA" + "IOSFODNN7EXAMPLE",
    "AIza" + "SyA-1234567890abcdefghijklmnopqrstu",
    "ya29." + "a0AfH6SMBx-1234567890abcdef",
    JWT,
]

KEYED = [
    # The value alone goes; key, quotes and what follows stay.
    ("password=hunter2", "password=[redacted]"),
    ("login failed for password: hunter2 at db", "login failed for password: [redacted] at db"),
    ('PASSWORD = "hun ter2" on host', 'PASSWORD = "[redacted]" on host'),
    ("DB_PASSWORD=hunter2 DB_USER=bob", "DB_PASSWORD=[redacted] DB_USER=bob"),
    ("mysql --password=hunter2 -u bob", "mysql --password=[redacted] -u bob"),
    ("tool --password hunter2 --user bob", "tool --password [redacted] --user bob"),
    ('tool --api-key "hunter 2" run', 'tool --api-key "[redacted]" run'),
    ("passwd:hunter2", "passwd:[redacted]"),
    ("client_secret=hunter2&grant=x", "client_secret=[redacted]&grant=x"),
    ("https://host/p?token=hunter2&page=2", "https://host/p?token=[redacted]&page=2"),
    ("https://host/p?next=%3Ftoken%3Dhunter2", "https://host/p?next=%3Ftoken%3D[redacted]"),
    ("https://host/blob?sv=1&sig=hunter2%3D", "https://host/blob?sv=1&sig=[redacted]"),
    ("apikey=hunter2", "apikey=[redacted]"),
    ("X-API-Key: hunter2", "X-API-Key: [redacted]"),
    ("your api key: hunter2 .", "your api key: [redacted] ."),
    ("OPENAI_API_KEY=hunter2\nHOME=/root", "OPENAI_API_KEY=[redacted]\nHOME=/root"),
    ("aws_secret_access_key = hun/ter+2", "aws_secret_access_key = [redacted]"),
    ("AccountKey=hunter2==;EndpointSuffix=x", "AccountKey=[redacted];EndpointSuffix=x"),
    ("api_key_2=hunter2 password1=hunter2", "api_key_2=[redacted] password1=[redacted]"),
    ("JSESSIONID=hunter2; Path=/", "JSESSIONID=[redacted]; Path=/"),
    ("PHPSESSID=hunter2", "PHPSESSID=[redacted]"),
    ("private key: hunter2", "private key: [redacted]"),
    ("credentials={'user': 'bob', 'pass': 'hunter2'}", "credentials=[redacted]"),
    ("sentryDsn: hunter2", "sentryDsn: [redacted]"),
    ("bearer=hunter2", "bearer=[redacted]"),
    ('os.environ["API_KEY"] = "hunter2"', 'os.environ["API_KEY"] = "[redacted]"'),
    ("connect(password='hun\\'ter2', user='bob')", "connect(password='[redacted]', user='bob')"),
    ("password='hun''ter2' (SQL)", "password='[redacted]' (SQL)"),
    ("password=b'hunter2'", "password=b'[redacted]'"),
    ('password = """hun\nter2""" end', 'password = """[redacted]""" end'),
    ('    password: str = "hunter2"', '    password: str = "[redacted]"'),
    ("password=SecretStr('hunter2')", "password=[redacted]"),
    ("(password=hunter2)", "(password=[redacted])"),
    ("password=hun,ter;2&x, user=bob", "password=[redacted], user=bob"),
    ('password=hun"ter2 end', "password=[redacted] end"),
    ("<password>hunter2</password>", "<password>[redacted]</password>"),
    ("{:password=>'hunter2'}", "{:password=>'[redacted]'}"),
    # JSON, and JSON within a string
    ('{"password": "hun\\"ter2", "user": "bob"}', '{"password": "[redacted]", "user": "bob"}'),
    ('{"token":"hunter2","n":1}', '{"token":"[redacted]","n":1}'),
    ("{'api_key': 'hunter2', 'n': 1}", "{'api_key': '[redacted]', 'n': 1}"),
    (r"{\"token\": \"hun\\\"ter2\", \"n\": 1}", r"{\"token\": \"[redacted]\", \"n\": 1}"),
    # To the end of the line
    ("Authorization: Basic aHVudGVyMg==\nHost: x", "Authorization: [redacted]\nHost: x"),
    ('{"Authorization": "Bearer hunter2", "n": 1}', '{"Authorization": "[redacted]", "n": 1}'),
    ("[(b'authorization', b'Bearer hunter2'), (b'n', b'1')]", "[(b'authorization', b'[redacted]'), (b'n', b'1')]"),
    ("Cookie: a=hunter2; b=c\nHost: x", "Cookie: [redacted]\nHost: x"),
    ("set-cookie: a=hunter2", "set-cookie: [redacted]"),
    ("passphrase: correct horse hunter2", "passphrase: [redacted]"),
    ("ConnectionString=Server=a;Password=hunter2;", "ConnectionString=[redacted]"),
    # What databases say of a row
    (
        "DETAIL:  Key (api_key)=(hunter2) already exists.\n[SQL: INSERT]\n[parameters: {'n': 'hunter2'}]\n(Background",
        "DETAIL:  Key (api_key)=[redacted]\n[SQL: INSERT]\n[parameters: [redacted]\n(Background",
    ),
    ("DETAIL:  Failing row contains (1, hunter2).\nnext", "DETAIL:  Failing row contains [redacted]\nnext"),
    # Colored by a terminal logger; the escape characters are visible by now
    (r"\x1b[36mpassword\x1b[0m=\x1b[35mhunter2\x1b[0m", r"\x1b[36mpassword\x1b[0m=\x1b[35m[redacted]"),
]

SHAPED = [
    ("postgresql+psycopg://bob:hunter2@db:5432/x", "postgresql+psycopg://bob:[redacted]@db:5432/x"),
    ("redis://:hunter2@cache", "redis://:[redacted]@cache"),
    ("amqp://bob:hun/ter@2@mq/v", "amqp://bob:[redacted]@mq/v"),
    ("https://host/?next=http://bob:hunter2@h2/", "https://host/?next=http://bob:[redacted]@h2/"),
    ("https://0123456789abcdefhunter2@o1.ingest.sentry.io/1", "https://[redacted]@o1.ingest.sentry.io/1"),
    ("sent Bearer hunter2.abc to", "sent Bearer [redacted] to"),
    ("sent bearer hunterhunterhunterhunter to", "sent bearer [redacted] to"),
    (
        "got -----BEGIN RSA PRIVATE KEY-----\nhunter2\n-----END RSA PRIVATE KEY----- there",
        "got [redacted] there",
    ),
    ("-----BEGIN OPENSSH PRIVATE KEY-----\\nhunter2\\nand no end", "[redacted]"),
    *((f"used {token}, then", "used [redacted], then") for token in TOKENS),
    *((f"'{token}'", "'[redacted]'") for token in TOKENS),
]

ORDINARY = [
    "Analyzing competitors...",
    "Step 3: reading 12 sources",
    "max_tokens=4096, input_tokens: 523, output_tokens: 12",
    "token_count=5 tokens: 17",
    "Calling tool: search(query='password managers')",
    "The password is wrong",
    "primary_key=id cache_key: a:b",
    "keyword: agents, monkey: 1, author: Ann",
    "bearer of good news, bearer instruments",
    "https://host:8080/users/ann@example.com",
    "https://medium.com/@ann and mailto:ann@example.com",
    "task-management sk-learn-compatible-estimators risk-assessment-framework-2024",
    "run 0198c7e2-4b1a-7def-8abc-0123456789ab took 00:12:30.123456",
    "commit 7fbb96b0c2a5d1e88f3e6a4b9d0c1f2e3a4b5c6d",
    "----- BEGIN ----- not a key -----",
    "50% done => next: a=b, c:d",
    "authors: Ann, assessment: good, passing: 12, compass: north",
    "npm_config_registry_of_the_company and hf_transformers_cache_directory",
    "SLOVAKIA2024CONFERENCE",
    "一二三: 四五六 = 七八九",
    "",
]


def test_the_value_goes_and_the_key_stays() -> None:
    """Each known form of a secret loses its value, and nothing around it."""
    expected = dict(KEYED + SHAPED)
    assert {text: redact_secrets(text) for text in expected} == expected


def test_redacting_twice_changes_nothing() -> None:
    """Text that was redacted once passes through again as it is."""
    redacted = [expected for _, expected in KEYED + SHAPED]
    assert [redact_secrets(text) for text in redacted] == redacted


def test_ordinary_text_stays() -> None:
    """Messages that only look a little like secrets are kept whole."""
    assert [redact_secrets(text) for text in ORDINARY] == ORDINARY


KEYS = [
    *("password", "passwd", "pwd", "secret", "token", "api_key", "apikey", "api-key", "apiKey", "API_KEY", "cookie"),
    *("authorization", "bearer", "private_key", "credential", "credentials", "dsn", "jwt"),
    *("access_token", "refresh_token", "client_secret", "secret_key", "aws_secret_access_key", "db_pass", "creds"),
    *("X-Auth-Token", "Proxy-Authorization", "Set-Cookie", "SecretAccessKey", "connection_string", "passphrase"),
]
FORMS = ["{}=%", "{}: %", "{} = %", '"{}": "%"', "'{}': '%'", r"\"{}\": \"%\"", "?{}=%", "--{}=%", "{}:=%", "{}\t:\t%"]


def test_every_key_in_every_form() -> None:
    """Each announcing key is known in each way of writing it, and readable afterwards."""
    wrong: dict[str, str] = {}
    for key, form in product(KEYS, FORMS):
        text = "x " + form.format(key).replace("%", "hunter2")
        kept = redact_secrets(text)
        if "hunter2" in kept or key not in kept:
            wrong[text] = kept
    assert wrong == {}


NOTHING = ["None", "null", "true", '"None"']


@pytest.mark.parametrize("value", NOTHING)
def test_a_missing_secret_is_told(value: str) -> None:
    """That there is none is no secret, and the commonest cause of an error."""
    assert redact_secrets(f"api_key={value}, user=bob") == f"api_key={value}, user=bob"


# What the patterns look for, in pieces.
PIECES = st.sampled_from(
    [
        *("password", "token=", ":secret", "authorization:", "Bearer", "api", "key", "b'", "--", "-----", "-----BEGIN"),
        *("A KEY-----", "-----END", "://", "@", "=", ":", ">", "%3D", "'", "'''", '"', "\\", '\\"', ",", ";", "&", "("),
        *("[", "]", "{", "}", "<", "</", "-", "_", ".", "/", "%", "sk-", "ghp_", "AKIA", "eyJ", "[redacted]", "None"),
        *(" ", "\n", "\t", "\\x1b[0m", "1", "a", "Zz9", "x" * 20, "A1" * 10, "é", "\U0001f600", ")"),
    ]
)


@given(st.lists(PIECES, max_size=40).map("".join))
def test_any_mixture_is_taken(text: str) -> None:
    """No mixture of the patterns' own pieces raises, and a second time finds no more than the first."""
    once = redact_secrets(text)
    assert redact_secrets(once) == once


@given(st.text(alphabet="abXY01", min_size=6, max_size=30), st.lists(PIECES, max_size=6).map("".join))
def test_a_password_in_any_surroundings(secret: str, before: str) -> None:
    """A password at the start of its own line is found whatever the text before it is."""
    assert secret not in redact_secrets(f"{before.replace(secret, '')}\npassword={secret}\n")


SEEDS = [
    *(
        "a",
        "A" * 64,
        "=",
        ":",
        "-",
        "_",
        ".",
        ",",
        "/",
        "@",
        "\\",
        "(",
        "[",
        "<",
        ">",
        "&",
        ";",
        "%",
        " ",
        "\n",
        '"',
        "'",
    ),
    *("a=", "=a", "a:", "::", "@a", "_-", "a-a_", "--a", "--a-", "--password ", "token ", "api_key1", "token%3D"),
    *("password=", "password='", 'password="', 'password=\\"', "password=[", "password='''", "password=a'''' "),
    *(
        "password=a,",
        "password=,",
        "password=,a,a",
        "token=\\\\",
        'token="\\',
        "token=" + "a.b" * 10 + "(",
        "token:str=",
    ),
    *("token\\x1b[0m", "b'token',", '"token":', "<password>", "</password>", "cookie: "),
    *("-----", "-----BEGIN", "-----BEGIN A-----", "-----END", "://", "://a:", "://a:b", "://a:1@", "://a@"),
    *("://u:" + "p" * 500 + " ", "Bearer ", "Bearer a", "sk-", "-sk-", "sk-a", "sk-sk-A", "sk-" + "a" * 70 + " "),
    *("ghp_", "xoxb-", "eyJ", "eyJ.", "AKIA", "AIza", "ya29."),
]
ALL_PATTERNS = "password=a ://u:p@h -- sk-Aaaaaaaaaaaaaaaa ghp_ AKIA AIza eyJ Bearer "


@pytest.mark.parametrize("seed", [*SEEDS, " ".join(SEEDS), "".join(SEEDS)])
def test_the_time_is_linear(seed: str) -> None:
    """A megabyte of anything takes a fraction of a second, also where each pattern starts at every character."""
    text = ALL_PATTERNS + seed * (1_000_000 // len(seed))
    taken: list[float] = []
    while len(taken) < 3 and (not taken or taken[-1] > 0.5):  # a busy machine gets another try
        started = time.process_time()
        redact_secrets(text)
        taken.append(time.process_time() - started)
    assert taken[-1] <= 0.5


@pytest.fixture
def nothing_logged_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_redact, "_failures_logged", set[str]())


def test_the_hook_adds_to_the_patterns() -> None:
    """The application's hook sees text that the patterns are through with, and has the last word."""
    seen: list[str] = []

    def hook(text: str) -> str:
        seen.append(text)
        return text.replace("Project Falcon", "a project")

    assert redactor(hook)("Project Falcon, password=hunter2") == "a project, password=[redacted]"
    assert seen == ["Project Falcon, password=[redacted]"]
    assert redactor()("password=hunter2") == "password=[redacted]"


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise RuntimeError("not to be called")


def test_the_hook_may_return_a_string_class_of_its_own() -> None:
    """A subclass of str is taken for its text, and ends as a plain str."""
    kept = redactor(lambda text: Text(text.upper()))("done")
    assert (kept, type(kept)) == ("DONE", str)


@pytest.mark.usefixtures("nothing_logged_yet")
def test_a_hook_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    """Where the hook raises, the whole text is replaced; the failure is logged once, by its type alone."""

    def hook(text: str) -> str:
        raise ValueError(f"cannot handle {text}")

    redact = redactor(hook)
    assert [redact("the canary"), redact("the canary")] == [HOOK_FAILED, HOOK_FAILED]
    assert len(caplog.records) == 1
    assert caplog.records[0].levelno == logging.ERROR
    assert "raised ValueError" in caplog.text
    assert "canary" not in caplog.text


@pytest.mark.usefixtures("nothing_logged_yet")
@pytest.mark.parametrize("returned", [None, b"the canary", 42, ["the canary"]])
def test_a_hook_that_returns_no_string(returned: object, caplog: pytest.LogCaptureFixture) -> None:
    """Where the hook returns something else, forgetting the return say, the whole text is replaced as well."""
    redact = redactor(cast("Callable[[str], str]", lambda text: returned))  # pyright: ignore[reportUnknownLambdaType]
    assert [redact("the canary"), redact("the canary")] == [HOOK_FAILED, HOOK_FAILED]
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "canary" not in caplog.text


def test_metadata_is_redacted_by_key_and_by_value() -> None:
    """A telling key hides its value whole, at any depth; other values and keys lose the secrets in them."""
    assert redact_mapping(
        {
            "tenant": "acme",
            "password": "x",
            "pin_token": 1234,
            "credentials": {"user": "bob", "pass": "x"},
            "nested": {"apiKey": "x", "list": ["password=x", {"secret": ["x"]}, 5]},
            "note": f"used {TOKENS[0]}",
            "input_tokens": 12,
            "Authorization": "Bearer x",
        },
        redact_secrets,
    ) == {
        "tenant": "acme",
        "password": REDACTED,
        "pin_token": REDACTED,
        "credentials": REDACTED,
        "nested": {"apiKey": REDACTED, "list": ["password=[redacted]", {"secret": REDACTED}, 5]},
        "note": "used [redacted]",
        "input_tokens": 12,
        "Authorization": REDACTED,
    }


def test_metadata_says_whether_there_is_a_secret() -> None:
    """None and booleans under a telling key stay."""
    given_metadata = {"password": None, "secret": True, "token": False}
    assert redact_mapping(given_metadata, redact_secrets) == given_metadata


def test_keys_that_become_equal_are_kept_apart() -> None:
    """Secrets in keys go as well, and no entry is lost by it."""
    assert redact_mapping({TOKENS[0]: 1, TOKENS[1]: 2, TOKENS[2]: 3}, redact_secrets) == {
        "[redacted]": 1,
        "[redacted] (2)": 2,
        "[redacted] (3)": 3,
    }
