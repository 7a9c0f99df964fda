"""Layers for CPUs, where XLA's own are slow.

oneDNN, where it is installed, computes convolutions; max pooling and batch normalisation are in C++. Other devices and
types, and whoever asks for `forms.plain_forms`, get XLA's own operations.
"""
