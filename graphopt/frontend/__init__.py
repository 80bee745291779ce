"""From a PyTorch model to a graph.

capture.py         `torch.export` and what follows it
translation.py     from a traced program to a graph
dynamic_shapes.py  which sizes are to be free
free_sizes.py      which of them a traced program leaves free
other_sizes.py     whether a graph answers as the model does on other sizes
exported_file.py   `.pt2` files read without running anything of them
exported_schema.py what the description of an exported program may hold
compare.py         whether a graph answers what the model answers
programs.py        exported programs as modules
preconditions.py   what must hold before a model is captured
infer_inputs.py    example inputs guessed from the model
pixels.py          a graph that takes pixels, from one that takes normalized images
decoders.py        causal language models with their cache as inputs and outputs
copies.py          modules copied for capture
functionalize.py   in-place operators removed
normalize.py       regions, assertions and what computes nothing removed
operator_variants.py  several spellings of one operator made one
squeezes.py        squeeze where a size is free
signature.py       names of inputs and outputs
diagnose.py        why a model cannot be captured
"""
