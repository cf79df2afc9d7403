"""ONNX export: the traced model with absorbed attention and whole mixtures of experts, as a standard ONNX model."""

from .export import export_onnx

__all__ = ["export_onnx"]
