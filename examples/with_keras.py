"""Keras, on whichever backend it runs: train a small network on digits, explain some that it did not see.

Run: KERAS_BACKEND=tensorflow python examples/with_keras.py maps.png   (or torch, or jax)
"""

import sys

import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits

from guided_backprop import GuidedBackprop, Saliency, compare


def main(target: str) -> None:
    """Draw the maps of three digits into ``target``."""
    digits = load_digits()
    images, labels = digits.images[..., None].astype("float32") / 16, digits.target
    seed = keras.random.SeedGenerator(0)
    draw = {"kernel_initializer": keras.initializers.HeNormal(seed), "activation": "relu"}
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, padding="same", **draw),
            layers.Conv2D(16, 3, **draw),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(10, activation="softmax", kernel_initializer=keras.initializers.GlorotUniform(seed)),
        ]
    )
    model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy")
    model.fit(images[:1500], labels[:1500], batch_size=50, epochs=8, shuffle=False, verbose=0)

    unseen, right = images[1500:], labels[1500:]
    print(f"{(model.predict(unseen, verbose=0).argmax(1) == right).mean():.0%} of {len(unseen)} digits are right")
    shown = [int(np.argmax(right == digit)) for digit in (0, 3, 7)]
    found = compare(unseen[shown], right[shown], [Saliency(model), GuidedBackprop(model)])
    print(f"{keras.backend.backend()}: {found[1].coverage}; explained is what is in front of the {found[1].head}")
    found[0].plot(methods=found).savefig(target)


if __name__ == "__main__":
    main(sys.argv[1])
