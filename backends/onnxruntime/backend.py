"""ONNX Runtime as a backend, which also audits ONNX files, whoever made them."""

from __future__ import annotations

from graphopt.backends.onnxruntime.artifact import deploy, load, lower
from graphopt.backends.onnxruntime.audit.artifacts import audit
from graphopt.backends.onnxruntime.audit.files import audit_file, fix
from graphopt.backends.onnxruntime.devices import connect
from graphopt.backends.onnxruntime.simulate import simulate
from graphopt.evaluation.file_audit import FileAuditor

BACKEND = FileAuditor(
    name="onnxruntime",
    lower=lower,
    load=load,
    audit=audit,
    simulate=simulate,
    deploy=deploy,
    connect=connect,
    audit_file=audit_file,
    fix=fix,
)
