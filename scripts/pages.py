"""Tables that scripts write into pages of docs/, between marks that name the script."""

from pathlib import Path

from jcos.files import write


def rewrite(page: Path, script: str, name: str, text: str) -> None:
    """Puts the text between its marks; a page that is none yet becomes it."""
    start, end = f"<!-- {name}: scripts/{script}.py -->\n", f"<!-- end of {name} -->\n"
    whole = page.read_text(encoding="utf-8") if page.exists() else start + end
    before, rest = whole.split(start)
    _, after = rest.split(end)
    write(page, before + start + text + end + after)
