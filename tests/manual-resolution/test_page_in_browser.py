"""The page in a real browser, narrow and wide, with nothing, little and much in it."""

from datetime import timedelta

import pytest

DAY = timedelta(days=1)


@pytest.mark.parametrize("items", [0, 1, 10_000])
def test_the_page_fits_and_shows_its_charts(browser, report, put, now, tmp_path, items):
    if items:
        put(now - DAY, items=items, item_type="a_type_with_a_name_that_is_rather_long_" * 3)
    if items > 1:
        put(now - 3 * DAY, items=items, resolved_at=now - DAY, resolved_by="an-operator" * 6, decision="delete")
        for number in range(40):
            put(now - 9 * DAY, item_type=f"type_{number}")
    page = tmp_path / "report.html"
    done = report("--format", "html", "--output", str(page))
    assert done.returncode == 0, done.stdout

    for width in (1280, 400):
        browser.open(page, width=width)

        assert browser.complaints() == []
        assert browser.requests() == [page.as_uri()]
        assert browser.value("document.documentElement.scrollWidth") <= width
        assert browser.value("document.querySelectorAll('svg.lines').length") == 2
        bars = 4 + {0: 0, 1: 1, 10_000: 25}[items]
        assert browser.value("document.querySelectorAll('svg.bar').length") == bars
        assert browser.value("[...document.querySelectorAll('svg[role=img]')].every(s => s.querySelector('title'))")
        assert browser.value("document.querySelector('svg.lines').getBoundingClientRect().width") > 300
        assert browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
