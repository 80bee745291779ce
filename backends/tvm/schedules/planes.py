"""Images as torch has them, a plane for each channel, to codes with channels innermost: quantized and interleaved in one pass."""

from __future__ import annotations

from graphopt.backends.tvm.machine import Gpu, Processor
from graphopt.backends.tvm.schedules import emit, exact, narrowing, rounding
from graphopt.backends.tvm.schedules.emit import Expr, Flat, Kernel
from graphopt.backends.tvm.schedules.gpu import threads
from graphopt.backends.tvm.schedules.specs import Planes


def planes(spec: Planes, machine: Processor) -> Kernel:
    images, channels, pixels = spec.shape
    arguments = {"x": (spec.shape, spec.data), "y": (spec.result_shape, spec.result.dtype)}

    def steps(x: Flat, index: Expr, lanes: int) -> Expr:
        value = emit.cast(x.load(index, lanes), "float32", lanes)
        return exact.quotient(value, emit.constant(spec.scale, "float32", lanes))

    def some(x: Flat, y: Flat, image: Expr, pixel: Expr, vectors: int, lanes: int) -> None:
        found = []
        for channel in range(channels):
            at = (image * channels + channel) * pixels + pixel
            values = [steps(x, at + v * lanes, lanes) for v in range(vectors)]
            found += rounding.to_codes(values, spec.result, lanes, spec.result.zero_point, machine)
        width, start = vectors * lanes, (image * pixels + pixel) * channels
        if width == 1:
            for channel, code in enumerate(found):
                y.store(code, start + channel)
            return
        order = [channel * width + p for p in range(width) for channel in range(channels)]
        y.store(emit.shuffled(found, order), start, channels * width)

    def body(x: Flat, y: Flat) -> None:
        if isinstance(machine, Gpu):
            with threads.each(images * pixels, machine) as index:
                some(x, y, index // pixels, index % pixels, 1, 1)
            return
        lanes, vectors = machine.lanes("float32"), narrowing.TOGETHER
        if pixels < lanes * vectors:
            lanes, vectors = 1, 1
        width = lanes * vectors
        blocks = -(-pixels // width)
        with emit.tasks(images * blocks, 8 * images * channels * pixels, machine) as task:
            pixel = emit.let(
                emit.minimum(task % blocks * width, pixels - width)
            )  # the last are moved back, so that all are whole
            some(x, y, task // blocks, pixel, vectors, lanes)

    return Kernel(emit.function(arguments, body), spec.result_shape, spec.result.dtype)
