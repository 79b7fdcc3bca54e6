"""The direction of imports, read from the source: which package may know which, and who alone may know a library."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PACKAGES = ("wsi_prep", "pretrain", "pipelines", "sample_slides")

# From the ground up: each package may import from those on a line above its own, and none from its own line's others.
LAYERS = {
    "wsi_prep": (
        {"errors"},
        {"format", "untrusted"},
        {"compute"},
        {"storage"},
        {"slides", "output"},
        {"tissue"},
        {"stain"},
        {"tiles"},
        {"run", "curation"},
        {"notebook"},
    ),
    "pretrain": (
        {"errors"},
        {"compute"},
        {"data", "model"},
        {"features", "views"},
        {"learning", "evaluation", "pictures"},
        {"train"},
    ),
}
# What the trainer takes of the slide stage.
SHARED_WITH_TRAINING = (
    "wsi_prep.errors",
    "wsi_prep.format",
    "wsi_prep.untrusted",
    "wsi_prep.storage",
    "wsi_prep.compute.ahead",
)

# Each heavy library and the only files that may import it.
ONLY_IN = {
    "openslide": {"wsi_prep/slides/readers/openslide_reader.py"},
    "tiffslide": {"wsi_prep/slides/readers/tiff/opening.py"},
    "tifffile": {"wsi_prep/slides/readers/tiff/reader.py", "wsi_prep/slides/readers/aperio.py"},
    "zarr": {"wsi_prep/format/codec.py"},
    "dask": {"wsi_prep/compute/jobs.py", "wsi_prep/compute/cluster/"},
    "distributed": {"wsi_prep/compute/jobs.py", "wsi_prep/compute/cluster/"},
    "dask_jobqueue": {"wsi_prep/compute/cluster/slurm.py"},
    "obstore": {
        "wsi_prep/storage/objects.py",
        "wsi_prep/storage/object_client.py",
        "wsi_prep/slides/fetch/object_files.py",
    },
    "torch.distributed": {f"pretrain/compute/{name}.py" for name in ("distributed", "pretended", "torchrun")},
    "sklearn": {"pipelines/fit_stain.py", "wsi_prep/stain/fit/"},
    "torch": {"pretrain/", "pipelines/"},
}
HEAVY = {"openslide", "tiffslide", "tifffile", "dask", "distributed", "cv2", "skimage", "scipy", "rich"}
PURE = {"numpy", "hashlib", "math", "collections", "dataclasses", "typing", "__future__", "wsi_prep"}
MOST_FILES = 10

Graph = dict[str, set[str]]


def sources() -> list[Path]:
    return sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(source: str) -> set[str]:
    """Every name that is imported, wherever in the source: `from a import b` as both a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.fixture(scope="module")
def graph() -> Graph:
    return {module_of(path): imports_of(path.read_text()) for path in sources()}


def within(name: str, module: str) -> bool:
    """Whether `name` is the module, something in it, or below it."""
    return name == module or name.startswith(module + ".")


def going_up(graph: Graph) -> list[str]:
    """Imports of a package that lies above, or on the same layer."""
    found = []
    for package, layers in LAYERS.items():
        height = {name: number for number, names in enumerate(layers) for name in names}
        for module, names in graph.items():
            for name in names:
                if not (within(module, package) and within(name, package)):
                    continue
                mine, other = (text.split(".")[1:2] for text in (module, name))
                if not mine or not other or other in (mine, ["__version__"]):
                    continue
                if mine[0] not in height or other[0] not in height or height[other[0]] >= height[mine[0]]:
                    found.append(f"{module} -> {name}")
    return sorted(found)


def taken_by_training(graph: Graph) -> list[str]:
    """What the trainer imports of the slide stage that it has no business with."""
    return sorted(
        f"{module} -> {name}"
        for module, names in graph.items()
        for name in names
        if within(module, "pretrain")
        and name.startswith("wsi_prep.")
        and not any(within(name, allowed) for allowed in SHARED_WITH_TRAINING)
    )


