"""A browser, and pages that must say no error and ask nobody else for anything."""

import os
import shutil
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-component-update"]
FLAGS += ["--disable-background-networking", "--disable-sync"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with import_module("playwright.sync_api").sync_playwright() as p:
        path = os.environ.get("CHROMIUM") or shutil.which("chromium")
        running = p.chromium.launch(executable_path=path, args=FLAGS)
        yield running
        running.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page; at the end it must have said no error and asked nobody else for anything."""
    contexts, troubles, asked = [], [], []

    def go(page: Path | str, **how: object) -> Any:
        context = browser.new_context(viewport={"width": 1280, "height": 900}, **how)
        context.set_default_timeout(120_000)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda said: said.type == "error" and troubles.append(said.text))
        tab.on("pageerror", lambda error: troubles.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(page if isinstance(page, str) else page.as_uri())
        return tab

    yield go
    for context in contexts:
        context.close()
    assert not troubles
    ours = ("file:", "data:", "blob:", "http://127.0.0.1:")
    assert not [url for url in asked if not url.startswith(ours)]
