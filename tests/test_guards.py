"""Who may know whom: the map of /docs, kept true by walking the imports of every file."""

import ast
import os
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from smoke import SMOKE

import sae
import sae.dictionary.wiring
import sae.lm.hookpoints
from sae.runs import folder

PACKAGE = Path(sae.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
ROOT = PACKAGE.parent

MAY_KNOW = {
    # pure values and pure math at the bottom
    "config": set(),
    "moved": set(),
    "storage": set(),
    "ops": set(),
    "dictionary": {"config", "ops"},
    "formats": {"config", "dictionary", "storage"},
    # the edges: a model, data, files, other processes
    "lm": {"ops", "storage"},  # passes in C; what lies near a path
    "data": {"storage"},
    "activations": {"config", "data", "dictionary", "lm", "storage"},
    "runs": {"config", "dictionary", "formats", "storage"},
    "parallel": {"dictionary"},
    # what composes them
    "evaluation": {
        "activations", "config", "data", "dictionary", "formats", "lm", "ops", "runs", "storage",
    },
    "browser": {"activations", "config", "data", "dictionary", "lm", "ops", "runs", "storage"},
    "report": {"config", "evaluation", "runs", "storage"},  # files that are whole or not there
    "training": {
        "activations", "config", "data", "dictionary", "evaluation", "lm", "ops", "parallel", "report", "runs",
    },
    "__init__": {"config", "dictionary", "evaluation", "lm", "moved", "training"},
    "commands": {
        "activations", "browser", "config", "data", "dictionary", "evaluation", "formats", "lm", "ops", "parallel",
        "report", "runs", "storage", "training",
    },
    "__main__": {"commands", "parallel"},
}  # fmt: skip
"""Every room of the package, lowest first, and the rooms whose names may stand in its imports."""

FRONT_DOORS = {"data/__init__.py": {"activations"}, "dictionary/autoencoder.py": {"formats"}}
"""Rooms that a file opens, when it is asked, because users know it as their front door: `Sae.load_from_disk`."""

OWNERS = {
    "torch.distributed": {"parallel"},
    "triton": {"ops"},
    "transformers": {"lm"},
    "datasets": {"data"},
    "huggingface_hub": {"lm", "data", "formats"},
    "safetensors": {"formats", "runs"},
    "fsspec": {"data", "storage"},
    "wandb": {"runs"},
    "tqdm": {"runs"},
    "matplotlib": {"report"},
    "rich": {"report"},
    "starlette": {"browser"},
    "uvicorn": {"browser"},
    "tyro": {"commands"},
    "argparse": {"commands"},
    "bitsandbytes": set(),
    "peft": {"lm"},
    "gguf": {"lm"},
    "psutil": {"training"},
    "pickle": set(),
    "joblib": set(),
    "dill": set(),
}
"""Which rooms may import a library: its touch stays in one place."""

HEAVY = ("torch", "transformers", "datasets", "matplotlib", "wandb", "rich", "huggingface_hub", "safetensors")


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imports(path: Path, *, types: bool = True, inside_functions: bool = True) -> Iterator[str]:
    """Full names of what a file imports: `sae.lm.load_model` for `from sae.lm import load_model`."""
    waiting: list[ast.AST] = [tree_of(path)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{source_of(path, node)}.{alias.name}" for alias in node.names)
        elif is_for_types_only(node) and not types:
            waiting += node.orelse
        elif inside_functions or not isinstance(node, ast.FunctionDef):
            waiting += ast.iter_child_nodes(node)


def source_of(path: Path, node: ast.ImportFrom) -> str:
    if not node.level:
        return str(node.module)
    package = path.relative_to(PACKAGE.parent).parts[: -node.level]
    return ".".join([*package, node.module] if node.module else package)


def modules_of(path: Path, name: str) -> Path | None:
    """The file of ours that an imported name comes from."""
    parts = name.split(".")
    if parts[0] != "sae":
        return None
    for end in (len(parts), len(parts) - 1):
        module = PACKAGE.joinpath(*parts[1:end])
        for candidate in (module.with_suffix(".py"), module / "__init__.py"):
            if candidate.is_file() and module != PACKAGE:
                return candidate
    return PACKAGE / "__init__.py"


def rooms_known(path: Path) -> set[str]:
    found = {modules_of(path, name) for name in imports(path)}
    return {room_of(file) for file in found if file} - {room_of(path)} - FRONT_DOORS.get(relative(path), set())


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_a_file_knows_only_the_rooms_that_its_room_may_know(path: Path) -> None:
    assert rooms_known(path) <= MAY_KNOW[room_of(path)]


def test_the_table_names_each_room_once_lowest_first_and_allows_nothing_that_is_not_used() -> None:
    order = list(MAY_KNOW)
    assert {room_of(path) for path in FILES} == set(order)
    for room, known in MAY_KNOW.items():
        if room != "__init__":
            assert {order.index(name) for name in known} <= set(range(order.index(room)))
        assert known == {name for path in FILES if room_of(path) == room for name in rooms_known(path)}, room


def test_no_import_leads_back_to_where_it_started() -> None:
    graph = {path: {modules_of(path, name) for name in imports(path)} - {None, path} for path in FILES}
    # a package's front door repeats names of its own files
    done: set[Path] = set()
    while ready := {path for path in graph if path not in done and graph[path] <= done}:
        done |= ready
    assert not [relative(path) for path in graph if path not in done]


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_a_library_is_touched_only_in_the_rooms_that_own_it(path: Path) -> None:
    for name in imports(path, types=room_of(path) != "data"):
        for library, owners in OWNERS.items():
            if name == library or name.startswith(f"{library}."):
                assert room_of(path) in owners, name


def test_data_knows_transformers_by_its_types_only() -> None:
    for path in FILES:
        if room_of(path) == "data":
            assert not [name for name in imports(path, types=False) if name.split(".")[0] == "transformers"]


CONFIG = [path.relative_to(PACKAGE).as_posix() for path in (PACKAGE / "config").glob("*.py")]


@pytest.mark.parametrize("name", ["__init__.py", "__main__.py", "commands/parser.py", "commands/table.py", *CONFIG])
def test_what_help_needs_imports_no_heavy_library(name: str) -> None:
    loaded = set(imports(PACKAGE / name, types=False, inside_functions=False))
    assert not [one for one in loaded if one.startswith(HEAVY)]
    assert {modules_of(PACKAGE / name, one) for one in loaded} <= {
        None,
        PACKAGE / "commands/parser.py",
        PACKAGE / "commands/table.py",
        PACKAGE / "moved.py",
        *map(PACKAGE.joinpath, CONFIG),
    }


def test_the_package_says_its_version_and_that_it_is_typed() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())
    assert sae.__version__ == project["project"]["version"]
    assert (PACKAGE / "py.typed").is_file() and "py.typed" in project["tool"]["setuptools"]["package-data"]["sae"]
    assert f"version: {sae.__version__}" in (PACKAGE.parent / "CITATION.cff").read_text()


def test_every_file_of_the_package_is_installed_and_code_of_any_language_counts_as_its_version() -> None:
    installed = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    others = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    shipped = {
        path
        for package, patterns in installed.items()
        for pattern in patterns
        for path in PACKAGE.parent.joinpath(*package.split(".")).glob(pattern)
    }
    assert others == shipped
    assert {path.suffix for path in (PACKAGE / "ops/native").iterdir() if path.is_file()} - {".pyc"} <= folder._CODE


def test_importing_runs_no_statement_that_decides_something() -> None:
    """At the top of a file stand definitions, constants and imports: no call for its effect, no loop, no setting.

    But for the one that tells, for a release, where modules have moved.
    """
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    allowed = (ast.Import, ast.ImportFrom, *functions, ast.ClassDef, ast.Assign, ast.AnnAssign)
    for path in FILES:
        for node in tree_of(path).body:
            text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            is_main = isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
            is_signpost = relative(path) == "__init__.py" and ast.unparse(node) == "sys.meta_path.append(Signpost)"
            assert isinstance(node, allowed) or text or is_main or is_signpost or is_for_types_only(node), (
                f"{relative(path)}:{node.lineno}"
            )


def docstrings() -> Iterator[tuple[str, str]]:
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            for each in getattr(node, "body", []) if isinstance(getattr(node, "body", []), list) else []:
                if isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant):
                    yield f"{relative(path)}:{each.lineno}", str(each.value.value)


