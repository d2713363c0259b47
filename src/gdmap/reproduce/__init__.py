"""Results of papers, computed again: each statement beside what was found."""

from gdmap.reproduce.registry import REPRODUCTIONS, Reproduction, reproduce
from gdmap.reproduce.report import Claim, Report

__all__ = ["REPRODUCTIONS", "Claim", "Report", "Reproduction", "reproduce"]
