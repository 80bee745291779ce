"""How long to tune: trials to measure, or seconds to measure for."""

from __future__ import annotations

from dataclasses import dataclass

from graphopt.utils.errors import InputError


@dataclass(frozen=True)
class Budget:
    """Trials to measure, or seconds to measure for."""

    trials: int | None = None
    seconds: float | None = None

    @classmethod
    def of(cls, tune: int | str) -> Budget:
        """From 200 or "60s". Raises InputError where it is neither."""
        if isinstance(tune, str) and tune.isdecimal():
            tune = int(tune)
        if isinstance(tune, int) and not isinstance(tune, bool) and tune > 0:
            return cls(trials=tune)
        if isinstance(tune, str) and tune.endswith("s"):
            try:
                if 0 < (seconds := float(tune[:-1])) < float("inf"):
                    return cls(seconds=seconds)
            except ValueError:
                pass
        raise InputError(f"tune is a number of trials or of seconds such as '60s', got {tune!r}")