def test_a_docstring_begins_with_what_the_thing_is() -> None:
    """The noun first: "Type of the activations.", not "Of the activations."."""
    dangling = (
        "Of ", "Of\n", "Those ", "That ", "To be ", "By ", "As of ", "On which ", "In which ", "So many ", "How much ",
        "What is ", "What was ", "What it ", "What of ",
    )  # fmt: skip
    assert not [place for place, text in docstrings() if text.startswith(dangling)]
    assert not [place for place, text in docstrings() if " of now" in text]


def sentences_of(docstring: str) -> Iterator[str]:
    """The sentences of a docstring, without formulas, tables of files, and the names in front of arguments."""
    text = "\n".join("" if re.search(r"\S {2,}\S|^ {3,}\S.*=", line) else line for line in docstring.splitlines())
    paragraphs = re.split(r"\n\s*\n|\n\s*(?:- |\d+\. )|(?:^|\n)\s*[\w.]+:(?=\s)", text)
    for paragraph in paragraphs:
        yield from re.split(r"(?<=[.?!])\s+", " ".join(paragraph.split()))


def test_sentences_of_docstrings_are_short() -> None:
    """25 words at most, and as many in parentheses; a list of code is one word."""
    for place, text in docstrings():
        for sentence in sentences_of(text):
            plain = re.sub(r"`[^`]*`(, `[^`]*`)*", "x", sentence)
            for part in [re.sub(r"\([^)]*\)", "", plain), *re.findall(r"\([^)]*\)", plain)]:
                number = sum(bool(re.search(r"\w", word)) for word in part.split())
                assert number <= 25, f"{place} has {number} words: {sentence}"


