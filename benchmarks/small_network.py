"""A small network of Keras, of a few milliseconds: on the backend that is chosen before it is imported."""

import keras


def small() -> keras.Model:
    layers = [keras.Input((32, 32, 3))]
    for width in (32, 64):
        layers += [keras.layers.Conv2D(width, 3, padding="same", activation="relu"), keras.layers.MaxPool2D()]
    return keras.Sequential([*layers, keras.layers.Flatten(), keras.layers.Dense(10)])
