"""Writes the networks of `networks.py` as INT8 TFLite files, float32 in and out, for the LiteRT row of `run.py`.

    python benchmarks/models/export_tflite.py FOLDER

Needs TensorFlow (tensorflow-cpu), in an environment of its own. TFLite has no symmetric padding for stride 2, only
"same", which costs as much.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

layers = tf.keras.layers


def conv_bn(x, channels, kernel, stride, relu=True):
    x = layers.BatchNormalization()(layers.Conv2D(channels, kernel, stride, padding="same", use_bias=False)(x))
    return layers.ReLU()(x) if relu else x


def residual(x, channels, stride):
    y = conv_bn(conv_bn(x, channels, 3, stride), channels, 3, 1, relu=False)
    if stride != 1 or x.shape[-1] != channels:
        x = conv_bn(x, channels, 1, stride, relu=False)
    return layers.ReLU()(layers.Add()([x, y]))


def resnet(x, stages, depth, classes):
    for i, channels in enumerate(stages):
        for j in range(depth):
            x = residual(x, channels, 2 if i > 0 and j == 0 else 1)
    return layers.Dense(classes)(layers.GlobalAveragePooling2D()(x))


def resnet18():
    x = layers.Input((224, 224, 3))
    stem = layers.MaxPooling2D(3, 2, padding="same")(conv_bn(x, 64, 7, 2))
    return tf.keras.Model(x, resnet(stem, (64, 128, 256, 512), 2, 1000))


def resnet20():
    x = layers.Input((32, 32, 3))
    return tf.keras.Model(x, resnet(conv_bn(x, 16, 3, 1), (16, 32, 64), 3, 10))


def mobilenetv2():
    return tf.keras.applications.MobileNetV2(weights=None, classifier_activation=None)


def ffn():
    x = layers.Input((384,))
    return tf.keras.Model(x, layers.Dense(384)(layers.Dense(1536, activation="relu")(x)))


def export(model: tf.keras.Model) -> bytes:
    random = np.random.default_rng(0)
    shape = (1, *model.input_shape[1:])
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([random.standard_normal(shape, np.float32)] for _ in range(4))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    return converter.convert()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for make in (resnet18, mobilenetv2, resnet20, ffn):
        tf.keras.utils.set_random_seed(0)
        (folder / f"{make.__name__}.tflite").write_bytes(export(make()))
