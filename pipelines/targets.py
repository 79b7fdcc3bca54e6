"""Every target of the Makefile: what it does, the command that does it, and the variables that it takes."""

from __future__ import annotations

from dataclasses import dataclass

TEXT, FLAG, WORDS, PATHS = "text", "flag", "words", "paths"
"""What a variable holds: a text as it stands; yes or no; a list; a list of which a word may be a glob."""

ALWAYS = ("PYTHON", "VENV", "SHELL")
"""Variables of the Makefile itself, and of make, that every target takes."""


@dataclass(frozen=True)
class Variable:
    """One variable of a target: `option` is what it is to the command, or "" where the target's plan reads it itself.

    `example` is shown behind its name by `make help`. With `cohort`, it says something of slides of the user's, so
    that sample slides cannot be what is meant.
    """

    name: str
    option: str
    kind: str = TEXT
    example: str = ""
    cohort: bool = False

    def shown(self) -> str:
        """As in `make help`: SLIDES=, REDO=1, SHARDS="folder ..."."""
        return f"{self.name}={self.example or ('1' if self.kind == FLAG else '')}"


@dataclass(frozen=True)
class Target:
    """One target: `module` is run with the options of its variables; `needs` must be said."""

    name: str
    about: str
    module: str = ""
    variables: tuple[Variable, ...] = ()
    needs: tuple[str, ...] = ()

    def variable(self, name: str) -> Variable | None:
        """The variable of that name, if the target takes it."""
        return next((each for each in self.variables if each.name == name), None)


def _shards(example: str = '"folder ..."', kind: str = PATHS) -> tuple[Variable, ...]:
    return (Variable("SHARDS", "--shards", kind, example), Variable("OUT", "", example="shards"))


_ARGS = Variable("ARGS", "")
_WORKERS = Variable("WORKERS", "--workers")
_TAKE_OVER = Variable("TAKE_OVER", "--take-over", FLAG)
_YES = Variable("YES", "--yes", FLAG)
_WHERE = Variable("WHERE", "--where", example="\"stain = 'HE'\"", cohort=True)
_TIME_LIMIT = Variable("TIME_LIMIT", "--time-limit", example="seconds")
_PNG = Variable("PNG", "--out")

SHARDS = Target(
    "shards",
    "slides to tile stores",
    "pipelines.shards",
    (
        Variable("SLIDES", "--slides"),
        Variable("OUT", "--out", example="shards"),
        Variable("MANIFEST", "--manifest", cohort=True),
        Variable("MASKS", "--masks", cohort=True),
        Variable("MAGS", "--mags"),
        Variable("MAX_TILES", "--max-tiles"),
        Variable("FILTER", "--filter", example='"focus@40x>=0.2 pen<=0.02"'),
        _WORKERS,
        Variable("SCHEDULER", "--scheduler"),
        Variable("TLS_CA", "--tls-ca"),
        Variable("TLS_CERT", "--tls-cert"),
        Variable("TLS_KEY", "--tls-key"),
        Variable("CLUSTER", "--cluster", example="slurm"),
        Variable("CLUSTER_CONFIG", "--cluster-config"),
        Variable("DASHBOARD", "--dashboard", FLAG),
        Variable("LOG", "--log"),
        Variable("REDO", "--redo", FLAG),
        Variable("ASSUME_MPP", "--assume-mpp", cohort=True),
        Variable("PATIENT_KEY", "--patient-key", cohort=True),
        Variable("ID_ROOT", "--id-root", cohort=True),
        Variable("TIME_LIMIT", "--time-limit"),
        Variable("PRIVATE", "--private", FLAG, cohort=True),
        Variable("ID_KEY", "--id-key", cohort=True),
        Variable("NAMES", "--names", cohort=True),
        Variable("INSTITUTION_PATTERN", "--institution-pattern", cohort=True),
        Variable("CACHE", "--cache"),
        Variable("CACHE_GB", "--cache-gb"),
        Variable("FORGOTTEN_LOST", "--forgotten-lost", FLAG),
        _TAKE_OVER,
        _ARGS,
    ),
)

_TRAINING = (
    *_shards(),
    Variable("RECIPE", "--recipe"),
    Variable("RUN", "--folder", example="folder"),
    Variable("GPUS", ""),
    Variable("NODES", "", cohort=True),
    Variable("HEAD", "", example="host:port", cohort=True),
    Variable("STOP_AT", "--stop-at"),
    _WHERE,
    _TIME_LIMIT,
    Variable("PROBE", "--probe", PATHS, '"tiles.parquet ..."', cohort=True),
    Variable("SET", "--set", WORDS, '"schedule.rate=0.002 ..."'),
    _ARGS,
)

