"""Nothing in the packages unpickles, evaluates text, or gives a string to a shell."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("edgeface", "distill", "quantize", "targets")

# Calls that make objects or code of what they read.
FORBIDDEN = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open", "joblib.load"),
    *("subprocess.getoutput", "subprocess.getstatusoutput", "dill.load", "dill.loads", "cloudpickle.load"),
    *("pandas.read_pickle", "pd.read_pickle", "torch.jit.load", "tarfile.open.extractall", "pty.spawn"),
    *("asyncio.create_subprocess_shell", "runpy.run_path", "torch.package.PackageImporter"),
}
# Programs are started by a list of arguments: a string is one program's name at best, and a shell's words at worst.
STARTERS = {f"subprocess.{name}" for name in ("run", "Popen", "call", "check_call", "check_output")}
MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml", "jsonpickle", "pty"}
# Names by which a forbidden call could come in under another name: module to what may not be imported from it.
FROM = {"os": {"system", "popen"}, "subprocess": {"getoutput", "getstatusoutput"}, "builtins": {"eval", "exec"}}
# pretrained.py names the error that torch.load raises.
NAMES_ONLY = {"edgeface/models/pretrained.py": {"pickle"}}


def faults(source: str, *, file: str) -> list[str]:
    """Lines that read a hostile file as objects, code or commands."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            used = {name.split(".")[0] for name in names} & MODULES
            found += [f"{file}:{node.lineno} imports {name}" for name in used - NAMES_ONLY.get(file, set())]
        if isinstance(node, ast.ImportFrom):
            taken = {alias.name for alias in node.names} & FROM.get(node.module or "", set())
            found += [f"{file}:{node.lineno} imports {name}" for name in taken]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        options = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if called in FORBIDDEN:
            found.append(f"{file}:{node.lineno} calls {called}")
        if options.get("shell", "False") != "False":
            found.append(f"{file}:{node.lineno} starts a shell")
        if called in STARTERS and node.args and isinstance(node.args[0], ast.JoinedStr | ast.Constant):
            found.append(f"{file}:{node.lineno} starts a program by a string")
        if called == "skops.io.load" and "trusted" not in options:
            found.append(f"{file}:{node.lineno} trusts whatever a file names")
        if called == "torch.load" and options.get("weights_only") != "True":
            found.append(f"{file}:{node.lineno} unpickles with torch.load")
        if called in ("np.load", "numpy.load") and options.get("allow_pickle") != "False":
            found.append(f"{file}:{node.lineno} leaves allow_pickle open")
    return found


def test_the_packages_unpickle_and_evaluate_nothing() -> None:
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    assert len(files) > 100
    found = [
        fault
        for path in files
        for fault in faults(path.read_text(encoding="utf-8"), file=path.relative_to(ROOT).as_posix())
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        *("eval(text)", "exec(text)", "import pickle", "from pickle import loads", "pickle.loads(x)", "os.system(x)"),
        *("subprocess.run(x, shell=True)", "torch.load(x)", "torch.load(x, weights_only=False)", "np.load(x)"),
        *("np.load(x, allow_pickle=True)", "yaml.load(x)", "subprocess.getoutput(x)", "from os import system"),
        *("import yaml", "subprocess.run('ls x')", "subprocess.Popen(f'ls {x}')", "skops.io.load(x)"),
    ],
)
def test_each_of_these_is_noticed_twin(line: str) -> None:
    assert faults(line, file="x.py")


def test_their_harmless_forms_pass() -> None:
    assert faults("torch.load(x, weights_only=True)\nnp.load(x, allow_pickle=False)\nnet.eval()", file="x.py") == []