def circles(graph: Graph) -> list[str]:
    """Modules that are imported, by way of others, by themselves."""
    inner = graph.keys() - set(PACKAGES)  # a package's own names are imported when they are used
    known = {module: {name for name in graph[module] & inner if name != module} for module in inner}
    reached = {module: set(names) for module, names in known.items()}
    for middle in known:
        for module in known:
            if middle in reached[module]:
                reached[module] |= reached[middle]
    return sorted(module for module, names in reached.items() if module in names)


def test_every_folder_is_in_the_plan():
    for package, layers in LAYERS.items():
        files = [p.relative_to(ROOT / package) for p in sources() if p.is_relative_to(ROOT / package)]
        assert {file.with_suffix("").parts[0] for file in files} - {"__init__"} == set.union(*layers)


def test_no_import_goes_up(graph):
    assert going_up(graph) == []


def test_no_module_is_in_a_circle(graph):
    assert circles(graph) == []


def test_the_trainer_takes_only_the_shard_format_and_its_storage(graph):
    assert taken_by_training(graph) == []


def test_nothing_imports_the_commands_and_no_slide_stage_the_trainer(graph):
    for module, names in graph.items():
        assert within(module, "pipelines") or not any(within(name, "pipelines") for name in names), module
        assert not within(module, "wsi_prep") or not any(within(name, "pretrain") for name in names), module


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("wsi_prep.format.records", "from wsi_prep.storage.local import LocalStorage"),
        ("wsi_prep.storage.base", "import wsi_prep.output.catalog"),
        ("wsi_prep.tissue.detect", "from wsi_prep.run import call"),
        ("wsi_prep.curation.forget", "def later():\n    from wsi_prep.run.task import SlideTask"),
        ("wsi_prep.slides.readers.tiff.reader", "from wsi_prep.tissue.masks import read_mask"),
        ("pretrain.learning.losses", "from pretrain.evaluation.probe import knn"),
        ("pretrain.compute.devices", "from pretrain.data.loader import Batch"),
        ("wsi_prep.new_package.file", "from wsi_prep.format.records import STAINS"),
    ],
)
def test_a_planted_import_that_goes_up_is_seen(module, source):
    assert going_up({module: imports_of(source)})


@pytest.mark.parametrize(
    "source",
    [
        "from wsi_prep.slides.base import SlideInfo",
        "import wsi_prep.slides.base",
        "from wsi_prep.slides import base",
        "from wsi_prep import run",
        "def later():\n    from wsi_prep.stain.fit.dyes import DYES",
    ],
)
def test_a_planted_import_of_the_trainer_is_seen(source):
    assert taken_by_training({"pretrain.data.index": imports_of(source)})


def test_a_planted_circle_is_seen():
    assert circles({"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": set()}) == ["a", "b", "c"]


def test_what_is_allowed_is_not_found_fault_with():
    allowed = {
        "pretrain.data.index": imports_of("from wsi_prep.errors import StoreFailed\nfrom wsi_prep.format import jpeg"),
        "wsi_prep.run.call": imports_of("from wsi_prep.slides.find.sources import look_for_slides\nimport wsi_prep"),
    }
    assert going_up(allowed) == taken_by_training(allowed) == circles(allowed) == []


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_heavy_library_has_one_importer(library, graph):
    files = {module: path for path in sources() for module in [module_of(path)]}
    for module, names in graph.items():
        if within(module, "sample_slides") or not any(within(name, library) for name in names):
            continue
        file = str(files[module].relative_to(ROOT))
        assert any(file == allowed or file.startswith(allowed) for allowed in ONLY_IN[library] if allowed), file


@pytest.mark.parametrize("command", ["shards", "query", "interchange", "console", "verify", "forget", "plan"])
def test_commands_of_the_slide_stage_do_not_know_the_trainer(command, graph):
    assert not [n for n in graph[f"pipelines.{command}"] if within(n, "pretrain") or within(n, "torch")]


def test_what_training_shares_needs_no_slide_library(graph):
    for module, names in graph.items():
        if any(within(module, shared) for shared in SHARED_WITH_TRAINING):
            assert not [name for name in names for library in HEAVY if within(name, library)], module


def test_only_its_command_knows_how_the_stain_classifier_is_fitted(graph):
    fit = "wsi_prep.stain.fit"
    users = {m for m, names in graph.items() if not within(m, fit) and any(within(n, fit) for n in names)}
    assert users == {"pipelines.fit_stain"}


