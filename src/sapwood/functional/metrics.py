"""Measures of continual learning from a matrix of accuracies.

``accuracy[i, j]`` is the accuracy, a fraction in 0..1, on the test pictures of task j after learning task i, the
prediction being among all classes seen after task i; tasks count from 0. A cell that was not measured is NaN (or None).
No value is invented for it: a measure that needs it raises ValueError naming the cell. Cells above the diagonal (tasks
not yet learnt) matter to ``forward_transfer`` alone; rows may leave them out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Matrix: TypeAlias = Any  # [T, T]: nested sequences with None or NaN, numpy array, torch tensor
Weights: TypeAlias = Sequence[float] | NDArray[np.floating] | None


def incremental_accuracies(accuracy: Matrix, weights: Weights = None) -> list[float]:
    """A_i, the accuracy over all tasks seen after each task i = 0..T-1.

    A_i = sum_{j<=i} n_j accuracy[i, j] / sum_{j<=i} n_j. With n_j = test pictures of task j as ``weights`` it is the
    accuracy over all pictures (PyCIL's and PILOT's curve); without, the plain mean over tasks. The two differ where
    tasks differ in size.

    >>> incremental_accuracies([[1.0, None], [0.5, 0.75]], weights=[100, 300])
    [1.0, 0.6875]
    """
    matrix = _matrix(accuracy)
    size = _weights(weights, len(matrix))
    rows = [np.array([_cell(matrix, i, j) for j in range(i + 1)]) for i in range(len(matrix))]
    return [float(row @ size[: i + 1] / size[: i + 1].sum()) for i, row in enumerate(rows)]


def last_accuracy(accuracy: Matrix, weights: Weights = None) -> float:
    """Last-Acc: accuracy over all tasks after the last one, A_{T-1} of ``incremental_accuracies``.

    >>> last_accuracy([[1.0, None], [0.5, 0.75]])
    0.625
    """
    matrix = _matrix(accuracy)
    size = _weights(weights, len(matrix))
    row = np.array([_cell(matrix, len(matrix) - 1, j) for j in range(len(matrix))])
    return float(row @ size / size.sum())


def average_incremental_accuracy(accuracy: Matrix, weights: Weights = None) -> float:
    """Inc-Acc: mean over i of A_i (iCaRL, Rebuffi et al. 2017), nothing rounded before averaging.

    >>> average_incremental_accuracy([[1.0, None], [0.5, 0.75]])
    0.8125
    """
    return float(np.mean(incremental_accuracies(accuracy, weights)))


def forgetting(accuracy: Matrix) -> float:
    """Forgetting (Chaudhry et al. 2018, RWalk): how far each task fell below its best, mean over tasks.

    1/(T-1) sum_{j<T-1} ( max_{j<=l<=T-2} accuracy[l, j] - accuracy[T-1, j] ). Negative where later tasks helped; codes
    whose maximum includes the last row never show that. 0.0 for one task.

    >>> forgetting([[0.75, None, None], [1.0, 0.5, None], [0.5, 0.5, 1.0]])
    0.25
    """
    matrix = _matrix(accuracy)
    last = len(matrix) - 1
    if last == 0:
        return 0.0
    falls = []
    for j in range(last):
        best = max(_cell(matrix, i, j) for i in range(j, last))
        falls.append(best - _cell(matrix, last, j))
    return float(np.mean(falls))


def backward_transfer(accuracy: Matrix) -> float:
    """BWT (Lopez-Paz and Ranzato 2017, GEM): change of each task since it was learnt, mean over tasks.

    1/(T-1) sum_{j<T-1} ( accuracy[T-1, j] - accuracy[j, j] ). 0.0 for one task.

    >>> backward_transfer([[0.75, None], [0.5, 0.5]])
    -0.25
    """
    matrix = _matrix(accuracy)
    last = len(matrix) - 1
    if last == 0:
        return 0.0
    return float(np.mean([_cell(matrix, last, j) - _cell(matrix, j, j) for j in range(last)]))


def forward_transfer(accuracy: Matrix, baseline: Sequence[float] | NDArray[np.floating]) -> float | None:
    """FWT (Lopez-Paz and Ranzato 2017, GEM): what earlier tasks do for one not yet learnt, mean over tasks.

    1/(T-1) sum_{j>=1} ( accuracy[j-1, j] - baseline[j] ). In class-incremental learning accuracy[j-1, j] is 0 by
    construction (its classes are unknown), unless it was measured with a probe or with the task known.

    Args:
        accuracy: [T, T]; the cells just above the diagonal must have been measured.
        baseline: [T] accuracy of an untrained model on each task; the first entry is not used.

    Returns:
        A fraction; None for one task, where the measure is not defined.

    >>> forward_transfer([[0.75, 0.5], [0.5, 0.5]], baseline=[0.25, 0.25])
    0.25
    """
    matrix = _matrix(accuracy)
    untrained = _vector("baseline", baseline, len(matrix))
    if len(matrix) == 1:
        return None
    gains = [_cell(matrix, j - 1, j) - _entry("baseline", untrained, j) for j in range(1, len(matrix))]
    return float(np.mean(gains))


def learning_accuracy(accuracy: Matrix) -> float:
    """LA (Riemer et al. 2019, MER): mean of accuracy[j, j], each task just after it was learnt.

    >>> learning_accuracy([[0.75, None], [0.5, 0.25]])
    0.5
    """
    matrix = _matrix(accuracy)
    return float(np.mean([_cell(matrix, j, j) for j in range(len(matrix))]))


def intransigence(accuracy: Matrix, joint: Sequence[float] | NDArray[np.floating]) -> float:
    """Intransigence (Chaudhry et al. 2018, RWalk): what a task could not learn, mean over tasks.

    The paper's value of task j is joint[j] - accuracy[j, j]; this is the mean over all tasks. Negative where learning
    one after another did better.

    Args:
        accuracy: [T, T].
        joint: [T], accuracy on task j of a model trained at once on the data of tasks 0..j.

    >>> intransigence([[0.75, None], [0.5, 0.25]], joint=[0.75, 0.75])
    0.25
    """
    matrix = _matrix(accuracy)
    reference = _vector("joint", joint, len(matrix))
    gaps = [_entry("joint", reference, j) - _cell(matrix, j, j) for j in range(len(matrix))]
    return float(np.mean(gaps))


def _array(values: Any) -> NDArray[np.float64]:
    if hasattr(values, "detach"):  # a torch tensor, on whatever device
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def _matrix(accuracy: Matrix) -> NDArray[np.float64]:
    if isinstance(accuracy, list | tuple) and all(isinstance(row, list | tuple) for row in accuracy):
        accuracy = [[*row, *[None] * (len(accuracy) - len(row))] for row in accuracy]
    matrix = _array(accuracy)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) == 0:
        raise ValueError(f"accuracy must be [T, T] with T >= 1, got shape {matrix.shape}")
    wrong = np.argwhere((matrix < 0) | (matrix > 1))
    if len(wrong):
        i, j = wrong[0]
        raise ValueError(f"accuracies are fractions in 0..1, got accuracy[{i}, {j}] = {matrix[i, j]:g}")
    return matrix


def _vector(name: str, values: Any, tasks: int) -> NDArray[np.float64]:
    vector = _array(values)
    if vector.shape != (tasks,):
        raise ValueError(f"{name} must hold one value for each of {tasks} tasks, got shape {vector.shape}")
    return vector


def _weights(weights: Weights, tasks: int) -> NDArray[np.float64]:
    if weights is None:
        return np.ones(tasks)
    vector = _vector("weights", weights, tasks)
    if not (np.isfinite(vector) & (vector > 0)).all():
        raise ValueError(f"weights must be numbers of test pictures > 0, got {vector.tolist()}")
    return vector


def _cell(matrix: NDArray[np.float64], i: int, j: int) -> float:
    if np.isnan(matrix[i, j]):
        raise ValueError(f"accuracy[{i}, {j}] (task {j} after learning task {i}) is needed but was never measured")
    return float(matrix[i, j])


def _entry(name: str, vector: NDArray[np.float64], j: int) -> float:
    if not 0 <= vector[j] <= 1:
        raise ValueError(f"{name}[{j}] must be a fraction in 0..1, got {vector[j]:g}")
    return float(vector[j])
