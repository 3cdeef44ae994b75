"""What a built wheel carries."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import mixer_equiv

ROOT = Path(__file__).parent.parent


def test_the_wheel_has_every_module_the_data_and_the_type_marker_and_nothing_else(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    shutil.copytree(ROOT / "mixer_equiv", source / "mixer_equiv", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "mixer_equiv_pytest.py"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = {path.relative_to(ROOT).as_posix() for path in (ROOT / "mixer_equiv").rglob("*.py")}
    data = {f"mixer_equiv/data/digits_{part}.npz" for part in ("mixer", "held_out")}
    data.add("mixer_equiv/render/report.html")
    assert names == wanted | data | {"mixer_equiv/py.typed", "mixer_equiv_pytest.py"}
    assert wheel.name.startswith(f"mixer_equiv-{mixer_equiv.__version__}-")
    told = (
        zipfile.ZipFile(wheel).read(next(n for n in zipfile.ZipFile(wheel).namelist() if "entry_points" in n)).decode()
    )
    assert "[pytest11]\nmixer_equiv = mixer_equiv_pytest\n" in told
