"""Port a Mixer that was trained in Flax to PyTorch and timm, and prove both ports on real images.

    pip install 'mixer_equiv[torch,flax,test]'
    python examples/port_and_prove.py
    python examples/port_and_prove.py --output-dir ported

The checkpoint is the one in the package, of handwritten digits; put the path of yours in its place. Writes
digits_torch.safetensors, digits_timm.safetensors, report.json and report.html.
"""

from __future__ import annotations

import argparse
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mixer_equiv import MixerConfig, convert, load, save, verify
from mixer_equiv.data import digits
from mixer_equiv.models.torch import MlpMixer
from mixer_equiv.render import to_html


def main(output_dir: Path) -> None:
    output_dir.mkdir(parents=True, exist_ok=True)
    params = load(digits.CHECKPOINT)
    images, labels = digits.held_out()  # (batch, height, width, channels) and (batch,)
    image = params.config.in_channels, *params.config.image_hw

    state = convert(params, to="torch")
    model = MlpMixer(state.config).eval()
    model.load_state_dict(state, strict=True)
    with torch.inference_mode():
        predictions = model(torch.from_numpy(images).permute(0, 3, 1, 2)).argmax(1).numpy()
    print(f"PyTorch is right on {np.mean(predictions == labels):.1%} of {len(labels)} held-out digits")

    report = verify(params, state, images=images, labels=labels)
    print(report)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that timm's code computes another GELU, which is set below
        timm_state = convert(params, to="timm")
    timm_mixer = "timm.models.mlp_mixer:MlpMixer"
    timm_report = verify(timm_mixer, weights=timm_state, kwargs=timm_kwargs(params.config), image=image)
    print(f"timm: {timm_report.summary()}")

    save(state, output_dir / "digits_torch.safetensors")
    save(timm_state, output_dir / "digits_timm.safetensors")
    (output_dir / "report.json").write_text(report.to_json(), encoding="utf-8")
    (output_dir / "report.html").write_text(to_html(report), encoding="utf-8")
    assert report.verdict == timm_report.verdict == "equivalent"


def timm_kwargs(config: MixerConfig) -> dict[str, Any]:
    """What timm's class takes for a Mixer of these sizes with the activation of the official weights."""
    return {
        "num_classes": config.num_classes,
        "img_size": config.image_hw,
        "in_chans": config.in_channels,
        "patch_size": config.patch_hw[0],
        "num_blocks": config.num_blocks,
        "embed_dim": config.hidden_dim,
        "mlp_ratio": (config.tokens_mlp_dim / config.hidden_dim, config.channels_mlp_dim / config.hidden_dim),
        "act_layer": partial(torch.nn.GELU, approximate="tanh"),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Port a trained Mixer to PyTorch and timm, and prove both ports.")
    parser.add_argument("--output-dir", type=Path, default=Path("ported"))
    main(parser.parse_args().output_dir)
