"""Pictures inside a page of HTML: as data URIs, made by Pillow alone."""

import base64
import io

from PIL import Image

from guided_backprop.show.colours import Picture

# Small pictures are enlarged by the page and keep each pixel; of large ones nobody sees what a JPEG loses.
EXACT = 128 * 128


def data_uri(pixels: Picture, largest: int = 512) -> str:
    """Return a picture as a URI that holds it: up to 16384 pixels a PNG, above a JPEG that keeps all its colour.

    Args:
        pixels: ``(H, W, 3)`` uint8.
        largest: a picture with a longer side is made smaller, to this.

    Example:
        >>> import numpy as np
        >>> from guided_backprop.show.embed import data_uri
        >>> data_uri(np.zeros((8, 8, 3), np.uint8))[:30]
        'data:image/png;base64,iVBORw0K'
    """
    image = Image.fromarray(pixels)
    # Only what is too large is made smaller.
    image.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    if image.width * image.height <= EXACT:
        kind = "png"
        image.save(file, "PNG", optimize=True)
    else:
        # Maps are noise of many colours: with the usual halved colour resolution, half of what they show is lost.
        kind = "jpeg"
        image.save(file, "JPEG", quality=85, subsampling=0, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
