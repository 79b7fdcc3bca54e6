"""The commands that a person or the Makefile calls, one short file each.

Ctrl-C that comes before a command answers it, while what it needs is imported, ends it in one line, too.
"""

import sys
from types import TracebackType

_shown = sys.excepthook


def _in_one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        _shown(kind, error, trace)
        return
    print("interrupted", file=sys.stderr)
    sys.exit(130)


sys.excepthook = _in_one_line
