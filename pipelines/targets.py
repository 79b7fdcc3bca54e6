"""Every target of the Makefile: what it does, the command that does it, and the variables that it takes."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from pipelines.calls import slides, training
from pipelines.calls.base import command_name, declared
from pipelines.calls.shards import ShardsCall

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
    """One target: `module` is run with the options of its variables; `needs` must be said.

    A target with a `call` is a command of `mixmag` too.
    """

    name: str
    about: str
    module: str = ""
    variables: tuple[Variable, ...] = ()
    needs: tuple[str, ...] = ()
    call: type | None = None

    @property
    def for_training(self) -> bool:
        """Whether it needs what only training needs."""
        return self.call is not None and self.call.__module__ == training.__name__ and self.name != "fit-stain"

    def variable(self, name: str) -> Variable | None:
        """The variable of that name, if the target takes it."""
        return next((each for each in self.variables if each.name == name), None)


_ARGS = Variable("ARGS", "")
_OUT = Variable("OUT", "", example="shards")


def _command(call: type, module: str = "") -> Target:
    """The target of a command: each of the call's options is a variable."""
    name = command_name(call)
    about = (inspect.getdoc(call) or "").partition("\n")[0].removesuffix(".")
    options = declared(call)
    variables = []
    for each in options:
        kind = FLAG if each.kind is bool else TEXT if not each.is_list else WORDS if each.says.words else PATHS
        variables.append(Variable(each.variable, each.option, kind, each.says.example, each.says.cohort))
    names = [each.name for each in variables]
    for reads in ("SHARDS", "SAMPLE"):  # what make shards has made, by the name that it had there
        if reads in names and "OUT" not in names:
            variables.insert(names.index(reads) + 1, _OUT)
    needs = tuple(each.variable for each in options if each.required and call is not ShardsCall)
    return Target(name, about, f"pipelines.{module or name.replace('-', '_')}", (*variables, _ARGS), needs, call)


_COMMANDS = (
    _command(ShardsCall),
    _command(slides.PlanCall),
    _command(slides.StatusCall),
    _command(slides.VerifyCall),
    _command(slides.ForgetCall),
    _command(slides.AuditCall),
    _command(slides.PrivacyCall),
    _command(slides.QueryCall),
    _command(slides.InterchangeCall),
    _command(training.PeekCall),
    _command(training.PretrainCall, "train"),
    _command(training.DistillCall),
    _command(training.PlanTrainCall),
    _command(training.RecipeCall),
    _command(training.CurvesCall),
    _command(training.EvaluateCall),
    _command(training.EvaluateSlidesCall),
    _command(training.ExportCall),
    _command(training.EmbedCall),
    _command(training.FitStainCall),
    _command(slides.SamplesCall),
)

_DEVELOPING = (
    Target(
        "bench",
        "Measure speed, against limits measured in the same run",
        "tests.benchmarks",
        (
            Variable("BENCH", "", example="feed"),
            _OUT,
            Variable("ARGS", "", example="\"--quick | --only 'local scale'\""),
        ),
    ),
    Target(
        "fuzz",
        "Break slides in every way, and see what the pipeline makes of them",
        "tests.fuzz",
        (
            Variable("SECONDS", "--seconds", example="600"),
            Variable("ARGS", "", example='"--seed 0 --limit-mb 1500 --keep folder"'),
        ),
    ),
    Target(
        "soak",
        "Disturb runs on a cluster for hours, and see that nothing is lost, doubled or wrong",
        "tests.soak",
        (
            Variable("HOURS", "--hours", example="1"),
            Variable("SEED", "--seed", example="0"),
            Variable("WORKERS", "--workers", example="2"),
            Variable("OUT", "--out", example="folder"),
            Variable("ARGS", "", example='"--round-seconds 300 --slides 60 30 --keep"'),
        ),
    ),
    Target(
        "evaluate-tissue",
        "Compare outlines with reference masks, and look for ink, on your own overviews of slides",
        "tests.benchmarks.tissue",
        (
            Variable("PICTURES", "--pictures", example="folder"),
            Variable("ARGS", "", example='"--quick | --draw folder"'),
        ),
        ("PICTURES",),
    ),
    Target("test", "Run the tests, all but a few long ones, after ruff and mypy", "pytest", (_ARGS,)),
    Target("test-long", "Run the few long tests that make test leaves out, after ruff and mypy", "pytest", (_ARGS,)),
    Target("test-fast", "Run the tests that take seconds, after ruff and mypy: some 2.5 minutes", "pytest", (_ARGS,)),
    Target("check", "Run typos, ruff and mypy alone"),
    Target("docs", "Build the documents as a site in the folder site/", "mkdocs", (_ARGS,)),
    Target("clean", "Remove the environment, the sample slides' pictures and the folders shards/ and site/"),
)

TARGETS = {target.name: target for target in (Target("help", "List the targets"), *_COMMANDS, *_DEVELOPING)}
"""By their names, in the order in which `make help` shows them."""

COMMANDS = {target.name: target for target in _COMMANDS}
"""Those that are commands of `mixmag` too."""