def documented() -> Iterator[tuple[str, ast.FunctionDef]]:
    """The functions and methods that docs/reference shows."""
    pattern = r"^::: (sae\.[\w.]+)\.(\w+)$(?:\n    options:\n      members: \[(.*)\])?"
    for page in sorted((ROOT / "docs/reference").glob("*.md")):
        for module, name, members in re.findall(pattern, page.read_text(), re.MULTILINE):
            tree = tree_of(PACKAGE.parent / (module.replace(".", "/") + ".py"))
            (thing,) = (each for each in tree.body if getattr(each, "name", "") == name)
            for node in [thing, *getattr(thing, "body", [])]:
                shown = not members or node is thing or getattr(node, "name", "") in members.split(", ")
                if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) and shown:
                    yield f"{module}.{name}: {node.name}", node


def test_rooms_that_may_not_share_how_a_pair_is_written_write_it_alike() -> None:
    assert sae.dictionary.wiring.ARROW == sae.lm.hookpoints.ARROW


def test_what_the_reference_shows_explains_each_of_several_arguments_and_its_result() -> None:
    found = list(documented())
    assert len(found) > 60
    for name, node in found:
        text = ast.get_docstring(node) or ""
        arguments = [each.arg for each in [*node.args.args, *node.args.kwonlyargs] if each.arg not in ("self", "cls")]
        if len(arguments) > 1:
            missing = [each for each in arguments if f"\n    {each}: " not in text]
            assert not missing, f"{name} leaves out {missing}"
            returns = node.returns is None or ast.unparse(node.returns) == "None"
            assert returns or re.search(r"\n(Returns|Yields):\n", text), name


def test_types_are_checked_strictly_most_where_users_import() -> None:
    """mypy is strict everywhere, also on what a user writes; what the reference shows hands out no Any either."""
    mypy = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    assert mypy["strict"] and mypy["files"] == ["sae", "tests/documents/typed_user.py"]
    (strictest,) = [set(each["module"]) for each in mypy["overrides"] if each["warn_return_any"]]
    pages = [page.read_text() for page in (ROOT / "docs/reference").glob("*.md")]
    shown = {module for page in pages for module in re.findall(r"^::: (sae\.[\w.]+)\.\w+$", page, re.MULTILINE)}
    assert shown and shown <= strictest, shown - strictest


def calls() -> Iterator[tuple[str, ast.Call]]:
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call):
                yield f"{relative(path)}:{node.lineno} {ast.unparse(node)[:80]}", node


def test_nothing_is_unpickled() -> None:
    for place, call in calls():
        name = ast.unparse(call.func)
        safe = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in call.keywords)
        assert name not in ("torch.load", "pickle.load", "pickle.loads") or safe, place
        given = {k.arg: ast.unparse(k.value) for k in call.keywords}
        assert given.get("allow_pickle", "False") == "False", place


