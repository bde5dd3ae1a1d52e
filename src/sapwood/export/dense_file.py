"""The dense head without sapwood: convolutions with their normalisation folded in, and the lines that apply them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sapwood.heads.decoders import Aspp, ConvNorm, ParallelConv
from sapwood.heads.dense import DenseHead


def dense_file(head: DenseHead, channels: Sequence[int] | None) -> tuple[dict[str, Tensor], tuple[str, ...], str]:
    """Tensors, lines and form as in ``head_file.HeadFile``; ``channels`` of the classes that are wanted, None for all.

    The unknown class, where there is one, is the last channel whatever is wanted.
    """
    chosen = list(range(head.classes) if channels is None else channels)
    tensors, lines = _decoder(head)
    weight: Tensor = head.classifier.weight
    bias: Tensor = head.classifier.bias
    if head.unknown is not None:
        weight = torch.cat([weight, head.unknown.weight])
        bias = torch.cat([bias, head.unknown.get_parameter("bias")])
        chosen.append(head.classes)
    if head.stems is None:
        tensors |= {"classifier.weight": weight[chosen], "classifier.bias": bias[chosen]}
        found = 'F.conv2d(maps, head["classifier.weight"][:, :, None, None], head["classifier.bias"])'
        lines.append(f"found = {found}")
    else:
        lines.append("found = []")
        for number, (stem, rows) in enumerate(_by_stem(head, chosen)):
            tensors |= _folded(f"stem{number}", stem)
            tensors |= {f"classifier{number}.weight": weight[rows], f"classifier{number}.bias": bias[rows]}
        count = sum(name.startswith("stem") and name.endswith("weight") for name in tensors)
        lines += [
            f"for number in range({count}):",
            '    weight, bias = head[f"stem{number}.weight"], head[f"stem{number}.bias"]',
            "    read = F.relu(F.conv2d(maps, weight, bias, padding=1))",
            '    weight, bias = head[f"classifier{number}.weight"], head[f"classifier{number}.bias"]',
            "    found.append(F.conv2d(read, weight[:, :, None, None], bias))",
            "found = torch.cat(found, 1)",
        ]
    if head.temperature != 1.0:
        tensors["temperature"] = torch.tensor([head.temperature])
        lines.append('found = found / head["temperature"]')
    return tensors, (*lines, "return found"), f"dense, decoder {head.config.decoder}"


def decision_lines(head: DenseHead) -> tuple[str, ...]:
    """Statements from ``found`` [B, C, H, W], logits at the picture's size, to ``mask`` [B, H, W]."""
    if head.config.background == "unknown":
        return (
            "chances = found.sigmoid()  # the last channel is what is none of the classes: background too",
            "mask = torch.cat([chances[:, :1] + chances[:, -1:], chances[:, 1:-1]], 1).argmax(1)",
        )
    if head.config.background == "auxiliary":
        return (
            "found[:, 0] = 0  # the background is where no class reaches a probability of one half",
            "mask = found.argmax(1)",
        )
    return ("mask = found.argmax(1)",)


def _decoder(head: DenseHead) -> tuple[dict[str, Tensor], list[str]]:
    if head.decoder is None:
        return {}, []
    if isinstance(head.decoder, Aspp):
        tensors: dict[str, Tensor] = {}
        for number, scale in enumerate(head.decoder.scales):
            tensors |= _folded(f"scale{number}", scale)
        tensors |= _folded("pool", head.decoder.pool) | _folded("project", head.decoder.project)
        rates = [_convolution(scale).dilation for scale in head.decoder.scales]
        return tensors, [
            "seen = []",
            f"for number, rate in enumerate({rates}):",
            '    weight, bias = head[f"scale{number}.weight"], head[f"scale{number}.bias"]',
            "    reach = rate * (weight.shape[2] // 2)",
            "    seen.append(F.relu(F.conv2d(maps, weight, bias, padding=reach, dilation=rate)))",
            'whole = F.conv2d(maps.mean((2, 3), keepdim=True), head["pool.weight"], head["pool.bias"])',
            "seen.append(F.relu(whole).expand(-1, -1, *maps.shape[2:]))",
            'maps = F.relu(F.conv2d(torch.cat(seen, 1), head["project.weight"], head["project.bias"]))',
        ]
    tensors = _folded("decoder", head.decoder)
    reach = tensors["decoder.weight"].shape[2] // 2
    call = f'F.conv2d(maps, head["decoder.weight"], head["decoder.bias"], padding={reach})'
    return tensors, [f"maps = F.relu({call})"]


def _convolution(module: torch.nn.Module) -> ConvNorm:
    found = module.old if isinstance(module, ParallelConv) else module
    assert isinstance(found, ConvNorm)
    return found


def _folded(name: str, module: torch.nn.Module) -> dict[str, Tensor]:
    """Weight and bias of a convolution, with the normalisation behind it folded in, computed in float64."""
    if isinstance(module, torch.nn.Conv2d):
        assert module.bias is not None
        return {f"{name}.weight": module.weight, f"{name}.bias": module.bias}
    own = _convolution(module)
    if own.norm is None:
        return {f"{name}.weight": own.weight, f"{name}.bias": own.get_parameter("bias")}
    branch = own.folded()
    scale = branch.gamma.double() / (branch.var.double() + branch.eps).sqrt()
    bias = branch.beta.double() - branch.mean.double() * scale
    weight = branch.weight.double() * scale[:, None, None, None]
    return {f"{name}.weight": weight.float(), f"{name}.bias": bias.float()}


def _by_stem(head: DenseHead, channels: Sequence[int]) -> list[tuple[ConvNorm, list[int]]]:
    """Stems in the order of the channels, each with those it serves."""
    found: list[tuple[ConvNorm, list[int]]] = []
    for channel in channels:
        stem = head.stem_of(channel)
        assert stem is not None
        if found and found[-1][0] is stem:
            found[-1][1].append(channel)
        else:
            found.append((stem, [channel]))
    return found
