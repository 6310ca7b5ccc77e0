"""Floor 6: continual learning: what a posterior, a penalty or a memory keeps of earlier tasks, and runs over tasks."""

from vogn.continual.average_accuracy import average_accuracy
from vogn.continual.backward_transfer import backward_transfer
from vogn.continual.errors import StoppedError
from vogn.continual.forgetting import forgetting
from vogn.continual.forward_transfer import forward_transfer
from vogn.continual.fromp import FROMP
from vogn.continual.function_distance import FunctionDistance
from vogn.continual.heads import MultiHead, select_head
from vogn.continual.laplace import OnlineLaplace, kronecker_laplace, online_ewc
from vogn.continual.memory_aware_synapses import MemoryAwareSynapses
from vogn.continual.method import ContinualMethod, adam
from vogn.continual.plain import FineTuning
from vogn.continual.registry import CONTINUAL_METHODS, ContinualInfo
from vogn.continual.replay import Replay
from vogn.continual.result import ContinualResult
from vogn.continual.runner import run_tasks
from vogn.continual.synaptic_intelligence import SynapticIntelligence
from vogn.continual.tasks import SCENARIOS, Task, permuted_tasks, split_tasks
from vogn.continual.training import train_step
from vogn.continual.variational import VariationalContinualLearning
from vogn.continual.watching import Watcher, progress_bar
from vogn.optim.prior_handover import use_as_prior

__all__ = [
    "CONTINUAL_METHODS",
    "ContinualInfo",
    "ContinualMethod",
    "ContinualResult",
    "FROMP",
    "FineTuning",
    "FunctionDistance",
    "MemoryAwareSynapses",
    "MultiHead",
    "OnlineLaplace",
    "Replay",
    "SCENARIOS",
    "StoppedError",
    "SynapticIntelligence",
    "Task",
    "VariationalContinualLearning",
    "Watcher",
    "adam",
    "average_accuracy",
    "backward_transfer",
    "forgetting",
    "forward_transfer",
    "kronecker_laplace",
    "online_ewc",
    "permuted_tasks",
    "progress_bar",
    "run_tasks",
    "select_head",
    "split_tasks",
    "train_step",
    "use_as_prior",
]
