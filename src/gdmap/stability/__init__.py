"""At which step sizes minima are stable."""

from gdmap.stability.critical_step_size import CriticalStepSize, critical_step_size

__all__ = ["CriticalStepSize", "critical_step_size"]
