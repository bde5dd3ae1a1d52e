from __future__ import annotations

import numpy as np
import pytest
import torch

from sapwood.functional import losses


def log_softmax(rows: np.ndarray) -> np.ndarray:
    return rows - np.log(np.exp(rows).sum(1, keepdims=True))


def test_scope_is_a_softmax_over_its_columns(rng):
    logits = torch.randn(5, 6, generator=rng, requires_grad=True)
    scope, target = torch.tensor([4, 1, 5]), torch.tensor([1, 5, 4, 4, 1])
    loss = losses.scoped_cross_entropy(logits, target, scope)
    columns = log_softmax(logits.detach().numpy()[:, [1, 4, 5]])
    expected = -np.mean([columns[i, [1, 4, 5].index(c)] for i, c in enumerate(target.tolist())])
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    loss.backward()
    assert torch.equal(logits.grad[:, [0, 2, 3]], torch.zeros(5, 3))
    assert (logits.grad[:, [1, 4, 5]] != 0).all()


def test_scope_none_and_scope_of_all_agree(rng):
    logits, target = torch.randn(4, 3, generator=rng), torch.tensor([2, 0, 1, 1])
    whole = losses.scoped_cross_entropy(logits, target)
    assert whole == pytest.approx(losses.scoped_cross_entropy(logits, target, torch.arange(3)).item())
    assert whole.item() == pytest.approx(-log_softmax(logits.numpy())[range(4), target].mean(), abs=1e-6)


def test_target_outside_the_scope_is_refused():
    with pytest.raises(ValueError, match=r"classes \[0\].*scope \[1, 2\]"):
        losses.scoped_cross_entropy(torch.zeros(2, 3), torch.tensor([0, 1]), torch.tensor([1, 2]))


def test_distillation_by_hand_and_against_kl(rng):
    student = torch.randn(4, 5, generator=rng, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(4, 3, generator=rng, dtype=torch.float64, requires_grad=True)
    loss = losses.distillation(student, teacher, temperature=2.0)
    goal = np.exp(log_softmax(teacher.detach().numpy() / 2))
    found = log_softmax(student.detach().numpy()[:, :3] / 2)
    assert loss.item() == pytest.approx(-(goal * found).sum(1).mean(), abs=1e-12)
    loss.backward()
    assert teacher.grad is None
    assert torch.equal(student.grad[:, 3:], torch.zeros(4, 2, dtype=torch.float64))
    # Same gradient as the KL divergence, without the factor T^2.
    copy = student.detach().clone().requires_grad_()
    torch.nn.functional.kl_div(
        torch.log_softmax(copy[:, :3] / 2, 1), torch.softmax(teacher.detach() / 2, 1), reduction="batchmean"
    ).backward()
    assert torch.allclose(student.grad, copy.grad, atol=1e-12)


def test_distillation_refuses_a_teacher_with_more_classes():
    with pytest.raises(ValueError, match="teacher has 4 classes, the student 3"):
        losses.distillation(torch.zeros(1, 3), torch.zeros(1, 4))


def test_quadratic_penalty_skips_grown_rows(rng):
    now, then = torch.randn(5, 3, generator=rng), torch.randn(3, 3, generator=rng)
    fisher = torch.rand(3, 3, generator=rng)
    expected = 0.5 * sum(fisher[i, j].item() * (now[i, j] - then[i, j]).item() ** 2 for i in range(3) for j in range(3))
    found = losses.quadratic_penalty({"w": now, "other": now}, {"w": then}, {"w": fisher})
    assert found.item() == pytest.approx(expected, rel=1e-5)
    assert losses.quadratic_penalty({"w": now}, {}, {}).item() == 0
    with pytest.raises(ValueError, match="only grow"):
        losses.quadratic_penalty({"w": then}, {"w": now}, {"w": torch.ones(5, 3)})


def test_fisher_of_a_softmax_layer_by_formula(rng):
    """d CE / d W = (p - onehot) x^T, so the Fisher is the mean of its squares."""
    weight = torch.randn(3, 4, generator=rng, dtype=torch.float64, requires_grad=True)
    unused = torch.ones(2, dtype=torch.float64, requires_grad=True)
    x, y = torch.randn(6, 4, generator=rng, dtype=torch.float64), torch.tensor([0, 1, 2, 2, 1, 0])
    each = (losses.scoped_cross_entropy(x[i : i + 1] @ weight.T, y[i : i + 1]) for i in range(6))
    found = losses.fisher_diagonal(each, {"w": weight, "u": unused})
    p = np.exp(log_softmax((x @ weight.T).detach().numpy())) - np.eye(3)[y]
    expected = np.mean([np.outer(p[i], x[i].numpy()) ** 2 for i in range(6)], axis=0)
    assert np.allclose(found["w"].numpy(), expected, atol=1e-12)
    assert found["u"].tolist() == [0, 0]
    clipped = losses.fisher_diagonal([losses.scoped_cross_entropy(x @ weight.T, y)], {"w": weight}, clip=1e-4)
    mean_gradient = (p.T @ x.numpy() / 6) ** 2
    assert np.allclose(clipped["w"].numpy(), mean_gradient.clip(max=1e-4), atol=1e-12)
    assert clipped["w"].max() == 1e-4


def test_merge_fisher_both_conventions():
    old, new = {"w": torch.tensor([[4.0], [8.0]]), "gone": torch.ones(1)}, {"w": torch.tensor([[1.0], [2.0], [3.0]])}
    pycil = losses.merge_fisher(old, new, 2 / 3)
    assert torch.allclose(pycil["w"], torch.tensor([[3.0], [6.0], [3.0]]))
    assert torch.equal(pycil["gone"], torch.ones(1))
    online = losses.merge_fisher(old, new, 0.5, 1.0)
    assert torch.equal(online["w"], torch.tensor([[3.0], [6.0], [3.0]]))
    assert torch.equal(old["w"], torch.tensor([[4.0], [8.0]]))
    assert torch.equal(new["w"], torch.tensor([[1.0], [2.0], [3.0]]))
