"""The house: floors import downwards only, the schema is generated, the wheel holds what it should."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ("caffe_weights", "surgery", "reproduce", "benchmarks")
LIGHT = {"caffe_weights", "surgery"}
HEAVY = {"torch", "matplotlib", "scipy", "cv2"}


def modules(package: str) -> list[Path]:
    return [path for path in sorted((ROOT / package).rglob("*.py")) if path.name != "caffe_pb2.py"]


def imports(path: Path, inside_functions: bool) -> set[str]:
    """Top-level names imported at module level, or anywhere."""
    tree = ast.parse(path.read_text())
    lazy = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    names = set()
    for node in ast.walk(tree):
        if id(node) in lazy and not inside_functions:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", FLOORS)
def test_a_floor_imports_only_floors_below(package: str) -> None:
    above = set(FLOORS[FLOORS.index(package) + 1 :]) | {"tests"}
    assert modules(package)
    for path in modules(package):
        assert not imports(path, inside_functions=True) & above, path


@pytest.mark.parametrize("package", sorted(LIGHT))
def test_the_lower_floors_import_no_heavy_library(package: str) -> None:
    for path in modules(package):
        assert not imports(path, inside_functions=False) & HEAVY, path
    allowed = {ROOT / "caffe_weights/torch_file.py"}
    lazy = {path for path in modules(package) if "torch" in imports(path, inside_functions=True)}
    assert lazy <= allowed


def test_no_relative_imports_hide_from_the_walk() -> None:
    for package in FLOORS:
        for path in modules(package):
            tree = ast.parse(path.read_text())
            assert not any(isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(tree)), path


@pytest.mark.parametrize("package", ["caffe_weights.export", "surgery.shapes", "reproduce.cli"])
def test_importing_brings_in_no_torch(package: str) -> None:
    code = f"import sys, {package}; print([m for m in {sorted(HEAVY)} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_the_schema_modules_are_generated_from_the_schema(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="regenerating needs grpcio-tools")
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", f"--python_out={tmp_path}"]
    subprocess.run([*command, f"--pyi_out={tmp_path}", "caffe_weights/caffe.proto"], check=True, cwd=ROOT)
    for name in ("caffe_pb2.py", "caffe_pb2.pyi"):
        generated = (tmp_path / "caffe_weights" / name).read_text()
        assert generated == (ROOT / "caffe_weights" / name).read_text(), f"{name} is stale: run make proto"


def test_no_path_of_a_machine_and_no_package_host_is_tracked() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    hosts = ("pypi" + ".org", "pythonhosted" + ".org", "registry.npmjs" + ".org")
    pattern = re.compile("|".join([r"/work/" + "main", r"/home/\w+/", *map(re.escape, hosts)]))
    texts = [
        ROOT / name for name in listed.stdout.split("\n") if name.endswith((".py", ".md", ".toml", ".txt"))
    ]
    assert texts
    for path in texts:
        assert not pattern.search(path.read_text()), path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources with the installed setuptools (no network)."""
    pytest.importorskip("build", reason="building a wheel needs the package build")
    copy = tmp_path_factory.mktemp("sources")
    tracked = [ROOT / name for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE")]
    tracked += [path for package in FLOORS[:3] for path in (ROOT / package).rglob("*") if path.is_file()]
    for path in tracked:
        if "__pycache__" not in path.parts:
            target = copy / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return next(out.glob("*.whl"))


def test_the_wheel_holds_three_packages_and_their_data(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"caffe_weights", "surgery", "reproduce"}
    packaged = {name for name in names if name.endswith(".py")}
    for package in tops:
        missing = {str(path.relative_to(ROOT)) for path in modules(package)} - packaged
        assert not missing, "name the package in setup.py"
    assert "caffe_weights/caffe.proto" in names
    models = [entry for entry in zipfile.ZipFile(wheel).infolist() if ".caffemodel" in entry.filename]
    assert len(models) == 4
    assert sum(entry.file_size for entry in models) < 3_200_000
    assert sum(entry.file_size for entry in zipfile.ZipFile(wheel).infolist()) < 6_500_000


def test_the_installed_wheel_runs_elsewhere(wheel: Path, tmp_path: Path) -> None:
    """Installed without dependencies into a new environment that borrows the packages of this one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "env")], check=True)
    python = tmp_path / "env" / "bin" / "python"
    target = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--no-deps",
        str(wheel),
    ]
    subprocess.run(install, check=True)
    Path(target, "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    for script in ("fcn", "convert-weights"):
        done = subprocess.run([tmp_path / "env/bin" / script, "--help"], cwd=elsewhere, env=environment,
                              capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "Usage" in done.stdout
    where = "import caffe_weights, surgery, reproduce; print(caffe_weights.__file__, reproduce.__file__)"
    done = subprocess.run(
        [python, "-c", where], cwd=elsewhere, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.count(str(tmp_path / "env")) == 2