def test_the_contract_and_the_plan_are_pure(graph):
    assert {name.split(".")[0] for name in graph["wsi_prep.tiles.plan"]} <= PURE
    for module, names in graph.items():
        if within(module, "wsi_prep.format"):
            assert not names & {"os.open", "pathlib.Path", "shutil", "tempfile", "pyarrow.parquet"}, module


LIGHT = {
    "wsi_prep": {"numpy", "pyarrow"},
    "pretrain": {"numpy", "pyarrow"},
    "wsi_prep.curation.forget": set(),
    "wsi_prep.curation.disclosure": set(),
    "wsi_prep.curation.estimate": set(),
    "wsi_prep.output.query": set(),
    "wsi_prep.curation.exchange.coordinates": set(),
    "wsi_prep.curation.exchange.tars": set(),
    "pretrain.data.index": set(),
    "pipelines.forget": set(),
    "pipelines.query": set(),
    "wsi_prep.curation.verify.store": set(),
}
"""Modules, lightest first, and what besides the heavy libraries they do without; verify works on a cluster."""


def test_what_needs_no_heavy_library_loads_none():
    code = "import importlib, json, sys; seen = []\n"
    code += f"for name in {list(LIGHT)!r}: importlib.import_module(name); seen.append(sorted(sys.modules))\n"
    said = subprocess.run([sys.executable, "-c", code + "print(json.dumps(seen))"], capture_output=True, check=True)
    for (module, more), loaded in zip(LIGHT.items(), json.loads(said.stdout), strict=True):
        heavy = (HEAVY | {"numba", "zarr", "torch"} | more) - {"rich"}  # which every command shows its words by
        allowed = {"dask", "distributed"} if module.endswith("verify.store") else set()
        assert {name.split(".")[0] for name in loaded} & heavy <= allowed, module


def test_folders_and_files_stay_small():
    folders = {path.parent for path in sources()} - {ROOT / "pipelines"}  # which holds a file a command
    assert [folder for folder in folders if len(list(folder.glob("*.py"))) > MOST_FILES] == []
    assert [path for path in sources() if len(path.read_text().splitlines()) > 400] == []


def test_no_test_imports_a_test():
    for path in (ROOT / "tests").rglob("*.py"):
        names = imports_of(path.read_text())
        assert not [name for name in names if name.split(".")[-1].startswith("test_") and within(name, "tests")], path


MOST_ARGUMENTS = 6
MUST_TAKE_MORE = {
    "wsi_prep/slides/pyramid/resample.py: loop": "numba compiles it, and knows arrays alone",
    "wsi_prep/tiles/quality.py: loop": "likewise",
}
"""`file: function`, and why."""


def too_many_arguments(source: str) -> list[str]:
    """Names of the functions, wherever in the source, that take more than is good; self and cls do not count."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        taken = node.args
        names = [a.arg for a in (*taken.posonlyargs, *taken.args, *taken.kwonlyargs, taken.vararg, taken.kwarg) if a]
        if len([name for name in names if name not in ("self", "cls")]) > MOST_ARGUMENTS:
            found.append(getattr(node, "name", "lambda"))
    return found


def test_no_function_takes_more_than_six_arguments():
    files = [path for path in sources() if path.relative_to(ROOT).parts[0] != "sample_slides"]
    found = {f"{path.relative_to(ROOT)}: {name}" for path in files for name in too_many_arguments(path.read_text())}
    assert found == set(MUST_TAKE_MORE)


@pytest.mark.parametrize(
    "source",
    [
        "def f(a, b, c, d, e, f, g): ...",
        "def f(a, /, b, c, d, e, *, f, g): ...",
        "async def f(a, b, c, d, e, *f, **g): ...",
        "class C:\n    def m(self):\n        return lambda a, b, c, d, e, f, g: a",
    ],
)
def test_a_planted_seventh_argument_is_seen(source):
    assert too_many_arguments(source)


def test_self_and_cls_do_not_count():
    assert not too_many_arguments("def f(self, a, b, c, d, e, f): ...\ndef g(cls, a, b, c, *, d, e, f): ...")
