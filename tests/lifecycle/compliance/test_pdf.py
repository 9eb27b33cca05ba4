"""The PDF read back: its pages, its text, its outline, and that nothing of it lies outside the paper."""

from __future__ import annotations

import re

import pypdf
import pytest

from tests.lifecycle.compliance.history import PERSON

A4 = (595.27, 841.89)


@pytest.fixture
def read(ask, tmp_path):
    """A function that asks for the PDF: exit code, reader, the text of each page."""

    def of(*arguments):
        path = tmp_path / "report.pdf"
        asked = ask("--output", str(path), *arguments)
        reader = pypdf.PdfReader(path)
        return asked.code, reader, [page.extract_text() for page in reader.pages]

    return of


def test_the_first_page_has_the_verdict_the_period_and_what_was_not_counted(read, month):
    month.execute("REVOKE SELECT ON ops.erasure_requests FROM lifecycle_jobs")
    code, reader, pages = read()

    assert code == 0
    for said in ("Incomplete", "erasure", "2. Enforcement", "Reviewed by", "00:00 UTC"):
        assert said in pages[0]
    assert [f"{number} / {len(pages)}" in text for number, text in enumerate(pages, start=1)] == [True] * len(pages)
    assert 6 <= len(pages) <= 14
    assert reader.metadata.title.startswith("Data retention compliance report, data-lifecycle, ")
    assert [each.title.split(".")[0] for each in reader.outline] == [str(number) for number in range(1, 10)]
    assert not any(PERSON in text for text in pages)


def lines_of(text):
    """A page's lines without its foot, which are two pieces of text."""
    return [line for line in text.splitlines() if line.strip()][:-2]


@pytest.mark.parametrize("holds", range(0, 60, 4))
def test_no_page_holds_one_line_only(read, month, holds):
    """However long a table is, and however much the first page has to say."""
    month.execute(
        "INSERT INTO ops.legal_holds (scope, table_name, reason, placed_by)"
        " SELECT 'table', 'public.t' || n, 'r', 'olga' FROM generate_series(1, %s) n",
        (holds,),
    )
    month.execute(
        "INSERT INTO ops.policy_versions (hash, document, first_used_by, first_used_at)"
        " SELECT md5(n::text) || md5(n::text), repeat(n || E'\n', 7 * n), 'x', now() - interval '3 days'"
        "   FROM generate_series(1, %s) n",
        (holds // 8,),
    )
    if holds % 8:
        month.execute("REVOKE SELECT ON ops.erasure_requests, ops.archives FROM lifecycle_jobs")
    _, _, pages = read("--quick")

    assert [number for number, text in enumerate(pages, 1) if len(lines_of(text)) < 3] == []


def test_the_table_of_contents_leads_to_the_sections(read, month):
    _, reader, pages = read()

    for entry in reader.outline:
        page = reader.get_destination_page_number(entry)
        assert entry.title in pages[page].replace("\n", " ")
        assert re.search(rf"\b{page + 1}\s+{re.escape(entry.title)}", pages[0]), entry.title


def test_its_numbers_are_those_of_the_audit_log(read, month):
    _, _, pages = read()
    (records,) = month.execute(
        "SELECT count(*) FROM ops.audit_log WHERE reason = 'retention_policy:quiz_responses/delivered'"
        " AND occurred_at >= date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' - interval '31 days'"
        " AND occurred_at < date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'"
    ).fetchone()

    assert f"{records:,}" in "".join(pages)


def test_every_page_is_a4_and_has_its_fonts_in_it(read, month):
    _, reader, _ = read()

    for page in reader.pages:
        assert [float(side) for side in page.mediabox[2:]] == pytest.approx(A4, abs=0.1)
        fonts = page["/Resources"]["/Font"].get_object().values()
        names = {font.get_object()["/BaseFont"]: font.get_object() for font in fonts}
        described = {name: font["/FontDescriptor"].get_object() for name, font in names.items() if "Vera" in name}
        assert described
        assert all("/FontFile2" in each for each in described.values())


def test_a_broken_chain_with_very_many_findings_still_fits_its_first_page(read, month):
    month.execute("SET session_replication_role = replica; UPDATE ops.audit_batches SET actor = 'operator:eve'")
    code, _, pages = read()

    assert code == 1
    assert "Proof broken" in pages[0]
    assert "findings more" in pages[0]
    assert "What could not be counted" in pages[0] + pages[1]


def test_letters_that_the_font_lacks_and_endless_names_do_not_stop_it(read, month):
    month.execute(
        "INSERT INTO ops.manual_resolution_queue (item_type, resource_type, resource_id, priority, reason, raised_by,"
        " first_seen_at, deadline_at) VALUES (%s, 'public.quiz_responses', 'x', 'low', 'r', 'system:t', now(), now())",
        ("漢字_<b>&" + "endless" * 300,),
    )
    code, _, pages = read()

    assert code == 0
    assert "??_<b>&endless" in "".join(pages).replace("\n", "")


def test_a_policy_file_with_nothing_left_and_one_with_an_endless_key_still_fit(read, month):
    for hash_, document in (("a" * 64, "policies: {}"), ("b" * 64, "policies: {quiz: {keep: " + "x" * 5000 + "}}")):
        month.execute(
            "INSERT INTO ops.policy_versions (hash, document, first_used_by, first_used_at)"
            " VALUES (%s, %s, 'tests', now() - interval '9 days')",
            (hash_, document),
        )
    code, _, pages = read()

    assert code == 0
    text = "".join(pages).replace("\n", " ")
    assert "policy quiz_responses (gone)" in text
    assert "policy quiz (new)" in text
