"""Check a torch Mixer: name what makes it another function than the official one, and mend it.

pip install 'mixer_equiv[torch]'
python examples/check_torch.py
"""

from __future__ import annotations

from torch import Tensor, nn

from mixer_equiv import verify

IMAGE = 3, 12, 12  # channels, height, width


class MyMixer(nn.Module):
    """Images (batch, 3, 12, 12) to logits (batch, 7), with torch's defaults."""

    def __init__(self, hidden: int = 20, depth: int = 4) -> None:
        super().__init__()
        self.patchify = nn.Conv2d(3, hidden, 4, 4)
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(2 * depth + 1))
        self.across = nn.ModuleList(self.mlp(9, 11) for _ in range(depth))
        self.along = nn.ModuleList(self.mlp(hidden, 26) for _ in range(depth))
        self.classify = nn.Linear(hidden, 7)

    def mlp(self, size: int, width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(size, width), nn.GELU(), nn.Linear(width, size))

    def forward(self, images: Tensor) -> Tensor:
        x = self.patchify(images).flatten(2).mT
        for i, (across, along) in enumerate(zip(self.across, self.along, strict=True)):
            x = x + across(self.norms[2 * i](x).mT).mT
            x = x + along(self.norms[2 * i + 1](x))
        logits: Tensor = self.classify(self.norms[-1](x).mean(dim=1))
        return logits


def main() -> None:
    model = MyMixer()
    report = verify(model, image=IMAGE)
    print(report)
    for cause in report.causes:
        print(f"{cause.name} is {cause.found}, and should be {cause.expected}: {cause.count}")
    assert report.verdict == "equivalent_under"

    for module in model.modules():
        if isinstance(module, nn.GELU):
            module.approximate = "tanh"
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6
    mended = verify(model, image=IMAGE)
    print(mended.summary())
    assert mended.verdict == "equivalent"


if __name__ == "__main__":
    main()
