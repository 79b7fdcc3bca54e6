"""A real browser to see the audit's page in."""

import shutil
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        path = next((found for name in BROWSERS if (found := shutil.which(name))), own)
        if not Path(path).exists():
            pytest.skip(f"needs a Chromium: one of {' '.join(BROWSERS)}, or `playwright install chromium`")
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture
def show(browser):
    """Opens a page file; at the end, nothing may have been asked of the network or said in the console."""
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(10_000)
    asked, said = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))

    def show(file):
        page.goto(file.as_uri())
        assert asked == [file.as_uri()]
        return page

    yield show
    assert len(asked) == 1, asked
    assert said == []
    context.close()
