"""The page in a real browser, wide, narrow and printed; the same for a report that says the worst."""

import base64
import importlib.util
import io
from pathlib import Path

import pypdf
import pytest

from tests.lifecycle.compliance.history import PERSON

CHROMIUM = Path(__file__).resolve().parents[2] / "manual-resolution" / "chromium.py"


@pytest.fixture(scope="module")
def browser():
    spec = importlib.util.spec_from_file_location("chromium_for_the_report", CHROMIUM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    running = module.Browser()
    yield running
    running.close()


@pytest.mark.parametrize("broken", [False, True])
def test_the_page_fits_shows_its_charts_and_prints(browser, ask, month, tmp_path, broken):
    if broken:
        month.execute("SET session_replication_role = replica; UPDATE ops.audit_batches SET actor = 'operator:eve'")
    month.execute("REVOKE SELECT ON ops.erasure_requests FROM lifecycle_jobs")
    page = tmp_path / "report.html"
    assert ask("--output", str(page)).code == int(broken)

    for width in (1280, 400):
        browser.open(page, width=width)

        assert browser.complaints() == []
        assert browser.requests() == [page.as_uri()]
        assert browser.value("document.documentElement.scrollWidth") <= width
        assert browser.value("document.querySelectorAll('svg.bars rect').length") == 31
        assert browser.value("document.querySelector('svg.bars').getBoundingClientRect().width") > 300
        assert browser.value("document.querySelectorAll('.share svg').length") == 16
        assert browser.value("[...document.querySelectorAll('svg[role=img]')].every(s => s.querySelector('title'))")
        assert browser.value("document.querySelectorAll('script').length") == 0
        # The verdict and what could not be counted are seen before anything else.
        assert browser.value("document.querySelector('.verdict').getBoundingClientRect().bottom") < 500
        assert browser.value("document.querySelectorAll('#uncounted li').length") == 3
        assert browser.value("document.querySelectorAll('#statements li.broken').length > 0") is broken

    printed = base64.b64decode(browser.ask("Page.printToPDF", preferCSSPageSize=True)["data"])
    pages = [each.extract_text() for each in pypdf.PdfReader(io.BytesIO(printed)).pages]
    assert ("Proof broken" if broken else "Incomplete") in pages[0]
    assert "What could not be counted" in pages[0]
    if not broken:
        assert f"1 / {len(pages)}" in pages[0]
        assert "1. Data inventory" in pages[1]
    assert not any(PERSON in each for each in pages)
