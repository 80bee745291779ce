"""What is deployed, and what is said about it.

artifact.py   `Artifact`: called like the model, saved as a folder
calling.py    what an artifact is called with
lowered.py    what a backend leaves in a folder, described
manifest.py   the description of a folder
memory.py     whether C and objects fit a microcontroller
schemas.py    JSON Schemas of reports and manifests
labels.py     names of classes
report.py     steps and measurements
report_text.py   a report in words and tables
report_page.py   a report as one page of HTML
network.py    a network call by call, as reports have it
drawing.py    the same as a picture
profile.py    what each kernel of an artifact takes
audit.py      what a lowered model computes in integer
registry.py   the runtimes there are
backend.py    what a backend is
packing.py    weights in packed codes
storage.py    its files entropy-coded into one
sliced.py     artifacts of fixed shapes: a batch in slices
staged.py     artifacts of stages, between which the host decides
staged_usage.py  a program that runs those
opening.py    from a saved folder to the artifact in it
usage.py      a program that runs an artifact without graphopt
"""
