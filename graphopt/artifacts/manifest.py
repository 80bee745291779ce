"""The description that lies beside a deployed model: what it computes, for what, made by what, and which files belong.

One JSON file, `manifest.json`. Reading checks everything it says before anything is run: its own checksum, the format
version, names that stay inside the folder, and the size and SHA-256 of every file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

from graphopt.artifacts.labels import class_labels, misfit
from graphopt.artifacts.report import Report
from graphopt.data.preprocessing import Preprocessing
from graphopt.ir import sizes, structure
from graphopt.ir.sizes import FreeSize
from graphopt.targets import Formats, Kernels, Runtime, Target
from graphopt.utils import json_data
from graphopt.utils.errors import ArtifactError, InputError
from graphopt.utils.files import MANIFEST, sha256, steady
from graphopt.utils.version import __version__, versions

FORMAT = 4  # raised whenever what is written changes; other formats are refused by name
DTYPES = frozenset(
    {"float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "uint16", "bool"}
)


@dataclass(frozen=True)
class TensorSpec:
    """An input or output: its name, element type ("float32") and sizes, None where a size is free.

    Attributes:
        free: what the free ones are called, in order; empty where that is not known.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    free: tuple[str, ...] = ()

    @property
    def sizes(self) -> tuple[int | str, ...]:
        """The sizes, free ones by name."""
        names = iter(self.free)
        return tuple(next(names, "N") if s is None else s for s in self.shape)

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.sizes))}]"


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and SHA-256 of one file."""

    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileEntry:
        return cls(path.stat().st_size, sha256(path))


@dataclass
class Manifest:
    """See the head of this file.

    Attributes:
        model: the model's name.
        target: `Target.to_dict()`; the name of its runtime is that of the backend.
        inputs, outputs: the tensors, in order.
        free_sizes: the sizes that calls may choose.
        input_structure: the nesting of `(args, kwargs)`; see `graphopt.ir.structure`.
        output_structure: the nesting of the result.
        files: by name relative to the folder.
        preprocessing: of images, for the first input; None where it is not known.
        labels: the classes of the first output; empty where they are not known.
        report: `Report.to_dict()`, empty where there is none.
        options: whatever else the backend wants to know when it loads.
        versions: of graphopt and the libraries it was made with.
        format: the version of this description.
    """

    model: str
    target: dict[str, Any]
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    input_structure: Any
    output_structure: Any
    free_sizes: list[FreeSize] = field(default_factory=list)
    files: dict[str, FileEntry] = field(default_factory=dict)
    preprocessing: Preprocessing | None = None
    labels: list[str] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=versions)
    format: int = FORMAT

    @property
    def runtime(self) -> str:
        return str(self.target["runtime"]["name"])

    def to_json(self) -> bytes:
        content = asdict(self)
        if self.preprocessing is not None:
            content["preprocessing"] = self.preprocessing.to_dict()
        return json.dumps({**content, "checksum": _checksum(content)}, indent=2, allow_nan=False).encode() + b"\n"

    @classmethod
    def from_json(cls, text: bytes, where: str = MANIFEST) -> Manifest:
        """Parse and check a manifest.

        Raises:
            ArtifactError: it is damaged, altered, or of another format.
        """
        try:
            data = json_data.parse(text)
        except ValueError as error:
            raise ArtifactError(f"{where} is damaged or cut short ({error}); write the artifact again") from error
        if not isinstance(data, dict) or not isinstance(data.get("format"), int):
            raise ArtifactError(f"{where} is not a graphopt manifest; give the folder of an artifact")
        if data["format"] > FORMAT:
            raise ArtifactError(
                f"{where} was written by graphopt {_writer(data)} in format {data['format']}, but graphopt {__version__} "
                f"reads format {FORMAT}; upgrade graphopt"
            )
        if data["format"] < FORMAT:
            raise ArtifactError(
                f"{where} was written by graphopt {_writer(data)} in format {data['format']}, but graphopt {__version__} "
                f"reads format {FORMAT}; optimize the model again, or load it with the graphopt that wrote it"
            )
        checksum = data.pop("checksum", None)
        if checksum != _checksum(data):
            raise ArtifactError(f"{where} was altered since it was written (its checksum differs); write it again")
        try:
            return cls._checked(data)
        except Exception as error:  # of many kinds: its parts meet whatever data there are
            raise ArtifactError(f"{where} is not a valid manifest ({type(error).__name__}: {error})") from error

    @classmethod
    def _checked(cls, data: dict[str, Any]) -> Manifest:
        known = {f.name: str(f.type) for f in fields(cls)}
        if set(data) != set(known):
            raise ValueError(f"unknown or missing entries {', '.join(sorted(set(data) ^ set(known)))}")
        for name, kind in known.items():
            wanted = {"str": str, "int": int, "dict": dict, "list": list}.get(kind.split("[")[0])
            if wanted and not isinstance(data[name], wanted):
                raise ValueError(f"{name} is a {type(data[name]).__name__}, not a {kind}")
        _check_target(data["target"])
        manifest = cls(**data)
        manifest.inputs = [_spec(s) for s in data["inputs"]]
        manifest.outputs = [_spec(s) for s in data["outputs"]]
        sizes.check(data["free_sizes"], [len(spec.shape) for spec in manifest.inputs])
        manifest.free_sizes = [FreeSize.from_dict(size) for size in data["free_sizes"]]
        places = {(place.input, place.dimension) for size in manifest.free_sizes for place in size.places}
        if not places <= {
            (i, d) for i, spec in enumerate(manifest.inputs) for d, n in enumerate(spec.shape) if n is None
        }:
            raise ValueError("the free sizes are not those of the inputs")
        manifest.files = {_safe(name): _file(name, entry) for name, entry in data["files"].items()}
        for tensors, nesting in (
            (manifest.inputs, data["input_structure"]),
            (manifest.outputs, data["output_structure"]),
        ):
            if structure.check(nesting) != len(tensors):
                raise ValueError(f"a structure of {structure.check(nesting)} tensors for {len(tensors)}")
        manifest._check_annotations()
        if manifest.report:
            Report.from_dict(manifest.report)
        return manifest

    def _check_annotations(self) -> None:
        """Take preprocessing and labels from what was read, if they are those of these inputs and outputs."""
        if self.preprocessing is not None:
            self.preprocessing = Preprocessing.from_dict(self.preprocessing)
            (spec,) = self.inputs
            if (reason := self.preprocessing.misfit(spec.shape, spec.dtype)) is not None:
                raise ValueError(f"its preprocessing does not fit: {reason}")
        if self.labels:
            self.labels = class_labels(self.labels)
            if (reason := misfit(self.labels, [spec.shape for spec in self.outputs])) is not None:
                raise ValueError(f"its labels do not fit: {reason}")

    def verify(self, folder: Path) -> None:
        """Check that every file is there and is what was written.

        Raises:
            ArtifactError: names the first file that is missing, cut short or altered.
        """
        again = "write or copy the artifact again"
        for name, entry in self.files.items():
            path = folder / _safe(name)
            linked = any(part.is_symlink() for part in _inside(folder, path))  # it could lead anywhere
            if linked or not path.is_file():
                what = "; there is a link in its place" if linked else ""
                raise ArtifactError(f"the artifact {folder} lacks its file {name}{what}; {again}")
            if (found := path.stat().st_size) != entry.size:
                raise ArtifactError(f"{path} is damaged: {found} bytes instead of {entry.size}; {again}")
            if sha256(path) != entry.sha256:
                raise ArtifactError(f"{path} was altered after it was written (its SHA-256 differs); {again}")


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of an artifact's folder, everything it lists verified.

    Raises:
        InputError: there is no such folder.
        ArtifactError: it is no artifact, is damaged, was altered, or is in the format of another graphopt.
    """
    folder = Path(folder).expanduser()
    return steady(folder, lambda: _verified(folder))


