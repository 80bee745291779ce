"""When an answer is good enough: stages that compute on until one is sure, no graph.

confidence.py   how sure an answer is, a number from 0 to 1
calibration.py  temperatures, and how far confidence is from accuracy
elementary.py   exp and log that are the same bits on every machine
learned.py      confidence that is fitted to data
limits.py       time that may be spent, for one sample and for a batch
policy.py       `Policy`: confidence, temperatures, thresholds
stages.py       stages one after the other; samples whose answer is good enough leave
thresholds.py   thresholds of all stages chosen together
"""

from graphopt.policies.policy import Policy
from graphopt.policies.stages import Network, Outcome, run_stages

__all__ = ["Network", "Outcome", "Policy", "run_stages"]
