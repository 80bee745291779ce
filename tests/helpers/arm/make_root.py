"""Set up what runs programs for 64-bit ARM on this machine: `python tests/helpers/arm/make_root.py`, about a minute and 475 MB.

    root/            Debian for arm64: an interpreter and the C library, extracted, nothing of it executed
    site/            ONNX Runtime, TVM's runtime and NumPy for arm64, in the versions installed here
    cpus/<name>/     what qemu shows programs as / on each CPU: the root, and the /proc/cpuinfo of that CPU, which libraries read
    run_library      run_library.cpp for arm64
    count.so         count_instructions.c for qemu

They lie in $GRAPHOPT_ARM, by default ~/.cache/graphopt/arm64. Packages come from where apt and pip of this machine are configured
to take them. A root of the same versions is left alone; a new one takes its place when it is complete.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import emulation
from emulation import ARM

SOURCES = Path(__file__).parent
LIBRARIES = ("onnxruntime", "apache-tvm", "apache-tvm-ffi", "numpy")
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_24", "manylinux_2_17", "manylinux2014")
INCLUDED = "python3-minimal,python3,libstdc++6,libgcc-s1,libgomp1,libc6,libatomic1"
TOOLS = {  # program -> Debian package
    "qemu-aarch64": "qemu-user",
    "mmdebstrap": "mmdebstrap",
    "arch-test": "arch-test",
    "aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu",
    "gcc": "gcc",
}

_ARMV8 = "fp asimd aes pmull sha1 sha2 crc32 cpuid"
_ARMV8_2 = f"{_ARMV8} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp ssbs"
CPUS = {  # name of qemu -> (part number, features as Linux calls them)
    "cortex-a53": ("0xd03", _ARMV8),
    "cortex-a72": ("0xd08", _ARMV8),
    "cortex-a76": ("0xd0b", _ARMV8_2),
    "neoverse-n1": ("0xd0c", _ARMV8_2),
    # all that qemu knows; no real part, and ONNX Runtime's CPU detection crashes on numbers it does not know
    "max": ("0xd0b", f"{_ARMV8_2} sha3 sha512 sve asimdfhm jscvt fcma dcpodp flagm flagm2 frint i8mm bf16"),
}


def main() -> None:
    try:
        versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    except importlib.metadata.PackageNotFoundError as error:
        sys.exit(
            f"{error.name} is not installed here, so its version for ARM is not known: pip install 'graphopt[tvm]'"
        )
    if absent := {tool: package for tool, package in TOOLS.items() if shutil.which(tool) is None}:
        sys.exit(f"there is no {', '.join(absent)}: apt-get install {' '.join(absent.values())}")
    made_from = {"versions": versions, "sources": digest()}
    if emulation.READY.exists() and json.loads(emulation.READY.read_text()) == made_from:
        print(f"{ARM} is ready")
        return
    ARM.parent.mkdir(parents=True, exist_ok=True)
    if ARM.exists() and any(ARM.iterdir()) and not emulation.READY.exists():
        sys.exit(f"{ARM} is there and was not made by this command: remove it, or set GRAPHOPT_ARM to another place")
    with tempfile.TemporaryDirectory(dir=ARM.parent, prefix="arm64-") as work:
        new = Path(work, "arm64")
        new.mkdir()
        system(new / "root")
        libraries(new / "site", new / "root", versions)
        cpus(new)
        tools(new)
        (new / emulation.READY.name).write_text(json.dumps(made_from))
        if ARM.exists():
            os.rename(ARM, Path(work, "old"))
        os.rename(new, ARM)
    said = emulation.arm("cortex-a76").run(
        ARM / "root/usr/bin/python3", "-S", "-c", "import os; print(os.uname().machine)"
    )
    print(f"{ARM} is ready: {said.strip()}")


def digest() -> str:
    """Of the files a root is made from."""
    files = [SOURCES / name for name in ("make_root.py", "run_library.cpp", "count_instructions.c")]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def system(root: Path) -> None:
    """Debian's release of this machine, or else bookworm."""
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    debian = release.get("ID") == "debian"
    suite = release["VERSION_CODENAME"] if debian else "bookworm"
    configured = [Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list")]
    sources = [str(file) for file in configured if debian and file.exists()][:1]
    options = ["--arch=arm64", "--variant=extract", "--skip=check/qemu", f"--include={INCLUDED}"]
    do("mmdebstrap", *options, suite, root, *sources)


def libraries(site: Path, root: Path, versions: dict[str, str]) -> None:
    python = next(folder.name for folder in sorted((root / "usr" / "lib").glob("python3.*")))
    version = python.removeprefix("python")
    abi = f"cp{version.replace('.', '')}"
    do(
        sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile", "--target", site,
        "--only-binary=:all:", "--python-version", version, "--implementation", "cp",
        *(word for tag in (abi, "abi3", "none") for word in ("--abi", tag)),
        *(word for platform in PLATFORMS for word in ("--platform", f"{platform}_aarch64")),
        *(f"{name}=={number}" for name, number in versions.items()),
    )  # fmt: skip


def cpus(new: Path) -> None:
    for name, (part, features) in CPUS.items():
        shown = new / "cpus" / name
        (shown / "proc").mkdir(parents=True)
        for folder in ("lib", "usr"):
            (shown / folder).symlink_to(Path("../../root", folder))
        fields = {
            "processor": "0", "Features": features, "CPU implementer": "0x41", "CPU architecture": "8",
            "CPU variant": "0x0", "CPU part": part, "CPU revision": "0",
        }  # fmt: skip
        (shown / "proc" / "cpuinfo").write_text("".join(f"{key}\t: {value}\n" for key, value in fields.items()))


def tools(new: Path) -> None:
    tvm, ffi = new / "site" / "tvm" / "lib", new / "site" / "tvm_ffi"
    linked: list[str | Path] = ["-L", tvm, "-L", ffi / "lib", "-Wl,--no-as-needed,--allow-shlib-undefined"]
    linked += ["-ltvm_runtime", "-ltvm_ffi"]
    options: list[str | Path] = ["-std=c++17", "-O1", "-I", ffi / "include"]
    options += [SOURCES / "run_library.cpp", "-o", new / "run_library"]
    do("aarch64-linux-gnu-g++", *options, *linked)
    do("gcc", "-O2", "-shared", "-fPIC", SOURCES / "count_instructions.c", "-o", new / "count.so")


def do(*command: str | Path) -> None:
    """Run a command; if it fails, end with what it said last."""
    words = [str(word) for word in command]
    print("+", words[0], *words[1:4], "..." if len(words) > 4 else "", flush=True)
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        sys.exit(f"{said}\n{words[0]} failed, nothing was changed in {ARM}")


if __name__ == "__main__":
    main()
