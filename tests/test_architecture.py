"""The shape of the code base: who may import whom, how long a file may get, what may never be written into it."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"

# From the bottom up. A part imports parts of its own floor or lower ones, never of a higher one, never in a circle.
FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "paths", "wording"}),
    frozenset({"registry", "cache", "hidden_cache", "operations", "settings", "progress", "record", "task", "world"}),
    frozenset({"functional", "backbones", "data", "state"}),
    frozenset({"adapters", "heads", "objectives"}),
    frozenset({"adapted", "depths", "methods", "network", "observing"}),
    frozenset({"assembly", "collector", "export", "feeds", "passing", "prefixes", "training"}),
    frozenset(
        [
            "acceptance",
            "announce",
            "channels",
            "costs",
            "evaluation",
            "fitting",
            "history",
            "kinds",
            "learned",
            "learner",
            "mask_evaluation",
            "measuring",
            "packing",
            "preparation",
            "probes",
            "repair",
            "repair_correction",
            "repair_draft",
            "repair_names",
            "repair_record",
            "repair_steps",
            "repair_sums",
            "rounds",
        ]
    ),
    frozenset({"bench", "report", "serve"}),
    frozenset({"cli"}),
    frozenset({"__init__", "__main__"}),
)
FLOOR_OF = {part: floor for floor, parts in enumerate(FLOORS) for part in parts}

FILES = sorted(SOURCE.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {module_name(path): path for path in FILES}


def part_of(module: str) -> str:
    """``data`` for ``sapwood.data.decode``; ``__init__`` for ``sapwood`` itself."""
    names = module.split(".")
    return names[1] if len(names) > 1 else "__init__"


def imported(path: Path) -> Iterator[str]:
    """Modules of sapwood that a file imports, anywhere in it: lazy and type-checking imports and import_module too."""
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] == "sapwood")
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            if base.split(".")[0] == "sapwood":
                for name in node.names:
                    if (base, name.name) == ("sapwood", "__version__"):  # a constant, not a part
                        continue
                    whole = f"{base}.{name.name}"
                    yield whole if whole in MODULES else base
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
            texts = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
            yield from (text for text in texts if isinstance(text, str) and text.startswith("sapwood"))


def test_every_part_has_a_floor() -> None:
    parts = {part_of(module) for module in MODULES}
    assert parts <= FLOOR_OF.keys(), f"give these a floor in FLOORS: {sorted(parts - FLOOR_OF.keys())}"


def test_imports_run_downwards() -> None:
    faults = [
        f"{module} imports {target}"
        for module, path in MODULES.items()
        for target in sorted(set(imported(path)))
        if FLOOR_OF[part_of(target)] > FLOOR_OF[part_of(module)]
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("level", [part_of, str], ids=["parts", "modules"])
def test_no_circle(level: Callable[[str], str]) -> None:
    graph: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        if module != "sapwood":  # its public names are imported when they are first asked for
            targets = {level(name) for name in imported(path) if name in MODULES}
            graph.setdefault(level(module), set()).update(targets - {level(module)})
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def test_the_check_sees_every_form_of_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "sapwood" / "data"
    package.mkdir(parents=True)
    file = package / "bad.py"
    file.write_text(
        "from ..learner import Learner\n"
        "def lazy():\n"
        "    import sapwood.cli\n"
        "    from importlib import import_module\n"
        "    import_module('sapwood.training')\n"
        "    from . import decode\n"
    )
    monkeypatch.setitem(globals(), "SOURCE", tmp_path)
    monkeypatch.setitem(MODULES, "sapwood.data.decode", package / "decode.py")
    assert sorted(imported(file)) == ["sapwood.cli", "sapwood.data.decode", "sapwood.learner", "sapwood.training"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_stay_short(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 300, f"{lines} lines: look for the second idea in it"


def project_files() -> list[Path]:
    """Files under version control and new ones that are not ignored; without git, everything that is not hidden."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode == 0:
        return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    return [path for path in ROOT.rglob("*") if path.is_file() and not path.relative_to(ROOT).parts[0].startswith(".")]


# Put together from halves: this file is searched too.
FORBIDDEN = {
    "a path of somebody's machine": [r"(?<![\w.}*])/" + name + r"(?=/)" for name in ("work", "root", "farm", "Users")]
    + [r"(?<![\w.}*])/" + "home/" + r"\w", r"(?<![\w.}*])/" + "tmp/" + r"dev\b", r"(?<![\w.}*])/" + "opt/" + r"\w"],
    "a host of a package registry": [r"py" + r"pi\.org", r"python" + r"hosted", r"download\.py" + r"torch\.org"],
    "how it was made": [
        r"\b" + word + r"\b" for word in ("clau" + "de", "anthro" + "pic", "chat" + "gpt", "copi" + "lot")
    ],
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_nothing_that_does_not_belong_here(what: str) -> None:
    pattern = re.compile("|".join(FORBIDDEN[what]), re.IGNORECASE)
    faults = []
    for path in project_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if found := pattern.search(line):
                faults.append(f"{path.relative_to(ROOT)}:{number}: {found.group()}")
    assert not faults, f"{what}:\n" + "\n".join(faults[:20])


@pytest.mark.parametrize(
    ("arguments", "limit"),
    [(["-c", "import sapwood"], 0.3), (["-m", "sapwood", "--help"], 0.5)],
    ids=["import sapwood", "sapwood --help"],
)
def test_starts_fast(arguments: list[str], limit: float) -> None:
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], env=environment, check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
        if seconds[-1] <= limit:
            return
    pytest.fail(f"best of five: {min(seconds):.2f} s, allowed {limit} s")


@pytest.mark.parametrize("module", ["sapwood", "sapwood.errors", "sapwood.registry", "sapwood.cache", "sapwood.cli"])
def test_light_modules_leave_torch_alone(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'transformers', 'matplotlib'}} & sys.modules.keys()))"
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
