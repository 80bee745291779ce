"""The intermediate representation: the graph, what is known about its operators, and how it is kept.

graph.py            `Graph`: captured, called, copied, kept
module.py           its module, whose code is written when it is called
reading.py          what a graph says about its nodes
editing.py          how passes rewrite it
inline.py           a captured module as calls of another graph
selecting.py        calls that take one of two values, and the best of several
build.py            calls put in front of a node one after another
training.py         modes, parameters and checkpoints
inputs.py           what it is called with, checked
sizes.py            free sizes: names, ranges, and the dimensions that have them
facts.py            what passes know about nodes: `Fact`, each kind declared once
invalidation.py     which facts no longer hold after a constant was replaced
ops.py              what is known about each operator: `OpInfo`, `register`
calls.py            arguments of a call by name, and its value
layer.py            views of layers, pools and norms
averages.py         average pools as runtimes count
binary.py           a view of sums, differences, products and quotients
rules.py            rules by operator or family
arguments.py        the arguments of a call by name, and which were read
shapes.py           shapes with free sizes, derived by fake tensors
shape_rules.py      those that look like a call's first argument
derivation.py       which of them still hold after an edit
batches.py          samples of batches
passes.py           the contract of a pass: `Pass`, `Change`
quantizers.py       reading quantizers of a simulated graph
quantized_units.py  which quantizers belong to which layer
scales.py           which scales may change and what follows
masks.py            sparsity masks
choices.py          parts that can be had in several ways, all live in one graph
constants.py        calls that only constants lead to, computed once
float16.py          values in 16-bit floats
packed_bits.py      bits packed into bytes at an output
checkpoint.py       the captured model's own checkpoint
equal_calls.py      calls that compute the same
linears.py          products with constant matrices as linear layers
cost.py             multiply-accumulates, parameters, bytes, measured time
structure.py        nested inputs and outputs as JSON
storage.py          graphs in files
bounds.py           what a call of a graph from a file may take
schema.py           what a saved graph must look like before anything is built
plain_data.py       names and containers read from files, checked
stored_facts.py     facts as JSON
operators.py        which operators a file may name
raw_tensors.py      tensors as bytes, type and shape
encoding.py         arguments, operators and structures as JSON
program.py          a graph as `torch.export.ExportedProgram`
"""
