"""Layers for CPUs, on which XLA's own layers are slow.

Convolutions use oneDNN if it is installed; max pooling and batch normalisation are in C++. Other devices and dtypes,
and code inside `forms.plain_forms`, use XLA's own operations.
"""
