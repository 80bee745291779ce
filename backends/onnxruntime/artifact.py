"""Lower to `model.onnx`, and run it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch

from graphopt.artifacts.artifact import Artifact
from graphopt.artifacts.lowered import describe, temporary_folder
from graphopt.artifacts.manifest import FileEntry, Manifest
from graphopt.artifacts.profile import WARM, KernelTime
from graphopt.artifacts.usage import Calls
from graphopt.backends.onnxruntime import metadata
from graphopt.backends.onnxruntime.export import to_onnx
from graphopt.backends.onnxruntime.nbits import choose_products
from graphopt.backends.onnxruntime.places import external, initializers
from graphopt.backends.onnxruntime.profiling import kernel_times
from graphopt.backends.onnxruntime.running import refusal, run_session
from graphopt.coding.pieces import Place
from graphopt.data.preprocessing import Preprocessing
from graphopt.ir.cost import layer_macs
from graphopt.ir.equal_calls import equal_calls
from graphopt.ir.facts import LEFT
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.lowering.qdq import deploy as deploy_with
from graphopt.targets import Target
from graphopt.utils.errors import ArtifactError, InputError, first_line

MODEL = "model.onnx"
WEIGHTS = "model.onnx.data"
PROVIDERS = ["CPUExecutionProvider"]
UNWANTED = ["WeightBiasQuantization"]  # an optimizer that quantizes layers that are meant to stay in float
ONE_FILE = 2**31 - 2**24  # bytes of weights from which protobuf no longer holds a model in one file


class OnnxRuntimeArtifact(Artifact):
    """A model that ONNX Runtime runs on the CPU.

    Attributes:
        threads: of the runtime, for one operator. Set before the first call, or call `set_threads`.
        exact_products: see `set_exact_products`.
    """

    def __init__(self, folder: Path, manifest: Manifest, *, temporary: bool = False) -> None:
        super().__init__(folder, manifest, temporary=temporary)
        self.threads, self.exact_products = 1, False
        self._session: Any = None
        self._read: tuple[Any, set[str]] = (None, set())

    def set_threads(self, threads: int) -> None:
        """Use this many threads from the next call on."""
        if threads != self.threads:
            self.threads, self._session = threads, None

    def set_exact_products(self, exact: bool = True) -> None:
        """On x86-64 without VNNI, add products of 8-bit codes without saturation from the next call on, as CPUs with VNNI do.

        It takes longer (4/3 to 3/2 of the time on ResNet-18 and MobileNetV2); on other CPUs it changes nothing.
        """
        if exact != self.exact_products:
            self.exact_products, self._session = exact, None

    def tensors(self, name: str) -> Sequence[Place]:
        """See `Artifact.tensors`: the initializers."""
        if Path(name).suffix == ".onnx":
            return initializers((self.folder / name).read_bytes())
        model = self.folder / MODEL
        return external(model.read_bytes(), name) if name == WEIGHTS and model.exists() else ()

    def prepare(self) -> None:
        if not self.refusal:
            _ = self.session

    @property
    def session(self) -> Any:
        """The `onnxruntime.InferenceSession`, made when first needed."""
        if self._session is None:
            if self.refusal:
                raise ArtifactError(f"{self.manifest.model} cannot run here: {self.refusal}")
            with self.reading():
                self._session = self.open(self.folder / MODEL)
        return self._session

    @property
    def refusal(self) -> str:
        contexts = ", ".join(self.manifest.options.get("contexts", {}))
        return f"it is compiled for Hexagon {contexts}; run it .on('htp:...')" if contexts else ""

    def annotate(self, preprocessing: Preprocessing | None, labels: Sequence[str]) -> None:
        """See `Artifact.annotate`; the model's metadata say the same."""
        super().annotate(preprocessing, labels)
        if found := metadata.of_annotations(preprocessing, labels):
            metadata.add(self.folder / MODEL, found)
            self.manifest.files[MODEL] = FileEntry.of(self.folder / MODEL)  # weights beside it are what they were

    def calls(self) -> Calls:
        """See `Artifact.calls`: with onnxruntime and NumPy, in a session of the same options."""
        if self.refusal:
            raise InputError(f"{self.manifest.model} cannot run here: {self.refusal}")
        read = {i.name for i in self.session.get_inputs()}  # an input no operator reads is not in the model
        feeds = {spec.name: n for n, spec in enumerate(self.manifest.inputs) if spec.name in read}
        fed = ", ".join(f"{name!a}: inputs[{number}]" for name, number in feeds.items())
        entries = config_entries(exact_products=self.exact_products)
        opened = [
            "options = ort.SessionOptions()",
            f"options.intra_op_num_threads = {int(self.threads)}",
            "options.inter_op_num_threads = 1",
            *(f"options.add_session_config_entry({key!a}, {value!a})" for key, value in entries.items()),
            f"session = ort.InferenceSession(os.path.join(folder, {MODEL!a}), options,",
            f"    providers={PROVIDERS!r}, disabled_optimizers={UNWANTED!r})",
        ]
        return Calls(
            imports=["import onnxruntime as ort"],
            open=opened,
            run=[f"outputs = session.run(None, {{{fed}}})"],
            labels='json.loads(session.get_modelmeta().custom_metadata_map["class_labels"])',
        )

    def open(self, path: Path) -> Any:
        """A session of a model where this artifact runs."""
        return open_session(path, threads=self.threads, exact_products=self.exact_products)

    def on(self, device: str) -> OnnxRuntimeArtifact:
        """The same on Qualcomm's HTP, for the target hexagon (`htp`, `htp:v75`), or on a GPU, for nvidia (`tensorrt`, `cuda:1`).

        Raises:
            InputError: the target does not run there, or what is needed is missing. ArtifactError: it does not take all of it.
        """
        from graphopt.backends.onnxruntime.devices import placed

        return placed(self, device)

    def compile(self, folder: str | Path, architectures: Sequence[str] = (), *, name: str = "model") -> Path:
        """Context binaries for architectures of Hexagon (`v73`), by default all known; `graphopt.load(folder).on("htp:v73")`.

        Raises:
            InputError: another target, unknown architecture, a name, no such place; ArtifactError: HTP does not take all of it.
        """
        from graphopt.backends.onnxruntime.qnn import compile_contexts
        from graphopt.backends.onnxruntime.qnn.provider import HEXAGON

        if self.manifest.target.get("runtime", {}).get("architecture") != HEXAGON:
            return super().compile(folder, architectures, name=name)
        if name != "model":
            raise InputError(
                f"name={name!r} is for C that a CPU's artifact is compiled to; contexts are named by architecture"
            )

        return compile_contexts(self, folder, architectures)

    def _run(self, inputs: list[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        return run_session(self.session, None, self.feeds(self.session, inputs))

    def feeds(self, session: Any, inputs: list[np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        """Flat inputs by name, as a session of its model takes them: an input that no operator reads is not in the model."""
        if self._read[0] is not session:
            self._read = (session, {i.name for i in session.get_inputs()})  # asking takes as long as a small layer
        named = zip(self.manifest.inputs, inputs, strict=True)
        return {spec.name: array for spec, array in named if spec.name in self._read[1]}

    def _profile(self, inputs: list[np.ndarray[Any, Any]], runs: int) -> list[KernelTime]:
        with tempfile.TemporaryDirectory(prefix="graphopt-") as folder, self.reading():
            session = open_session(
                self.folder / MODEL,
                threads=self.threads,
                exact_products=self.exact_products,
                profile=Path(folder) / "run",
            )
            feeds = self.feeds(session, inputs)
            for _ in range(runs + WARM):
                run_session(session, None, feeds)
            return kernel_times(Path(session.end_profiling()))


def config_entries(*, signed: bool = True, exact_products: bool = False) -> dict[str, str]:
    """Of a session's configuration; see `open_session`."""
    found = {"session.qdqisint8allowed": "1"} if signed else {}
    return found | ({"session.x64quantprecision": "1"} if exact_products else {})


def open_session(
    path: Path, *, threads: int = 1, optimized: Path | None = None, defaults: bool = False, signed: bool = True,
    rewriting: bool = True, exact_products: bool = False, profile: Path | None = None,
) -> Any:  # fmt: skip
    """A session on the CPU.

    Args:
        threads: of the runtime.
        optimized: where to write the graph as the runtime rewrote it. Changes of layout, which rename weights, are left out but
            with `defaults`.
        defaults: as anyone opens any file; without, as our artifacts are meant to be.
        signed: signed codes as they are, as on ARM; on x86 the runtime turns some into unsigned ones, and some layers to float.
        rewriting: let the runtime rewrite the graph at all.
        exact_products: without VNNI, add products of codes without saturation.
        profile: begins the path of the file that the session writes the time of every kernel to; None: nothing is written.

    Raises:
        ArtifactError: the runtime refuses the model.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    for key, value in config_entries(signed=signed, exact_products=exact_products).items():
        options.add_session_config_entry(key, value)
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    if not rewriting:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if optimized is not None:
        if not defaults:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(optimized)
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", f"{optimized.name}.data"
        )
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    disabled = [] if defaults else UNWANTED
    try:
        return ort.InferenceSession(str(path), options, providers=PROVIDERS, disabled_optimizers=disabled)
    except Exception as error:
        raise ArtifactError(refusal(path, first_line(error))) from error


def intermediate(
    artifact: OnnxRuntimeArtifact, names: list[str], inputs: list[np.ndarray[Any, Any]]
) -> tuple[list[np.ndarray[Any, Any]], dict[str, np.ndarray[Any, Any]]]:
    """The answers of an artifact, and values inside its model by name, from one run on its flat inputs.

    Names that it does not have are left out.
    """
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        wanted = expose(artifact, names, Path(folder))
        session = artifact.open(Path(folder) / MODEL)
    answers = [spec.name for spec in artifact.manifest.outputs]
    found = run_session(session, [*answers, *wanted], artifact.feeds(session, inputs))
    return found[: len(answers)], dict(zip(wanted, found[len(answers) :], strict=True))


def expose(artifact: OnnxRuntimeArtifact, names: list[str], folder: Path) -> list[str]:
    """Write a copy of an artifact's model that also returns the values of these names, and return the names that it has."""
    model = onnx.load(str(artifact.folder / MODEL), load_external_data=False)
    known = {output for node in model.graph.node for output in node.output}
    wanted = [name for name in names if name in known]
    outputs = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in outputs)
    onnx.save(model, str(folder / MODEL))
    if (artifact.folder / WEIGHTS).exists():
        shutil.copyfile(artifact.folder / WEIGHTS, folder / WEIGHTS)
    return wanted


def deploy(graph: Graph, target: Target) -> Graph:
    """A deployed copy of a simulated graph, with float16 values where the target computes in them."""
    return deploy_with(graph, half=target.formats.rest is not None)


def lower(graph: Graph, target: Target, *, name: str = "model") -> OnnxRuntimeArtifact:
    """Turn a graph into an artifact in a temporary folder.

    A simulated graph (with fake-quantize nodes) is deployed to integers first; one that was deployed already, or is float,
    stays what it is. The graph itself is not changed. Weights beyond two gigabytes go to a file of their own beside the model.

    Raises:
        GraphoptError: an operator cannot be written as ONNX; names it. InputError: it needs a newer opset than the target reads.
    """
    with torch.no_grad():
        deployed = deploy(graph, target)
        model, exported = to_onnx(deployed, plain=target.runtime.vendor_compiler, newest=target.runtime.opset)
    model.metadata_props.update(metadata.of_model(target, name))
    choose_products(model, target.kernels.block_products)
    folder = temporary_folder()
    weights = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    ir.save(model, folder / MODEL, external_data=WEIGHTS if weights > ONE_FILE else None)
    onnx.checker.check_model(str(folder / MODEL))
    manifest = describe(graph, target, folder, model=name, options={"layers": layers(deployed), "exported": exported})
    return OnnxRuntimeArtifact(folder, manifest, temporary=True)


def layers(deployed: Graph) -> dict[str, dict[str, Any]]:
    """Weight name -> site and multiply-accumulates of every convolution and linear layer; the audit reads it.

    A layer that is called several times has those of each call, in order, and their sum; equal calls are one. `same_as` names the
    first of equal weights, of which the file may hold one for all.
    """
    found: dict[str, dict[str, Any]] = {}
    twins = equal_calls(deployed, torch.equal)
    for node, macs in layer_macs(deployed).items():
        layer = Layer.of(node)
        if layer is not None and node not in twins:
            weight = layer.weight
            if not deployed.is_constant(weight):
                weight = next(iter(weight.all_input_nodes), weight)
            site, left = deployed.site(node), deployed.fact(node, LEFT)
            first = str(twins.get(weight, weight).target)
            entry = found.setdefault(
                str(weight.target), {"site": site, "macs": 0, "calls": [], "left": left, "same_as": first}
            )
            entry["macs"] += macs
            entry["calls"].append(macs)
    return found


def load(folder: Path, manifest: Manifest) -> OnnxRuntimeArtifact:
    """Open a saved artifact whose manifest has been verified."""
    return OnnxRuntimeArtifact(folder, manifest)
