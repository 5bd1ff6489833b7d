"""The demo's picture: accuracies side by side, the range of each layer, the error up to each layer."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

import octet

COLORS = {
    "FP32": "#4a4a4a",
    "PTQ": "#d98032",
    "QAT": "#2f7fb8",
    "INT8": "#2b9e66",
    "PTQ w2": "#e8b98a",
    "QAT w2": "#8fbcdb",
}


def blocks(model: nn.Module) -> dict[str, octet.nn.Block]:
    """The quantized layers of a prepared model by their names in the original."""
    return {
        name.removeprefix("octet."): module
        for name, module in model.named_modules()
        if isinstance(module, octet.nn.Block)
    }


@torch.no_grad()
def outputs(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """What every quantized layer gives."""
    seen: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _, __, y, name=name: seen.__setitem__(name, y.clone()))
        for name, module in blocks(model).items()
    ]
    model(images)
    for hook in hooks:
        hook.remove()
    return seen


def signal_to_noise(model: nn.Module, images: Tensor) -> dict[str, float]:
    """For each layer, in dB: the float output against its difference to the quantized one, all before quantized."""
    quantized = outputs(model, images)
    octet.set_mode(model, fake_quantize=False)
    exact = outputs(model, images)
    octet.set_mode(model, fake_quantize=True)
    power = {name: (y.square().mean(), (y - quantized[name]).square().mean()) for name, y in exact.items()}
    return {name: 10 * torch.log10(signal / noise).item() for name, (signal, noise) in power.items()}


def draw(path: Path, title: str, rows: list, models: dict[str, nn.Module], images: Tensor) -> None:
    """Writes the picture for prepared `models` in eval mode; rows are the demo's table."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(16, 6), width_ratios=[1.3, 1.5, 1.5], layout="constrained")
    figure.suptitle(f"{title}: a residual network from FP32 to INT8", fontsize=14)
    _accuracies(axes[0], rows)
    _ranges(axes[1], models["QAT"], images)
    _errors(axes[2], {name: signal_to_noise(model, images) for name, model in models.items()})
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _accuracies(axis, rows: list) -> None:
    """Points, not bars: the axis does not start at 0."""
    for column, row in enumerate(rows):
        axis.scatter(column, row.accuracy, s=120, color=COLORS[row.name])
        text = f"{row.accuracy:.2f} %\n{row.size / 1000:.0f} kB"
        axis.annotate(text, (column, row.accuracy), (0, 9), textcoords="offset points", ha="center")
    axis.set_xticks(range(len(rows)), [row.name for row in rows])
    axis.set_xlim(-0.6, len(rows) - 0.4)
    accuracies = [row.accuracy for row in rows]
    axis.set_ylim(min(accuracies) - 1, max(accuracies) + 1)
    axis.grid(axis="y", alpha=0.3)
    axis.set(title="Accuracy on the test split, file size\n(w2: weights of 2 bits)", ylabel="percent")


def _ranges(axis, model: nn.Module, images: Tensor) -> None:
    seen = outputs(model, images)
    for row, (name, block) in enumerate(blocks(model).items()):
        grid = block.output
        scale, zero = float(grid.scale), int(grid.zero_point)
        low, high = scale * (grid.qmin - zero), scale * (grid.qmax - zero)
        axis.barh(row, high - low, left=low, color="#c9dcec", label="what the 256 codes cover" if row == 0 else None)
        inner = torch.quantile(seen[name].flatten()[:1_000_000], torch.tensor([0.001, 0.999])).tolist()
        axis.plot(
            inner,
            [row, row],
            color=COLORS["QAT"],
            lw=4,
            solid_capstyle="butt",
            label="99.8 % of the values" if row == 0 else None,
        )
    axis.axvline(0, color="black", lw=0.5)
    axis.use_sticky_edges = False  # a margin beside the widest range too
    axis.autoscale_view()
    axis.set_yticks(range(len(seen)), seen)
    axis.invert_yaxis()
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2, frameon=False)
    axis.set(title="Range of each layer's output (QAT)", xlabel="value")


def _errors(axis, decibels: dict[str, dict[str, float]]) -> None:
    height = 0.8 / len(decibels)
    for index, (name, layers) in enumerate(decibels.items()):
        rows = [row + (index - (len(decibels) - 1) / 2) * height for row in range(len(layers))]
        axis.barh(rows, list(layers.values()), height, color=COLORS[name], label=name)
    axis.set_yticks(range(len(layers)), layers)
    axis.invert_yaxis()
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2, frameon=False)
    axis.set(title="Signal to quantization noise up to each layer", xlabel="dB (more is better)")