def test_code_that_comes_with_a_model_or_data_is_never_run() -> None:
    for place, call in calls():
        given = {k.arg: ast.unparse(k.value) for k in call.keywords}
        assert given.get("trust_remote_code", "False") == "False", place
        assert ast.unparse(call.func) not in ("eval", "exec", "os.system"), place
        assert given.get("shell", "False") == "False", place
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Dict):
                pairs = {ast.unparse(k): ast.unparse(v) for k, v in zip(node.keys, node.values, strict=True) if k}
                assert pairs.get("'trust_remote_code'", "False") == "False", relative(path)


def test_no_precision_is_decided_in_secret() -> None:
    """One visible policy: no autocast, no global default type, no switch for the whole process.

    One place puts aside what a program around has switched.
    """
    forbidden = ("autocast", "set_default_dtype", "set_float32_matmul_precision", "set_num_threads", "manual_seed_all")
    for place, call in calls():
        name = ast.unparse(call.func)
        is_forbidden = name.endswith(forbidden) or name == "torch.manual_seed"
        assert not is_forbidden or place.startswith("ops/defaults.py:"), place


def test_only_the_command_line_reads_arguments_and_ends_the_process() -> None:
    for path in FILES:
        if relative(path) in ("__main__.py", "runs/folder.py"):  # which writes the command into config.json
            continue
        for node in ast.walk(tree_of(path)):
            assert not (isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.argv", "sys.exit", "os._exit"))
            assert not (isinstance(node, ast.Name) and node.id in ("exit", "quit", "input", "breakpoint"))


def test_only_the_report_prints() -> None:
    printing = {place.split(":")[0] for place, call in calls() if ast.unparse(call.func) == "print"}
    assert printing <= {
        "report/training.py",
        "report/evaluation.py",
        "report/selftest.py",
        "report/folder.py",
        "commands/browse.py",
        "commands/cache.py",
        "commands/convert.py",
        "commands/push.py",
        "__main__.py",
    }


def test_no_test_file_imports_another() -> None:
    """Helpers are in tests/support, also those of programs that a test starts."""
    for path in (ROOT / "tests").rglob("*.py"):
        found = re.findall(r"^ *(?:from|import) (?:test_|conftest\b).*", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert not found, f"{path.relative_to(ROOT)}: {found}"


def pages_in(room: str) -> list[Path]:
    """The pages and programs of a room, but not those of peers' environments, which lie in a hidden folder of one."""
    found: list[Path] = []
    for parent, folders, files in os.walk(ROOT / room):
        folders[:] = [folder for folder in folders if not folder.startswith(".")]  # one may be made at the moment
        found += [Path(parent) / file for file in files if file.endswith((".md", ".py"))]
    return found


def named_tests() -> Iterator[tuple[str, str, str]]:
    """Page, file and function of each test that a page names; `…::test_other` is in the file named before."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("*.sh"), *ROOT.glob(".ci/*"), ROOT / ".pre-commit-config.yaml"]
    pages += [page for room in ("docs", "benchmarks", "findings", "sae") for page in pages_in(room)]
    for page in pages:
        file = ""
        for named, test in re.findall(
            r"(?<![\w/])(tests/[\w/.]*\w|…(?=::))(?:::(\w+))?", page.read_text(encoding="utf-8")
        ):
            file = file if named == "…" else named
            yield page.relative_to(ROOT).as_posix(), file, test


def test_every_benchmark_that_a_page_names_can_be_run() -> None:
    """Benchmarks are modules, run as `python -m benchmarks.…`; no page says another way."""
    pages = [*ROOT.glob("*.md"), *pages_in("docs"), *pages_in("benchmarks")]
    named = set()
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"python3?\s+benchmarks/", text), page.relative_to(ROOT).as_posix()
        named |= set(re.findall(r"python -m\s+(benchmarks[\w.]*\w)", text))
    assert len(named) > 15
    for name in named:
        path = ROOT.joinpath(*name.split("."))
        file = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
        assert '__name__ == "__main__"' in file.read_text(encoding="utf-8"), name


def test_every_test_that_a_page_names_is_there() -> None:
    found = set(named_tests())
    assert {page for page, _, _ in found} > {"CONTRIBUTING.md", "docs/reliability.md"}
    for page, file, test in found:
        assert (ROOT / file).exists(), f"{page}: {file}"
        assert not test or f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), f"{page}: {file}::{test}"


def test_the_smoke_selection_has_a_test_of_every_room() -> None:
    assert set(SMOKE) == set(MAY_KNOW)
    for name in (name for of_room in SMOKE.values() for name in of_room):
        file, test = name.split("[")[0].split("::")
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), name
