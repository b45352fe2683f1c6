"""Debian's Chromium, driven as a person would; for tests of the console and for its pictures."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = "/usr/bin/chromium"
_QUIET = (
    "--no-sandbox",  # root has none
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
#: ms that anything on a page may take on a busy machine
PATIENCE = 20_000


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser; gone when the block is left."""
    assert Path(CHROMIUM).exists(), "chromium is not installed; `make install` installs it"
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(_QUIET), timeout=60_000)
        try:
            yield browser
        finally:
            browser.close()


class Tab:
    """One page on the console, and what it complained about."""

    def __init__(self, browser: Browser, api: str, scheme: str = "light", width: int = 1280, height: int = 800) -> None:
        self.api = api
        self.page: Page = browser.new_page(
            viewport={"width": width, "height": height},
            color_scheme="dark" if scheme == "dark" else "light",
        )
        self.page.set_default_timeout(PATIENCE)
        self.trouble: list[str] = []
        self.bytes = 0
        self.page.on("console", lambda said: self.trouble.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.trouble.append(str(error)))

    def open(self, place: str = "") -> Page:
        """A page of the console, connected to the stream of events."""
        self.page.goto(f"{self.api}/console#/{place}")
        self.page.wait_for_selector("[data-state=live]")
        return self.page

    def close(self) -> None:
        self.page.close()
