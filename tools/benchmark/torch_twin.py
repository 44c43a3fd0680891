"""The same network in PyTorch: layer by layer from a Keras encoder, with its weights."""

import numpy as np
import torch
from torch import nn

from vggvox_tf.frontend import FRAME_LENGTH, FRAME_STEP, LOG_OFFSET


class FrontEnd(nn.Module):
    """frontend.Spectrogram with 512 rows or 257, logarithm and normalisation over time, by torch.stft."""

    def __init__(self, rows, fft_length):
        super().__init__()
        self.rows, self.fft_length = rows, fft_length
        self.register_buffer("window", torch.hamming_window(FRAME_LENGTH))

    def forward(self, waveforms):
        around = (self.fft_length - FRAME_LENGTH) // 2  # torch.stft centres the window in the FFT
        spectra = torch.stft(
            nn.functional.pad(waveforms, (around, around)), self.fft_length, FRAME_STEP, FRAME_LENGTH, self.window,
            center=False, return_complex=True,
        )  # fmt: skip
        x = torch.log(spectra.abs()[:, : self.rows] + LOG_OFFSET)
        deviation, mean = torch.std_mean(x, 2, correction=0, keepdim=True)
        return ((x - mean) / deviation)[:, None].contiguous(memory_format=torch.channels_last)


class Twin(nn.Module):
    """A Keras encoder of this project (VGG-M, ResNets; average pooling) with a linear classifier on top."""

    def __init__(self, encoder, classes):
        super().__init__()
        self.layers = nn.ModuleDict()
        self.steps = []  # (name of the result, its module's or operation's, names of the inputs)
        padding = 0
        for layer in encoder.layers:
            inputs = [tensor._keras_history.operation.name for tensor in _inputs(layer)]
            kind = type(layer).__name__
            if kind == "InputLayer":
                continue
            if kind == "ZeroPadding2D":  # of the convolution or pooling after it, which pad by themselves
                padding = layer.padding[0][0]
                self.steps.append((layer.name, None, inputs))
                continue
            module = _module(layer, kind, padding)
            padding = 0
            if module is not None:
                self.layers[layer.name] = module
            self.steps.append((layer.name, kind, inputs))
        self.source, self.result = encoder.input._keras_history.operation.name, self.steps[-1][0]
        self.classifier = nn.Linear(encoder.output_shape[-1], classes)

    def embed(self, waveforms):
        results = {self.source: waveforms}
        for name, kind, inputs in self.steps:
            values = [results[each] for each in inputs]
            if kind == "Add":
                results[name] = values[0] + values[1]
            elif kind == "GlobalAveragePooling2D":
                results[name] = values[0].mean((2, 3))
            else:
                results[name] = values[0] if kind is None else self.layers[name](values[0])
        return results[self.result]

    def forward(self, waveforms):
        return self.classifier(self.embed(waveforms))


def _inputs(layer):
    inputs = getattr(layer, "input", [])
    return inputs if isinstance(inputs, list) else [inputs]


def _module(layer, kind, padding):
    """The module of a Keras layer, None for those without any."""
    weights = [torch.from_numpy(np.ascontiguousarray(value)) for value in layer.get_weights()]
    if kind == "Spectrogram":
        return FrontEnd(layer.rows, layer.fft_length)
    if kind == "Conv2D":
        if layer.padding == "same":
            padding = layer.kernel_size[0] // 2
        kernel = weights[0].permute(3, 2, 0, 1).contiguous()
        module = nn.Conv2d(kernel.shape[1], kernel.shape[0], layer.kernel_size, layer.strides, padding, bias=False)
        module.weight.data = kernel
        return module
    if kind == "BatchNormalization":
        images = len(layer.output.shape) == 4
        module = (nn.BatchNorm2d if images else nn.BatchNorm1d)(len(weights[0]), layer.epsilon, 1 - layer.momentum)
        module.weight.data, module.bias.data, module.running_mean, module.running_var = weights
        return module
    if kind == "ReLU":
        return nn.ReLU(inplace=True)
    if kind == "MaxPooling2D":
        return nn.MaxPool2d(layer.pool_size, layer.strides, padding)
    if kind == "Dense":
        module = nn.Linear(*weights[0].shape, bias=layer.use_bias)
        module.weight.data = weights[0].T.contiguous()
        if layer.use_bias:
            module.bias.data = weights[1]
        return module
    if kind in ("Add", "GlobalAveragePooling2D"):
        return None
    raise ValueError(f"no twin for a layer of kind {kind}")
