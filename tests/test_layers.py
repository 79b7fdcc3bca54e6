"""The direction of imports, read from the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("wsi_prep", "pretrain", "pipelines", "sample_slides")

# each heavy library and the only files that may import it
ONLY_IN = {
    "openslide": {"wsi_prep/slides/readers/openslide_reader.py"},
    "tiffslide": {"wsi_prep/slides/readers/tiff/reader.py"},
    "tifffile": {"wsi_prep/slides/readers/tiff/reader.py", "wsi_prep/slides/readers/aperio.py"},
    "zarr": {"wsi_prep/format/codec.py"},
    "dask": {"wsi_prep/compute/jobs.py", "wsi_prep/compute/cluster/closed.py", "wsi_prep/compute/cluster/slurm.py"},
    "distributed": {
        "wsi_prep/compute/jobs.py",
        "wsi_prep/compute/cluster/closed.py",
        "wsi_prep/compute/cluster/slurm.py",
    },
    "obstore": {"wsi_prep/storage/objects.py", "wsi_prep/storage/object_client.py", "pretrain/data/sources.py"},
    "dask_jobqueue": {"wsi_prep/compute/cluster/slurm.py"},
    "torch.distributed": {"pretrain/compute/distributed.py"},
}
SHARED_WITH_TRAINING = {
    *(
        "wsi_prep.format.records",
        "wsi_prep.format.jpeg",
        "wsi_prep.format.codec",
        "wsi_prep.errors",
        "wsi_prep.format.magnifications",
    ),
    *(
        "wsi_prep.format.slide_ids",
        "wsi_prep.format.copies",
        "wsi_prep.format.layout",
        "wsi_prep.untrusted.below",
        "wsi_prep.untrusted.stored_tiles",
    ),
    *("wsi_prep.untrusted.tables", "wsi_prep.untrusted.sql", "wsi_prep.untrusted.own_folder"),
}
PURE = {"numpy", "hashlib", "math", "collections", "dataclasses", "typing", "__future__", "wsi_prep"}


def sources() -> list[Path]:
    return sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))


def imports(path: Path) -> set[str]:
    return imports_of(path.read_text())


def imports_of(source: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def uses(path: Path, module: str) -> bool:
    return any(within(name, module) for name in imports(path))


def within(name: str, module: str) -> bool:
    """Whether `name` is the module, something in it, or below it."""
    return name == module or name.startswith(module + ".")


def not_among(names: set[str], allowed: set[str]) -> set[str]:
    """What is imported of the slide stage and lies in none of the allowed modules; the package itself names none."""
    own = {name for name in names if name.startswith("wsi_prep.")}
    return {name for name in own if not any(within(name, module) for module in allowed)}


def test_there_is_something_to_look_at():
    assert len(sources()) > 20


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_heavy_library_has_one_importer(library):
    files = {str(p.relative_to(ROOT)) for p in sources() if not p.is_relative_to(ROOT / "sample_slides")}
    importers = {f for f in files if uses(ROOT / f, library)}
    assert importers <= ONLY_IN[library]


def test_nothing_imports_the_pipelines():
    assert [str(p) for p in sources() if uses(p, "pipelines") and not p.is_relative_to(ROOT / "pipelines")] == []


def test_slide_stage_does_not_know_the_trainer():
    assert [str(p) for p in (ROOT / "wsi_prep").rglob("*.py") if uses(p, "pretrain") or uses(p, "torch")] == []


def test_only_its_command_knows_how_the_stain_classifier_is_fitted():
    outside = [p for p in sources() if not p.is_relative_to(ROOT / "wsi_prep" / "stain_fit")]
    assert [p.name for p in outside if uses(p, "wsi_prep.stain.fit") or uses(p, "sklearn")] == ["fit_stain.py"]


@pytest.mark.parametrize("command", ["shards", "query", "interchange", "console", "verify", "forget", "plan"])
def test_commands_of_the_slide_stage_do_not_know_the_trainer(command):
    path = ROOT / "pipelines" / f"{command}.py"
    assert not uses(path, "pretrain")
    assert not uses(path, "torch")


def test_trainer_takes_only_the_shard_format():
    for path in (ROOT / "pretrain").rglob("*.py"):
        assert not not_among(imports(path), SHARED_WITH_TRAINING), path


@pytest.mark.parametrize(
    "planted",
    [
        "from wsi_prep.slides.base import SlideInfo",
        "import wsi_prep.slides.base",
        "from wsi_prep.slides.readers import base",
        "from wsi_prep import prepare",
        "def later():\n    from wsi_prep.stain.fit.dyes import DYES",
    ],
)
def test_a_forbidden_import_is_seen(planted):
    assert not_among(imports_of(planted), SHARED_WITH_TRAINING)


def test_an_allowed_import_is_none():
    allowed = (
        "from wsi_prep.errors import StoreFailed\nfrom wsi_prep import jpeg\nimport wsi_prep.format.records as records"
    )
    assert not not_among(imports_of(allowed), SHARED_WITH_TRAINING)


def test_what_training_shares_needs_no_slide_library():
    for module in SHARED_WITH_TRAINING:
        path = ROOT / (module.replace(".", "/") + ".py")
        heavy = {"openslide", "tiffslide", "tifffile", "dask", "distributed", "cv2", "skimage", "scipy", "rich"}
        assert not [library for library in heavy if uses(path, library)], path
        assert not not_among(imports(path), SHARED_WITH_TRAINING), path


def test_the_plan_is_pure():
    roots = {name.split(".")[0] for name in imports(ROOT / "wsi_prep/tiles/plan.py")}
    assert roots <= PURE