TARGETS = {
    target.name: target
    for target in (
        Target("help", "list the targets"),
        SHARDS,
        Target(
            "plan",
            "what a cohort's shards will take",
            "pipelines.plan",
            (
                Variable("SLIDES", "--slides", example="number"),
                Variable("SAMPLE", "--sample", example="folder"),
                Variable("OUT", "", example="shards"),
                _WORKERS,
                Variable("TO", "--to", example="plan.json"),
                Variable("ARGS", "", example='"--slide-gb 1.2 --core-hour 0.05 ..."'),
            ),
            needs=("SLIDES",),
        ),
        Target(
            "verify",
            "every row, file and tile of shards",
            "pipelines.verify",
            (*_shards(), Variable("REPAIR", "--repair", FLAG), _YES, _WORKERS, _TAKE_OVER, _ARGS),
        ),
        Target(
            "forget",
            "delete a patient's slides for good",
            "pipelines.forget",
            (
                Variable("PATIENT", "--patient", example="id"),
                Variable("PATIENT_KEY", "--patient-key", example="file"),
                *_shards(),
                Variable("SLIDE", "--slide", WORDS, '"slide_id ..."'),
                Variable("NAMES", "--names"),
                Variable("DRY", "--dry", FLAG),
                _YES,
                _TAKE_OVER,
                _ARGS,
            ),
        ),
        Target(
            "audit",
            "what shards hold, as one HTML page",
            "pipelines.audit",
            (
                *_shards(),
                Variable("TO", "--to", example="audit.html"),
                Variable("ARGS", "", example='"--gallery 60 --tiles 4"'),
            ),
        ),
        Target(
            "privacy",
            "every text and kind of file in shards, before they leave the house",
            "pipelines.privacy",
            (*_shards(), Variable("TO", "--to", example="texts.csv"), _ARGS),
        ),
        Target(
            "query",
            "a question to the catalog",
            "pipelines.query",
            (
                Variable("SQL", "--sql", example='"SELECT ... FROM slides, tiles"'),
                *_shards(),
                Variable("TO", "--to", example="file.csv|file.parquet"),
                _TIME_LIMIT,
                _ARGS,
            ),
            needs=("SQL",),
        ),
        Target(
            "interchange",
            "for other tools",
            "pipelines.interchange",
            (
                Variable("KIND", "--kind", example="qupath|trident|clam|webdataset"),
                *_shards("folder", TEXT),
                Variable("TO", "--to", example="folder"),
                _WHERE,
                _TIME_LIMIT,
                _ARGS,
            ),
            needs=("KIND", "TO"),
        ),
        Target(
            "peek",
            "a picture of what the trainer sees",
            "pipelines.peek",
            (*_shards('"folder or URL ..."'), _WHERE, _TIME_LIMIT, _PNG, _ARGS),
        ),
        Target("pretrain", "train, and go on where RUN stands", "pipelines.train", _TRAINING),
        Target(
            "distill",
            "train a small ViT from a frozen one, with all that pretrain takes",
            "pipelines.train",
            (Variable("TEACHER", "", example="run|folder", cohort=True), *_TRAINING),
            needs=("TEACHER",),
        ),
        Target(
            "recipe",
            "show a recipe with every setting's name",
            "pipelines.recipe",
            (
                Variable("RECIPE", "--recipe", example="debug"),
                Variable("SET", "--set", WORDS, '"schedule.rate=0.002 ..."'),
                _ARGS,
            ),
        ),
        Target(
            "curves",
            "the curves of runs as one picture",
            "pipelines.curves",
            (Variable("MODEL", "--runs", PATHS, '"run ..."'), _PNG, _ARGS),
            needs=("MODEL",),
        ),
        Target(
            "evaluate",
            "judge on labelled tiles",
            "pipelines.evaluate",
            (
                Variable("MODEL", "--models", PATHS, '"run, folder of weights, or timm\'s name ..."'),
                Variable("TASKS", "--tasks", PATHS, '"pcam:/data/pcam tiles.parquet:labels ..."'),
                Variable("LIKE", "--like", example="model"),
                Variable("GROUP_PATTERN", "--group-pattern"),
                Variable("TO", "--to", example="folder"),
                _ARGS,
            ),
            needs=("MODEL", "TASKS"),
        ),
        Target(
            "export",
            "a run as a folder that timm loads",
            "pipelines.export",
            (
                Variable("RUN", "--folder"),
                Variable("TO", "--to", example="folder"),
                Variable("LICENCE", "--licence"),
                _ARGS,
            ),
            needs=("RUN", "TO"),
        ),
        Target(
            "embed",
            "features of every tile, as Parquet and h5",
            "pipelines.embed",
            (
                Variable("MODEL", "--model", example='"run, or exported folder"'),
                *_shards(),
                Variable("TO", "--to", example="folder"),
                _WHERE,
                _TIME_LIMIT,
                Variable("PX", "--px"),
                Variable("REDO", "--redo", FLAG),
                _ARGS,
            ),
            needs=("MODEL", "TO"),
        ),
        Target(
            "fit-stain",
            "fit the stain classifier anew",
            "pipelines.fit_stain",
            (
                Variable("TILES", "--tiles", PATHS, '"tiles.parquet ..."'),
                Variable("SLIDES", "--slides", example="folder"),
                Variable("TO", "--to", example="file"),
                _ARGS,
            ),
        ),
        Target(
            "bench",
            "speed, against limits measured in the same run",
            "tests.benchmarks",
            (
                Variable("BENCH", "", example="feed"),
                Variable("OUT", "", example="shards"),
                Variable("ARGS", "", example="\"--quick | --only 'local scale'\""),
            ),
        ),
        Target(
            "fuzz",
            "slides broken in every way",
            "tests.fuzz",
            (
                Variable("SECONDS", "--seconds", example="600"),
                Variable("ARGS", "", example='"--seed 0 --limit-mb 1500 --keep folder"'),
            ),
        ),
        Target("test", "every test, after ruff and mypy", "pytest", (_ARGS,)),
        Target("test-fast", "the tests that take seconds, after ruff and mypy: in under 2 minutes", "pytest", (_ARGS,)),
        Target("check", "ruff and mypy alone"),
        Target("samples", "make the sample slides", "sample_slides.make", (_ARGS,)),
        Target("clean", "remove the environment, the sample slides' pictures and the folder shards/"),
    )
}
