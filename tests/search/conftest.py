"""Embeddings, and a tab of a browser, for the tests of the search page."""

import pytest
from searchable import embed_store


@pytest.fixture(scope="module")
def frames(embedder, store, tmp_path_factory):
    """The embeddings of the pictures of the items."""
    return embed_store(embedder, tmp_path_factory.mktemp("v") / "v", store, modalities="V")


@pytest.fixture
def tab(browser):
    """A tab that fails the test on any error of the page's script or policy."""
    tab = browser.new_page(viewport={"width": 1100, "height": 900})
    problems = []
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("console", lambda line: problems.append(line.text) if "Content Security Policy" in line.text else None)
    yield tab
    tab.close()
    assert not problems
