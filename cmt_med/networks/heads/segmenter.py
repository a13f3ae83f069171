"""A segmentation network: an encoder and a decoder."""

from __future__ import annotations

from torch import Tensor, nn

from cmt_med.blocks.conv import channels_last, channels_last_weights


class Segmenter(nn.Module):
    """Maps an image (B, C, *S) of any size to logits (B, num_classes, *S).

    Under deep supervision, a list of logits in train mode, finest first.

    Args:
        encoder: from an image to grids, finest first.
        decoder: from these grids and the image to logits.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        channels_last_weights(self)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        image = channels_last(x)
        result: Tensor | list[Tensor] = self.decoder(self.encoder(image), image)
        return result
