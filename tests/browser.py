"""A headless Chromium for the tests of pages; without Chromium they are skipped."""

import shutil
from collections.abc import Iterator

import pytest

PATIENCE_MS = 30_000


def until(page, expression: str, argument: object = None) -> None:
    """Waits for an expression to hold. Playwright's own wait would be `eval` within the page,
    which the pages' content security policy forbids."""
    for _ in range(PATIENCE_MS // 50):
        if page.evaluate(expression, argument):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"did not come true: {expression}")


@pytest.fixture(scope="session")
def browser() -> Iterator:
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (pip install -e '.[dev]')"
    )
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("no chromium is installed (Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        flags = ["--no-sandbox", "--mute-audio", "--autoplay-policy=no-user-gesture-required"]
        started = playwright.chromium.launch(executable_path=found, args=flags)
        yield started
        started.close()
