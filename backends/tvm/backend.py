"""TVM as a backend."""

from __future__ import annotations

from graphopt.artifacts.backend import Backend
from graphopt.backends.tvm.artifact import audit, load
from graphopt.backends.tvm.connection import connect
from graphopt.backends.tvm.float16 import deploy
from graphopt.backends.tvm.lowering import check_graph, check_tuning, lower
from graphopt.backends.tvm.simulate import simulate
from graphopt.backends.tvm.staged import compile_stages, hold_stages

BACKEND = Backend(
    name="tvm",
    lower=lower,
    load=load,
    audit=audit,
    simulate=simulate,
    deploy=deploy,
    connect=connect,
    check_graph=check_graph,
    check_tuning=check_tuning,
    tune=lower,
    hold_stages=hold_stages,
    compile_stages=compile_stages,
)
