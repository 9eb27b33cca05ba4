"""What a script prints beside the log: for a person progress and tables, for a program JSON on standard output."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

from scripts.lifecycle.jobs.results import PolicyResult
from scripts.utils.free_text import visible

_READABLE = 16  # characters a line, at least, where a cell goes on in the next one
_FRAME = 3  # characters of border and padding a column


class _Console(Console):
    """A console that shows foreign text literally, and that goes on when its reader closes the pipe.

    Square brackets and ``:names:`` are shown as text. Control characters are escaped, also in a caller's Text.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Write control characters out before the text's width is measured."""
        return super().render_str(visible(text, lines=True), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Write out what is left of them: whatever is printed comes through here."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text, lines=True), segment.style)

    def on_broken_pipe(self) -> None:
        """Fall silent: rich would end the process with exit code 1, in the middle of its work."""
        self.quiet = True


class Display:
    """Progress bar and closing table on standard error; silent where the log is for machines."""

    def __init__(self, *, enabled: bool) -> None:
        self._console = _Console(stderr=True)
        self.enabled = enabled
        self._tasks: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not (enabled and self._console.is_terminal),
        )

    def __enter__(self) -> Self:
        """Show the progress bars."""
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the progress bars."""
        self._progress.stop()

    def expect(self, name: str, total: int) -> None:
        """Begin a bar."""
        self._tasks[name] = self._progress.add_task(name, total=total)

    def advance(self, name: str, completed: int) -> None:
        """Move a bar."""
        self._progress.update(self._tasks[name], completed=completed)

    def show(self, table: Table) -> None:
        """Print a table of a command's own: its columns that must not wrap are whole, however narrow the terminal."""
        # An id that is cut or broken into two lines cannot be copied, and a cut one may be another's.
        widths = [_width(column) if column.no_wrap else min(_width(column), _READABLE) for column in table.columns]
        needed = sum(widths) + _FRAME * len(widths) + 1
        if needed > self._console.width:
            table.width = needed
        self._console.print(table, crop=False)

    def listing(
        self,
        title: str,
        headings: Sequence[str],
        rows: Iterable[Sequence[RenderableType]],
        *,
        whole: Collection[str] = (),
    ) -> None:
        """Print a table of what a verb lists.

        Args:
            title: Its title.
            headings: One a column.
            rows: One cell a column.
            whole: Headings of the columns that must not wrap, such as ids, which a person copies.
        """
        self.show(table_of(title, headings, rows, whole=whole))

    def say(self, text: str) -> None:
        """Print a line or more; square brackets are text."""
        self._progress.stop()
        self._console.print(text, highlight=False)

    def ask(self, prompt: str) -> str:
        """Wait for a person's line.

        Raises:
            EOFError: There will be none.
        """
        self._progress.stop()
        return self._console.input(Text(prompt)).strip()

    def summary(self, title: str, rows: Iterable[PolicyResult], *, dry_run: bool, duration: float) -> None:
        """Print a table of the policies' results.

        Args:
            title: The script's name.
            rows: One result a policy.
            dry_run: Whether nothing was written.
            duration: Seconds that the run took.
        """
        self._progress.stop()
        rows = list(rows)
        if not self.enabled or not rows:
            return
        table = Table(title=f"{title}: {'dry run, nothing was written' if dry_run else f'{duration:.1f} s'}")
        # In a narrow terminal a name continues on the next line; a figure that is cut would be a wrong one.
        for heading in ("policy", "status"):
            table.add_column(heading, overflow="fold")
        for heading in ("would delete" if dry_run else "deleted", "held", "queued", "remaining"):
            table.add_column(heading, justify="right", no_wrap=True)
        for heading in ("SLA", "because"):
            table.add_column(heading, overflow="fold")
        for row in rows:
            counts = (row.records_deleted, row.records_held, row.records_queued, row.records_remaining)
            table.add_row(
                row.policy,
                row.status,
                *("not counted" if count is None else f"{count:,}" for count in counts),
                row.sla_status,
                row.stop_reason,
            )
        self._console.print(table)


def table_of(
    title: str,
    headings: Sequence[str],
    rows: Iterable[Sequence[RenderableType]] = (),
    *,
    whole: Collection[str] = (),
    right: Collection[str] = (),
) -> Table:
    """Return a table whose cells go on in the next line where the terminal is narrow, and are never cut.

    Args:
        title: Its title.
        headings: One a column.
        rows: One cell a column.
        whole: Headings of the columns that must not wrap.
        right: Headings of the columns of figures.
    """
    table = Table(title=title)
    for heading in headings:
        justify: JustifyMethod = "right" if heading in right else "left"
        table.add_column(heading, overflow="fold", no_wrap=heading in whole, justify=justify)
    for row in rows:
        table.add_row(*row)
    return table


def emit(text: str) -> None:
    """Write an answer to standard output.

    A reader that has gone away is no error: what was done is committed, and mails and the exit code still follow.
    """
    with suppress(BrokenPipeError):
        sys.stdout.write(text)
        sys.stdout.flush()


def emit_json(answer: object, plain: Callable[[Any], object] | None = None) -> None:
    """Write an answer as one line of JSON to standard output; ``plain`` converts what JSON does not know."""
    emit(json.dumps(answer, default=plain) + "\n")


def as_text(tables: Iterable[Table], width: int = 100) -> str:
    """Return tables for a file, as a terminal of ``width`` characters shows them."""
    text = io.StringIO()
    console = _Console(file=text, width=width, color_system=None)
    for table in tables:
        console.print(table)
    return text.getvalue()


def _width(column: Column) -> int:
    """Return how many characters wide a column of plain text is when nothing in it wraps."""
    return max(cell_len(line) for cell in (column.header, *column.cells) for line in str(cell).split("\n"))