def _verified(folder: Path) -> Manifest:
    if not folder.is_dir():
        raise InputError(f"there is no artifact folder {folder}")
    path = folder / MANIFEST
    if path.is_symlink() or not path.is_file():
        raise ArtifactError(f"{folder} is no artifact: it has no {MANIFEST}")
    manifest = Manifest.from_json(path.read_bytes(), str(path))
    manifest.verify(folder)
    return manifest


def listing(folder: Path) -> dict[str, FileEntry]:
    """Every file below a folder, the manifest aside, with size and SHA-256."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {p.relative_to(folder).as_posix(): FileEntry.of(p) for p in files}


def _checksum(content: Mapping[str, Any]) -> str:
    plain = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(plain.encode()).hexdigest()


def _writer(data: Mapping[str, Any]) -> str:
    found = data.get("versions")
    return str(found.get("graphopt", "(unknown)")) if isinstance(found, dict) else "(unknown)"


def _check_target(described: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless this is what `Target.to_dict` returns, its values aside."""
    parts: dict[str, tuple[Any, type]] = {"the target": (described, Target)}
    for name, part in (("formats", Formats), ("kernels", Kernels), ("runtime", Runtime)):
        parts[f"the target's {name}"] = (described.get(name), part)
    for what, (found, kind) in parts.items():
        if not isinstance(found, dict) or set(found) != {f.name for f in fields(kind)}:
            raise ValueError(f"{what} must be described by {', '.join(f.name for f in fields(kind))}, got {found!r}")


def _spec(data: Mapping[str, Any]) -> TensorSpec:
    shape = data["shape"]
    if data["dtype"] not in DTYPES:
        raise ValueError(f"{data['name']} has the unknown element type {data['dtype']!r}")
    if not isinstance(shape, list) or not all(s is None or (isinstance(s, int) and s >= 0) for s in shape):
        raise ValueError(f"{data['name']} has the shape {shape!r}")
    free = data.get("free", [])
    if not isinstance(free, list) or not all(isinstance(name, str) for name in free):
        raise ValueError(f"{data['name']} has free sizes called {free!r}")
    return TensorSpec(str(data["name"]), data["dtype"], tuple(shape), tuple(free))


def _file(name: str, data: Mapping[str, Any]) -> FileEntry:
    if set(data) != {"size", "sha256"} or not isinstance(data["size"], int) or not isinstance(data["sha256"], str):
        raise ValueError(f"the entry of {name} is {data!r}")
    return FileEntry(data["size"], data["sha256"])


def _inside(folder: Path, path: Path) -> Iterator[Path]:
    """The path, and the folders between it and the artifact's own."""
    while path != folder:
        yield path
        path = path.parent


def _safe(name: str) -> str:
    """The file name, which must stay inside the artifact's folder."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name:
        raise ValueError(f"the file name {name!r} leads out of the artifact's folder")
    return name
