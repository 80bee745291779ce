"""Rebuilding parts of a changed graph on data, so that they give what the original gave.

fit.py             the loop: regions in execution order, solved, judged on samples held out, stored
region.py          what is fitted together: a layer, a chain, a block
samples.py         inputs and wanted results of a region, some held out
residual.py        errors of residual streams that a layer makes up for
journal.py         what is done already, in files
importance.py      errors weighted by the squared gradient of the loss
least_squares.py   solver and parametrization: weight and bias of a layer by least squares
rounding.py        solver: integer codes that minimize a quadratic error, by coordinate descent
priced.py          solver: codes of few bits, errors fed back column by column
gradient.py        solver: gradient descent on whatever is learnable
losses.py          losses for sensitivity
"""
