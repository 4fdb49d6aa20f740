"""Which features are found again: between seeds, data orders and settings, against nulls, and in a known world."""

from clt_lightning.analysis.stability.comparison import Comparison, PairStability, compare, pair_stability
from clt_lightning.analysis.stability.coordinates import owned_coordinates, owners_against_others
from clt_lightning.analysis.stability.groups import anchors_against_others, by_rate, targets_written
from clt_lightning.analysis.stability.members import Member, member, of_folder, why_apart
from clt_lightning.analysis.stability.subspace import Overlap, subspace_overlap
from clt_lightning.analysis.stability.truth import code_correlations, mean_correlation

__all__ = [
    "Comparison",
    "Member",
    "Overlap",
    "PairStability",
    "anchors_against_others",
    "by_rate",
    "code_correlations",
    "compare",
    "mean_correlation",
    "member",
    "of_folder",
    "owned_coordinates",
    "owners_against_others",
    "pair_stability",
    "subspace_overlap",
    "targets_written",
    "why_apart",
]
