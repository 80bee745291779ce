"""A deployed model in formats that no runtime computes in: a file of packed codes, and the graph that says what to do with them.

    weights.packed   codes and parameters of every quantized weight, for the device (`graphopt.artifacts.packing`)
    network.graph    everything else: operators, formats of the values, biases (`graphopt.ir.storage`); no pickled code

Here it is run by simulation: the graph computes in float32 on the numbers that the codes stand for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from graphopt.artifacts import packing
from graphopt.artifacts.artifact import Artifact
from graphopt.artifacts.audit import Audit
from graphopt.artifacts.lowered import describe, temporary_folder
from graphopt.artifacts.manifest import Manifest
from graphopt.artifacts.packing import PackedWeight
from graphopt.artifacts.report import FloatOperator
from graphopt.coding.pieces import Place
from graphopt.data import batches
from graphopt.ir import storage
from graphopt.ir.cost import layer_macs
from graphopt.ir.facts import LEFT
from graphopt.ir.graph import Example, Graph
from graphopt.ir.layer import Layer
from graphopt.ir.masks import bake
from graphopt.ir.quantizers import is_quantizer, quantizer_of
from graphopt.ir.structure import tensors
from graphopt.targets import Target
from graphopt.utils.errors import ArtifactError, InputError

WEIGHTS, NETWORK = "weights.packed", "network.graph"


class PackedArtifact(Artifact):
    """See above. `graph` is the simulated graph, read back from the files."""

    def __init__(self, folder: Path, manifest: Manifest, *, temporary: bool = False) -> None:
        super().__init__(folder, manifest, temporary=temporary)
        self.graph = read(folder, manifest)

    def _run(self, inputs: list[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        args, kwargs = batches.nested(self.graph.example, [torch.from_numpy(array) for array in inputs])
        with torch.no_grad():
            results = self.graph(*args, **kwargs)
        return [tensor.numpy() for tensor in tensors(results)]

    def calls(self) -> NoReturn:
        """There are none. Raises InputError."""
        raise InputError(
            f"{self.manifest.model} for {self.manifest.target.get('name')} is packed codes, which no runtime computes with: here "
            "they are run by simulation, graphopt.load(folder)(...)"
        )

    def tensors(self, name: str) -> Sequence[Place]:
        """See `Artifact.tensors`: the packed codes and their parameters."""
        return packing.places(self.folder / name) if name == WEIGHTS else ()

    def set_threads(self, threads: int) -> None:
        """Nothing to set: simulations are not timed."""


def lower(graph: Graph, target: Target, *, name: str = "model") -> PackedArtifact:
    """Store a simulated graph, or a float one, in a temporary folder; the graph itself is not changed."""
    stored, folder = deploy(graph, target), temporary_folder()
    stored.example = without_data(stored)
    elsewhere = recoverable(stored)
    if elsewhere:
        packing.write(stored, folder / WEIGHTS)
    storage.save(stored, folder / NETWORK, without=elsewhere, reference=False)
    return PackedArtifact(folder, describe(graph, target, folder, model=name), temporary=True)


def deploy(graph: Graph, target: Target | None = None) -> Graph:
    """The form that is stored: the simulated graph, with pruned weights zero."""
    stored = graph.clone().eval()
    if bake(stored):
        stored.refresh()
    return stored


def without_data(graph: Graph) -> Example:
    """Zeros in place of the example's elements, which are the user's own, and two samples where any number will do."""
    tensors = [
        torch.zeros_like(t[:2] if graph.batch is not None and graph.batch.takes(min(2, len(t))) and spec.batched else t)
        for t, spec in zip(graph.example.tensors(), batches.inputs(graph), strict=True)
    ]
    return Example(*batches.nested(graph.example, tensors))


def recoverable(graph: Graph) -> dict[str, Tensor]:
    """The constants that every reader rounds to what the packed codes of the same name stand for."""
    constants = {str(node.target): node for node in graph.nodes if graph.is_constant(node)}
    found = {}
    for name, weight in packing.packed_weights(graph).items():
        if (node := constants.get(name)) is not None and _recovers(graph, node, weight):
            found[name] = weight.values
    return found


def _recovers(graph: Graph, node: Any, weight: PackedWeight) -> bool:
    exact, values = graph.tensor(node), weight.values
    return all(
        is_quantizer(reader) and torch.equal(quantizer_of(graph, reader)(exact), quantizer_of(graph, reader)(values))
        for reader in node.users
    )


def read(folder: Path, manifest: Manifest) -> Graph:
    """The graph of those of an artifact's files that its manifest lists.

    Raises:
        ArtifactError: they are damaged, or missing.
    """
    if NETWORK not in manifest.files:
        raise ArtifactError(f"the artifact {folder} lists no {NETWORK}; write it again")
    try:
        weights = packing.read(folder / WEIGHTS) if WEIGHTS in manifest.files else {}
        graph = storage.load(folder / NETWORK, {name: weight.values for name, weight in weights.items()})
    except InputError as error:
        raise ArtifactError(str(error)) from error
    if (len(graph.input_names), len(graph.outputs)) != (len(manifest.inputs), len(manifest.outputs)):
        raise ArtifactError(
            f"{folder / NETWORK} has other inputs or outputs than the manifest says; write the artifact again"
        )
    return graph


def load(folder: Path, manifest: Manifest) -> PackedArtifact:
    """Open a saved artifact whose manifest has been verified."""
    return PackedArtifact(folder, manifest)


def audit(artifact: PackedArtifact) -> Audit:
    """Layers whose weight and input are codes, and those that are not."""
    graph = artifact.graph
    found = Audit(total_macs=sum(layer_macs(graph).values()))
    for node, macs in layer_macs(graph).items():
        layer, site = Layer.of(node), graph.site(node)
        if layer is not None and is_quantizer(layer.weight) and is_quantizer(layer.input):
            found.integer.append(site)
            found.integer_macs += macs
        else:
            why = graph.fact(node, LEFT) or "its weight or its input is not rounded"
            found.floating.append(FloatOperator(site, str(node.target).split(".")[1], why, macs))
    return found


def simulate(graph: Graph, target: Target, machine: str | None = None) -> NoReturn:
    """There are no kernels to be simulated to the last bit.

    Raises:
        InputError: always.
    """
    raise InputError(
        f"the arithmetic of {target.name!r} is known by its number formats alone, not by its kernels: call the simulated graph "
        "itself, which is what the artifact computes"
    )
