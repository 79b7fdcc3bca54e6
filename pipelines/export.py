"""Writes a run's backbone as a folder that timm loads, with a model card."""

from __future__ import annotations

import sys

from rich.console import Console

from pipelines.local import local_path
from pipelines.options import Options
from pretrain.train.export import export
from wsi_prep.errors import UsageError


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = Options(prog="python -m pipelines.export", description=__doc__)
    add = parser.add_argument
    add("--folder", required=True, type=local_path, metavar="RUN", help="a folder that make pretrain has filled")
    add("--to", required=True, type=local_path, metavar="FOLDER", help="a new folder")
    add("--licence", default="unknown", help="the licence that the model card names (default: %(default)s)")
    add("--step", type=int, help="which checkpoint (default: the newest)")
    options = parser.parse_args(arguments)
    try:
        step = export(options.folder, options.to, options.licence, options.step)
    except UsageError as error:
        Console(stderr=True, highlight=False).print(f"export: {error}", markup=False, soft_wrap=True)
        return 2
    except OSError as error:
        Console(stderr=True, highlight=False).print(f"export: {options.to}: {error.strerror}", markup=False)
        return 2
    Console(highlight=False).print(
        f'step {step}: timm.create_model("local-dir:{options.to}", pretrained=True)', markup=False, soft_wrap=True
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
