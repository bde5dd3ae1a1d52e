"""Between patches and classifiers of the dense head: convolutions, DeepLabV3's ASPP, RCIL's parallel branches."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sapwood.functional import branches as algebra
from sapwood.task import Task
from sapwood.world.sums import share, total

BranchStart = Literal["official", "preserve"]

ASPP_WIDTH = 256
KERNELS = {"conv1x1": 1, "conv3x3": 3}
_RATES = (6, 12, 18)  # for an output stride of 16
_EPS, _MOMENTUM = 1e-5, 0.1


class Norm(nn.Module):
    """Batch normalisation of maps [B, C, h, w].

    The batch's own statistics count, and move the running ones, only in training mode and while the scale trains: who
    freezes the parameters has frozen the statistics too. A batch with one number a channel (a pooled map of a single
    picture) has no variance; it is normalised by the running statistics.
    """

    mean: Tensor
    var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised [B, C, h, w]."""
        learning = self.training and self.weight.requires_grad
        if learning and share() is not None:
            return self._with_others(x)
        learns = learning and x.numel() > x.shape[1]
        return F.batch_norm(x, self.mean, self.var, self.weight, self.bias, learns, _MOMENTUM, _EPS)

    def _with_others(self, x: Tensor) -> Tensor:
        """The same in training where the batch lies with several processes in pieces."""
        own = float(bool(share()))
        count = total(torch.tensor(own * x.numel() / x.shape[1], device=x.device)).item()
        if count <= 1:
            return F.batch_norm(x, self.mean, self.var, self.weight, self.bias, False, _MOMENTUM, _EPS)
        mean = total(own * x.sum((0, 2, 3))) / count
        centred = x - mean.reshape(-1, 1, 1)
        var = total(own * centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.mean.lerp_(mean, _MOMENTUM)
            self.var.lerp_(var * count / (count - 1), _MOMENTUM)
        scale = self.weight * (var + _EPS).rsqrt()
        return centred * scale.reshape(-1, 1, 1) + self.bias.reshape(-1, 1, 1)


class ConvNorm(nn.Module):
    """A convolution [B, c, h, w] -> [B, C, h, w] without bias, and its normalisation.

    ``hold`` makes it a convolution with bias and without normalisation, which is what such a pair merges to.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel))
        self.register_parameter("bias", None)
        self.norm: Norm | None = Norm(outputs)
        self.dilation = dilation

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w]."""
        reach = self.dilation * (self.weight.shape[2] // 2)
        out = F.conv2d(x, self.weight, self.bias, padding=reach, dilation=self.dilation)
        return out if self.norm is None else self.norm(out)

    def hold(self, weight: Tensor, bias: Tensor) -> None:
        """Be the plain convolution of this weight [C, c, k, k] and bias [C], copied."""
        self.weight, self.bias = nn.Parameter(weight.detach().clone()), nn.Parameter(bias.detach().clone())
        self.norm = None

    def folded(self) -> algebra.Branch:
        """What ``merge_parallel_branches`` takes."""
        if self.norm is None:
            one, zero = torch.ones_like(self.bias), torch.zeros_like(self.bias)
            return algebra.Branch(self.weight, self.bias, gamma=one, beta=zero, mean=zero, var=one, eps=0.0)
        norm = self.norm
        return algebra.Branch(self.weight, None, norm.weight, norm.bias, norm.mean, norm.var, _EPS)


class ParallelConv(nn.Module):
    """Two branches for one convolution (RCIL, Zhang et al., CVPR 2022, arXiv 2203.05402; segmentation of its code).

    While a round is learned the output is the mean of both; in training each channel takes, for the whole batch, the
    old branch alone, the new one alone, or the mean. After the round both merge into ``old``, a plain convolution that
    is all that evaluation needs; from the second round on it is frozen and only ``new`` learns. In the first round
    both learn. The draws depend on the seed, the round and the number of training forwards so far (``forwards``, a
    buffer), hence a round that goes on from a checkpoint draws what an undisturbed one draws.

    Where the new branch of a later round begins: ``official``, as it ended the round before, so that opening changes
    the network's function (it then is half the merged branch and half the last round's new one); ``preserve``, as a
    copy of the merged branch, which has its normalisation in the weights: the function stays what it was.

    Args:
        label: distinguishes the draws of a decoder's convolutions.
    """

    forwards: Tensor

    def __init__(
        self, label: str, start: BranchStart, inputs: int, outputs: int, kernel: int, dilation: int = 1
    ) -> None:
        super().__init__()
        self.label, self.start = label, start
        self._make = partial(ConvNorm, inputs, outputs, kernel, dilation)
        self.old = self._make()
        self.new: ConvNorm | None = self._make()
        self.open = True
        self.task: Task | None = None
        self.register_buffer("forwards", torch.zeros((), dtype=torch.int64))

    @property
    def merged(self) -> bool:
        """Whether earlier rounds lie in ``old`` as a plain convolution."""
        return self.old.norm is None

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w]."""
        if not self.open:
            return self.old(x)
        assert self.new is not None
        old, new = self.old(x), self.new(x)
        if not (self.training and self.new.weight.requires_grad):
            return 0.5 * (old + new)
        if self.task is None:
            raise RuntimeError("parallel branches learn between before_task and after_task")
        generator = self.task.generator(f"branches/{self.label}/{int(self.forwards)}")
        self.forwards += 1
        weights = algebra.branch_weights(torch.rand(old.shape[1], generator=generator))
        mine, other = (weight.to(old).reshape(-1, 1, 1) for weight in weights)
        return 0.5 * (mine * old + other * new)

    def before_task(self, task: Task) -> None:
        """Open the branches for a round."""
        self.task = task
        self.forwards.zero_()
        if self.new is None:
            self.new = self._make().train(self.training)
            self.new.hold(self.old.weight, self.old.bias)
        self.open = True
        self.old.requires_grad_(not self.merged)
        self.new.requires_grad_(True)

    def rest(self) -> None:
        """Stay merged in a round."""
        self.open = False
        if self.start == "preserve":
            self.new = None

    def after_task(self) -> None:
        """Merge the branches, if they were open."""
        if not self.open:
            return
        assert self.new is not None
        with torch.no_grad():
            self.old.hold(*algebra.merge_parallel_branches(self.old.folded(), self.new.folded()))
        self.forwards.zero_()
        self.open = False
        if self.start == "preserve":
            self.new = None

    def take_form(self, *, merged: bool, is_open: bool) -> None:
        """Take the form that branches have at some point of a state's life; the values are loaded afterwards."""
        if (merged, is_open) == (self.merged, self.open):
            return
        self.old, self.new, self.open = self._make(), self._make(), is_open
        if merged:
            zeros = torch.zeros(len(self.old.weight))
            self.old.hold(self.old.weight, zeros)
            if self.start == "preserve":
                self.new.hold(self.new.weight, zeros)
        if merged and not is_open and self.start == "preserve":
            self.new = None
        self.to(self.forwards.device).train(self.training)


class Aspp(nn.Module):
    """Atrous spatial pyramid pooling as in DeepLabV3 (arXiv 1706.05587, sec. 3.3), for an output stride of 16.

    A 1x1 convolution, three 3x3 ones of dilation 6, 12 and 18, and the picture's mean, each to 256 channels with batch
    normalisation and ReLU; a 1x1 convolution with batch normalisation takes them together to 256. No dropout, as in
    the field's continual segmentation codes. Parallel branches are those of the four first convolutions, as in RCIL.
    """

    def __init__(self, dim: int, start: BranchStart | None) -> None:
        super().__init__()
        shapes = [(dim, ASPP_WIDTH, 1, 1), *((dim, ASPP_WIDTH, 3, rate) for rate in _RATES)]
        self.scales = nn.ModuleList(
            ConvNorm(*shape) if start is None else ParallelConv(str(index), start, *shape)
            for index, shape in enumerate(shapes)
        )
        self.pool = ConvNorm(dim, ASPP_WIDTH, 1)
        self.project = ConvNorm((len(shapes) + 1) * ASPP_WIDTH, ASPP_WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 256, h, w] before the last ReLU, of maps [B, d, h, w]."""
        seen = [F.relu(scale(x)) for scale in self.scales]
        whole = F.relu(self.pool(x.mean((2, 3), keepdim=True)))
        return self.project(torch.cat([*seen, whole.expand(-1, -1, *x.shape[2:])], 1))


def decoder_width(decoder: str, dim: int) -> int:
    """Channels behind a decoder, in front of the classifiers."""
    return ASPP_WIDTH if decoder == "aspp" else dim


def make_decoder(decoder: str, dim: int, start: BranchStart | None) -> nn.Module | None:
    """A decoder whose weights are still to be drawn or loaded; None for ``none``.

    Args:
        decoder: as in ``DenseConfig``.
        dim: width of the patches.
        start: where the new of two parallel branches begins; None for single branches.
    """
    if decoder == "none":
        return None
    if decoder == "aspp":
        return Aspp(dim, start)
    if start is not None:
        return ParallelConv("0", start, dim, dim, KERNELS[decoder])
    # Without the initialisation of its own, which would draw from the global generator.
    return nn.utils.skip_init(nn.Conv2d, dim, dim, KERNELS[decoder], padding=KERNELS[decoder] // 2)


def draw_weights(module: nn.Module, generator: torch.Generator) -> None:
    """He's uniform initialisation of all convolutions, on the CPU: a seed gives the same weights on every device."""
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d | ConvNorm):
                drawn = 2 * torch.rand(layer.weight.shape, generator=generator) - 1
                layer.weight.copy_(drawn * math.sqrt(6 / layer.weight[0].numel()))
                if layer.bias is not None:
                    layer.bias.zero_()
