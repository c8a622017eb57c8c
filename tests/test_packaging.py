"""What pip installs: a wheel and an sdist are built, and the wheel runs outside the checkout.

The fresh environment takes the dependencies from the environment of the tests, so that nothing is
downloaded; `.ci/run` resolves them anew.
"""

import json
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import pytest
import soundfile

import waveglow_jax

ROOT = Path(__file__).parent.parent
PUBLISHED_KIND = ["--waveglow.conditioning", "sample", "--waveglow.mel_whitening", "null"]


def test_one_version():
    """The package, its installed metadata and the newest heading of the changelog agree."""
    try:
        assert version("waveglow-jax") == waveglow_jax.__version__
    except PackageNotFoundError:
        pytest.skip("the package is not installed, but imported from its folder")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = next(line for line in changes.splitlines() if line.startswith("## "))
    assert newest.split()[1] in (waveglow_jax.__version__, "Unreleased")
    assert f"\nversion: {waveglow_jax.__version__}\n" in (ROOT / "CITATION.cff").read_text("utf-8")


def finished(command, folder, code=0) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the sdist, and the wheel that was built from it."""
    for tool in ("build", "twine"):
        pytest.importorskip(tool, reason=f"{tool} is not installed (extra dev)")
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT]
    finished(build, folder)
    finished([sys.executable, "-m", "twine", "check", "--strict", *folder.iterdir()], folder)
    return folder


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    """The folder of programs of an environment in which the wheel is installed."""
    home = tmp_path_factory.mktemp("installed")
    venv.create(home, with_pip=True)
    (wheel,) = built.glob("*.whl")
    finished([home / "bin/pip", "install", "--no-deps", "--no-index", wheel], home)
    # A line of a .pth file is a folder of packages, whose own .pth files count for nothing: the
    # checkout, which may be installed there in place, is not on the path.
    (packages,) = home.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "bin"


@pytest.mark.slow
def test_what_the_archives_hold(built):
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names} == {
        "waveglow_jax",
        f"waveglow_jax-{waveglow_jax.__version__}.dist-info",
    }
    ours = {name for name in names if name.startswith("waveglow_jax/")}
    assert ours == {
        str(path.relative_to(ROOT))
        for path in (ROOT / "waveglow_jax").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    } | {f"waveglow_jax/configs/{path.name}" for path in (ROOT / "configs").iterdir()}
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for path in ("train.py", "configs/paper.json", "tests/test_golden.py", "tests/data", "LICENSE"):
        assert path in names, path


@pytest.mark.slow
def test_the_wheel_makes_sound(installed, tmp_path):
    command = installed / "waveglow-jax"
    where = "import waveglow_jax; print(waveglow_jax.__file__, waveglow_jax.__version__)"
    told = finished([installed / "python", "-c", where], tmp_path).stdout
    assert told.startswith(str(installed.parent)) and waveglow_jax.__version__ in told
    finished([command, "demo", "-o", "out"], tmp_path)
    recording, made = tmp_path / "out/ru_0773_recording.wav", tmp_path / "out/ru_0773.wav"
    assert soundfile.info(made).duration == pytest.approx(soundfile.info(recording).duration, 0.01)
    again = [command, "synthesize", recording, "-o", "again", "--json"]
    fact = json.loads(finished(again, tmp_path).stdout)
    assert (tmp_path / fact["output"]).stat().st_size > 100_000

    for folder, name in (("real", recording), ("ours", made)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.wav").write_bytes(name.read_bytes())
    evaluate = ["evaluate", "--reference", "real", "-o", "report", "--system", "ours=ours"]
    finished([command, *evaluate, "--baselines", "noise"], tmp_path)
    assert "ours" in (tmp_path / "report/report.md").read_text(encoding="utf-8")
    systems = ["--system", "real=real", "--system", "ours=ours"]
    finished([command, "listening-test", "make", *systems, "-o", "test"], tmp_path)
    assert (tmp_path / "test/page/index.html").stat().st_size > 10_000


@pytest.mark.slow
def test_the_wheel_has_the_presets(installed, tmp_path):
    code = "import waveglow_jax as wg; print(wg.load_config('nvidia256').waveglow.WN.n_channels)"
    assert finished([installed / "python", "-c", code], tmp_path).stdout == "256\n"


@pytest.mark.slow
def test_in_place_the_presets_are_those_of_the_checkout(tmp_path):
    pytest.importorskip("build", reason="build is not installed (extra dev)")
    venv.create(tmp_path / "env", with_pip=True)
    (packages,) = (tmp_path / "env").glob("lib/python*/site-packages")
    # First on the path, before the environment's own setuptools, which may be too old.
    first = f"import sys; sys.path.insert(0, {sysconfig.get_path('purelib')!r})\n"
    (packages / "dependencies.pth").write_text(first)
    checkout = tmp_path / "checkout"
    for name in ("waveglow_jax", "configs", "pyproject.toml", "setup.py", "README.md", "LICENSE"):
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copyfile
        checkout.mkdir(exist_ok=True)
        copy(source, checkout / name)
    options = ("--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed")
    finished([tmp_path / "env/bin/pip", "install", *options, "-e", checkout], tmp_path)
    code = "from waveglow_jax.presets import presets; print(presets()['paper'])"
    found = finished([tmp_path / "env/bin/python", "-c", code], tmp_path).stdout.strip()
    assert Path(found) == checkout / "configs" / "paper.json"


@pytest.mark.slow
def test_the_wheel_has_the_model_to_compare_with(installed, tmp_path):
    benchmark = ["benchmark", "--config", ROOT / "configs/tiny.json", *PUBLISHED_KIND]
    benchmark += ["--seconds", "0.1", "--dtype", "float32", "--repeats", "1", "--against", "torch"]
    there = find_spec("torch") is not None
    done = finished([installed / "waveglow-jax", *benchmark], tmp_path, code=0 if there else 1)
    assert "x PyTorch" in done.stdout if there else "PyTorch is not installed" in done.stderr
