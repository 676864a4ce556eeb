"""From attribution to pictures, under its public name."""

from guided_backprop.show.render import colour_picture, diverging, heatmap, magnitude, overlay, picture, scale

__all__ = ["colour_picture", "diverging", "heatmap", "magnitude", "overlay", "picture", "scale"]
