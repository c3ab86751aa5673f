"""What the demonstration shows on the terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table
from rich.text import Text


class Narrator:
    """Writes steps, facts and the output of commands. Without a terminal it is plain text."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def step(self, title: str) -> None:
        """A new part of the story begins."""
        self._console.print()
        self._console.print(Text(f"▶ {title}", style="bold"))

    def fact(self, text: str) -> None:
        """Something that was measured."""
        self._console.print(Text(f"  {text}"))

    def command(self, line: str) -> None:
        """A command as the operator would type it."""
        self._console.print(Text(f"  $ {line}", style="cyan"))

    def output(self, line: str) -> None:
        """One line of what a command printed."""
        text = Text(f"  │ {line}", style="dim")
        if self._console.is_terminal:
            self._console.print(text, no_wrap=True, overflow="ellipsis")
        else:
            # A log has no width: nothing is cut off there.
            self._console.print(text, soft_wrap=True)

    @contextmanager
    def waiting(self, text: str) -> Iterator[Callable[[str], None]]:
        """A line that is changed by the function it yields; nothing without a terminal."""
        with self._console.status(Text(text, style="dim")) as status:
            yield lambda line: status.update(Text(line, style="dim"))

    def summary(self, title: str, lines: list[tuple[str, str, str]], *, good: bool) -> None:
        """The end: (what, how many, by whom) a line."""
        self._console.print()
        self._console.print(Text(title, style="bold green" if good else "bold red"))
        table = Table(box=None, show_header=False, padding=(0, 2))
        table.add_column()
        table.add_column(justify="right", style="bold")
        table.add_column(style="dim")
        for what, amount, source in lines:
            table.add_row(Text(what), Text(amount), Text(source))
        self._console.print(table)

    def failure(self, message: str, hint: str | None = None) -> None:
        """Why the demonstration did not prove what it should."""
        self._console.print(Text(f"error: {message}", style="red"), soft_wrap=True)
        if hint:
            self._console.print(Text(f"hint: {hint}"), soft_wrap=True)
