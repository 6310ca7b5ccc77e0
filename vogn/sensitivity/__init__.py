"""Floor 6: what would a network say if it had not seen an example? Leave-one-out, influence, removed groups."""

from vogn.sensitivity.groups import without
from vogn.sensitivity.influence import influence
from vogn.sensitivity.leave_one_out import LeaveOneOut, leave_one_out

__all__ = ["LeaveOneOut", "influence", "leave_one_out", "without"]
