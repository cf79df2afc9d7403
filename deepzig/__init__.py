"""DeepZig: an ahead-of-time compiler for DeepSeek-class language models."""

__version__ = "0.1.0"
