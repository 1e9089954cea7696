"""No block of the activity page is left to chance: each is run by a test."""

import importlib
import sys

import pytest

from tests.docs import page
from tests.docs.blocks import ROOT

MODULES = ("lifecycle", "queries", "reporting", "schemas", "settings", "status_api", "tasks")


@pytest.fixture(scope="module", autouse=True)
def every_page_test_is_imported() -> None:
    """Blocks are recorded when the tests that run them are imported; make sure that all are, whatever was selected."""
    for module in MODULES:
        importlib.import_module(f"tests.docs.test_page_{module}")


def test_every_block_is_run() -> None:
    """A block that is added to the page without a test fails here."""
    assert set(page.BLOCKS) == page.RUN


def test_the_page_tests_are_all_known_here() -> None:
    """A new module of page tests is counted."""
    found = {path.stem.removeprefix("test_page_") for path in ROOT.glob("tests/docs/test_page_*.py")}
    assert found - {"is_covered"} == set(MODULES)
    assert sys.modules["tests.docs.page"] is page
