"""The list of modules in STRUCTURE.md: each with the first sentence of its docstring. ``make map`` writes it anew."""

import ast
import subprocess

from tests.project.conftest import ROOT

MAP = ROOT / "STRUCTURE.md"
BEGIN, END = "<!-- modules: written by make map -->\n", "<!-- end of the modules -->\n"
FOLDERS = ("scripts", "backend", "benchmarks")


def modules():
    """Return the list as Markdown: a heading a folder, a line a module."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *(f"{folder}/*.py" for folder in FOLDERS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    folders = {}
    for path in sorted(ROOT / name for name in set(listed.splitlines())):
        if path.is_file():
            folders.setdefault(path.parent, []).append(path)
    return "\n".join(_folder(folder, paths) for folder, paths in folders.items())


def _folder(folder, paths):
    lines = [f"### {folder.relative_to(ROOT)}", ""]
    lines += [f"{_sentence(path)}\n" for path in paths if path.name == "__init__.py" and _sentence(path)]
    lines += [f"- `{path.name}`: {_sentence(path)}" for path in paths if path.name != "__init__.py"]
    return "\n".join(lines) + "\n"


def _sentence(path):
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return " ".join(text.split("\n\n")[0].split())


def main():
    """Write the list into STRUCTURE.md."""
    text = MAP.read_text()
    head, tail = text.partition(BEGIN)[0], text.partition(END)[2]
    MAP.write_text(head + BEGIN + "\n" + modules() + END + tail)


if __name__ == "__main__":
    main()
