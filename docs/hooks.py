"""What mkdocs calls while it builds the site: pages that the code fills, links that leave docs/, examples."""

import os
import re
import sys
from pathlib import Path, PurePosixPath
from typing import Any

import griffe
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
OF_THE_ROOT = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "SECURITY.md": "reporting.md"}
"""Files of the repository's root that are pages too, and their names there."""

_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")
_EXAMPLE = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)
_MADE = re.compile(r"^<!-- only in a clone -->\n.*\n<!-- made at build time: (\w+) -->$", re.MULTILINE)

sys.path.insert(0, str(ROOT))


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that lie in the root."""
    for name, page in OF_THE_ROOT.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Fill in what the code knows, and lead each link to where the site has its target."""
    from pipelines.pages import PAGES  # noqa: PLC0415 - after the path is set

    lies = {shown: name for name, shown in OF_THE_ROOT.items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    text = _MADE.sub(lambda found: PAGES[found[1]](), markdown)
    return _LINK.sub(lambda found: _led(found, PurePosixPath(lies).parent, page.file.src_uri), text)


def _led(link: re.Match[str], folder: PurePosixPath, page: str) -> str:
    """The link as the site has it; its words alone where the target is a file of the repository and no page."""
    image, words, path, anchor = link[1], link[2], link[3], link[4] or ""
    target = os.path.normpath(folder / path)
    shown = OF_THE_ROOT.get(target, target.removeprefix("docs/") if target.startswith("docs/") else None)
    if shown is None:
        return words
    return f"{image}[{words}]({os.path.relpath(shown, PurePosixPath(page).parent)}{anchor})"


class Examples(griffe.Extension):
    """Examples in docstrings are shown as code."""

    def on_instance(self, *, obj: griffe.Object, **_more: Any) -> None:
        """Fence the examples of one docstring."""
        if obj.docstring:
            obj.docstring.value = _EXAMPLE.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)
