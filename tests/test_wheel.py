"""What a built wheel carries."""

import zipfile
from pathlib import Path

import mixer_equiv
from tests.support.wheel import ROOT, build_wheel


def test_the_wheel_has_every_module_the_data_and_the_type_marker_and_nothing_else(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path)
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = {path.relative_to(ROOT).as_posix() for path in (ROOT / "mixer_equiv").rglob("*.py")}
    data = {f"mixer_equiv/data/digits_{part}.npz" for part in ("mixer", "held_out")}
    templates = ("page.css", "page.html", "page.js", "parts.html", "report.html", "reports.html")
    data |= {f"mixer_equiv/render/templates/{name}" for name in templates}
    assert names == wanted | data | {"mixer_equiv/py.typed", "mixer_equiv_pytest.py"}
    assert wheel.name.startswith(f"mixer_equiv-{mixer_equiv.__version__}-")
    told = (
        zipfile.ZipFile(wheel).read(next(n for n in zipfile.ZipFile(wheel).namelist() if "entry_points" in n)).decode()
    )
    assert "[pytest11]\nmixer_equiv = mixer_equiv_pytest\n" in told
